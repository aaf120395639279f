"""The lab's own split front end beside one in C on Xen's headers, examples/c_netfront: is ours what the split path is limited by?

``python -m bench netfront [--frames …] [--cores all|1|both]``

Both have the same netback, frames, rings and pools, and write, copy and verify the same bytes; or, so that a difference is the
front ends' and not that of two compilers' loops over a payload, the first 64 of each frame ("header"). The lab's is compiled from
Python (numba) and may spin before it sleeps where loops have a core each; the one in C sleeps at once.
"""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.benchmarks.throughput import can_go
from bench.method.contenders import FROM_WIRE, TO_WIRE, LabBench, mtu_for, probe_of, stream_slice
from bench.method.options import Options
from bench.method.progress import Steps, parts
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.method.verdicts import WORDS
from bench.peers.base import PeerError
from bench.peers.c_netfront import CLab, build, missing
from bench.report.results import BenchmarkResult, Row
from lab.workloads import WIRE

OURS, IN_C = "split", "c_netfront"
GSO_FRAME = 1 << 16
PAYLOADS = ("full", "header")
METRICS = ("mpps", "gbps", "cpu_ns_per_frame", "mframes_per_cpu_s")

TITLE = "Front ends"
ABOUT = (
    "The lab's split front end beside examples/c_netfront, a program in C on Xen's unmodified headers: the same netback, frames "
    "and rings. Every byte is written and verified, or (payload header) a frame's first 64, so that the front ends are compared "
    "and not two compilers. Frames beyond the MTU are TCP's, with a GSO extra info. A ratio near 1 says that the split path's "
    "figures are the model's, not the front end's."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Both front ends, to the wire and from it, at every frame size; 64 KiB, too, to the wire."""
    if (reason := missing()) is not None:
        result.notes.append(f"{IN_C}: left out: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = build(Path(folder))
        except PeerError as error:
            result.notes.append(f"{IN_C}: left out: {error}")
            return
        await _measure(result, options, progress, program)


async def _measure(result: BenchmarkResult, options: Options, progress: Steps, program: Path) -> None:
    frames = list(dict.fromkeys([*options.frames, *([] if options.quick else [GSO_FRAME])]))
    mtu = mtu_for(frames)
    tables: list[Row] = [
        {"name": OURS, "path": "split", "mtu": mtu},
        {"name": IN_C.replace("_", "-"), "path": "split", "program": {"argv": [str(program), "serve"]}},
    ]
    measured: list[Point] = []
    async with LabBench("netfront", (), others=tables, mtu=mtu, kind=CLab) as lab:
        for cores, part in zip(options.core_sets, parts(progress, list(options.core_sets)), strict=True):
            with probe_of(cores) as probe:
                ways = [(way, frame) for way in (TO_WIRE, FROM_WIRE) for frame in frames if can_go(way, frame, mtu)]
                points = [_point(lab, cores, *where, payload, probe) for where in ways for payload in PAYLOADS]
                measured += points
                await study(
                    points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s / len(options.core_sets),
                    progress=part, found=functools.partial(_report, result, measured),
                )  # fmt: skip


def _point(lab: LabBench, cores: str, way: str, frame: int, payload: str, probe: Probe) -> Point:
    contenders = [_contender(lab, name, way, frame, payload) for name in (OURS, IN_C)]
    metric = "mpps" if cores == "all" else "mframes_per_cpu_s"

    async def arrange() -> None:
        lab.use(cores)

    where: Row = {"direction": way, "frame": frame, "cores": cores, "payload": payload}
    asked = [Question(OURS, IN_C, metric, WORDS["near"])] if payload == "header" else []
    return Point(f"{way}, {frame} B, {payload}, cores {cores}", where, contenders, OURS, probe, asked, arrange)


def _contender(lab: LabBench, name: str, way: str, frame: int, payload: str) -> Contender:
    guest = name.replace("_", "-")
    ends = (guest, WIRE) if way == TO_WIRE else (WIRE, guest)
    load = {"kind": "stream", "from": ends[0], "to": ends[1], "frame": frame, "frames": None, "payload": payload}
    return lab.streams(name, "split", [load], stream_slice)


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    """All that is known so far: a record for each, C ÷ ours, and whether ours is near it."""
    result.forget()
    for point in points:
        if not point.samples.taken:
            continue
        for name in (OURS, IN_C):
            details = point.samples.details(name)
            more: Row = {key: details[-1][key] for key in ("processes", "placement") if details and key in details[-1]}
            more["checksummed"] = float(point.where["payload"] == "full")  # what is not verified whole has errors
            result.take(point.samples, name, {"path" if name == OURS else "peer": name}, point.where, METRICS, **more)
        for metric in ("mpps", "mframes_per_cpu_s"):
            result.compare(point.samples, IN_C, OURS, metric, point.where)
        for question in point.questions:
            result.claims.append(point.claim(question, f"the lab's front end is near one in C, {point.title}"))
