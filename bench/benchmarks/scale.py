"""Scaling: 1 to 24 guests that all stream to the wire: aggregate, fairness, CPU per frame.

``python -m bench scale [--paths bypass,split] [--frames 64]``

A topology for each number of guests, all of them up at once, so that 24 guests are held against 1 in the same rounds. All rings
have 256 entries, on every path and at every number of guests: split's ring is Xen's, one page. So 24 guests go through 24 times the
memory. Guests that share a core are woken once for each ring that they have filled: what longer rings are worth then, bypass shows
once more with LONG ones, one guest and most.
"""

import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from bench.method.claims import Claim
from bench.method.contenders import TO_WIRE, LabBench, guest_names, probe_of, stream_slice
from bench.method.estimate import FEWEST
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Samples, Slice
from bench.method.slices import Contender
from bench.method.study import Point, Question, study
from bench.method.verdicts import MISSED
from bench.report.results import BenchmarkResult, Row, Series
from lab.figures import short
from lab.workloads import WIRE

GUESTS = (1, 2, 4, 8, 16, 24)
QUICK_GUESTS = (1, 4, 24)
RING = 256
"""Entries: what a page holds of Xen's transmit requests."""
LONG = 1024
AGGREGATE, LONG_AGGREGATE, FAIRNESS = 0.8, 0.6, 0.95
SLICE_S = 0.2
"""To start 24 guests takes some of each."""
TITLE = "Scaling with the number of guests"
ABOUT = (
    "All guests stream to the wire at a time. Aggregate Mframes/s, Jain's fairness over what each guest got through, and CPU per "
    "frame, against the number of guests. Every ring has 256 entries, so that memory in use grows with the guests, on all paths; "
    "bypass with one guest and with most once more with rings of 1024."
)


def rounds_of(options: Options) -> int:
    """As much time as asked for, in longer slices."""
    if options.repeat:
        return options.repeat
    rounds = math.ceil(options.seconds / max(options.slice_s, SLICE_S) - 1e-9)
    return max(FEWEST, rounds + rounds % 2)


def jain(rates: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else 0.0


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Measure each number of guests on each path (bypass and split unless others are asked for)."""
    paths = [path for path in options.paths if path in ("bypass", "split")] or list(options.paths)
    frame = options.frames[0]
    numbers = QUICK_GUESTS if options.quick else GUESTS
    most = numbers[-1]
    sets = [(path, number, RING) for number in numbers for path in paths]
    sets += [("bypass", number, LONG) for number in (1, most) if "bypass" in paths]
    async with AsyncExitStack() as stack:
        contenders = []
        for number, ring in dict.fromkeys((number, ring) for _, number, ring in sets):
            of = [path for path, guests, entries in sets if (guests, entries) == (number, ring)]
            lab = LabBench(f"scale{number}-{ring}", of, guests=number, queue=ring)
            await stack.enter_async_context(lab)
            lab.use("all")
            contenders += [_all_stream(lab, path, number, ring, frame) for path in of]
        with probe_of("all") as probe:
            asked = {
                ring: Question(_name("bypass", most, ring), _name("bypass", 1, ring), "mpps", aim)
                for ring, aim in ((RING, AGGREGATE), (LONG, LONG_AGGREGATE))
                if "bypass" in paths
            }
            measured = Point("guests", {}, contenders, _name(paths[0], 1), probe, list(asked.values()))
            seconds = max(options.slice_s, SLICE_S)
            await study([measured], rounds=rounds_of(options), seconds=seconds, budget_s=options.budget_s, progress=progress)
    samples = measured.samples
    for path, number, ring in sets:
        point: Row = {"direction": TO_WIRE, "frame": frame, "cores": "all", "guests": number, "ring": ring}
        details = samples.details(_name(path, number, ring))
        more = {key: details[-1][key] for key in ("per_frame", "placement")} if details else {}
        result.take(samples, _name(path, number, ring), {"path": path}, point, **more)
    for path, ring in dict.fromkeys((path, ring) for path, _, ring in sets):
        together, alone = _name(path, most, ring), _name(path, 1, ring)
        result.compare(samples, together, alone, "mpps", {"direction": TO_WIRE, "frame": frame, "cores": "all"})
        if path == "bypass":
            text = f"{path}: aggregate of {most} guests ÷ 1 guest, {frame} B, rings of {ring}"
            result.claims.append(measured.claim(asked[ring], text))
            if result.claims[-1].verdict == MISSED:
                result.notes.append(f"{text}: {'; '.join(_where_time_goes(samples, path, guests, ring) for guests in (1, most))}")
            fairness = samples.figure(together, "fairness")
            text = f"{path}: Jain's fairness, {most} guests, rings of {ring}"
            result.claims.append(Claim.about(text, fairness, FAIRNESS, errors=samples.errors(together)))
    labels = {"mpps": "Mframes/s, all guests", "fairness": "Jain's fairness", "cpu_ns_per_frame": "CPU ns per frame"}
    for metric, label in labels.items():
        series = Series(f"scale-{metric}", f"{label}, {frame} B to the wire", "guests", list(numbers), label)
        for path in paths:
            figures = [samples.figure(_name(path, number), metric) for number in numbers]
            series.add(path, [one.median for one in figures], [one.low for one in figures], [one.high for one in figures])
        result.series.append(series)


def _where_time_goes(samples: Samples, path: str, guests: int, ring: int) -> str:
    """CPU ns per frame on either side of the queues, and how many frames a wake-up is shared by, in the last slice."""
    details = samples.details(_name(path, guests, ring))
    if not details:
        return f"{_name(path, guests, ring)}: not known"
    detail = details[-1]
    used: dict[str, float] = detail["processes"]
    of_guests = sum(used[name] for name in guest_names(path, guests))
    wakeups = detail["per_frame"]["wakeups"]
    shared = f"a wake-up for every {1 / wakeups:.0f} frames" if wakeups else "no wake-up"
    return f"{_name(path, guests, ring)}: NIC {short(used['nic'])} ns of CPU a frame, guests {short(of_guests)}, {shared}"


def _name(path: str, guests: int, ring: int = RING) -> str:
    return f"{path} × {guests}" + ("" if ring == RING else f", rings of {ring}")


def _all_stream(lab: LabBench, path: str, number: int, ring: int, frame: int) -> Contender:
    load = {"kind": "stream", "to": WIRE, "frame": frame, "frames": None}
    loads = [{**load, "from": guest} for guest in guest_names(path, number)]
    return lab.streams(_name(path, number, ring), path, loads, stream_together)


def stream_together(record: dict[str, Any]) -> Slice:
    """A slice with the fairness among its guests."""
    found = stream_slice(record)
    if not found.errors:
        found.figures["fairness"] = jain(record.get("shares", [1]))
    return found
