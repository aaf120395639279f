"""Runs: frames in a row with the same addresses, and what ends them on the side of their sender.

A run begins behind a frame that has gone by itself, so each test sends one first (`prime`), and then what it is about in one ring.
"""

import random
from collections.abc import Callable

import pytest

from bench.isolation.loops import flip
from hyp.abi.nic import (
    DESC_SIGNALED,
    MAX_LONE_FRAME,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from hyp.abi.sizes import LARGEST_FRAME_BUFFER
from nic.send import RUN_FRAME
from nic.state import BUDGET_BYTES, BUDGET_FRAMES, MOST_REFUSED, WIRE_BUFFERS
from tests.support.drivers import head_words, header
from tests.support.guests import (
    HOSTILE_ADDRESSES,
    JUST_BELOW_WRAP,
    NOBODY,
    WIRE_MAC,
    WRAP,
    Guest,
    Loop,
    completed,
    place,
    prime,
)
from tests.support.peers import bench_of

MEMORY = 16 << 20


@pytest.mark.parametrize("target", ["wire", "guest"])
def test_bad_descriptors_in_the_middle_of_a_run_are_refused_one_by_one(start: int, target: str) -> None:
    with bench_of(2, start=start) as (bench, anna, bert):
        mac = prime(anna, bert if target == "guest" else None)
        total, good, faulty = 1, 1, 0
        cases: list[tuple[Callable[[Guest], int], int, int, int, int]] = [
            *((where, 64, 0, 0, STATUS_BAD_ADDRESS) for where in HOSTILE_ADDRESSES.values()),
            *(
                (lambda g: place(g, 0, g.frame(mac)), length, 0, 0, STATUS_BAD_LENGTH)
                for length in (0, 1, 13, MAX_LONE_FRAME + 1, PAGE, 1 << 16, (1 << 16) + 64, 1 << 31, WRAP - 1)
            ),
            *(
                (lambda g: place(g, 0, g.frame(mac)), 64, flags, segment, STATUS_BAD_FLAGS)
                for flags, segment in ((2, 0), (3, 0), (0x8001, 0), (0xFFFF, 0xFFFF))
            ),
            *(
                (lambda g: place(g, 0, g.frame(mac)), 64, flags, segment, STATUS_BAD_OFFLOAD)
                for flags, segment in ((1, 1), (0, 0x8000), (4, 0), (0x14, 1448))
            ),
        ]
        for where, length, flags, segment, status in cases:
            first = int(anna.q["sq_prod"])
            if target == "guest":
                bert.post_buffers(4)
            for k in range(5):
                if k == 2:
                    anna.post(where(anna), length, flags, segment)
                else:
                    anna.post(place(anna, 0, anna.frame(mac, sequence=k)), 64, DESC_SIGNALED if k == 4 else 0)
            anna.ring()
            assert completed(anna, 2) == [((first + 2) % WRAP, status), ((first + 4) % WRAP, STATUS_OK)]
            if target == "guest":
                assert [frame for _, frame in bert.take(4)] == [anna.frame(mac, sequence=k) for k in (0, 1, 3, 4)]
            total, good, faulty = total + 5, good + 4, faulty + 1
        bench.at_rest(total)
        assert sum(bench.drops().values()) == faulty
        assert bench.count("rx_frames", "wire" if target == "wire" else "ctx") == good


@pytest.mark.parametrize("target", ["wire", "guest"])
def test_a_forged_source_behind_a_good_frame_is_refused(target: str) -> None:
    with bench_of(2) as (bench, anna, bert):
        mac = prime(anna, bert if target == "guest" else None)
        octets = anna.mac.split(":")
        forged = [":".join([*octets[:k], f"{int(octets[k], 16) ^ 4:02x}", *octets[k + 1 :]]) for k in range(6)]
        for source in forged:
            good = anna.frame(mac)
            if target == "guest":
                bert.post_buffers(2)
            anna.send(good, anna.frame(mac, source=source), good)
            assert anna.sent(3) == [STATUS_OK, STATUS_SPOOFED, STATUS_OK]
            if target == "guest":
                assert [frame for _, frame in bert.take(2)] == [good, good]
        bench.at_rest(1 + 18)
        assert bench.drops() == {"drop_spoofed": 6}


@pytest.mark.parametrize("target", ["wire", "guest"])
def test_frames_of_every_small_length_keep_their_place_in_a_run(start: int, target: str) -> None:
    """Those of 14 and 15 bytes have no whole second word: they go by themselves, and the next run begins with what they left."""
    with bench_of(2, start=start) as (bench, anna, bert):
        mac = prime(anna, bert if target == "guest" else None)
        rng = random.Random(5)
        lengths = [64, 64, 14, 64, 15, 14, 16, 17, 15, 47, 48, 64, 80, 81, 14, MAX_LONE_FRAME, 16, 15, 31, 32, 33, 64]
        frames = [header(mac, anna.mac) + rng.randbytes(length - 14) for length in lengths]
        bert.post_buffers(len(frames))
        anna.send(*frames)
        assert anna.sent(len(frames)) == [STATUS_OK] * len(frames)
        if target == "guest":
            assert bert.take(len(frames)) == [(STATUS_OK, frame) for frame in frames]
        bench.at_rest(1 + len(frames))
        row = "wire" if target == "wire" else "ctx"
        assert bench.count("rx_bytes", row) == bench.count("copied_bytes", row) == 64 + sum(lengths)
        assert bench.drops() == {}


@pytest.mark.parametrize("target", ["wire", "guest"])
def test_completions_come_for_what_was_signalled_and_in_order(start: int, target: str) -> None:
    rng = random.Random(7)
    with bench_of(2, start=start) as (bench, anna, bert):
        mac = prime(anna, bert if target == "guest" else None)
        total = 1
        for _ in range(40):
            n = rng.randint(1, 64)
            first = int(anna.q["sq_prod"])
            flags = [int(rng.random() < rng.choice((0.1, 0.5, 0.9))) for _ in range(n - 1)] + [DESC_SIGNALED]
            if target == "guest":
                bert.post_buffers(n)
            for k in range(n):
                anna.post(place(anna, 0, anna.frame(mac, sequence=k)), 64, flags[k])
            anna.ring()
            expected = [((first + k) % WRAP, STATUS_OK) for k in range(n) if flags[k]]
            assert completed(anna, len(expected)) == expected
            assert not anna._is_new(anna.scq, int(anna.q["scq_cons"])), "one completion too many"
            if target == "guest":
                assert [frame for _, frame in bert.take(n)] == [anna.frame(mac, sequence=k) for k in range(n)]
            total += n
        bench.at_rest(total)


@pytest.mark.parametrize(
    ("length", "signal_every"), [(64, 2000), (64, 100), (MAX_LONE_FRAME, 2000), (MAX_LONE_FRAME, 10), (1024, 10)]
)
def test_a_turn_takes_no_more_than_its_budget(start: int, length: int, signal_every: int) -> None:
    """Be it one run or several: a run ends behind a descriptor that is signalled. A sink given too many would miss some."""
    frames, turn = 1024, min(BUDGET_FRAMES, -(-BUDGET_BYTES // length))
    with bench_of(1, queue=frames, memory=MEMORY, start=start) as (bench, anna):
        prime(anna, None)
        bench.sync()
        before = bench.of(anna)["batches"]
        signalled = [k == frames - 1 or k % signal_every == signal_every - 1 for k in range(frames)]
        for k in range(frames):
            anna.post(place(anna, 0, anna.frame(WIRE_MAC, length, 9, k)), length, DESC_SIGNALED if signalled[k] else 0)
        anna.ring()
        assert anna.sent(sum(signalled)) == [STATUS_OK] * sum(signalled)
        bench.at_rest(1 + frames)
        report = bench.wire("wire_report", stream=9)["received"]
        assert (report["frames"], report["lost"], report["corrupt"], report["duplicated"]) == (frames, 0, 0, 0)
        turns, least = bench.of(anna)["batches"] - before, -(-frames // turn)
        # Where frames go one by one, and not in runs, a turn may end by the clock
        assert turns == least or (turns > least and length > RUN_FRAME)


def test_runs_to_a_receiver_with_a_large_queue_are_whole(start: int) -> None:
    with bench_of(2, queue=512, memory=MEMORY, start=start) as (bench, anna, bert):
        prime(anna, bert)
        for round_ in range(3):
            bert.post_buffers(512)
            frames = [anna.frame(bert.mac, 64 + k % 100, sequence=512 * round_ + k) for k in range(512)]
            anna.send(*frames)
            assert anna.sent(512) == [STATUS_OK] * 512
            assert [frame for _, frame in bert.take(512)] == frames
        bench.at_rest(1 + 3 * 512)
        assert bench.drops() == {}


def test_receivers_on_two_engines_take_turns_with_the_wire() -> None:
    with bench_of(4, engines=2) as (bench, anna, bert, carl, dora):
        macs = [guest.mac for guest in (bert, carl, dora)] + [WIRE_MAC, NOBODY, anna.mac]
        for mac in macs:
            for guest in (bert, carl, dora):
                if mac == guest.mac:
                    guest.post_buffers(9)
            anna.send(*(anna.frame(mac, sequence=k) for k in range(9)))
            assert anna.sent(9) == [STATUS_DROPPED if mac == anna.mac else STATUS_OK] * 9
        for guest in (bert, carl, dora):
            assert [frame for _, frame in guest.take(9)] == [anna.frame(guest.mac, sequence=k) for k in range(9)]
        bench.at_rest(54)
        assert bench.drops() == {"drop_same_port": 9}


@pytest.mark.parametrize("mode", ["sink", "reflect"])
def test_the_header_that_was_checked_is_the_one_on_the_wire(mode: str) -> None:
    """A second thread of the sender forges the source address; what is on the wire is looked at in the wire's buffers."""
    with bench_of(2, wire=mode) as (bench, mallory, victim):
        prime(mallory, None)
        words = head_words(WIRE_MAC, mallory.mac)
        other0, other1 = head_words(WIRE_MAC, victim.mac)
        for k in range(64):
            mallory.write(mallory.tx_pool + k * PAGE, mallory.frame(WIRE_MAC))
        page = mallory.tx_pool
        flipping = Loop(flip, mallory, mallory.job(first=page, head0=words[0], head1=words[1], other0=other0, other1=other1))
        statuses: list[int] = []
        size = LARGEST_FRAME_BUFFER
        buffers = bench.nic._engines[0].buffers.reshape(-1)[: WIRE_BUFFERS * size].reshape(WIRE_BUFFERS, size)
        for _ in range(300):
            for _ in range(32):
                mallory.post(page, 64)
            mallory.ring()
            statuses += mallory.sent(32)
            left = {buffer[:12].tobytes() for buffer in buffers if buffer[:12].any()}
            assert left == {header(WIRE_MAC, mallory.mac)[:12]}
        assert flipping.stop() > 0
        assert {STATUS_OK, STATUS_SPOOFED} <= set(statuses)


def test_runs_over_the_wrap_leave_the_indices_in_32_bits() -> None:
    """The checkpoint shows 32 bits only; the engine's own must be no wider, or a distance would be wrong after the wrap."""
    with bench_of(2, start=JUST_BELOW_WRAP) as (bench, anna, bert):
        prime(anna, bert)
        for _ in range(3):
            bert.post_buffers(40)
            anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(40)), flags=0)
            assert len(bert.take(40)) == 40
        bench.at_rest(121)
        for guest in (anna, bert):
            record = bench.nic._engines[0].contexts[guest.context]
            assert all(0 <= int(record[name]) < WRAP for name in ("sq_cons", "scq_prod", "rq_cons", "rcq_prod"))
        assert int(bench.nic._engines[0].contexts[anna.context]["sq_cons"]) == (JUST_BELOW_WRAP + 121) % WRAP
        assert int(bench.nic._engines[0].contexts[bert.context]["rcq_prod"]) == (JUST_BELOW_WRAP + 121) % WRAP


# --- kept routes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2])
def test_a_route_does_not_outlive_its_context_or_filter(engines: int) -> None:
    extra = "02:00:00:00:44:01"
    with bench_of(3, engines=engines) as (bench, anna, _, carl):
        mac = prime(anna, carl)
        carl.call("context_close", context=carl.context)
        anna.send(*[anna.frame(mac)] * 3)
        assert anna.sent(3) == [STATUS_OK] * 3
        bench.at_rest(4)
        assert bench.count("rx_frames", "wire") == 3
        bench.contexts.forget(carl.name)  # as at the end of its domain: the number is anybody's
        dora = bench.guest()
        assert dora.context == carl.context
        dora.post_buffers(5)
        anna.send(*[anna.frame(mac)] * 3, *[anna.frame(dora.mac)] * 2)
        assert anna.sent(5) == [STATUS_OK] * 5
        assert [frame for _, frame in dora.take(2)] == [anna.frame(dora.mac)] * 2
        anna.send(*[anna.frame(extra)] * 2)
        assert anna.sent(2) == [STATUS_OK] * 2
        bench.filters(dora.domid, add=(extra, mac))
        anna.send(*[anna.frame(extra)] * 2, anna.frame(mac))
        assert anna.sent(3) == [STATUS_OK] * 3
        assert len(dora.take(3)) == 3
        bench.filters(dora.domid, remove=(extra, mac))
        anna.send(*[anna.frame(mac)] * 2, *[anna.frame(extra)] * 2)
        assert anna.sent(4) == [STATUS_OK] * 4
        bench.at_rest(4 + 5 + 2 + 3 + 4)
        assert bench.count("rx_frames", "wire") == 3 + 3 + 2 + 4
        assert dora.waiting() == 0


@pytest.mark.parametrize("fault", ["descriptor", "address", "source"])
def test_a_turn_has_few_frames_that_have_to_be_refused(start: int, fault: str) -> None:
    """So who sends nothing else has few in a turn, however many there are: each takes longer than a sound one."""
    with bench_of(2, start=start, queue=BUDGET_FRAMES, memory=4 << 20) as (bench, anna, bert):
        turns = []
        for bad in (False, True):
            before = bench.of(anna).get("batches", 0)
            for k in range(BUDGET_FRAMES):
                forged = bad and fault == "source"
                frame = anna.frame(WIRE_MAC, sequence=k, source=bert.mac if forged else None)
                where = HOSTILE_ADDRESSES["unregistered"](anna) if bad and fault == "address" else place(anna, 0, frame)
                flags = DESC_SIGNALED if not bad and k == BUDGET_FRAMES - 1 else 0
                anna.post(where, 13 if bad and fault == "descriptor" else 64, flags)
            anna.ring()
            statuses = {status for _, status in completed(anna, BUDGET_FRAMES if bad else 1)}
            bench.at_rest()
            turns.append(bench.of(anna)["batches"] - before)
        assert statuses == {{"descriptor": STATUS_BAD_LENGTH, "address": STATUS_BAD_ADDRESS, "source": STATUS_SPOOFED}[fault]}
        assert turns[0] < 4
        assert turns[1] >= BUDGET_FRAMES // MOST_REFUSED  # one that is interrupted may end by the clock
