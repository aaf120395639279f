"""Frames of many fragments and offloads on the NIC, against a slow model: whoever accepted less gets it done for him."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from hypothesis import strategies as st

from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO_TCPV4, GSO_TCPV6, MIN_SEGMENT
from hyp.abi.nic import (
    DESC_MORE,
    DESC_SIGNALED,
    MAX_FRAGMENTS,
    MIN_BUFFER,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_CHAIN,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from nic.state import BUDGET_PARTS
from tests.support.fuzz import SEED, TIERS, fuzz
from tests.support.guests import BROADCAST_MAC, JUST_BELOW_WRAP, WIRE_MAC, Guest
from tests.support.packets import FIN, Packet, cut
from tests.support.peers import Bench, bench_of, well

ALL: Final = SG | CSUM | TSO4 | TSO6
BLANK, VALID = CSUM_BLANK >> 32, CSUM_VALID >> 32
GSO = {4: GSO_TCPV4 >> 32, 6: GSO_TCPV6 >> 32}
MTU: Final = 1500


def packet(sender: Guest, receiver: str, length: int, **more: Any) -> Packet:
    """A packet with so many bytes of payload, the same each time."""
    return Packet(receiver, sender.mac, payload=random.Random(length).randbytes(length), blank=True, **more)


def fragments_of(frame: bytes, size: int = 1000) -> list[bytes]:
    return cut(frame, list(range(size, len(frame), size)))


@pytest.fixture
def trio() -> Any:
    """A bench of MTU 1500 and three guests: two that accept everything, one that accepts nothing."""
    with bench_of(2, mtu=MTU, features=ALL, queue=128, memory=4 << 20) as (bench, anna, bert):
        yield bench, anna, bert, bench.guest(queue=128, memory=4 << 20)


@pytest.mark.parametrize("cuts", [[14], [14, 15], [60], [200, 400, 401, 1000], list(range(20, 1500, 44))])
def test_a_frame_in_fragments_arrives_as_one(trio: tuple[Bench, Guest, Guest, Guest], cuts: Sequence[int]) -> None:
    bench, anna, bert, carl = trio
    for to in (bert, carl):
        frame = bytes(Packet(to.mac, anna.mac, payload=bytes(range(256)) * 5))
        to.post_buffers(1)
        anna.send_chain(cut(frame, list(cuts)))
        assert anna.sent(1) == [STATUS_OK]
        assert to.take_frame() == (0, 0, frame)
    bench.at_rest(2)
    assert bench.drops() == {}
    well(bench, anna, bert)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mss", [48, 100, 1440, 1448])
def test_a_segmented_frame_is_whole_for_who_accepts_it_and_cut_for_who_does_not(
    trio: tuple[Bench, Guest, Guest, Guest], version: int, mss: int
) -> None:
    bench, anna, bert, carl = trio
    mss = min(mss, 1440) if version == 6 else mss
    for to in (bert, carl):
        one = packet(anna, to.mac, 40 * mss + 7, version=version, flags=0x10 | FIN, tcp_options=bytes((1, 1, 1, 0)) * (mss % 3))
        mss = min(mss, MTU - len(one.packet()) + len(one.payload))
        to.post_buffers(64)
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[version], mss)
        assert anna.sent(1) == [STATUS_OK]
        if to is bert:
            assert to.take_frame() == (BLANK | GSO[version], mss, bytes(one))
        else:
            assert [to.take_frame() for _ in one.segments(mss)] == [(0, 0, frame) for frame in one.segments(mss)]
    bench.at_rest(2)
    assert bench.drops() == {}
    assert bench.count("segmented") == 40


def test_a_broadcast_that_takes_several_turns_on_the_wire_is_passed_on_once(trio: tuple[Bench, Guest, Guest, Guest]) -> None:
    bench, anna, bert, carl = trio
    one = packet(anna, BROADCAST_MAC, 2 * BUDGET_PARTS * 100)
    carl.post_buffers(100)
    bert.post_buffers(100)
    anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 100)
    assert anna.sent(1) == [STATUS_OK]
    assert bert.take_frame() == (BLANK | GSO[4], 100, bytes(one))
    assert [carl.take_frame() for _ in one.segments(100)] == [(0, 0, frame) for frame in one.segments(100)]
    bench.at_rest(1)
    assert bench.drops() == {}
    assert bench.count("rx_frames", "wire") == 2 * BUDGET_PARTS
    assert (bench.of(bert)["rx_frames"], bench.of(carl)["rx_frames"]) == (1, 2 * BUDGET_PARTS)


def test_what_reaches_the_wire_is_cut_and_has_its_checksums(trio: tuple[Bench, Guest, Guest, Guest]) -> None:
    bench, anna, _, _ = trio
    one = packet(anna, WIRE_MAC, 65_000 - 54)
    bench.wire("wire_mode", mode="reflect")
    anna.post_buffers(64)
    anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1448)
    assert anna.sent(1) == [STATUS_OK]
    for segment in one.segments(1448):
        flags, _, frame = anna.take_frame()
        assert (flags, len(frame) <= MTU + 14, frame[14:]) == (0, True, segment[14:])
        assert frame[:12] == segment[6:12] + segment[:6]  # reflected
    bench.at_rest(1 + len(one.segments(1448)))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("length", [0, 1, 2, 777, 1200])
def test_a_blank_checksum_is_filled_in_for_who_does_not_accept_it(
    trio: tuple[Bench, Guest, Guest, Guest], protocol: str, version: int, length: int
) -> None:
    bench, anna, bert, carl = trio
    for to in (bert, carl):
        one = packet(anna, to.mac, length, protocol=protocol, version=version, tags=((0x8100, 5),) * (length % 3))
        to.post_buffers(1)
        anna.send_chain([bytes(one)], BLANK)
        assert anna.sent(1) == [STATUS_OK]
        assert to.take_frame() == ((BLANK, 0, bytes(one)) if to is bert else (0, 0, one.filled()))
    bench.at_rest(2)


def test_a_cut_frame_waits_for_buffers_and_loses_nothing() -> None:
    with bench_of(1, mtu=MTU, features=ALL, queue=64, pause_us=60_000_000) as (bench, anna):
        carl = bench.guest()
        one = packet(anna, carl.mac, 30 * 1000)
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1000)
        found = []
        for n in (1, 2, 7, 20):
            carl.post_buffers(n)
            found += [carl.take_frame() for _ in range(n)]
        assert found == [(0, 0, frame) for frame in one.segments(1000)]
        assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(1)
        assert bench.drops() == {}


def test_a_frame_over_many_buffers_waits_until_there_are_enough() -> None:
    with bench_of(2, mtu=MTU, features=ALL, queue=64, pause_us=60_000_000) as (bench, anna, bert):
        one = packet(anna, bert.mac, 20_000)
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1448)
        for _ in range(4):
            bert.post_buffers(1)
            assert bert.waiting() == 0
        bert.post_buffers(1)
        assert bert.take_frame() == (BLANK | GSO[4], 1448, bytes(one))
        assert anna.sent(1) == [STATUS_OK]
        bench.at_rest(1)


def test_the_rest_of_a_cut_frame_drops_with_the_segment_that_found_no_buffer() -> None:
    with bench_of(1, mtu=MTU, features=ALL, queue=64, pause_us=1000) as (bench, anna):
        carl = bench.guest()
        one = packet(anna, carl.mac, 30 * 1000)
        carl.post_buffers(10)
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1000)
        assert anna.sent(1) != [STATUS_OK]
        assert [carl.take_frame()[2] for _ in range(10)] == one.segments(1000)[:10]
        bench.at_rest(1)
        assert bench.drops() == {"drop_no_buffer": 20}


def test_a_frame_half_cut_whose_way_changes_is_accounted_for() -> None:
    """What of it has arrived, and the rest. The next one is cut from its beginning."""
    with bench_of(1, mtu=MTU, features=ALL, pause_us=60_000_000) as (bench, anna):
        carl = bench.guest(queue=64)
        one, posted = packet(anna, carl.mac, 30 * 1000), 10
        carl.post_buffers(posted)
        at = anna.tx_pool + int(anna.q["sq_prod"]) % anna.entries * PAGE
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1000)
        assert [carl.take_frame()[2] for _ in range(posted)] == one.segments(1000)[:posted]
        anna.write(at + 6, bytes(6))  # where it comes from
        carl.post_buffers(30)
        assert anna.sent(1) == [STATUS_SPOOFED]
        bench.at_rest(1)
        assert bench.drops() == {"drop_spoofed": 1}
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1000)
        assert anna.sent(1) == [STATUS_OK]
        assert [carl.take_frame()[2] for _ in range(30)] == one.segments(1000)
        bench.at_rest(2)


@pytest.mark.parametrize("engines", [1, 2])
def test_a_frame_that_becomes_very_many_takes_several_turns(engines: int) -> None:
    """And loses nothing by that. Who sends to the same guest has his turn in between."""
    with bench_of(3, engines=engines, mtu=MTU, features=ALL, pause_us=60_000_000) as (bench, anna, _, dora):
        carl = bench.guest(queue=1024, memory=16 << 20)
        one = packet(anna, carl.mac, MIN_SEGMENT * 900)
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], MIN_SEGMENT)
        dora.send(dora.frame(carl.mac))
        assert carl.waiting() == 0
        carl.post_buffers(901)
        found = [carl.take_frame()[2] for _ in range(901)]
        if engines == 1:  # else both may have come over the same crossing
            assert found.index(dora.frame(carl.mac)) <= 2 * BUDGET_PARTS
        found.remove(dora.frame(carl.mac))
        assert found == one.segments(MIN_SEGMENT)
        assert (anna.sent(1), dora.sent(1)) == ([STATUS_OK], [STATUS_OK])
        bench.at_rest(2)
        assert bench.drops() == {}


def test_nor_is_anything_lost_on_the_wire(trio: tuple[Bench, Guest, Guest, Guest]) -> None:
    bench, anna, _, _ = trio
    one = packet(anna, WIRE_MAC, 65_000 - 54)
    for _ in range(3):
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], MIN_SEGMENT)
    assert anna.sent(3) == [STATUS_OK] * 3
    bench.at_rest(3)
    assert bench.count("segmented") == 3 * (len(one.segments(MIN_SEGMENT)) - 1) > 3 * BUDGET_PARTS
    assert bench.drops() == {}


def test_buffers_that_are_too_many_for_a_frame_are_all_used_up() -> None:
    """Lest the next frame's sender waits while they are looked at once more."""
    with bench_of(1, mtu=MTU, features=ALL, queue=128, memory=4 << 20) as (bench, anna):
        carl = bench.guest(queue=128, memory=4 << 20, features=ALL)
        carl.post_buffers(MAX_FRAGMENTS + 5, MIN_BUFFER)
        one = packet(anna, carl.mac, MAX_FRAGMENTS * MIN_BUFFER)
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 1400)
        assert anna.sent(1) == [STATUS_DROPPED]
        assert [status for status, _ in carl.take(MAX_FRAGMENTS)] == [STATUS_BAD_LENGTH] * MAX_FRAGMENTS
        assert bench.drops() == {"drop_small_buffer": 1}


@pytest.mark.parametrize("sizes", [(1,), (MIN_BUFFER - 1,), (MIN_BUFFER, 100), (MIN_BUFFER + 100, 1), (1500, 0)])
def test_a_frame_does_not_go_on_after_a_buffer_smaller_than_the_smallest(sizes: tuple[int, ...]) -> None:
    """It is no good; it and those before it are used up, and none behind it."""
    with bench_of(1, mtu=MTU, features=ALL, memory=4 << 20) as (bench, anna):
        carl = bench.guest(memory=4 << 20, features=ALL)
        for size in sizes:
            carl.post_buffers(1, size)
        carl.post_buffers(4)
        frame = anna.frame(carl.mac, sum(sizes) + 1 if len(sizes) > 1 else 1500)
        anna.send_chain(fragments_of(frame, 4000))
        assert anna.sent(1) == [STATUS_DROPPED]
        assert [status for status, _ in carl.take(len(sizes))] == [STATUS_BAD_LENGTH] * len(sizes)
        assert bench.drops() == {"drop_small_buffer": 1}
        well(bench, anna, carl)


@pytest.mark.parametrize("sizes", [(64,), (MIN_BUFFER, 1), (MIN_BUFFER, 494), (1517, 1)])
def test_one_that_takes_all_that_is_left_may_be_smaller(sizes: tuple[int, ...]) -> None:
    with bench_of(1, mtu=MTU, features=ALL, memory=4 << 20) as (bench, anna):
        carl = bench.guest(memory=4 << 20, features=ALL)
        for size in sizes:
            carl.post_buffers(1, size)
        frame = anna.frame(carl.mac, sum(sizes))
        anna.send(frame)
        assert anna.sent(1) == [STATUS_OK]
        assert carl.take_frame() == (0, 0, frame)
        bench.at_rest(1)
        assert bench.drops() == {}


@pytest.mark.parametrize("engines", [1, 2])
def test_over_the_wrap_and_between_engines(engines: int) -> None:
    with bench_of(2, engines=engines, mtu=MTU, features=ALL, start=JUST_BELOW_WRAP) as (bench, anna, bert):
        carl = bench.guest(features=CSUM)
        for to in (bert, carl):
            for number in range(4):
                one = packet(anna, to.mac, 9000 + number)
                to.post_buffers(30)
                anna.send_chain(fragments_of(bytes(one), 2000), BLANK | GSO[4], 1400)
                assert anna.sent(1) == [STATUS_OK]
                if to is bert:
                    assert to.take_frame() == (BLANK | GSO[4], 1400, bytes(one))
                else:
                    assert [to.take_frame() for _ in range(7)] == [(VALID, 0, frame) for frame in one.segments(1400)]
        bench.at_rest(8)
        assert bench.drops() == {}


# --- what a driver may not do -----------------------------------------------------------------------------------------


def post_chain(anna: Guest, lengths: Sequence[int], last: int = DESC_SIGNALED, first: int = 0, segment: int = 0) -> None:
    frame = bytes(packet(anna, WIRE_MAC, 3000))
    for k, length in enumerate(lengths):
        gpa = anna.tx_pool + int(anna.q["sq_prod"]) % anna.entries * PAGE
        anna.write(gpa, frame[: min(max(length, 64), PAGE)])
        flags = (last if k == len(lengths) - 1 else DESC_MORE) | (first if k == 0 else 0)
        anna.post(gpa, length, flags, segment if k == 0 else 0)
    anna.ring()


HOSTILE: Final = {
    "too many fragments": ([40] * (MAX_FRAGMENTS + 1), {}, STATUS_BAD_CHAIN, "faults_chain", "drop_bad_frame"),
    "far too many": ([40] * 60, {}, STATUS_BAD_CHAIN, "faults_chain", "drop_bad_frame"),
    "no end": ([40] * 5, {"last": DESC_MORE}, STATUS_BAD_CHAIN, "faults_chain", "drop_bad_frame"),
    "an empty one in the middle": ([40, 0, 40], {}, STATUS_BAD_CHAIN, "faults_chain", "drop_bad_frame"),
    "an empty one at the end": ([40, 0], {}, STATUS_BAD_CHAIN, "faults_chain", "drop_bad_frame"),
    "no header in the first": ([13, 100], {}, STATUS_BAD_CHAIN, "faults_chain", "drop_bad_frame"),
    "too long in all": ([1500, 19], {}, STATUS_BAD_LENGTH, "faults_descriptor", "drop_oversize"),
    "more than 16 bits in all": ([4000] * 17, {}, STATUS_BAD_LENGTH, "faults_descriptor", "drop_oversize"),
    "signalled and more": ([40, 40], {"first": DESC_SIGNALED}, STATUS_BAD_FLAGS, "faults_descriptor", "drop_bad_frame"),
    "no segment size": ([1500] * 2, {"first": BLANK | GSO[4]}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame"),
    "a tiny one": ([1500] * 2, {"first": BLANK | GSO[4], "segment": 47}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame"),
    "longer than the MTU": (
        [1500, 1500, 54], {"first": BLANK | GSO[4], "segment": 1500}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame",
    ),
    "both kinds": (
        [1500, 1500, 54], {"first": BLANK | GSO[4] | GSO[6], "segment": 1000}, STATUS_BAD_OFFLOAD, "faults_offload",
        "drop_bad_frame",
    ),
    "IPv6's for IPv4": (
        [1500, 1500, 54], {"first": BLANK | GSO[6], "segment": 1000}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame",
    ),
    "without a blank checksum": (
        [1500, 1500, 54], {"first": GSO[4], "segment": 1000}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame",
    ),
    "a length that IP doesn't say": (
        [1500, 1500], {"first": BLANK | GSO[4], "segment": 1000}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame",
    ),
    "a size without GSO": ([100], {"segment": 1000}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame"),
    "no header to fill": ([53], {"first": BLANK}, STATUS_BAD_OFFLOAD, "faults_offload", "drop_bad_frame"),
}  # fmt: skip


@pytest.mark.parametrize("which", HOSTILE)
@pytest.mark.parametrize("start", [0, JUST_BELOW_WRAP], ids=["from 0", "over the wrap"])
def test_a_chain_that_is_no_good_is_refused_whole(which: str, start: int) -> None:
    lengths, more, status, fault, drop = HOSTILE[which]
    with bench_of(2, mtu=MTU, features=ALL, start=start) as (bench, anna, bert):
        post_chain(anna, lengths, **more)
        assert anna.sent(1) == [status]
        assert int(anna.q["sq_done"]) == int(anna.q["sq_prod"])
        bench.at_rest(1)
        assert bench.drops() == {drop: 1}
        assert bench.of(anna)[fault] == 1
        well(bench, anna, bert)


def test_an_address_out_of_reach_in_the_middle_of_a_chain(trio: tuple[Bench, Guest, Guest, Guest]) -> None:
    bench, anna, bert, _ = trio
    anna.write(anna.tx_pool, anna.frame(bert.mac))
    anna.post(anna.tx_pool, 64, DESC_MORE)
    anna.post(anna.free, 64, DESC_MORE)
    anna.post(anna.tx_pool, 64)
    anna.ring()
    assert anna.sent(1) == [STATUS_BAD_ADDRESS]
    bench.at_rest(1)
    assert bench.drops() == {"drop_bad_address": 1}
    well(bench, anna, bert)


def test_more_from_who_did_not_accept_it_is_a_flag_like_others(trio: tuple[Bench, Guest, Guest, Guest]) -> None:
    bench, _, bert, carl = trio
    carl.send_chain([carl.frame(WIRE_MAC), carl.frame(WIRE_MAC)])
    assert carl.sent(2) == [STATUS_BAD_FLAGS, STATUS_OK]
    bench.at_rest(2)
    assert bench.drops() == {"drop_bad_frame": 1}
    well(bench, carl, bert)


# --- anything, against the model --------------------------------------------------------------------------------------

PACKETS: Final = st.fixed_dictionaries(
    {
        "version": st.sampled_from([4, 6]),
        "protocol": st.sampled_from(["tcp", "tcp", "udp"]),
        "length": st.integers(0, 6000),
        "tags": st.sampled_from([(), ((0x8100, 7),), ((0x88A8, 1), (0x8100, 4095))]),
        "ip_options": st.sampled_from([b"", bytes((1, 1, 1, 0, 0, 0, 0, 0))]),
        "tcp_options": st.sampled_from([b"", bytes((1, 1, 1, 0)), bytes((1,)) * 40]),
        "flags": st.integers(0, 255),
        "identification": st.sampled_from([0, 0xFFFF, 77]),
        "sequence": st.sampled_from([0, 0xFFFF_FFFF, 0x7FFF_F000]),
    }
)
CASES: Final = st.tuples(
    st.lists(st.tuples(PACKETS, st.lists(st.integers(14, 6200), max_size=20), st.integers(48, 1400)), min_size=1, max_size=12),
    st.sampled_from([0, SG, CSUM, CSUM | SG, CSUM | SG | TSO4, CSUM | SG | TSO6, ALL]),
    st.lists(st.integers(1, PAGE), min_size=1, max_size=4),
    st.sampled_from([0, JUST_BELOW_WRAP]),
)


def exchange(
    case: Any, seen: set[str], sender: Callable[..., Guest] = Bench.guest, receiver: Callable[..., Guest] = Bench.guest
) -> None:
    """Send the packets of a case to a guest with these features and buffers of these sizes in turn; compare what it gets.

    `sender`, `receiver`: make the guests on a bench, with `Bench.guest`'s arguments.
    """
    sends, features, sizes, start = case
    with Bench(mtu=MTU, pause_us=60_000_000) as bench:
        anna = sender(bench, queue=256, memory=16 << 20, features=ALL)
        bert = receiver(bench, queue=256, memory=16 << 20, features=features, start=start)
        for given, cuts, mss in sends:
            given = dict(given)
            one = packet(anna, bert.mac, given.pop("length"), **given)
            frame, headers = bytes(one), len(bytes(one)) - len(one.payload)
            mss = min(mss, MTU + 18 - headers)
            gso = one.protocol == "tcp" and len(one.payload) > 0
            if not gso and len(frame) > MTU + 18:
                continue
            whole = features & CSUM and (not gso or (features & SG and features & (TSO4 if one.version == 4 else TSO6)))
            expected = [frame] if whole else one.segments(mss) if gso else [one.filled()]
            most = min(30, bert.entries // len(expected))  # buffers for each, so that no more are posted than the queue has entries
            for content in expected:
                room, n = 0, 0
                while room < len(content):
                    size = sizes[n % len(sizes)] if features & SG else PAGE
                    size = max(size, min(MIN_BUFFER, len(content) - room), -(-len(content) // most))
                    bert.post_buffer(bert.rx_pool + int(bert.q["rq_prod"]) % bert.entries * PAGE, size)
                    room, n = room + size, n + 1
            bert.ring_buffers()
            pieces = cut(frame, cuts) if len(frame) <= PAGE else cut(frame, [*cuts, *range(PAGE, len(frame), PAGE)])
            anna.send_chain(pieces, BLANK | (GSO[one.version] if gso else 0), mss if gso else 0)
            assert anna.sent(1) == [STATUS_OK]
            flags = (BLANK | (GSO[one.version] if gso else 0), mss if gso else 0) if whole else (VALID if features & CSUM else 0, 0)
            assert [bert.take_frame() for _ in expected] == [(*flags, content) for content in expected]
            seen.add("whole" if whole else "cut" if gso else "filled")
            seen.add("fragments" if len(pieces) > 1 else "one")
        bench.at_rest()
        assert bench.drops() == {}


@TIERS
def test_the_nic_does_what_the_model_does_with_any_packets(examples: int) -> None:
    seen: set[str] = set()
    fuzz(lambda case: exchange(case, seen), CASES, 10 * examples)
    assert seen == {"whole", "cut", "filled", "fragments", "one"}, SEED


def test_a_frame_that_is_cut_for_who_is_on_another_engine_is_cut_by_its_senders() -> None:
    """A part in a slot, and a turn's worth of them at a time: whole it would hold up all that cross behind it until it is cut."""
    with bench_of(3, engines=2, mtu=MTU, features=ALL, queue=1024, memory=64 << 20) as (bench, *guests):
        owner = {guest: bench.nic._owner(guest.context) for guest in guests}
        anna = guests[0]
        dora = next(guest for guest in guests[1:] if owner[guest] == owner[anna])
        carl = bench.guest(queue=1024, memory=64 << 20)
        if bench.nic._owner(carl.context) == owner[anna]:
            carl = bench.guest(queue=1024, memory=64 << 20)
        assert bench.nic._owner(carl.context) != owner[anna]
        one, few = packet(anna, carl.mac, 10 * BUDGET_PARTS * 100), 20
        carl.post_buffers(10 * BUDGET_PARTS + few)
        for k in range(few):
            dora.write(gpa := dora.tx_pool + k * PAGE, dora.frame(carl.mac, sequence=k))
            dora.post(gpa, 64)
        dora.words["sq_prod"] = dora.q["sq_rung"] = dora.q["sq_told"] = dora.q["sq_prod"]  # seen when anna rings
        anna.send_chain(fragments_of(bytes(one), 4000), BLANK | GSO[4], 100)
        found = [frame for _, _, frame in (carl.take_frame() for _ in range(10 * BUDGET_PARTS + few))]
        assert [frame for frame in found if frame[6:12] == found_source(anna)] == one.segments(100)
        places = [place for place, frame in enumerate(found) if frame[6:12] == found_source(dora)]
        assert len(places) == few
        assert max(places) < 5 * BUDGET_PARTS  # not all in one turn: it may end by the clock
        bench.at_rest(1 + few)
        assert bench.drops() == {}


def found_source(guest: Guest) -> bytes:
    return bytes.fromhex(guest.mac.replace(":", ""))
