"""Drivers that attack the NIC: what it refuses, whom it fails, and others whose traffic arrives whole meanwhile."""

import random
import threading
from typing import Any

import numpy as np
import pytest

from bench.isolation.loops import flip, post_garbage, scribble
from hyp.abi.counters import COLUMNS, FAULTS_PROTOCOL
from hyp.abi.nic import (
    DESC_MORE,
    MAX_LONE_FRAME,
    MIN_FRAME,
    PAGE,
    SQ_PROD,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from hyp.control import Refused
from hyp.kernels import entry, i64
from hyp.ram import register
from nic.queues import has_posted_more
from nic.state import CONTEXT, context_at
from tests.support.drivers import FINISHED, compose, head_words, header
from tests.support.guests import BROADCAST_MAC, WIRE_MAC, WRAP, Guest, Loop, eventually
from tests.support.peers import DEFAULT_RAM, Bench, bench_of, well

# --- what the NIC refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, MIN_FRAME - 1, MAX_LONE_FRAME + 1, PAGE, 1 << 16, (1 << 16) + 64, 1 << 31, WRAP - 1])
def test_send_of_bad_length(pair: tuple[Bench, Guest, Guest], length: int) -> None:
    bench, anna, bert = pair
    assert anna.send_one(anna.tx_pool, length) == STATUS_BAD_LENGTH
    bench.at_rest(1)
    assert bench.drops() == {"drop_oversize" if length > MAX_LONE_FRAME else "drop_bad_frame": 1}
    assert bench.of(anna)["faults_descriptor"] == 1
    well(bench, anna, bert)


@pytest.mark.parametrize(
    ("flags", "segment", "status", "fault"),
    [
        (flags, segment, STATUS_BAD_FLAGS, "faults_descriptor")
        for flags, segment in ((2, 0), (3, 0), (0x8001, 0), (0xFFFF, 0xFFFF), (8, 0))
    ]
    + [
        (flags, segment, STATUS_BAD_OFFLOAD, "faults_offload")
        for flags, segment in ((1, 1), (0, 0x8000), (4, 0), (20, 100), (36, 99))
    ],
)
def test_flags_unknown_or_not_accepted(pair: tuple[Bench, Guest, Guest], flags: int, segment: int, status: int, fault: str) -> None:
    bench, anna, bert = pair
    anna.write(anna.tx_pool, anna.frame(bert.mac))
    anna.post(anna.tx_pool, 64, flags, segment)
    anna.ring()
    assert anna.sent(1) == [status]
    bench.at_rest(1)
    assert bench.of(anna)[fault] == 1
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


# --- set-up calls ----------------------------------------------------------------------------------------------------


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
        assert len(bench.hypervisor.system.domains[mallory.domid].contexts) <= 1
        well(bench, anna, bert)


# --- indices between two looks ----------------------------------------------------------------------------------------


@entry(i64(i64, i64))
def look_again(context: int, n: int) -> int:
    return int(has_posted_more(context_at(context), n))


@pytest.mark.parametrize("start", [0, WRAP - 3])
@pytest.mark.parametrize(
    ("posted", "more", "failed"), [(4, 0, 1), (0, 0, 1), (-1, 0, 1), (5, 0, 0), (6, 1, 0), (64, 1, 0), (65, 0, 1), (1 << 31, 0, 1)]
)
def test_an_index_that_goes_back_behind_what_was_read_fails_its_context(start: int, posted: int, more: int, failed: int) -> None:
    """Else descriptors that were taken were never posted, and those to come are four thousand millions."""
    context, counts, page = np.zeros(1, CONTEXT), np.zeros(COLUMNS, np.int64), np.zeros((2, PAGE), np.uint8)
    row = context[0]
    row["active"], row["sq_size"], row["sq_cons"], row["sq_prod"] = 1, 64, start, (start + 5) % WRAP
    row["doorbell"], row["counts"], row["counts_shared"] = page[0].ctypes.data, counts.ctypes.data, page[1].ctypes.data
    page[0, SQ_PROD : SQ_PROD + 4].view(np.uint32)[0] = (start + posted) % WRAP
    assert look_again(int(context.ctypes.data), 5) == more
    assert (int(row["failed"]), int(row["active"]), int(counts[FAULTS_PROTOCOL])) == (failed, 1 - failed, failed)


def test_a_chain_whose_end_is_taken_back_while_it_is_read_holds_nobody_up(pair: tuple[Bench, Guest, Guest]) -> None:
    bench, anna, bert = pair
    mallory = bench.guest(queue=4096, memory=64 << 20)
    for _ in range(mallory.entries):
        mallory.post(mallory.tx_pool, 60, DESC_MORE)
    mallory.ring()
    end, calm = int(mallory.q["sq_prod"]), threading.Event()

    def take_back() -> None:
        while not calm.is_set():
            mallory.words["sq_prod"] = end
            mallory.words["sq_prod"] = (end - 1) % WRAP

    taking_back = threading.Thread(target=take_back)
    taking_back.start()
    try:
        for _ in range(20):
            mallory.kick()
            well(bench, anna, bert, frames=200)
    finally:
        calm.set()
        taking_back.join()
