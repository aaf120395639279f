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
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
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
    under_load, zero_loss = parts(progress, ["under load", "zero loss"])
    async with LabBench("openloop", options.paths) as lab:
        lab.use("all")
        with probe_of("all") as probe:
            points = [_point(lab, options.paths, frame, load, probe) for load in loads]
            await study(
                points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s, progress=under_load
            )  # fmt: skip
        for load, point in zip(loads, points, strict=True):
            _report(result, options.paths, point, load)
        await _zero_loss(result, options, lab, frame, zero_loss)
    for metric, name in (("p50_us", "median"), ("p99_us", "99 %"), ("p999_us", "99.9 %")):
        title = f"Latency under load, {name}, {frame} B, {TO_WIRE}"
        series = Series(f"load-{metric}", title, "offered Mframes/s", list(loads), "µs", log=True)
        for path in options.paths:
            found = [(load, point.samples) for load, point in zip(loads, points, strict=True)]
            figures = [samples.figure(path, metric) if keeps_up(samples, path, load) else None for load, samples in found]
            medians, lows, highs = zip(*((one.median, one.low, one.high) if one else (None,) * 3 for one in figures), strict=True)
            series.add(path, medians, lows, highs)
        result.series.append(series)


def _point(lab: LabBench, paths: Sequence[str], frame: int, load: float, probe: Probe) -> Point:
    """All paths at one offered load."""
    contenders = [_offered(lab, path, frame, load) for path in paths]
    again = "bypass" if "bypass" in paths else paths[0]
    asked = [Question(path, "bypass", "p99_us") for path in paths if path != "bypass"] if "bypass" in paths else []
    where: Row = {"direction": TO_WIRE, "frame": frame, "cores": "all", "load": load}
    return Point(f"{load:g} Mframes/s", where, contenders, again, probe, asked)


def _report(result: BenchmarkResult, paths: Sequence[str], point: Point, load: float) -> None:
    samples = point.samples
    for path in paths:
        kept_up = keeps_up(samples, path, load)
        result.take(samples, path, {"path": path}, point.where, METRICS if kept_up else SATURATED_METRICS)
        reached = samples.figure(path, "mpps").median
        if not kept_up and reached is not None:
            result.notes.append(f"{path} does not keep up with {load:g} Mframes/s: {short(reached)}")
    for question in point.questions:
        if keeps_up(samples, question.of, load) and keeps_up(samples, question.to, load):
            result.compare(samples, question.of, question.to, question.metric, point.where)


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
