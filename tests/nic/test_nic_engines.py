"""The engines of the NIC: pausing and dropping, turns, frames that cross between engines, contexts that come and go."""

import random

import numpy as np
import pytest

from hyp.abi.nic import DESC_SIGNALED, MAX_LONE_FRAME, PAGE, STATUS_DROPPED, STATUS_OK
from hyp.abi.platform import CHECKPOINT, CHECKPOINTS
from nic.crossing import CROSSING_SLOTS
from nic.state import BUDGET_BYTES, BUDGET_FRAMES
from tests.support.drivers import FINISHED, header
from tests.support.guests import BROADCAST_MAC, NOBODY, WIRE_MAC, WRAP, Guest, eventually
from tests.support.peers import Bench, bench_of, well

SEED = 20120413


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
    with bench_of(2, queue=1024, memory=16 << 20) as (bench, light, heavy):
        sink = bench.guest(queue=1024, memory=16 << 20)
        sink.post_buffers(200 + 3 * BUDGET_FRAMES)
        for guest, count, length in ((light, 3 * BUDGET_FRAMES, 64), (heavy, 200, MAX_LONE_FRAME)):
            guest.write(guest.tx_pool, guest.frame(sink.mac, length))
            for _ in range(count):
                guest.post(guest.tx_pool, length, DESC_SIGNALED)
        for guest in (light, heavy):
            guest.words["sq_prod"] = guest.q["sq_prod"]
        light.kick()
        order = [frame[6:12] for _, frame in sink.take(200 + 3 * BUDGET_FRAMES)]
        last = max(k for k, source in enumerate(order) if source == header(light.mac, light.mac)[:6])
        large = BUDGET_BYTES // MAX_LONE_FRAME + 1  # that fit into a turn
        assert last < 3 * BUDGET_FRAMES + 4 * large, f"the light sender's last frame came as number {last}"


def test_copies_of_a_flooded_frame_are_its_senders_turn() -> None:
    with bench_of(10, queue=1024, memory=16 << 20) as (bench, light, heavy, *others):
        sink = bench.guest(queue=2048, memory=32 << 20)
        sink.post_buffers(4 * BUDGET_FRAMES)
        for guest, count, mac in ((light, 2 * BUDGET_FRAMES, sink.mac), (heavy, 2 * BUDGET_FRAMES, BROADCAST_MAC)):
            guest.write(guest.tx_pool, guest.frame(mac))
            for _ in range(count):
                guest.post(guest.tx_pool, 64, DESC_SIGNALED)
        for guest in (light, heavy):
            guest.words["sq_prod"] = guest.q["sq_prod"]
        light.kick()
        order = [frame[6:12] for _, frame in sink.take(4 * BUDGET_FRAMES)]
        last = max(k for k, source in enumerate(order) if source == header(light.mac, light.mac)[:6])
        copies = len(others) + 1  # of each of the heavy one's
        assert last < 2 * BUDGET_FRAMES + 4 * (BUDGET_FRAMES // copies + 1), f"the light sender's last frame came as number {last}"


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
        for start in range(0, CROSSING_SLOTS, 64):
            heavy.send(*(heavy.frame(full.mac, sequence=start + k) for k in range(64)))
            heavy.sent(64)
        heavy.send(*(heavy.frame(full.mac, sequence=CROSSING_SLOTS + k) for k in range(16)))
        eventually(lambda: bench.count("pauses", "engine1") or bench.sync(), "the crossing is full")
        for k, guest in enumerate(light, 1):
            guest.send(guest.frame(full.mac))
            eventually(lambda k=k: bench.count("pauses", "engine1") > k or bench.sync(), "another sender waits")  # type: ignore[misc]
        for _ in range(CROSSING_SLOTS + 16 + len(light)):
            full.post_buffers(1)
            assert full.take(1)[0][0] == STATUS_OK
        assert heavy.sent(16) == [STATUS_OK] * 16
        bench.at_rest(CROSSING_SLOTS + 16 + len(light))


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
    page = bench.hypervisor.system.nic._engine_pages[0]
    rows = np.frombuffer(page.array, CHECKPOINT, 8, CHECKPOINTS)
    assert [int(word) - start % WRAP for word in rows[anna.context].tolist()] == [(start + n) % WRAP - start for n in (25, 0, 5, 0)]
    assert [int(word) - start for word in rows[bert.context].tolist()] == [(start + n) % WRAP - start for n in (0, 25, 0, 25)]


@pytest.mark.parametrize("engines", [1, 2])
def test_contexts_come_and_go_under_load(engines: int) -> None:
    with bench_of(2, engines=engines, memory=4 << 20) as (bench, anna, bert):
        receiver, sender = bert.traffic(expect=1 << 40), anna.traffic(bert.mac, 1 << 40, stream=9)
        visitor = bench.domain(memory=4 << 20)
        for _ in range(6):
            bench.run(visitor._open(64, 0, 0))
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
