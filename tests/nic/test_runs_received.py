"""Runs: frames in a row with the same addresses, and what ends them on the side of their receiver.

A run begins behind a frame that has gone by itself, so each test sends one first (`prime`), and then what it is about in one ring.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hyp.abi.nic import (
    DESC_SIGNALED,
    PAGE,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_LENGTH,
    STATUS_DROPPED,
    STATUS_OK,
)
from hyp.ram import open_queue_pair, register
from tests.support.drivers import FINISHED, compose
from tests.support.guests import HOSTILE_ADDRESSES, WAIT_S, WIRE_MAC, WRAP, Guest, completed, eventually, place, prime
from tests.support.patience import patient
from tests.support.peers import Bench, bench_of

MEMORY = 16 << 20


def test_bad_buffers_in_the_middle_of_a_run_are_used_up_one_by_one(start: int) -> None:
    with bench_of(2, start=start) as (bench, anna, bert):
        prime(anna, bert)
        forms = ((0, 0), (63, 0), (64, 1), (PAGE, 0x8000), (PAGE, 0xFFFF))
        cases: list[tuple[Callable[[Guest], int], int, int, int]] = [
            *((where, PAGE, 0, STATUS_BAD_ADDRESS) for where in HOSTILE_ADDRESSES.values()),
            (lambda g: g.tx_pool, PAGE, 0, STATUS_BAD_ADDRESS),
            *((lambda g: g.rx_pool, *form, STATUS_BAD_LENGTH) for form in forms),
        ]
        for where, room, flags, status in cases:
            first, before = int(anna.q["sq_prod"]), bert.memory.copy()
            for k in range(5):
                if k == 2:
                    bert.post_buffer(where(bert), room, flags)
                else:
                    bert.post_buffer(bert.rx_pool + (k + 1) * PAGE, 64)
            bert.ring_buffers()
            for k in range(5):
                anna.post(place(anna, 0, anna.frame(bert.mac, sequence=k)), 64, DESC_SIGNALED if k == 4 else 0)
            anna.ring()
            assert completed(anna, 2) == [((first + 2) % WRAP, STATUS_DROPPED), ((first + 4) % WRAP, STATUS_OK)]
            assert not anna._is_new(anna.scq, int(anna.q["scq_cons"]))
            taken = bert.take(5)
            assert [found for found, _ in taken] == [STATUS_OK, STATUS_OK, status, STATUS_OK, STATUS_OK]
            good = [frame for found, frame in taken if found == STATUS_OK]
            assert good == [anna.frame(bert.mac, sequence=k) for k in (0, 1, 3, 4)]
            changed = np.flatnonzero(before != bert.memory)
            pool = bert.rx_pool + PAGE
            assert all(PAGE <= at < bert.tx_pool or (pool <= at < pool + 5 * PAGE and at % PAGE < 64) for at in changed.tolist())
        bench.at_rest(1 + 5 * len(cases))
        assert sum(bench.drops().values()) == len(cases)


def _half_a_ring(bench: Bench, missing: str) -> Guest:
    """A guest with queues of 512 slots, two pages each, of which the second of `missing` is not registered (as it has to be)."""
    mallory = bench.domain(memory=MEMORY)
    places = {name: PAGE * (2 * k + 2) for k, name in enumerate(("sq", "scq", "rq", "rcq"))}

    async def begin() -> None:
        pair = await open_queue_pair(mallory.hyp, mallory.upcall, 512, int(mallory._counts.ctypes.data))
        mallory.pair, mallory.q, mallory.context = pair, pair.record[0], pair.context
        for name, at in places.items():
            await register(mallory.hyp, at, PAGE, writable=name.endswith("cq"))
            if name != missing:
                await register(mallory.hyp, at + PAGE, PAGE, writable=name.endswith("cq"))
            elif name.endswith("cq"):
                await register(mallory.hyp, at + PAGE, PAGE, writable=False)
        await register(mallory.hyp, 32 * PAGE, 512 * PAGE, writable=True)
        where: dict[str, Any] = {**places, "sq_size": 512, "rq_size": 512}
        await mallory.hyp.call("context_start", context=pair.context, **where)

    bench.run(begin())
    mallory.places = places
    return mallory


@pytest.mark.parametrize(("missing", "arrive"), [("rq", 256), ("rcq", 257)])
def test_a_receiver_whose_ring_ends_in_the_middle_of_a_run_fails_alone(missing: str, arrive: int) -> None:
    with bench_of(1, queue=512, memory=MEMORY) as (bench, anna):
        mallory = _half_a_ring(bench, missing)
        buffers = np.zeros((512, 2), "<u8")
        buffers[:, 0], buffers[:, 1] = np.arange(32, 544) * PAGE, PAGE
        mallory.write(mallory.places["rq"], buffers.tobytes())
        mallory.pair.doorbell.words("<u4")[16] = 400
        mallory.kick()
        anna.send(*(anna.frame(mallory.mac, sequence=k) for k in range(400)))
        assert anna.sent(400) == [STATUS_OK] * arrive + [STATUS_DROPPED] * (400 - arrive)
        bench.at_rest(400)
        assert bench.of(mallory)["rx_frames"] == arrive
        assert bench.of(mallory)["faults_address"] == 1
        assert bench.drops() == {"drop_down": 400 - arrive}
        for k in range(256):
            assert mallory.read((32 + k) * PAGE, 64) == anna.frame(mallory.mac, sequence=k)
        prime(anna, None)


@pytest.mark.parametrize(("missing", "signalled", "leave"), [("sq", 1, 256), ("sq", 300, 256), ("scq", 1, 257)])
def test_a_sender_whose_ring_ends_in_the_middle_of_a_run_fails_alone(missing: str, signalled: int, leave: int) -> None:
    with bench_of(1) as (bench, anna):
        mallory = _half_a_ring(bench, missing)
        descriptors = np.zeros((512, 2), "<u8")
        descriptors[:, 0], descriptors[:, 1] = np.arange(32, 544) * PAGE, 64
        descriptors[signalled - 1 :: signalled, 1] |= np.uint64(DESC_SIGNALED << 32)
        for k in range(400):
            mallory.write((32 + k) * PAGE, compose(WIRE_MAC, mallory.mac, 64, 3, k))
        mallory.write(mallory.places["sq"], descriptors.tobytes())
        mallory.pair.doorbell.words("<u4")[0] = 400
        mallory.kick()
        eventually(lambda: bench.of(mallory).get("faults_address") or bench.sync(), "the context fails")
        bench.at_rest(leave)
        report = bench.wire("wire_report", stream=3)["received"]
        assert (report["frames"], report["lost"], report["corrupt"]) == (leave, 0, 0)
        assert bench.drops() == {}
        prime(anna, None)


def test_a_receiver_that_breaks_the_protocol_in_a_run_fails_alone() -> None:
    """Its producer index is looked at when the buffers that were known of are used up, in the middle of the sender's turn."""
    with bench_of(3) as (bench, mallory, anna, bert):
        prime(anna, mallory)
        mallory.post_buffers(3)
        anna.send(*(anna.frame(mallory.mac, sequence=k) for k in range(3)))
        assert anna.sent(3) == [STATUS_OK] * 3
        mallory.words["rq_prod"] = 4 + 65
        anna.send(*(anna.frame(mallory.mac, sequence=k) for k in range(5)), anna.frame(WIRE_MAC))
        assert anna.sent(6) == [STATUS_DROPPED] * 5 + [STATUS_OK]
        bench.at_rest(1 + 3 + 6)
        assert bench.drops() == {"drop_down": 5}
        prime(anna, bert)


def test_each_wait_for_a_receiver_has_its_own_deadline() -> None:
    with bench_of(2, pause_us=60_000_000) as (bench, anna, bert):
        prime(anna, bert)
        anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(9)))
        taken = []
        for pauses in (1, 2, 3):
            eventually(lambda pauses=pauses: bench.count("pauses") == pauses or bench.sync(), f"pause {pauses}")  # type: ignore[misc]
            bert.post_buffers(3)
            taken += bert.take(3)
        assert taken == [(STATUS_OK, anna.frame(bert.mac, sequence=k)) for k in range(9)]
        assert anna.sent(9) == [STATUS_OK] * 9
        bench.at_rest(10)
        assert bench.count("pauses") == 3
        assert bench.drops() == {}


def test_a_run_behind_a_pause_that_ran_out_begins_anew() -> None:
    """What is sent to a receiver that is known to be full drops at once, until it posts a buffer: then it is waited for again."""
    with bench_of(2, pause_us=1000) as (bench, anna, bert):
        prime(anna, bert)
        for round_ in range(1, 6):
            anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(4)))
            assert anna.sent(4) == [STATUS_DROPPED] * 4
            bench.sync()
            assert bench.count("pauses") == round_
            bert.post_buffers(2)
            anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(2)))
            assert anna.sent(2) == [STATUS_OK] * 2
            bert.take(2)
        bench.at_rest(1 + 30)


# --- the wire --------------------------------------------------------------------------------------------------------


def test_every_frame_is_counted_while_the_wire_changes() -> None:
    with bench_of(1, queue=256, memory=MEMORY) as (bench, anna):
        sender = anna.traffic(WIRE_MAC, 1 << 50, length=200)
        modes: list[dict[str, Any]] = [
            {"mode": "sink"}, {"mode": "reflect"}, {"mode": "sink", "gbps": 5.0}, {"mode": "reflect"}, {"mode": "sink", "gbps": 0},
            {"mode": "reflect", "delay_us": 20}, {"mode": "sink", "delay_us": 0},
        ]  # fmt: skip
        for _ in range(6):
            for mode in modes:
                seen = sender["done"]
                bench.wire("wire_mode", **mode)
                eventually(lambda seen=seen: sender["done"] > seen + 600, "the sender goes on")  # type: ignore[misc]
        sender.stop()
        sent = sender["sequence"]
        bench.at_rest()
        assert bench.count("rx_frames", "wire") == bench.of(anna)["tx_frames"] == sent
        assert bench.count("rx_bytes", "wire") == 200 * sent


def test_each_wait_of_the_generator_has_its_own_deadline() -> None:
    with bench_of(1, pause_us=60_000_000) as (bench, anna):
        bench.wire("wire_generate", mac=anna.mac, frame=100, stream=4, frames=9)
        taken = []
        for pauses in (1, 2, 3):
            eventually(lambda pauses=pauses: bench.count("pauses") == pauses or bench.sync(), f"pause {pauses}")  # type: ignore[misc]
            anna.post_buffers(3)
            taken += anna.take(3)
        assert [frame for _, frame in taken] == [compose(anna.mac, WIRE_MAC, 100, 4, k) for k in range(9)]
        bench.at_rest(9)
        report = bench.wire("wire_report", stream=4)
        assert (report["left"], report["sent"]) == (0, 9)
        assert bench.count("pauses") == 3


def test_bad_buffers_in_the_middle_of_the_generators_run(start: int) -> None:
    with bench_of(1, start=start) as (bench, anna):
        forms = [PAGE, PAGE, 10, PAGE, 10, 10, PAGE, PAGE]
        for room in forms:
            anna.post_buffer(anna.rx_pool + int(anna.q["rq_prod"]) % anna.entries * PAGE, room)
        anna.ring_buffers()
        bench.wire("wire_generate", mac=anna.mac, frame=77, stream=0x7FFE, frames=len(forms))
        taken = anna.take(len(forms))
        assert [status for status, _ in taken] == [STATUS_OK if room == PAGE else STATUS_BAD_LENGTH for room in forms]
        for k, (status, frame) in enumerate(taken):
            assert status != STATUS_OK or frame == compose(anna.mac, WIRE_MAC, 77, 0x7FFE, k)
        bench.at_rest(len(forms))
        report = bench.wire("wire_report", stream=0x7FFE)
        assert (report["left"], report["sent"]) == (0, len(forms))
        assert bench.drops() == {"drop_small_buffer": 3}


# --- others ----------------------------------------------------------------------------------------------------------


def test_streams_go_on_beside_a_receiver_that_ends_every_run() -> None:
    """Every other buffer of it is no good, so that no run to it is longer than one frame. Others' streams arrive whole."""
    with bench_of(4) as (bench, mallory, hurried, anna, bert):
        prime(hurried, mallory)
        for _ in range(30):
            for k in range(64):
                mallory.post_buffer(mallory.rx_pool + k * PAGE, PAGE if k % 2 else 1)
            mallory.ring_buffers()
            hurried.send(*(hurried.frame(mallory.mac, sequence=k) for k in range(64)))
            assert hurried.sent(64) == [STATUS_DROPPED, STATUS_OK] * 32
            mallory.take(64)
        receiver, sender = bert.traffic(expect=3000), anna.traffic(bert.mac, 3000, stream=9)
        assert (sender.wait(), receiver.wait()) == (FINISHED, FINISHED)
        assert receiver.report(9)["lost"] == 0
        bench.at_rest()


def time_of_a_turn(bench: Bench, sender: Guest, receiver: Guest, room: Callable[[int], int]) -> float:
    """Seconds from the bell until the receiver's last buffer is used up: a queue full of 64-byte frames.

    `room`: the length of each buffer, by its place.
    """
    entries, first = receiver.entries, int(receiver.q["rcq_cons"])
    for k in range(entries):
        receiver.post_buffer(receiver.rx_pool + k * PAGE, room(k))
        sender.post(sender.tx_pool + k * PAGE, 64, 0)
    receiver.ring_buffers()
    bench.sync()
    last, start = (first + entries - 1) % WRAP, time.perf_counter()
    sender.ring()
    while not receiver._is_new(receiver.rcq, last):
        assert time.perf_counter() - start < patient(WAIT_S)
    took = time.perf_counter() - start
    receiver.q["rcq_cons"] = (first + entries) % WRAP
    return took


@pytest.mark.parametrize("period", [1, 2])
def test_a_receiver_that_ends_runs_makes_its_senders_turns_not_much_dearer(period: int) -> None:
    """Each frame of a turn is looked at a bounded number of times. Staged anew for each bad buffer, they took 8 times as long."""
    with bench_of(2, queue=1024, memory=MEMORY) as (bench, mallory, anna):
        for k in range(anna.entries):
            anna.write(anna.tx_pool + k * PAGE, anna.frame(mallory.mac))
        good, bad = [], []
        for _ in range(40):
            good.append(time_of_a_turn(bench, anna, mallory, lambda k: PAGE))
            bad.append(time_of_a_turn(bench, anna, mallory, lambda k: PAGE if k % period else 1))
        assert min(bad) < 4 * min(good), f"{min(bad) / min(good):.1f} times as long"
