"""Latency against offered load, in an open loop, and the highest rate without loss.

``python -m bench openloop [--paths …] [--frames 64]``

Frames are due by the clock, whether or not the path keeps up, and a frame's latency counts from when it was due (no coordinated
omission). One way, guest to the wire's sink: one machine, one clock.
"""

import math
from collections.abc import Sequence

from bench.method.contenders import TO_WIRE, LabBench, guest_names, probe_of
from bench.method.estimate import median, median_interval
from bench.method.options import Options
from bench.method.progress import Part, Steps, parts
from bench.method.samples import Samples, Slice
from bench.method.slices import Contender, interleave
from bench.report.results import BenchmarkResult, Row, Series
from lab.figures import short
from lab.workloads import WIRE

LOADS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
QUICK_LOADS = (0.1, 1.0, 4.0)
SATURATED_METRICS = ("mpps", "cpu_ns_per_frame")
METRICS = ("p50_us", "p99_us", "p999_us", *SATURATED_METRICS)
KEPT_UP = 0.99  # of the offered rate, or the path is saturated
TRIAL_S, QUICK_TRIAL_S = 0.2, 0.1
LOWEST, HIGHEST, STEPS = 0.05, 64.0, 8
MAX_LAG_NS = 1_000_000
TITLE = "Latency under load"
ABOUT = (
    "One way, guest to wire, frames due by the clock and their latency counted from when they were due. A path that does not keep "
    "up with the offered load is saturated and has no latency there. The zero-loss rate is RFC 2544's: the highest at which every "
    "frame arrives, found by bisection; the lab holds senders back rather than lose frames, so the schedule must be kept, too."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Latency at each load, then the zero-loss rate, of every path and the first frame size."""
    frame = options.frames[0]
    loads = QUICK_LOADS if options.quick else LOADS
    step = parts(progress, [*(f"{load:g} Mframes/s" for load in loads), "zero loss"])
    async with LabBench("openloop", options.paths) as lab:
        lab.use("all")
        found = []
        for load in loads:
            found.append(await _at_load(result, options, lab, frame, load, next(step)))
        await _zero_loss(result, options, lab, frame, next(step))
    for metric, name in (("p50_us", "median"), ("p99_us", "99 %"), ("p999_us", "99.9 %")):
        title = f"Latency under load, {name}, {frame} B, {TO_WIRE}"
        series = Series(f"load-{metric}", title, "offered Mframes/s", list(loads), "µs", log=True)
        for path in options.paths:
            pairs = zip(loads, found, strict=True)
            figures = [samples.figure(path, metric) if keeps_up(samples, path, load) else None for load, samples in pairs]
            medians, lows, highs = zip(*((one.median, one.low, one.high) if one else (None,) * 3 for one in figures), strict=True)
            series.add(path, medians, lows, highs)
        result.series.append(series)


async def _at_load(result: BenchmarkResult, options: Options, lab: LabBench, frame: int, load: float, progress: Part) -> Samples:
    contenders = [_offered(lab, path, frame, load) for path in options.paths]
    again = "bypass" if "bypass" in options.paths else options.paths[0]
    with probe_of("all") as probe:
        samples = await interleave(
            contenders, rounds=options.rounds, seconds=options.slice_s, probe=probe, again=again, progress=progress
        )
    point: Row = {"direction": TO_WIRE, "frame": frame, "cores": "all", "load": load}
    for path in options.paths:
        kept_up = keeps_up(samples, path, load)
        result.take(samples, path, {"path": path}, point, METRICS if kept_up else SATURATED_METRICS)
        reached = samples.figure(path, "mpps").median
        if not kept_up and reached is not None:
            result.notes.append(f"{path} does not keep up with {load:g} Mframes/s: {short(reached)}")
        if not kept_up:
            continue
        if path != "bypass" and "bypass" in options.paths and keeps_up(samples, "bypass", load):
            result.compare(samples, path, "bypass", "p99_us", point)
    return samples


def keeps_up(samples: Samples, path: str, load: float) -> bool:
    """By the median over all slices: leaving out just those that fell behind would leave out the very latencies asked for."""
    reached = samples.figure(path, "mpps").median
    return reached is not None and reached >= KEPT_UP * load


def _offered(lab: LabBench, path: str, frame: int, mpps: float) -> Contender:
    load = {"kind": "stream", "from": guest_names(path, 1)[0], "to": WIRE, "frame": frame, "frames": None, "pps": round(mpps * 1e6)}

    async def run(seconds: float) -> Slice:
        record = await lab.runner.run({**load, "seconds": seconds})
        if record["errors"]:
            return Slice(errors=record["errors"])
        times = record["latency"]
        figures = {f"{name}_us": times[name] / 1000 for name in ("p50", "p99", "p999")}
        return Slice({**figures, "mpps": record["mpps"], "cpu_ns_per_frame": record["cpu_us_per_frame"] * 1000})

    return Contender(path, run)


async def _zero_loss(result: BenchmarkResult, options: Options, lab: LabBench, frame: int, progress: Part) -> None:
    """Bisections of the paths in turns; an answer is the highest rate of a trial that lost nothing and kept its schedule."""
    searches = max(3, options.rounds // 2) if not options.quick else 2
    rates: dict[str, list[float]] = {path: [] for path in options.paths}
    for number in range(searches):
        for path in options.paths:
            progress.step(f"search {number + 1} of {searches}, {path}", number / searches)
            rates[path].append(await _search(lab, path, frame, QUICK_TRIAL_S if options.quick else TRIAL_S))
    for path, found in rates.items():
        low, high = median_interval(found)
        figure = {"median": median(found), "low": low, "high": high, "aa": None}
        result.records.append(
            {"path": path, "direction": TO_WIRE, "frame": frame, "cores": "all", "mode": "zero loss", "regime": "any",
             "n": len(found), "slices": len(found), "mpps": figure, "errors": []}
        )  # fmt: skip
        result.notes.append(f"{path}: zero loss up to {short(median(found))} Mframes/s ({_span(found)} in {len(found)} searches)")


def _span(values: Sequence[float]) -> str:
    return f"{short(min(values))} to {short(max(values))}"


async def _search(lab: LabBench, path: str, frame: int, seconds: float) -> float:
    low, high = LOWEST, HIGHEST
    load = {"kind": "stream", "from": guest_names(path, 1)[0], "to": WIRE, "frame": frame, "frames": None, "seconds": seconds}
    for _ in range(STEPS):
        rate = math.sqrt(low * high)
        record = await lab.runner.run({**load, "pps": round(rate * 1e6)})
        if record["lost"] == 0 and not record["errors"] and record.get("lag_ns", 0) <= MAX_LAG_NS:
            low = rate
        else:
            high = rate
    return low
