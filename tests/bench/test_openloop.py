"""Open loop: frames are due when the schedule says, their latency counts from then, and histograms keep what they promise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.abi.counters import FOREIGN
from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.atomics import load64, store64
from hyp.control import Refused
from hyp.kernels import compiled
from hyp.load.frames import AFRESH_NS, TRACKER, TRACKERS, attach_histograms, tracker_report, verify, write_test_frame
from hyp.load.histogram import (
    BUCKETS,
    LONGEST,
    SUB,
    bounds,
    bucket_of,
    dense,
    histogram_of,
    percentile,
    sparse,
    summary,
)
from hyp.load.schedule import MAX_RATE, SCHEDULE, SECOND, begin_schedule, frame_sent, frames_due, schedule_at, stamp
from hyp.load.tcp import LEAST_UNIT, PAYLOAD, verify_tcp, write_tcp_frame
from nic.wire.link import OVERHEAD
from tests.lab.test_paths import running
from tests.support.labs import GUESTS, run, until

TIMES = st.one_of(st.integers(0, LONGEST), st.integers(0, 200), st.integers(0, 40).map(lambda bit: min((1 << bit) - 1, LONGEST)))

# --- histograms ------------------------------------------------------------------------------------------------------


@given(st.lists(TIMES, min_size=1))
def test_a_bucket_stands_for_a_time_with_a_bounded_error(times: list[int]) -> None:
    low, high = bounds()
    for time in times:
        bucket = bucket_of(time)
        assert low[bucket] <= time <= high[bucket]
        assert high[bucket] - time <= time / SUB
        assert histogram_of(np.array([time])).tolist() == np.bincount([bucket], minlength=BUCKETS).tolist()


def test_buckets_cover_every_time_once() -> None:
    low, high = bounds()
    assert (low[0], high[-1]) == (0, LONGEST)
    assert (low[1:] == high[:-1] + 1).all()
    for beyond in (-1, -(1 << 63), LONGEST + 1, (1 << 63) - 1):
        assert bucket_of(beyond) == (0 if beyond < 0 else BUCKETS - 1)


@given(st.lists(TIMES, min_size=1), st.lists(TIMES), st.floats(0, 100))
def test_merged_histograms_are_the_histogram_of_all(one: list[int], other: list[int], q: float) -> None:
    parts = [histogram_of(np.array(times, np.int64)) for times in (one, other)]
    merged = parts[0] + parts[1]
    assert (merged == histogram_of(np.array(one + other))).all()
    assert (dense([*sparse(parts[0]), *sparse(parts[1])]) == merged).all()
    exact = int(np.percentile(one + other, q, method="inverted_cdf"))
    assert exact <= percentile(merged, q) <= exact + exact / SUB
    found = summary(merged, max(one + other))
    assert found["p50"] <= found["p90"] <= found["p99"] <= found["p999"] <= found["max"] == max(one + other)


def test_an_empty_histogram_has_no_time() -> None:
    assert percentile(np.zeros(BUCKETS, np.int64), 50) == 0


# --- receivers -------------------------------------------------------------------------------------------------------


def test_a_tracker_forgets_the_latencies_of_the_stream_before() -> None:
    trackers, frame, row = np.zeros(TRACKERS, TRACKER), np.zeros(64, np.uint8), np.zeros(64, np.int64)
    histograms = attach_histograms(trackers)

    def receive(stream: int, sequence: int, sent_ns: int, break_it: bool = False, now_ns: int = 1) -> None:
        at = int(frame.ctypes.data)
        write_test_frame(at, 64, 0, ETHERTYPE_WIRE << 32, stream, sequence, sent_ns)
        frame[50] ^= break_it
        verify(int(trackers.ctypes.data), int(row.ctypes.data), at, 64, now_ns)

    for sequence in range(10):
        receive(3, sequence, 1)
    receive(3, 10, 1, break_it=True)
    receive(3, 9, 1)  # a duplicate
    report = tracker_report(trackers, 3, histograms)
    assert sum(n for _, n in report["latency"]["counts"]) == report["frames"] == 10
    receive(3 + TRACKERS, 0, 1, now_ns=AFRESH_NS)  # the same slot, and too early: two streams in turn begin nothing afresh
    assert tracker_report(trackers, 3, histograms) == report
    receive(3 + TRACKERS, 0, 0, now_ns=1 + AFRESH_NS)  # not stamped
    assert "latency" not in tracker_report(trackers, 3 + TRACKERS, histograms)
    receive(3, 0, 1)
    assert sum(n for _, n in tracker_report(trackers, 3, histograms)["latency"]["counts"]) == 1
    assert "latency" not in tracker_report(trackers, 3), "a receiver without histograms"
    receive(4, 0, 1 << 62)  # from the future: counted as no time at all
    assert tracker_report(trackers, 4, histograms)["latency"]["counts"] == [[0, 1]]


def test_tcp_frames_that_are_strangers_change_no_tracker() -> None:
    """Of a stream that has a slot of one with latencies too early, or of one that is expected from somebody else."""
    length = PAYLOAD + 2 * LEAST_UNIT
    trackers, frame, row = np.zeros(TRACKERS, TRACKER), np.zeros(length, np.uint8), np.zeros(64, np.int64)
    at, here, counts = int(frame.ctypes.data), int(trackers.ctypes.data), int(row.ctypes.data)
    histograms = attach_histograms(trackers)
    write_test_frame(at, 64, 0, ETHERTYPE_WIRE << 32, 3, 0, 1)
    assert verify(here, counts, at, 64, 1)
    report = tracker_report(trackers, 3, histograms)

    def receive(stream: int, now_ns: int) -> tuple[bool, int]:
        write_tcp_frame(at, 0, 0, stream, 0, 2, LEAST_UNIT)
        foreign = int(row[FOREIGN])
        return bool(verify_tcp(here, counts, at, length, 1, now_ns)), int(row[FOREIGN]) - foreign

    assert receive(3 + TRACKERS, AFRESH_NS) == (False, 1)
    assert tracker_report(trackers, 3, histograms) == report
    assert receive(3 + TRACKERS, 1 + AFRESH_NS) == (True, 0)
    assert tracker_report(trackers, 3 + TRACKERS, histograms)["frames"] == 2
    trackers[5]["stream"], trackers[5]["source"] = 5, 0x0200_0000_0001
    assert receive(5, 1) == receive(5 + TRACKERS, 1) == (False, 1)
    assert trackers[5]["frames"] == trackers[5]["corrupt"] == 0


# --- the schedule ----------------------------------------------------------------------------------------------------


@compiled
def _due_times(schedule, pps, start, out, frames):  # type: ignore[no-untyped-def]
    s = schedule_at(schedule)
    begin_schedule(s, pps, start)
    for k in range(frames):
        store64(out + 8 * k, stamp(s))
        frame_sent(s, start)
    return load64(out)


@compiled
def _due(schedule, pps, late, most):  # type: ignore[no-untyped-def]
    s = schedule_at(schedule)
    begin_schedule(s, pps, 0)
    return frames_due(s, late, most)


@settings(deadline=None)
@given(st.integers(1, MAX_RATE), st.integers(0, 1 << 60))
def test_frame_k_is_due_k_intervals_after_the_start(pps: int, start: int) -> None:
    schedule, out = np.zeros(1, SCHEDULE), np.zeros(300, np.int64)
    _due_times(int(schedule.ctypes.data), pps, start, int(out.ctypes.data), 300)
    assert out.tolist() == [start + k * SECOND // pps for k in range(300)]


@settings(deadline=None)
@given(st.integers(1, MAX_RATE), st.integers(-SECOND, 10 * SECOND), st.integers(1, 64))
def test_no_frame_is_due_early_and_one_is_as_soon_as_it_is(pps: int, late: int, most: int) -> None:
    found = _due(int(np.zeros(1, SCHEDULE).ctypes.data), pps, late, most)
    due = sum(k * SECOND // pps <= late for k in range(most))
    assert min(due, 1) <= found <= due


# --- streams ---------------------------------------------------------------------------------------------------------


def latencies(report: dict[str, Any]) -> int:
    """How many frames' latency a report has."""
    return sum(n for _, n in report["latency"]["counts"])


@pytest.mark.usefixtures("warm")
def test_open_loop_streams_on_both_paths(tmp_path: Path) -> None:
    frames, pps = 1500, 5000

    async def main() -> None:
        async with running(tmp_path, "openloop") as runner:
            lab, wire = runner.lab, runner._wire_mac
            pairs = [("anna", "bert"), ("carl", "dora"), ("carl", "wire"), ("wire", "dora")]
            for stream, (sender, receiver) in enumerate(pairs, 1):
                job = {"frame": 200, "stream": stream, "frames": frames, "pps": pps}
                if sender == "wire":
                    await lab.call("nic", "wire_generate", mac=runner._mac(receiver), **job)
                    await until(lambda stream=stream: _generated(lab, stream, frames), "the generator's end")  # type: ignore[misc]
                    sent = await lab.call("nic", "wire_report", stream=stream)
                else:
                    sent = await lab.call(sender, "send_stream", mac=wire if receiver == "wire" else runner._mac(receiver), **job)
                    assert sent["seconds"] >= (frames - 1) / pps
                assert sent["sent"] == frames
                assert sent["max_lag_ns"] >= sent["lag_ns"] >= 0
                await runner._settled()
                if receiver == "wire":
                    found = (await lab.call("nic", "wire_report", stream=stream))["received"]
                else:
                    found = await lab.call(receiver, "received", stream=stream)
                assert (found["frames"], found["lost"], found["corrupt"]) == (frames, 0, 0)
                assert latencies(found) == frames
                spread = found["latency"]
                assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["p999"] <= spread["max"]
                assert spread["max"] >= sent["max_lag_ns"], "what a frame waited to be sent is in its latency"

    run(main())


async def _generated(lab: Any, stream: int, frames: int) -> bool:
    return bool((await lab.call("nic", "wire_report", stream=stream))["sent"] == frames)


@pytest.mark.usefixtures("warm")
def test_what_a_closed_loop_reports_and_what_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "closed") as runner:
            lab, wire = runner.lab, runner._wire_mac
            sent = await lab.call("carl", "send_stream", mac=wire, frame=64, stream=1, frames=1000)
            assert "lag_ns" not in sent
            assert "latency" not in (await lab.call("nic", "wire_report", stream=1))["received"]
            found = await lab.call("carl", "round_trips", mac=runner._mac("dora"), frame=64, stream=2, frames=500)
            assert found["answered"] == latencies(found) == 500
            rtt, spread = found["rtt_us"], found["latency"]
            assert rtt["p50"] <= rtt["p90"] <= rtt["p99"] <= rtt["p999"] <= rtt["max"] == pytest.approx(spread["max"] / 1000)
            assert spread["p50"] >= rtt["p50"] * 1000 * (1 - 1 / SUB) - 1
            for pps in (-1, MAX_RATE + 1):
                for process, op in (("carl", "send_stream"), ("nic", "wire_generate")):
                    with pytest.raises(Refused) as refused:
                        await lab.call(process, op, mac=wire, frame=64, stream=3, frames=1, pps=pps)
                    assert refused.value.name == "EINVAL"

    run(main())


@pytest.mark.usefixtures("warm")
def test_frames_that_a_slow_wire_keeps_waiting_are_late_from_when_they_were_due(tmp_path: Path) -> None:
    """Nothing is omitted: beyond the wire's rate each frame is later than the one before it, and the sender says so."""
    gbps, frame, frames, pps = 0.1, 1514, 4000, 20_000

    async def main() -> None:
        async with running(tmp_path, "late", f"[nic.wire]\ngbps = {gbps}\ndelay_us = 500\n" + GUESTS) as runner:
            lab, wire = runner.lab, runner._wire_mac
            sent = await lab.call("carl", "send_stream", mac=wire, frame=frame, stream=1, frames=frames, pps=pps)
            await runner._settled()
            found = (await lab.call("nic", "wire_report", stream=1))["received"]
            assert (found["frames"], found["lost"]) == (frames, 0)
            late = [(k + 1) * (frame + OVERHEAD) * 8 / gbps - k * 1e9 / pps + 500_000 for k in range(frames)]
            spread = found["latency"]
            assert spread["max"] >= late[-1] - 1
            assert spread["p50"] >= np.percentile(late, 50, method="inverted_cdf") - 1
            assert sent["max_lag_ns"] >= sent["lag_ns"] > 0
            limited = await lab.call("carl", "send_stream", mac=wire, frame=frame, stream=2, seconds=0.2, pps=pps)
            assert limited["sent"] < 0.2 * pps
            assert limited["lag_ns"] >= 0.2e9 - limited["sent"] * 1e9 / pps - 1

    run(main())
