"""What each offload is worth on each path: frames of 64 KiB by guests that have all of them, and by guests that have fewer.

``python -m bench offloads [--paths bypass,split]``

The same bytes, cut into the same segments (hyp/load/tcp.py); what differs is who cuts them and who sums them up: the device, Dom0,
or the guest's own program.
"""

import functools
from collections.abc import Sequence

from bench.method.contenders import BETWEEN, TO_WIRE, LabBench, probe_of, stream_slice
from bench.method.options import Options
from bench.method.progress import Steps, parts
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.report.results import BenchmarkResult, Row, Series
from lab.workloads import WIRE

FRAME = 1 << 16
VARIANTS: dict[str, tuple[str, ...]] = {
    "all": ("sg", "csum", "tso"), "no tso": ("sg", "csum"), "no csum": ("sg",), "none": (),
}  # fmt: skip
METRICS = ("gbps", "domain_ns_per_frame", "device_ns_per_frame", "cpu_ns_per_frame")
COMPARED = ("gbps", "domain_ns_per_frame")

TITLE = "Offloads"
ABOUT = (
    "64 KiB frames, every byte verified. With all offloads a guest hands them over whole, and the device cuts what leaves on the "
    "wire; between guests nobody does. Without tso the guest's own program cuts them; without csum it also sums the segments up; "
    "without sg a frame has one buffer. CPU of the domains (guests, Dom0, hypervisor) and of the device are apart, since a "
    "NIC's silicon costs a host nothing."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Measure every variant of every path, to the wire and between guests, on all cores."""
    paths = options.paths
    tables = [
        {"name": _guest(path, variant, number), "path": path, "offloads": list(offloads)}
        for path in paths
        for variant, offloads in VARIANTS.items()
        for number in range(2)
    ]
    async with LabBench("offloads", (), others=tables) as lab:
        lab.use("all")
        with probe_of("all") as probe:
            points = [_point(lab, path, way, probe) for path in paths for way in (TO_WIRE, BETWEEN)]
            await study(
                points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s,
                progress=next(parts(progress, ["offloads"])), found=functools.partial(_report, result, points),
            )  # fmt: skip
    _plots(result, paths)


def _guest(path: str, variant: str, number: int) -> str:
    return f"{path}-{variant.replace(' ', '-')}-{number}"


def _name(path: str, variant: str) -> str:
    return f"{path}, {variant}"


def _point(lab: LabBench, path: str, way: str, probe: Probe) -> Point:
    """All variants of one path in one direction."""
    contenders = [_contender(lab, path, variant, way) for variant in VARIANTS]
    whole = _name(path, "all")
    asked = [
        Question(whole, _name(path, variant), metric, at_least=metric == "gbps")
        for variant in VARIANTS
        if variant != "all"
        for metric in COMPARED
    ]
    where: Row = {"direction": way, "frame": FRAME, "cores": "all"}
    return Point(f"{path}, {way}", where, contenders, whole, probe, asked)


def _contender(lab: LabBench, path: str, variant: str, way: str) -> Contender:
    ends = _guest(path, variant, 0), WIRE if way == TO_WIRE else _guest(path, variant, 1)
    load = {"kind": "stream", "from": ends[0], "to": ends[1], "frame": FRAME, "frames": None, "payload": "full"}
    return lab.streams(_name(path, variant), path, [load], stream_slice)


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    """All that is known so far: a record for each variant, and what it has less than a guest with all offloads."""
    result.forget()
    for point in points:
        if not point.samples.taken:
            continue
        for contender in point.contenders:
            path, _, variant = contender.name.partition(", ")
            details = point.samples.details(contender.name)
            more = {key: details[-1][key] for key in ("per_frame", "placement") if details and key in details[-1]}
            result.take(point.samples, contender.name, {"path": path}, {**point.where, "offloads": variant}, METRICS, **more)
        for question in point.questions:
            result.compare(point.samples, question.of, question.to, question.metric, point.where)


def _plots(result: BenchmarkResult, paths: Sequence[str]) -> None:
    for number, way in enumerate((TO_WIRE, BETWEEN)):
        series = Series(f"offloads-{number}", f"64 KiB frames, {way}", "offloads", list(VARIANTS), "Gbit/s", "bar")
        for path in paths:
            rows = {
                row["offloads"]: row["gbps"]
                for row in reversed(result.records)
                if row.get("path") == path and row.get("direction") == way and row.get("gbps")
            }
            found = [rows.get(variant) for variant in VARIANTS]
            series.add(path, *([row[key] if row else None for row in found] for key in ("median", "low", "high")))
        result.series.append(series)
