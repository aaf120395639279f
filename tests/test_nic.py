"""The NIC: switching, the wire, what it refuses, how it pauses and drops, its engines, and drivers that attack it."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hyp.abi.nic import (
    DESC_SIGNALED,
    MAX_FRAME,
    MIN_FRAME,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from hyp.abi.platform import CHECKPOINT, CHECKPOINTS
from hyp.control import Refused
from hyp.ram import register
from nic.state import BUDGET_BYTES, BUDGET_FRAMES
from tests.drivers import FINISHED, compose, flip, head_words, header, post_garbage, scribble
from tests.peers import BROADCAST_MAC, DEFAULT_RAM, JUST_BELOW_WRAP, WIRE_MAC, WRAP, Bench, Guest, Loop, bench_of, eventually

NOBODY = "02:00:00:00:77:77"
SEED = 20120413


@pytest.fixture(params=[0, JUST_BELOW_WRAP], ids=["from 0", "over the wrap"])
def start(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(start: int) -> Iterator[tuple[Bench, Guest, Guest]]:
    with bench_of(2, start=start) as everything:
        yield everything


def well(bench: Bench, one: Guest, other: Guest, frames: int = 2000) -> None:
    """The bystanders: a stream from one to the other arrives whole."""
    receiver, sender = other.traffic(expect=frames), one.traffic(other.mac, frames, stream=9)
    assert sender.wait() == FINISHED
    assert receiver.wait() == FINISHED
    report = receiver.report(9)
    assert (report["frames"], report["lost"], report["corrupt"], report["duplicated"]) == (frames, 0, 0, 0)


# --- switching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [MIN_FRAME, 15, 16, 17, 23, 60, 64, 65, 1514, MAX_FRAME - 1, MAX_FRAME])
def test_a_frame_arrives_as_it_was_sent(pair: tuple[Bench, Guest, Guest], length: int) -> None:
    bench, anna, bert = pair
    frame = header(bert.mac, anna.mac) + random.Random(length).randbytes(length - 14)
    bert.post_buffers(3)
    anna.send(frame, frame[:14] + bytes(length - 14), frame)
    assert anna.sent(3) == [STATUS_OK] * 3
    assert bert.take(3) == [(STATUS_OK, frame), (STATUS_OK, frame[:14] + bytes(length - 14)), (STATUS_OK, frame)]
    assert anna.waiting() == 0
    bench.at_rest(3)
    assert bench.drops() == {}
    assert bench.of(anna)["tx_bytes"] == bench.of(bert)["rx_bytes"] == bench.of(bert)["copied_bytes"] == 3 * length
    assert bench.of(bert)["copies"] == 3


def test_nothing_is_written_behind_a_received_frame(pair: tuple[Bench, Guest, Guest]) -> None:
    _, anna, bert = pair
    for length in (14, 15, 16, 17, 31, 64, 1001):
        slot = int(bert.q["rq_prod"]) % bert.entries
        at = bert.rx_pool + slot * PAGE
        bert.write(at, b"\xaa" * PAGE)
        bert.post_buffer(at + 100, length)
        bert.ring_buffers()
        frame = header(bert.mac, anna.mac) + b"\x55" * (length - 14)
        anna.send(frame)
        assert bert.take(1) == [(STATUS_OK, frame)]
        assert bert.read(at, PAGE) == b"\xaa" * 100 + frame + b"\xaa" * (PAGE - 100 - length)
        anna.sent(1)


def test_a_completion_stands_for_the_unsignalled_sends_before_it(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.post_buffers(40)
    for k in range(10):
        anna.send(*(anna.frame(bert.mac, sequence=4 * k + i) for i in range(3)), flags=0)
        anna.send(anna.frame(bert.mac, sequence=4 * k + 3))
        assert anna.sent(1) == [STATUS_OK]
        assert int(anna.q["sq_done"]) == int(anna.q["sq_prod"])
    bench.at_rest(40)
    assert not anna._is_new(anna.scq, int(anna.q["scq_cons"])), "an unsignalled send was completed by itself"
    assert [frame for _, frame in bert.take(40)] == [anna.frame(bert.mac, sequence=k) for k in range(40)]


def test_a_failed_send_is_completed_even_if_unsignalled(pair: tuple[Bench, Guest, Guest]) -> None:
    _, anna, _ = pair
    assert anna.send_one(anna.tx_pool, 1, flags=0) == STATUS_BAD_LENGTH


def test_streams_both_ways_over_the_wrap_of_all_indices(start: int) -> None:
    with bench_of(2, start=start) as (bench, anna, bert):
        one = anna.traffic(bert.mac, 20_000, 20_000, stream=1, length=1514)
        other = bert.traffic(anna.mac, 20_000, 20_000, stream=2, length=77)
        assert (one.wait(), other.wait()) == (FINISHED, FINISHED)
        for end, stream in ((one, 2), (other, 1)):
            assert {end.report(stream)[name] for name in ("lost", "corrupt", "duplicated")} == {0}
        bench.at_rest(40_000)
        assert bench.drops() == {}


def test_large_queues_and_small_windows() -> None:
    with bench_of(2, queue=1024, start=JUST_BELOW_WRAP, memory=16 << 20) as (bench, anna, bert):
        well(bench, anna, bert, 30_000)
        again, one_by_one = bert.traffic(expect=500), anna.traffic(bert.mac, 500, stream=2, window=1)
        assert (one_by_one.wait(), again.wait()) == (FINISHED, FINISHED)
        bench.at_rest(30_500)


def test_a_frame_for_oneself_is_dropped_by_name(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    anna.post_buffers(1)
    anna.send(anna.frame(anna.mac))
    assert anna.sent(1) == [STATUS_DROPPED]
    bench.at_rest(1)
    assert bench.drops() == {"drop_same_port": 1}


def test_a_frame_for_a_closed_context_goes_to_the_wire(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.call("context_close", context=bert.context)
    anna.send(anna.frame(bert.mac))
    assert anna.sent(1) == [STATUS_OK]
    bench.at_rest(1)
    assert bench.count("rx_frames", "wire") == 1


# --- broadcast and filters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("group", [BROADCAST_MAC, "33:33:00:00:00:01", "01:00:5e:00:00:fb"])
def test_broadcast_reaches_all_but_the_sender_and_the_wire(engines: int, group: str) -> None:
    with bench_of(4, engines=engines) as (bench, *guests):
        dom0 = bench.physical_function()
        for guest in (*guests, dom0):
            guest.post_buffers(4)
        for sender in guests:
            sender.send(sender.frame(group, 100))
            assert sender.sent(1) == [STATUS_OK]
        bench.at_rest(4)
        for guest in guests:
            expected = sorted(other.frame(group, 100) for other in guests if other is not guest)
            assert sorted(frame for _, frame in guest.take(3)) == expected
            assert guest.waiting() == 0
        assert len(dom0.take(4)) == 4
        assert bench.count("rx_frames", "wire") == 4
        assert bench.count("replicated") == 16
        assert bench.drops() == {}


@pytest.mark.parametrize("engines", [1, 2])
def test_broadcast_never_pauses(engines: int) -> None:
    with bench_of(3, engines=engines, pause_us=60_000_000) as (bench, anna, bert, carl):
        carl.post_buffers(20)
        for k in range(20):
            anna.send(anna.frame(BROADCAST_MAC, sequence=k))
            assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(20)
        assert len(carl.take(20)) == 20
        assert bench.count("pauses") == 0
        assert bench.drops() == {"drop_queue_full": 20}
        assert bench.of(bert) == {"drop_queue_full": 20}


@pytest.mark.parametrize("engines", [1, 2])
def test_filters_are_added_moved_and_removed(engines: int) -> None:
    extra = "02:00:00:00:33:01"
    with bench_of(3, engines=engines) as (bench, anna, bert, carl):
        for guest in (bert, carl):
            guest.post_buffers(4)
        bench.filters(bert.context, add=(extra,))
        anna.send(anna.frame(extra))
        assert bert.take(1) == [(STATUS_OK, anna.frame(extra))]
        bench.filters(carl.context, add=(extra,))
        bench.filters(bert.context, remove=(extra,))  # no longer its own: nothing happens
        anna.send(anna.frame(extra, sequence=1))
        assert carl.take(1) == [(STATUS_OK, anna.frame(extra, sequence=1))]
        bench.filters(carl.context, remove=(extra,))
        anna.send(anna.frame(extra), anna.frame(bert.mac))
        assert anna.sent(4) == [STATUS_OK] * 4
        assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
        bench.at_rest(4)
        assert bench.count("rx_frames", "wire") == 1


def test_filters_that_come_and_go_leave_no_trace() -> None:
    rng = random.Random(SEED)
    macs = [f"02:00:{rng.randrange(256):02x}:{k >> 8:02x}:{k & 255:02x}:01" for k in range(2400)]
    with bench_of(2) as (bench, anna, bert):
        for k in range(0, len(macs), 300):
            bench.filters(bert.context, add=tuple(macs[k : k + 300]))
            bench.filters(bert.context, remove=tuple(macs[k : k + 300]))
        last = macs[-300:]
        bench.filters(bert.context, add=tuple(last))
        for mac in last:
            bert.post_buffers(1)
            anna.send(anna.frame(mac))
            assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(300)
        assert bench.count("rx_frames", "wire") == 0
        assert bench.of(bert)["rx_frames"] == 300
        bench.filters(bert.context, remove=tuple(last[::2]))
        for k, mac in enumerate(last):
            if k % 2:
                bert.post_buffers(1)
            anna.send(anna.frame(mac))
            assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(600)
        assert bench.count("rx_frames", "wire") == 150
        assert bench.drops() == {}


def test_too_many_filters_are_refused_and_the_old_ones_stay() -> None:
    with bench_of(2) as (bench, anna, bert):
        macs = [f"02:00:00:01:{k >> 8:02x}:{k & 255:02x}" for k in range(600)]
        with pytest.raises(Refused, match="filters") as refused:
            bench.filters(bert.context, add=tuple(macs))
        assert refused.value.name == "ENOSPC"
        bert.post_buffers(2)
        anna.send(anna.frame(macs[0]), anna.frame(bert.mac))
        assert len(bert.take(2)) == 2


@pytest.mark.parametrize("context", [128, 4096, 65536])
def test_filter_for_a_context_that_the_nic_does_not_have(context: int) -> None:
    with bench_of(2) as (bench, anna, bert):
        with pytest.raises(Refused) as refused:
            bench.filters(context, add=(NOBODY,))
        assert refused.value.name == "EINVAL"
        well(bench, anna, bert)


def test_the_zero_address_is_nobodys(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    dom0 = bench.physical_function()
    dom0.post_buffers(1)
    anna.send(anna.frame("00:00:00:00:00:00"))
    assert anna.sent(1) == [STATUS_OK]
    bench.at_rest(1)
    assert bench.count("rx_frames", "wire") == 1
    assert dom0.waiting() == 0


def test_spoofed_source_is_refused_and_seen_by_nobody(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.post_buffers(4)
    forged = [bert.mac, WIRE_MAC, "00:00:00:00:00:00", anna.mac[:-2] + "ff", BROADCAST_MAC]
    anna.send(*(anna.frame(bert.mac, source=mac) for mac in forged), anna.frame(BROADCAST_MAC, source=bert.mac))
    assert anna.sent(6) == [STATUS_SPOOFED] * 6
    anna.send(anna.frame(bert.mac))
    assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
    bench.at_rest(7)
    assert bench.drops() == {"drop_spoofed": 6}
    assert bench.count("rx_frames", "wire") == 0


def test_the_physical_function_sends_for_others_and_takes_what_is_nobodys() -> None:
    with bench_of(1) as (bench, anna):
        dom0 = bench.physical_function()
        anna.post_buffers(1)
        dom0.post_buffers(4)
        dom0.send(compose(anna.mac, NOBODY))
        assert anna.take(1) == [(STATUS_OK, compose(anna.mac, NOBODY))]
        bench.wire("wire_generate", mac=NOBODY, frame=64, stream=3, frames=4)
        assert [frame for _, frame in dom0.take(4)] == [compose(NOBODY, WIRE_MAC, 64, 3, k) for k in range(4)]
        bench.at_rest(5)


# --- the wire --------------------------------------------------------------------------------------------------------


def test_the_sink_verifies_what_leaves_the_machine(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    lengths = (48, 49, 55, 56, 64, 1000, 1514, MAX_FRAME)
    good = [anna.frame(WIRE_MAC, length, stream=5, sequence=k) for k, length in enumerate(lengths)]
    broken = bytearray(anna.frame(WIRE_MAC, 200, stream=5, sequence=8))
    broken[150] ^= 1
    foreign = header(NOBODY, anna.mac)[:12] + b"\x08\x00" + bytes(50)
    anna.send(*good, bytes(broken), anna.frame(NOBODY, stream=5, sequence=10), good[0], foreign)
    assert anna.sent(12) == [STATUS_OK] * 12
    bench.at_rest(12)
    report = bench.wire("wire_report", stream=5)["received"]
    assert {name: report[name] for name in ("frames", "lost", "duplicated", "corrupt")} == {
        "frames": 9, "lost": 2, "duplicated": 1, "corrupt": 1,
    }  # fmt: skip  (the broken frame and number 9 count as lost)
    assert [bench.count(name, "wire") for name in ("checked", "corrupt", "duplicated", "foreign")] == [11, 1, 1, 1]


def test_every_flipped_byte_is_seen_by_the_sink(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    whole = anna.frame(WIRE_MAC, 77, stream=6)
    for at in range(24, 77):  # the checksum and all that it covers but the sequence number
        broken = bytearray(whole)
        broken[at] ^= 0x40
        anna.send(bytes(broken))
        anna.sent(1)
    bench.at_rest(77 - 24)
    assert bench.count("corrupt", "wire") == 77 - 24


@pytest.mark.parametrize("engines", [1, 2])
def test_reflected_frames_come_back_with_their_addresses_swapped(engines: int) -> None:
    with bench_of(2, engines=engines, wire="reflect") as (bench, anna, bert):
        for guest in (anna, bert):
            guest.post_buffers(8)
        for guest in (anna, bert):
            guest.send(guest.frame(WIRE_MAC, 1514), guest.frame(NOBODY, 64), guest.frame(BROADCAST_MAC, 99))
            assert guest.sent(3) == [STATUS_OK] * 3
        bench.at_rest(12)
        for guest, other in ((anna, bert), (bert, anna)):
            sent = ((WIRE_MAC, WIRE_MAC, 1514), (NOBODY, NOBODY, 64), (WIRE_MAC, BROADCAST_MAC, 99))
            back = [header(guest.mac, source) + guest.frame(to, length)[14:] for source, to, length in sent]
            assert sorted(frame for _, frame in guest.take(4)) == sorted([*back, other.frame(BROADCAST_MAC, 99)])
        assert bench.drops() == {}


def test_a_reflected_frame_without_a_buffer_is_dropped_by_name(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, _ = pair
    bench.wire("wire_mode", mode="reflect")
    anna.send(anna.frame(WIRE_MAC))
    assert anna.sent(1) == [STATUS_OK]
    bench._config["wire"]["mode"] = "reflect"
    bench.at_rest(2)
    assert bench.drops() == {"drop_queue_full": 1}
    assert bench.count("pauses") == 0


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("pps", [0, 20_000])
def test_the_generator_sends_a_stream_to_a_guest(engines: int, pps: int) -> None:
    with bench_of(2, engines=engines) as (bench, anna, bert):
        for guest, length in ((anna, 64), (bert, MAX_FRAME)):
            receiver = guest.traffic(expect=2000)
            bench.wire("wire_generate", mac=guest.mac, frame=length, stream=4, frames=2000, pps=pps)
            assert receiver.wait() == FINISHED
            assert receiver.report(4)["bytes"] == 2000 * length
            assert receiver.report(4)["lost"] == receiver.report(4)["corrupt"] == 0
        bench.at_rest(4000)
        assert bench.wire("wire_report", stream=4)["left"] == 0


def test_the_generator_pauses_for_a_full_receiver_then_drops() -> None:
    with bench_of(1, pause_us=2000) as (bench, anna):
        bench.wire("wire_generate", mac=anna.mac, frame=64, stream=4, frames=100)
        bench.at_rest(100)
        assert bench.drops() == {"drop_no_buffer": 100}
        assert bench.count("pauses") == 1, "the receiver was known to be full after the first pause"


@pytest.mark.parametrize("mode", ["sink", "reflect"])
def test_a_paused_generator_keeps_its_frame_while_others_use_the_wire(mode: str) -> None:
    with bench_of(2, pause_us=60_000_000, wire=mode) as (bench, anna, bert):
        bench.wire("wire_generate", mac=bert.mac, frame=100, stream=4, frames=3)
        eventually(lambda: bench.count("pauses") or bench.sync(), "the generator pauses")
        anna.send(*(anna.frame(WIRE_MAC, 90, stream=7, sequence=k) for k in range(5)))
        anna.sent(5)
        bert.post_buffers(3)
        assert [frame for _, frame in bert.take(3)] == [compose(bert.mac, WIRE_MAC, 100, 4, k) for k in range(3)]
        bench.at_rest()


# --- what the NIC refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, MIN_FRAME - 1, MAX_FRAME + 1, PAGE, 1 << 16, (1 << 16) + 64, 1 << 31, WRAP - 1])
def test_send_of_bad_length(pair: tuple[Bench, Guest, Guest], length: int) -> None:
    bench, anna, bert = pair
    assert anna.send_one(anna.tx_pool, length) == STATUS_BAD_LENGTH
    bench.at_rest(1)
    assert bench.drops() == {"drop_bad_frame": 1}
    assert bench.of(anna)["faults_descriptor"] == 1
    well(bench, anna, bert)


@pytest.mark.parametrize(("flags", "reserved"), [(2, 0), (3, 0), (0x8001, 0), (0xFFFF, 0xFFFF), (1, 1), (0, 0x8000)])
def test_send_with_unknown_flags(pair: tuple[Bench, Guest, Guest], flags: int, reserved: int) -> None:
    bench, anna, bert = pair
    anna.write(anna.tx_pool, anna.frame(bert.mac))
    anna.post(anna.tx_pool, 64, flags, reserved)
    anna.ring()
    assert anna.sent(1) == [STATUS_BAD_FLAGS]
    bench.at_rest(1)
    assert bench.drops() == {"drop_bad_frame": 1}
    well(bench, anna, bert)


BAD_ADDRESSES = {
    "unregistered": lambda g: g.free,
    "page 0": lambda g: 0,
    "into an unregistered page": lambda g: g.free - 32,
    "out of an unregistered page": lambda g: g.free + 32,
    "last byte of RAM": lambda g: DEFAULT_RAM - 1,
    "over the end of RAM": lambda g: DEFAULT_RAM - 32,
    "beyond RAM": lambda g: DEFAULT_RAM,
    "far beyond RAM": lambda g: 1 << 40,
    "beyond the table, whole words": lambda g: 1 << 50,
    "below 2**63": lambda g: (1 << 63) - 32,
    "at 2**63": lambda g: 1 << 63,
    "2**63 above a good page": lambda g: (1 << 63) + g.tx_pool,
    "wraps to 0": lambda g: (1 << 64) - 32,
    "wraps to a good page": lambda g: (1 << 64) - PAGE + 32,
    "all ones": lambda g: (1 << 64) - 1,
}


@pytest.mark.parametrize("which", BAD_ADDRESSES)
def test_send_from_a_bad_address(pair: tuple[Bench, Guest, Guest], which: str) -> None:
    bench, anna, bert = pair
    anna.write(anna.free, anna.frame(bert.mac))
    bert.post_buffers(1)
    assert anna.send_one(BAD_ADDRESSES[which](anna), 64) == STATUS_BAD_ADDRESS
    bench.at_rest(1)
    assert bench.drops() == {"drop_bad_address": 1}
    assert bench.of(anna)["faults_address"] == 1
    assert bert.waiting() == 0
    well(bench, anna, bert)


@pytest.mark.parametrize("which", [*BAD_ADDRESSES, "read-only"])
def test_receive_into_a_bad_address(pair: tuple[Bench, Guest, Guest], which: str) -> None:
    bench, anna, bert = pair
    before = bert.memory.copy()
    addr = bert.tx_pool if which == "read-only" else BAD_ADDRESSES[which](bert)
    bert.post_buffer(addr)
    bert.ring_buffers()
    anna.send(anna.frame(bert.mac))
    assert anna.sent(1) == [STATUS_DROPPED]
    assert [int(cqe["status"]) for cqe in bert._completions(bert.rcq, "rcq_cons", "rcq_event", 1)] == [STATUS_BAD_ADDRESS]
    bench.at_rest(1)
    assert bench.drops() == {"drop_bad_address": 1}
    assert bench.of(bert)["faults_address"] == 1
    queues = range(PAGE, bert.tx_pool)
    changed = np.flatnonzero(before != bert.memory)
    assert all(int(at) in queues for at in changed), "RAM was written outside the queues"
    well(bench, anna, bert)


def test_a_range_may_begin_anywhere_and_cross_pages(pair: tuple[Bench, Guest, Guest]) -> None:
    _, anna, bert = pair
    for offset in (0, 1, 7, 63, 100, PAGE - 1, PAGE - 13, PAGE - 14, PAGE - 16, PAGE - 1000):
        frame = header(bert.mac, anna.mac) + random.Random(offset).randbytes(2000)
        anna.write(anna.tx_pool + offset, frame)
        bert.post_buffer(bert.rx_pool + PAGE - offset, len(frame))
        bert.ring_buffers()
        assert anna.send_one(anna.tx_pool + offset, len(frame)) == STATUS_OK
        assert bert.take(1) == [(STATUS_OK, frame)]


@pytest.mark.parametrize(("room", "flags"), [(0, 0), (1, 0), (63, 0), (64, 1), (PAGE, 0x8000)])
def test_receive_buffer_that_cannot_take_the_frame(pair: tuple[Bench, Guest, Guest], room: int, flags: int) -> None:
    bench, anna, bert = pair
    bert.write(bert.rx_pool, b"\xaa" * PAGE)
    bert.post_buffer(bert.rx_pool, room, flags)
    bert.ring_buffers()
    anna.send(anna.frame(bert.mac))
    assert anna.sent(1) == [STATUS_DROPPED]
    ((status, frame),) = bert.take(1)
    assert (status, frame) == (STATUS_BAD_LENGTH, b"")
    assert bert.read(bert.rx_pool, PAGE) == b"\xaa" * PAGE
    bench.at_rest(1)
    assert bench.drops() == {"drop_small_buffer": 1}
    assert bench.of(bert)["faults_descriptor"] == 1
    well(bench, anna, bert)


# --- drivers that break the protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [65, 1000, 1 << 31, WRAP - 1], ids=["one too many", "far", "half the range", "backwards"])
@pytest.mark.parametrize("queue", ["sq_prod", "rq_prod"])
def test_producer_index_that_ran_ahead_fails_the_context_alone(start: int, queue: str, ahead: int) -> None:
    with bench_of(3, start=start) as (bench, mallory, anna, bert):
        mallory.words[queue] = (start + ahead) % WRAP
        mallory.kick()
        anna.send(anna.frame(mallory.mac))
        assert anna.sent(1) == [STATUS_DROPPED]
        bench.at_rest(1)
        assert bench.drops() == {"drop_down": 1}
        assert bench.of(mallory)["faults_protocol"] == 1
        mallory.words["sq_prod"] = mallory.words["rq_prod"] = start  # repentance comes too late
        mallory.send(mallory.frame(bert.mac))
        bench.sync()
        well(bench, anna, bert)
        assert "tx_frames" not in bench.of(mallory)


def test_a_full_ring_is_not_a_fault(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    bert.post_buffers(64)
    anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(64)))
    assert anna.sent(64) == [STATUS_OK] * 64
    assert [frame for _, frame in bert.take(64)] == [anna.frame(bert.mac, sequence=k) for k in range(64)]
    assert bench.count("faults_protocol") == 0


@pytest.mark.parametrize("ring", ["sq", "scq", "rq", "rcq"])
def test_a_ring_out_of_reach_fails_the_context_alone(ring: str) -> None:
    """The guest starts a context whose ring it never registered (or registered for reading only)."""
    with bench_of(2) as (bench, anna, bert):
        mallory = bench.domain()

        async def start_without(missing: str) -> None:
            from hyp.ram import open_queue_pair

            pair = await open_queue_pair(mallory.hyp, mallory.upcall, 64, int(mallory._counts.ctypes.data))
            mallory.pair, mallory.q = pair, pair.record[0]
            places = {name: PAGE * (k + 1) for k, name in enumerate(("sq", "scq", "rq", "rcq"))}
            for name, at in places.items():
                if name != missing or name.endswith("cq"):
                    await register(mallory.hyp, at, PAGE, writable=name.endswith("cq") and name != missing)
            await register(mallory.hyp, 8 * PAGE, PAGE, writable=True)
            await mallory.hyp.call("context_start", context=pair.context, **places, sq_size=64, rq_size=64)

        bench.run(start_without(ring))
        mallory.context = mallory.pair.context
        words = mallory.pair.doorbell.words("<u4")
        desc = np.array([8 * PAGE, 64], "<u8")
        frame = compose(bert.mac, mallory.mac)
        for at, content in ((PAGE, desc.tobytes()), (3 * PAGE, desc.tobytes()), (8 * PAGE, frame)):
            mallory.write(at, content)
        mallory.write(PAGE + 12, b"\x01")
        if ring.startswith("r"):
            words[16] = 1  # rq_prod
            mallory.kick()
            anna.send(anna.frame(mallory.mac))
            anna.sent(1)
        else:
            bert.post_buffers(1)
            words[0] = 1  # sq_prod
            mallory.kick()
            bert.take(1) if ring == "scq" else None
        eventually(lambda: bench.of(mallory).get("faults_address") or bench.sync(), "the context fails")
        assert bench.of(mallory)["faults_address"] == 1
        well(bench, anna, bert)
        bench.at_rest()


def test_the_header_that_was_checked_is_the_header_that_is_sent() -> None:
    """A second thread of the sender forges the source address while the NIC reads the frame."""
    with bench_of(3) as (_, mallory, bert, victim):
        head0, head1 = head_words(bert.mac, mallory.mac)
        other0, other1 = head_words(BROADCAST_MAC, victim.mac)
        mallory.write(mallory.tx_pool, compose(bert.mac, mallory.mac))
        flipping = Loop(flip, mallory, mallory.job(first=mallory.tx_pool, head0=head0, head1=head1, other0=other0, other1=other1))
        passed = spoofed = 0
        allowed = (header(bert.mac, mallory.mac), header(BROADCAST_MAC, mallory.mac))
        for _ in range(1200):
            free = 64 - (int(bert.q["rq_prod"]) - int(bert.q["rcq_cons"])) % WRAP
            bert.post_buffers(min(free, 8))
            for _ in range(8):
                mallory.post(mallory.tx_pool, 64)
            mallory.ring()
            spoofed += mallory.sent(8).count(STATUS_SPOOFED)
            taken = bert.take(bert.waiting())
            passed += len(taken)
            assert all(frame[:14] in allowed for _, frame in taken)
        assert flipping.stop() > 0
        assert passed
        assert spoofed


HOSTILE = [("careful", post_garbage), ("wild", scribble)]


@pytest.mark.parametrize("engines", [1, 2])
def test_bystanders_of_drivers_that_scribble_at_full_speed(engines: int) -> None:
    with bench_of(5, engines=engines, pause_us=2_000_000) as (bench, anna, bert, careful, wild, wilder):
        for k, page in enumerate(range(careful.tx_pool, careful.tx_pool + 64 * PAGE, PAGE)):
            careful.write(page, careful.frame((bert.mac, BROADCAST_MAC, WIRE_MAC, careful.mac)[k % 4], 200 + k))
        loops = [Loop(post_garbage, careful, careful.job())]
        for guest in (wild, wilder):
            loops.append(Loop(scribble, guest, guest.job(first=PAGE, size=guest.rx_pool - PAGE)))
        frames = 15_000
        receiver, sender = bert.traffic(expect=frames), anna.traffic(bert.mac, frames, stream=9, length=300)
        assert sender.wait() == FINISHED
        assert receiver.wait() == FINISHED
        report = receiver.report(9)
        assert (report["frames"], report["lost"], report["corrupt"], report["duplicated"]) == (frames, 0, 0, 0)

        def they_were_at_it() -> bool:
            bench.sync()
            faults, wildest = bench.of(careful), [bench.of(guest).get("faults_protocol", 0) for guest in (wild, wilder)]
            return {"faults_descriptor", "faults_address"} <= set(faults) and wildest == [1, 1]

        eventually(they_were_at_it, "every attack has been seen and counted")
        for loop in loops:
            assert loop.stop() > 0
        bench.at_rest()
        well(bench, bert, anna)


# --- pause and drop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2])
def test_sender_waits_for_a_full_receiver_and_others_go_on(start: int, engines: int) -> None:
    with bench_of(4, engines=engines, pause_us=60_000_000, start=start) as (bench, anna, bert, carl, dora):
        target = bert if engines == 1 else carl  # carl's engine is anna's
        one, other = (carl, dora) if engines == 1 else (bert, dora)
        anna.send(*(anna.frame(target.mac, sequence=k) for k in range(10)))
        eventually(lambda: bench.count("pauses") or bench.sync(), "a pause")
        well(bench, one, other, 5000)
        assert not anna._is_new(anna.scq, int(anna.q["scq_cons"])), "the sender was to wait"
        target.post_buffers(4)
        assert len(target.take(4)) == 4
        assert anna.sent(4) == [STATUS_OK] * 4
        target.post_buffers(6)
        assert [frame for _, frame in target.take(6)] == [anna.frame(target.mac, sequence=k) for k in range(4, 10)]
        assert anna.sent(6) == [STATUS_OK] * 6
        bench.at_rest()
        assert bench.drops() == {}


@pytest.mark.parametrize("engines", [1, 2])
def test_after_the_deadline_frames_drop_by_name_until_the_receiver_has_buffers(start: int, engines: int) -> None:
    with bench_of(3, engines=engines, pause_us=3000, start=start) as (bench, anna, bert, carl):
        for target in (bert, carl):  # one on another engine if there are two, one on the same
            before = bench.drops().get("drop_no_buffer", 0)
            anna.send(*(anna.frame(target.mac, sequence=k) for k in range(50)))
            statuses = anna.sent(50)
            bench.at_rest()
            assert bench.drops() == {"drop_no_buffer": before + 50}
            assert bench.count("pauses") == 1 + (target is carl)
            if engines == 1 or target is carl:
                assert statuses == [STATUS_DROPPED] * 50
            target.post_buffers(2)
            anna.send(*(anna.frame(target.mac, sequence=k) for k in (7, 8)))
            assert [frame for _, frame in target.take(2)] == [anna.frame(target.mac, sequence=k) for k in (7, 8)]
            anna.sent(2)


def test_a_receiver_that_dies_frees_who_waits_for_it() -> None:
    with bench_of(3, pause_us=60_000_000) as (bench, anna, bert, mallory):
        anna.send(anna.frame(mallory.mac), anna.frame(bert.mac))
        eventually(lambda: bench.count("pauses") or bench.sync(), "a pause")
        bert.post_buffers(1)
        mallory.words["rq_prod"] = 4711
        mallory.kick()
        assert anna.sent(2) == [STATUS_DROPPED, STATUS_OK]
        assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
        bench.at_rest(2)
        assert bench.drops() == {"drop_down": 1}


def test_a_light_sender_is_served_between_the_turns_of_a_heavy_one() -> None:
    with bench_of(2, queue=1024, memory=16 << 20) as (bench, light, heavy):
        sink = bench.guest(queue=2048, memory=32 << 20)
        sink.post_buffers(1000 + 2 * BUDGET_FRAMES)
        for guest, count in ((light, 2 * BUDGET_FRAMES), (heavy, 1000)):
            guest.write(guest.tx_pool, guest.frame(sink.mac))
            for _ in range(count):
                guest.post(guest.tx_pool, 64, DESC_SIGNALED)
        for guest in (light, heavy):
            guest.words["sq_prod"] = guest.q["sq_prod"]
        light.kick()
        order = [frame[6:12] for _, frame in sink.take(1000 + 2 * BUDGET_FRAMES)]
        last = max(k for k, source in enumerate(order) if source == header(light.mac, light.mac)[:6])
        assert last < 5 * BUDGET_FRAMES, f"the light sender's last frame came as number {last}"


def test_a_turn_is_limited_in_bytes_too() -> None:
    with bench_of(2, queue=512, memory=8 << 20) as (bench, light, heavy):
        sink = bench.guest(queue=1024, memory=16 << 20)
        sink.post_buffers(200 + 3 * BUDGET_FRAMES)
        for guest, count, length in ((light, 3 * BUDGET_FRAMES, 64), (heavy, 200, MAX_FRAME)):
            guest.write(guest.tx_pool, guest.frame(sink.mac, length))
            for _ in range(count):
                guest.post(guest.tx_pool, length, DESC_SIGNALED)
        for guest in (light, heavy):
            guest.words["sq_prod"] = guest.q["sq_prod"]
        light.kick()
        order = [frame[6:12] for _, frame in sink.take(200 + 3 * BUDGET_FRAMES)]
        last = max(k for k, source in enumerate(order) if source == header(light.mac, light.mac)[:6])
        large = BUDGET_BYTES // MAX_FRAME + 1  # that fit into a turn
        assert last < 3 * BUDGET_FRAMES + 4 * large, f"the light sender's last frame came as number {last}"


# --- several engines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [2, 3])
def test_streams_across_engines_arrive_whole(engines: int) -> None:
    with bench_of(4, engines=engines) as (bench, *guests):
        frames = 6000
        loops = [guest.traffic(guests[(k + 1) % 4].mac, frames, frames, stream=(k + 1) % 4) for k, guest in enumerate(guests)]
        for loop in loops:
            assert loop.wait() == FINISHED
        for k, loop in enumerate(loops):
            report = loop.report(k)
            assert (report["frames"], report["lost"], report["corrupt"], report["duplicated"]) == (frames, 0, 0, 0)
        bench.at_rest(4 * frames)
        assert bench.drops() == {}


def test_every_sender_that_waits_for_a_full_crossing_is_woken() -> None:
    """One takes the slot that another was woken for; the other must be woken for the next one."""
    with bench_of(16, engines=2, pause_us=60_000_000) as (bench, *guests):
        heavy, full, *light = (guests[k] for k in (0, 1, *range(2, 16, 2)))  # all senders are on engine 1, `full` on engine 0
        heavy.send(*(heavy.frame(full.mac, sequence=k) for k in range(64)))
        heavy.sent(64)
        heavy.send(*(heavy.frame(full.mac, sequence=k) for k in range(64, 80)))
        eventually(lambda: bench.count("pauses", "engine1") or bench.sync(), "the crossing is full")
        for k, guest in enumerate(light, 1):
            guest.send(guest.frame(full.mac))
            eventually(lambda k=k: bench.count("pauses", "engine1") > k or bench.sync(), "another sender waits")
        for _ in range(80 + len(light)):
            full.post_buffers(1)
            assert full.take(1)[0][0] == STATUS_OK
        assert heavy.sent(16) == [STATUS_OK] * 16
        bench.at_rest(80 + len(light))


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("mode", ["sink", "reflect"])
def test_whatever_is_sent_what_goes_in_comes_out(engines: int, mode: str) -> None:
    rng = random.Random(SEED + engines)
    with bench_of(5, engines=engines, pause_us=500, wire=mode) as (bench, *guests):
        bench.physical_function().post_buffers(10)
        targets = [*(guest.mac for guest in guests), BROADCAST_MAC, WIRE_MAC, NOBODY, "33:33:00:00:00:16"]
        sent = 0
        for _ in range(60):
            for guest in guests:
                count = rng.randrange(16)
                for _ in range(count):
                    at, length = guest.tx_pool + int(guest.q["sq_prod"]) % 64 * PAGE, rng.choice((48, 64, 700, 1514, 4000))
                    source = guest.mac if rng.random() < 0.9 else NOBODY
                    guest.write(at, guest.frame(rng.choice(targets), length, source=source))
                    fault = rng.random()
                    addr = at + (1 << 33) if fault < 0.1 else at
                    guest.post(addr, 5 if fault > 0.9 else length, 7 if fault > 0.95 else DESC_SIGNALED)
                guest.ring()
                if rng.random() < 0.7:
                    free = 64 - (int(guest.q["rq_prod"]) - int(guest.q["rcq_cons"])) % WRAP
                    guest.post_buffers(min(rng.randrange(20), free), rng.choice((PAGE, PAGE, PAGE, 1000)))
                guest.sent(count)
                guest.take(guest.waiting())
                sent += count
            if rng.random() < 0.2:
                bench.wire("wire_generate", mac=rng.choice(targets), frame=64, stream=2, frames=rng.randrange(50))
        bench.at_rest()
        assert bench.count("tx_frames", "ctx") == sent
        assert {"drop_bad_frame", "drop_bad_address", "drop_spoofed", "drop_no_buffer", "drop_small_buffer"} <= set(bench.drops())


# --- life of a context -----------------------------------------------------------------------------------------------


def test_checkpoints_say_how_far_a_context_has_come(pair: tuple[Bench, Guest, Guest], start: int) -> None:
    bench, anna, bert = pair
    bert.post_buffers(30)
    for k in range(25):
        anna.send(anna.frame(bert.mac, sequence=k), flags=DESC_SIGNALED if k % 5 == 4 else 0)
    anna.sent(5)
    bert.take(25)
    bench.sync()
    page = bench.devices._engine_pages[0]
    rows = np.frombuffer(page.array, CHECKPOINT, 8, CHECKPOINTS)
    assert [int(word) - start % WRAP for word in rows[anna.context].tolist()] == [
        (start + n) % WRAP - start for n in (25, 0, 5, 0)
    ]
    assert [int(word) - start for word in rows[bert.context].tolist()] == [(start + n) % WRAP - start for n in (0, 25, 0, 25)]


@pytest.mark.parametrize("engines", [1, 2])
def test_contexts_come_and_go_under_load(engines: int) -> None:
    with bench_of(2, engines=engines, memory=4 << 20) as (bench, anna, bert):
        receiver, sender = bert.traffic(expect=1 << 40), anna.traffic(bert.mac, 1 << 40, stream=9)
        visitor = bench.domain(memory=4 << 20)
        for _ in range(6):
            bench.run(visitor._open(64, 0))
            visitor.post_buffers(4)
            visitor.send(visitor.frame(NOBODY), visitor.frame(BROADCAST_MAC))
            assert visitor.sent(2) == [STATUS_OK] * 2
            visitor.call("context_close", context=visitor.context)
            visitor.kick()
        sender.stop()
        receiver.stop()
        report = receiver.report(9)
        assert report["frames"] > 0
        assert report["lost"] == report["corrupt"] == report["duplicated"] == 0
        bench.at_rest()


def test_a_context_is_started_once_however_often_it_is_asked_for() -> None:
    with bench_of(2) as (bench, anna, bert):
        mallory = bench.domain()
        places = {"sq": PAGE, "scq": 2 * PAGE, "rq": 3 * PAGE, "rcq": 4 * PAGE, "sq_size": 64, "rq_size": 64}

        async def attack() -> list[Any]:
            import asyncio

            reply = await mallory.hyp.call("context_open", upcall=mallory.upcall)
            context = reply.value["context"]
            calls = [mallory.hyp.call("context_start", context=context, **places) for _ in range(50)]
            return await asyncio.gather(*calls, return_exceptions=True)

        results = bench.run(attack())
        refused = [result for result in results if isinstance(result, Refused)]
        assert len(refused) == 49
        assert {error.name for error in refused} == {"EBUSY"}
        well(bench, anna, bert)


def test_context_calls_that_overtake_each_other_hurt_nobody() -> None:
    """open, start and close of one guest under way at the same time, over and over."""
    with bench_of(2, forked=True) as (bench, anna, bert):
        mallory = bench.domain()
        places = {"sq": PAGE, "scq": 2 * PAGE, "rq": 3 * PAGE, "rcq": 4 * PAGE, "sq_size": 64, "rq_size": 64}

        async def attack() -> None:
            import asyncio

            for round_ in range(60):
                calls = []
                for k in range(8):
                    op = ("context_open", "context_start", "context_close")[(round_ * k + k) % 3]
                    context = mallory.bench.guests.__len__()
                    args: dict[str, Any] = {"upcall": mallory.upcall} if op == "context_open" else {"context": context}
                    calls.append(mallory.hyp.call(op, **args, **(places if op == "context_start" else {})))
                for result in await asyncio.gather(*calls, return_exceptions=True):
                    if isinstance(result, BaseException):
                        assert isinstance(result, Refused), result
                        assert result.name != "EFAULT", result

        bench.run(attack())
        assert len(bench.hypervisor.domains[mallory.domid].contexts) <= 1
        well(bench, anna, bert)
