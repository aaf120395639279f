"""Frames of many fragments and offloads on an emulated NIC: the real one's cases and slow model (tests/nic/test_chains.py)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hyp.abi.features import CSUM, SG
from hyp.abi.fragment import MIN_SEGMENT
from hyp.abi.nic import (
    DESC_MORE,
    MAX_FRAGMENTS,
    MAX_LONE_FRAME,
    MIN_BUFFER,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_CHAIN,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_OK,
)
from hyp.atomics import u32_sub
from hyp.control import Refused
from hyp.fairness.cutting import CREDIT_NS, PART_NS
from hyp.kernels import entry, i64
from hyp.monitor.machine import machine_at, serve
from tests.nic.test_chains import ALL, BLANK, CASES, GSO, HOSTILE, MTU, exchange, fragments_of, packet, post_chain
from tests.support.fuzz import SEED, TIERS, fuzz
from tests.support.guests import JUST_BELOW_WRAP, WIRE_MAC, Guest, eventually
from tests.support.packets import cut
from tests.support.peers import Bench, well
from tests.support.trapped_guests import counted, faults_and_drops, of, published, trap, trapped

pytestmark = pytest.mark.usefixtures("warm")


@contextmanager
def two(features: int = ALL, **options: Any) -> Iterator[tuple[Bench, Guest, Guest]]:
    """A trapped guest, and one with a context of its own; both accept everything, or `features` is what the first one does."""
    options.setdefault("mtu", MTU)
    with Bench(**options) as bench:
        yield bench, trapped(bench, features=features), bench.guest(features=ALL, memory=4 << 20)


@pytest.mark.parametrize(("sender", "receiver"), [(trapped, Bench.guest), (Bench.guest, trapped), (trapped, trapped)])
@TIERS
def test_the_device_model_does_what_the_nic_does(
    examples: int, sender: Callable[..., Guest], receiver: Callable[..., Guest]
) -> None:
    seen: set[str] = set()
    fuzz(lambda case: exchange(case, seen, sender, receiver), CASES, 6 * examples)
    assert seen == {"whole", "cut", "filled", "fragments", "one"}, SEED


LEFT_TO_THE_NIC = {"longer than the MTU": "faults_offload"}
"""What a frame would be segmented into the device model does not look at."""


@pytest.mark.parametrize("which", HOSTILE)
@pytest.mark.parametrize("start", [0, JUST_BELOW_WRAP], ids=["from 0", "over the wrap"])
def test_a_chain_that_is_no_good_is_refused_whole(which: str, start: int) -> None:
    lengths, more, status, fault, drop = HOSTILE[which]
    with Bench(mtu=MTU) as bench:
        anna, bert = trapped(bench, start=start, features=ALL), bench.guest()
        post_chain(anna, lengths, **more)
        if which in LEFT_TO_THE_NIC:
            assert anna.sent(1) == [STATUS_OK]
            bench.at_rest(1)
            assert bench.drops() == {drop: 1}
            assert faults_and_drops(bench, anna) == {}
        else:
            assert anna.sent(1) == [status]
            counted(bench, anna, {fault: 1, drop: 1})
            assert "tx_frames" not in of(bench, anna, "uplink")
        assert int(anna.q["sq_done"]) == int(anna.q["sq_prod"])
        well(bench, anna, bert)


def test_what_has_not_been_accepted_is_refused() -> None:
    with two(CSUM) as (bench, anna, bert):
        anna.send_chain([anna.frame(WIRE_MAC), anna.frame(WIRE_MAC)])
        assert anna.sent(2) == [STATUS_BAD_FLAGS, STATUS_OK], "MORE is a flag like others"
        one = packet(anna, WIRE_MAC, 1000)
        anna.send_chain([bytes(one)], BLANK | GSO[4], 100)
        assert anna.sent(1) == [STATUS_BAD_OFFLOAD]
        assert anna.send_one(anna.tx_pool, MAX_LONE_FRAME + 1) == STATUS_BAD_LENGTH, "more than goes on in one piece"
        counted(bench, anna, {
            "faults_descriptor": 2, "faults_offload": 1, "drop_bad_frame": 2, "drop_oversize": 1,
        })  # fmt: skip
        well(bench, anna, bert)


def test_what_has_not_been_offered_can_not_be_accepted() -> None:
    with Bench() as bench, pytest.raises(Refused, match="has not been offered"):
        trapped(bench, features=1 << 20)


def test_a_long_frame_in_one_descriptor() -> None:
    """A fragment may be longer than any buffer of the device model's."""
    with two(mtu=9000) as (bench, anna, bert):
        content = anna.frame(bert.mac, 9000)
        anna.write(anna.tx_pool, content)
        bert.post_buffers(3)
        assert anna.send_one(anna.tx_pool, 9000) == STATUS_OK
        assert bert.take_frame() == (0, 0, content)
        assert anna.send_one(anna.mapping.size - 100, 9000) == STATUS_BAD_ADDRESS
        counted(bench, anna, {"faults_address": 1, "drop_bad_address": 1})


def test_an_address_out_of_reach_in_the_middle_of_a_chain() -> None:
    with two() as (bench, anna, bert):
        for addr, flags in ((anna.tx_pool, DESC_MORE), (anna.mapping.size - 63, DESC_MORE), (anna.tx_pool, 0)):
            anna.post(addr, 64, flags)
        anna.ring()
        assert anna.sent(1) == [STATUS_BAD_ADDRESS]
        counted(bench, anna, {"faults_address": 1, "drop_bad_address": 1})
        well(bench, anna, bert)


def _sleeps(bench: Bench) -> bool:
    """True if the VMM's loop sleeps: it does not run round and round."""
    thread = bench.hypervisor.system.emulation.threads()["vmm"]
    return Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _fill(bench: Bench, anna: Guest, receiver: Guest, frames: int) -> None:
    """Have `frames` small frames wait on the device model's queue on the NIC, for a receiver without a buffer."""
    anna.send(*(anna.frame(receiver.mac, sequence=k) for k in range(frames)))
    assert anna.sent(frames) == [STATUS_OK] * frames


def test_a_chain_waits_for_room_on_the_nic_and_is_judged_when_there_is_some() -> None:
    with two(pause_us=60_000_000) as (bench, anna, bert):
        _fill(bench, anna, bert, 60)
        one = packet(anna, bert.mac, 30_000)  # eight buffers of the device model's
        anna.send_chain(fragments_of(bytes(one), 2000), BLANK | GSO[4], 1448)
        eventually(lambda: _sleeps(bench), "the loop to sleep until the NIC has room")
        assert not anna._is_new(anna.scq, int(anna.q["scq_cons"]))
        bert.post_buffers(64)
        assert len(bert.take(60)) == 60
        bert.post_buffers(10)
        assert bert.take_frame() == (BLANK | GSO[4], 1448, bytes(one))
        assert anna.sent(1) == [STATUS_OK]
        assert faults_and_drops(bench, anna) == bench.drops() == {}


def test_a_chain_that_changes_while_it_waits_is_what_it_is_when_it_is_taken() -> None:
    with two(pause_us=60_000_000) as (bench, anna, bert):
        _fill(bench, anna, bert, 60)
        first = int(anna.q["sq_prod"])
        anna.send_chain(fragments_of(bytes(packet(anna, bert.mac, 30_000)), 2000), BLANK | GSO[4], 1448)
        anna.sq[(first + 3) % anna.entries]["length"] = 0
        bert.post_buffers(64)
        assert anna.sent(1) == [STATUS_BAD_CHAIN]
        counted(bench, anna, {"faults_chain": 1, "drop_bad_frame": 1})
        assert len(bert.take(60)) == 60
        bench.at_rest(60)


def test_a_frame_waits_until_the_guest_has_buffers_for_all_of_it() -> None:
    with two(pause_us=60_000_000) as (bench, anna, bert):
        one = packet(bert, anna.mac, 20_000)
        bert.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1448)
        assert bert.sent(1) == [STATUS_OK]
        for _ in range(4):
            anna.post_buffers(1)
            eventually(lambda: _sleeps(bench), "the loop to sleep until there are more")
            assert anna.waiting() == 0
        anna.post_buffers(1)
        assert anna.take_frame() == (BLANK | GSO[4], 1448, bytes(one))
        published(bench, anna, 1)
        assert faults_and_drops(bench, anna) == bench.drops() == {}


@entry(i64(i64, i64, i64))
def take_turn(machine: int, platform: int, now: int) -> int:
    """A turn, at `now`, of a machine that the loop leaves alone. Returns how many descriptors were sent in it."""
    m = machine_at(machine)
    before = m.sq_cons
    serve(m, platform, now)
    return int(u32_sub(m.sq_cons, before))


def test_who_sends_frames_that_become_very_many_waits_for_as_long_as_the_nic_takes() -> None:
    """Of frames that become as many as an MTU of 1500 asks for, every turn has all."""
    with two() as (bench, anna, _):
        record = bench.hypervisor.system.emulation._records[0:1]
        platform = bench.hypervisor.system.platform_page.address
        eventually(lambda: _sleeps(bench), "the loop to sleep")
        record["active"] = 0
        words, anna.words = anna.words, {}

        def post(length: int, segment: int, frames: int) -> None:
            for _ in range(frames):
                fragments = fragments_of(bytes(packet(anna, WIRE_MAC, length)), PAGE)
                anna.send_chain(fragments, BLANK | GSO[4], segment)
            record["sq_prod"] += frames * len(fragments)

        now = time.monotonic_ns()
        post(1448 * 45, 1448, 4)
        assert [take_turn(record.ctypes.data, platform, now) for _ in range(3)] == [48, 16, 0], (
            "BUDGET_BYTES, and the rest of a frame"
        )
        bench.at_rest()  # the NIC has room for more
        now += 4 * 45 * PART_NS
        post(1300 * MIN_SEGMENT, MIN_SEGMENT, 2)
        later = now + 1300 * PART_NS - CREDIT_NS
        moments = (now, now, later - 1, later, later)
        assert [take_turn(record.ctypes.data, platform, moment) for moment in moments] == [16, 0, 0, 16, 0]
        assert anna.sent(6) == [STATUS_OK] * 6
        record["active"], anna.words = 1, words
        bench.at_rest()


def test_the_loop_goes_on_with_who_has_waited() -> None:
    with two() as (bench, anna, _):
        for _ in range(2):
            for _ in range(4):
                one = packet(anna, WIRE_MAC, 1300 * MIN_SEGMENT)
                anna.send_chain(fragments_of(bytes(one), PAGE), BLANK | GSO[4], MIN_SEGMENT)
            assert anna.sent(4) == [STATUS_OK] * 4
        bench.at_rest()


@pytest.mark.parametrize(
    ("addr", "length", "flags", "status", "found"),
    [
        (0, 0, 0, STATUS_BAD_LENGTH, {"faults_descriptor": 1, "drop_small_buffer": 1}),
        (0, PAGE, DESC_MORE, STATUS_BAD_LENGTH, {"faults_descriptor": 1, "drop_small_buffer": 1}),
        (-1, PAGE, 0, STATUS_BAD_ADDRESS, {"faults_address": 1, "drop_bad_address": 1}),
        ((1 << 63) - 8, PAGE, 0, STATUS_BAD_ADDRESS, {"faults_address": 1, "drop_bad_address": 1}),
    ],
)
def test_a_buffer_that_is_no_good_uses_up_those_before_it(
    addr: int, length: int, flags: int, status: int, found: dict[str, int]
) -> None:
    with two(pause_us=60_000_000) as (bench, anna, bert):
        for _ in range(2):
            anna.post_buffer(anna.rx_pool, PAGE)
        anna.post_buffer(addr, length, flags)
        anna.ring_buffers()
        bert.send_chain(fragments_of(bytes(packet(bert, anna.mac, 12_000)), 4000), BLANK | GSO[4], 1448)
        assert [taken for taken, _ in anna.take(3)] == [status] * 3
        eventually(lambda: faults_and_drops(bench, anna) == found, f"to be counted: {found}")
        anna.post_buffers(1)
        bert.send(bert.frame(anna.mac))
        assert anna.take(1) == [(STATUS_OK, bert.frame(anna.mac))]
        bench.at_rest(2)


@pytest.mark.parametrize(("size", "used"), [(64, 1), (MIN_BUFFER - 1, 1), (MIN_BUFFER, MAX_FRAGMENTS)])
def test_buffers_so_small_that_a_frame_would_take_too_many(size: int, used: int) -> None:
    with two(pause_us=60_000_000) as (bench, anna, bert):
        for _ in range(60):
            anna.post_buffer(anna.rx_pool, size)
        anna.ring_buffers()
        bert.send_chain(fragments_of(bytes(packet(bert, anna.mac, MAX_FRAGMENTS * MIN_BUFFER)), 4000), BLANK | GSO[4], 1448)
        assert [status for status, _ in anna.take(used)] == [STATUS_BAD_LENGTH] * used
        counted(bench, anna, {"faults_descriptor": 1, "drop_small_buffer": 1})
        bert.send(bert.frame(anna.mac, size))
        assert anna.take(1) == [(STATUS_OK, bert.frame(anna.mac, size))], "one that they take"


def test_a_long_frame_for_a_failed_device_drops_once() -> None:
    with two(pause_us=60_000_000) as (bench, anna, bert):
        trap(anna.vcpu.address, 4, 0)  # type: ignore[attr-defined]
        for _ in range(20):  # more buffers than the device model has: it gives them back
            bert.send_chain(fragments_of(bytes(packet(bert, anna.mac, 20_000)), 4000), BLANK | GSO[4], 1448)
            assert bert.sent(1) == [STATUS_OK]
        eventually(lambda: of(bench, anna).get("drop_down") == 20, "frames for a failed device to drop by name")
        counted(bench, anna, {"faults_protocol": 1, "drop_down": 20})


def test_no_more_is_asked_of_the_nic_than_the_guest_accepted() -> None:
    """A guest without TSO gets segments, made by the NIC, and the ledger balances on either side of it."""
    with two(SG | CSUM, pause_us=60_000_000) as (bench, anna, bert):
        one = packet(bert, anna.mac, 20_000)
        anna.post_buffers(20)
        bert.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1448)
        segments = one.segments(1448)
        assert [anna.take_frame()[2] for _ in segments] == segments
        published(bench, anna, len(segments))
        assert bench.count("segmented") == len(segments) - 1
        bench.at_rest(1)


@pytest.mark.parametrize("cuts", [[14], [14, 15], [60], [200, 400, 401, 1000], list(range(20, 1500, 44))])
def test_a_frame_in_fragments_arrives_as_one(cuts: list[int]) -> None:
    with two() as (bench, anna, bert):
        content = anna.frame(bert.mac, 1500)
        bert.post_buffers(1)
        anna.send_chain(cut(content, cuts))
        assert anna.sent(1) == [STATUS_OK]
        assert bert.take_frame() == (0, 0, content)
        sender = of(bench, anna)
        assert (sender["tx_frames"], sender["tx_bytes"], sender["copies"], sender["copied_bytes"]) == (1, 1500, 1, 1500)
        assert of(bench, anna, "uplink")["tx_frames"] == 1
