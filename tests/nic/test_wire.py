"""A wire with a bit rate and a delay: never faster than it says, loses nothing, keeps order; histograms of what it adds."""

import time
from typing import Any

import pytest

from hyp.abi.nic import MAX_LONE_FRAME, STATUS_OK
from hyp.control import Refused
from nic.wire.link import FIFO_BYTES, LINE_BYTES, OVERHEAD
from tests.support.drivers import FINISHED, compose, header
from tests.support.guests import BROADCAST_MAC, WIRE_MAC, Guest, eventually
from tests.support.patience import effort
from tests.support.peers import Bench, bench_of


def ns_on_wire(frames: int, length: int, gbps: float) -> float:
    """How long a link is busy with frames."""
    return frames * (length + OVERHEAD) * 8 / gbps


def report(bench: Bench, stream: int = 1) -> dict[str, Any]:
    return dict(bench.wire("wire_report", stream=stream)["received"])


def whole(found: dict[str, Any], frames: int) -> bool:
    return (found["frames"], found["lost"], found["corrupt"], found["duplicated"]) == (frames, 0, 0, 0)


def stream_to_wire(bench: Bench, guest: Guest, frames: int, length: int, stream: int = 1) -> tuple[dict[str, Any], int]:
    """Send a stream; the sink's report of it, and the ns from before the first frame until the last one was verified."""
    start = time.monotonic_ns()
    assert guest.traffic(WIRE_MAC, frames, length=length, stream=stream).wait() == FINISHED
    eventually(lambda: report(bench, stream)["frames"] == frames, "the last frame arrives")
    took = time.monotonic_ns() - start
    bench.at_rest(frames * stream)
    return report(bench, stream), took


# --- rate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gbps", "length"), [(1.0, 1514), (0.25, 64), (0.7, 700), (2.5, MAX_LONE_FRAME)])
def test_the_wire_is_never_faster_than_its_rate_and_loses_nothing(gbps: float, length: int) -> None:
    frames = int(0.5e9 / ns_on_wire(1, length, gbps))
    with bench_of(1, queue=256, memory=16 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="sink", gbps=gbps)
        found, took = stream_to_wire(bench, anna, frames, length)
        assert whole(found, frames)
        assert took >= ns_on_wire(frames, length, gbps) - frames
        assert found["last_ns"] - found["first_ns"] >= ns_on_wire(frames - 1, length, gbps) - 1
        assert bench.drops() == {}
        assert bench.count("pauses", "engine") > 0


def test_a_wire_kept_busy_has_its_rate_within_two_per_cent() -> None:
    """So slow a wire that its FIFO outlasts a sender without a core; the best of a few runs, since a machine may stand still."""
    gbps, length = 0.05, 1514
    frames = int(0.5e9 / ns_on_wire(1, length, gbps))
    with bench_of(1, queue=256, memory=16 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="sink", gbps=gbps)
        best, stream, goes_on = 0.0, 0, effort(0)
        while goes_on(best > 0.98):
            stream += 1
            found, _ = stream_to_wire(bench, anna, frames, length, stream)
            best = max(best, ns_on_wire(frames - 1, length, gbps) / (found["last_ns"] - found["first_ns"]))
        assert 0.98 <= best <= 1.00001


@pytest.mark.parametrize("engines", [1, 2])
def test_engines_share_the_rate(engines: int) -> None:
    gbps, length, frames = 0.8, 1514, 3000
    with bench_of(1, engines=engines, queue=256, memory=16 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="sink", gbps=gbps)
        found, _ = stream_to_wire(bench, anna, frames, length)
        assert whole(found, frames)
        assert found["last_ns"] - found["first_ns"] >= ns_on_wire(frames - 1, length, gbps / engines) - 1


def test_a_sender_that_waits_for_the_wire_never_drops() -> None:
    """However short the pause for a full receiver is: here the first wait alone is many times as long."""
    with bench_of(1, pause_us=1, queue=256, memory=16 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="sink", gbps=0.01)
        found, _ = stream_to_wire(bench, anna, 2 * FIFO_BYTES // 1514, 1514)
        assert found["lost"] == 0
        assert bench.drops() == {}


@pytest.mark.parametrize("senders", [2, 3, 5])
def test_senders_share_a_slow_wire(senders: int) -> None:
    streams = range(1, senders + 1)
    with bench_of(senders, queue=256, memory=16 << 20) as (bench, *guests):
        bench.wire("wire_mode", mode="sink", gbps=0.5)
        loops = [guest.traffic(WIRE_MAC, 1 << 40, length=1514, stream=k) for k, guest in enumerate(guests, 1)]
        shares: list[int] = []

        def fair() -> bool:
            """In the long run: threads of senders get a core in turns."""
            shares[:] = [report(bench, k)["frames"] for k in streams]
            return sum(shares) > 2500 * senders and min(shares) > max(shares) / 2

        eventually(fair, f"equal shares of enough frames: {shares}")
        for loop in loops:
            loop.stop()
        bench.at_rest()
        assert bench.drops() == {}


def test_a_broadcast_waits_for_the_wire_like_any_other_frame() -> None:
    count = 240
    assert count * (1514 + OVERHEAD) > FIFO_BYTES
    with bench_of(2, queue=256, memory=4 << 20) as (bench, anna, bert):
        bench.wire("wire_mode", mode="sink", gbps=0.05)
        bert.post_buffers(count)
        anna.send(*(anna.frame(BROADCAST_MAC, 1514, sequence=k) for k in range(count)))
        assert anna.sent(count) == [STATUS_OK] * count
        assert [frame for _, frame in bert.take(count)] == [anna.frame(BROADCAST_MAC, 1514, sequence=k) for k in range(count)]
        bench.at_rest(count)
        assert bench.count("rx_frames", "wire") == count
        assert bench.count("pauses") > 0
        assert bench.drops() == {}


@pytest.mark.parametrize("pps", [0, 100_000])
def test_the_generator_waits_for_the_link_too(pps: int) -> None:
    gbps, length, frames = 0.5, 1514, 4000
    with bench_of(1, queue=256, memory=4 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="sink", gbps=gbps)
        receiver, start = anna.traffic(expect=frames), time.monotonic_ns()
        bench.wire("wire_generate", mac=anna.mac, frame=length, stream=4, frames=frames, pps=pps)
        assert receiver.wait() == FINISHED
        assert time.monotonic_ns() - start >= ns_on_wire(frames, length, gbps) - frames
        assert whole(receiver.report(4), frames)
        bench.at_rest(frames)
        assert bench.count("pauses", "engine") > 0
        found = bench.wire("wire_report", stream=4)
        assert found["left"] == 0
        if pps:  # it takes 40 % of what is offered
            fifo = ns_on_wire(FIFO_BYTES // (length + OVERHEAD), length, gbps)
            late = ns_on_wire(frames, length, gbps) - 2 * fifo - frames * 1e9 / pps
            assert found["max_lag_ns"] >= found["lag_ns"] >= late


# --- delay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize(("gbps", "delay_us"), [(0.0, 300), (1.0, 200), (0.0, 1)])
def test_a_round_trip_takes_the_delay_twice(engines: int, gbps: float, delay_us: int) -> None:
    with bench_of(2, engines=engines, wire="reflect") as (bench, *guests):
        bench.wire("wire_mode", mode="reflect", gbps=gbps, delay_us=delay_us)
        for guest in guests:
            for k in range(20):
                guest.post_buffers(1)
                start = time.monotonic_ns()
                guest.send(guest.frame(WIRE_MAC, 1514, sequence=k))
                assert guest.take(1) == [(STATUS_OK, header(guest.mac, WIRE_MAC) + guest.frame(WIRE_MAC, 1514, sequence=k)[14:])]
                least = 2 * delay_us * 1000 + (2 * ns_on_wire(1, 1514, gbps / engines) if gbps else 0)
                assert time.monotonic_ns() - start >= least - 2
                guest.sent(1)
        bench.at_rest(80)
        assert bench.drops() == {}


def test_frames_under_way_are_missing_from_the_ledger_until_they_arrive() -> None:
    with bench_of(1) as (bench, anna):
        bench.wire("wire_mode", mode="sink", delay_us=400_000)
        anna.send(*(anna.frame(WIRE_MAC, sequence=k) for k in range(10)))
        assert anna.sent(10) == [STATUS_OK] * 10
        bench.sync()
        went_in, came_out = bench.balance()
        assert (went_in, came_out) == (10, 0)
        bench.at_rest(10)
        assert whole(report(bench), 10)


def test_a_line_that_is_full_of_frames_makes_senders_wait() -> None:
    """A delay on which more is under way than the line holds: it is filled some times over, and wraps."""
    frames = 6 * LINE_BYTES // 1514
    with bench_of(1, queue=256, memory=16 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="sink", delay_us=20_000)
        start = time.monotonic_ns()
        found, _ = stream_to_wire(bench, anna, frames, 1514)
        assert whole(found, frames)
        assert time.monotonic_ns() - start >= 5 * 20_000_000
        assert bench.drops() == {}


def test_frames_of_all_lengths_go_round_whole_and_in_order() -> None:
    lengths = [14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 1000, 1514, MAX_LONE_FRAME - 1, MAX_LONE_FRAME]
    with bench_of(1, wire="reflect", queue=256, memory=4 << 20) as (bench, anna):
        bench.wire("wire_mode", mode="reflect", gbps=10.0, delay_us=20)
        for turn in range(40):
            frames = [
                anna.frame(WIRE_MAC, length, sequence=turn) if length >= 48 else header(WIRE_MAC, anna.mac) + bytes(length - 14)
                for length in lengths
            ]
            anna.post_buffers(len(lengths))
            anna.send(*frames)
            assert anna.take(len(lengths)) == [(STATUS_OK, header(anna.mac, WIRE_MAC) + frame[14:]) for frame in frames]
            anna.sent(len(lengths))
        bench.at_rest()
        assert bench.drops() == {}


# --- receivers that are full, and changes on a live wire -------------------------------------------------------------


def test_a_full_receiver_holds_up_generated_frames_then_they_drop_by_name() -> None:
    with bench_of(1, pause_us=2000) as (bench, anna):
        bench.wire("wire_mode", mode="sink", delay_us=50)
        bench.wire("wire_generate", mac=anna.mac, frame=64, stream=4, frames=100)
        bench.at_rest(100)
        assert bench.drops() == {"drop_no_buffer": 100}
        assert bench.count("pauses") == 1


def test_a_generated_frame_waits_for_a_buffer() -> None:
    with bench_of(1, pause_us=60_000_000) as (bench, anna):
        bench.wire("wire_mode", mode="sink", delay_us=50)
        bench.wire("wire_generate", mac=anna.mac, frame=100, stream=4, frames=5)
        eventually(lambda: bench.count("pauses") or bench.sync(), "the wire waits for the receiver")
        anna.post_buffers(5)
        assert [frame for _, frame in anna.take(5)] == [compose(anna.mac, WIRE_MAC, 100, 4, k) for k in range(5)]
        bench.at_rest(5)


def test_a_reflected_frame_without_a_buffer_is_dropped_by_name() -> None:
    with bench_of(1, wire="reflect", pause_us=60_000_000) as (bench, anna):
        bench.wire("wire_mode", mode="reflect", delay_us=50)
        anna.send(*(anna.frame(WIRE_MAC, sequence=k) for k in range(3)))
        assert anna.sent(3) == [STATUS_OK] * 3
        bench.at_rest(6)
        assert bench.drops() == {"drop_queue_full": 3}
        assert bench.count("pauses") == 0


@pytest.mark.parametrize("engines", [1, 2])
def test_a_wire_that_is_changed_under_load_loses_and_reorders_nothing(engines: int) -> None:
    settings = [(0.0, 0), (1.0, 0), (0.0, 500), (0.3, 100), (0.0, 0), (5.0, 2000), (0.0, 0), (0.0, 1)]
    with bench_of(2, engines=engines, queue=256, memory=16 << 20) as (bench, anna, bert):
        loops = [guest.traffic(WIRE_MAC, 1 << 40, length=200, stream=k) for k, guest in enumerate((anna, bert), 1)]

        def arrived() -> int:
            return sum(int(report(bench, stream)["frames"]) for stream in (1, 2))

        for k, (gbps, delay_us) in enumerate(settings * 2):
            bench.wire("wire_mode", mode="sink", gbps=gbps, delay_us=delay_us)
            wanted = 500 + arrived()
            eventually(lambda wanted=wanted: arrived() > wanted, f"frames after change {k}")  # type: ignore[misc]
        for loop in loops:
            loop.stop()
        bench.at_rest()
        for stream in (1, 2):
            assert whole(report(bench, stream), report(bench, stream)["frames"])
        assert bench.drops() == {}
        bench.wire("wire_mode", mode="sink", gbps=0.0, delay_us=0)
        eventually(lambda: not any(int(state.wire[0]["linked"]) for state in bench.nic._engines), "the wire is direct again")


def test_the_wires_mode_is_set_without_touching_its_rate() -> None:
    with bench_of(1) as (bench, _):
        bench.wire("wire_mode", mode="sink", gbps=1.0, delay_us=7)
        bench.wire("wire_mode", mode="reflect")
        assert (bench.nic._gbps, bench.nic._delay_us) == (1.0, 7)
        assert int(bench.nic._engines[0].wire[0]["linked"]) == 1


NONSENSE: list[dict[str, Any]] = [{"gbps": gbps} for gbps in (-1.0, 0.0001, float("nan"), float("inf"))]
NONSENSE += [{"delay_us": -1}, {"delay_us": 1_000_001}, {"mode": "x"}]


@pytest.mark.parametrize("setting", NONSENSE)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any]) -> None:
    with bench_of(1) as (bench, anna):
        with pytest.raises(Refused) as refused:
            bench.wire("wire_mode", **{"mode": "sink", **setting})
        assert refused.value.name == "EINVAL"
        assert whole(stream_to_wire(bench, anna, 1000, 64)[0], 1000)
