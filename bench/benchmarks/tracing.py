"""What traces cost those who are traced: streams with a viewer of single frames and without, in turns (docs/traces.md).

``python -m bench tracing``

The viewer (lab/trace/viewer.py) gives every loop a ring before a slice, empties them now and then while it lasts, and takes them
away after it. One frame in 1024 is recorded as ``run --trace --every 1024`` does it; all of them are what a capture looks at, and
no claim.
"""

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence

from bench.method.contenders import TO_WIRE, LabBench, probe_of
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.report.results import BenchmarkResult, Row
from hyp.control import Channel
from lab.trace.recording import LOOK_S, Seen, recording, trace_sink
from lab.trace.viewer import Viewer

PATHS = ("bypass", "split", "trapped")
SAMPLED, ALL = 1024, 1
ENOUGH = 0.98
"""What sampling may leave of a rate."""
METRIC = "mpps"

TITLE = "Tracing"
ABOUT = (
    f"Streams to the wire with nobody who looks at single frames, with one in {SAMPLED} told of at every hop, and with all of "
    "them, in turns."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Each path untraced, sampled, and told whole."""
    paths = [path for path in options.paths if path in PATHS]
    async with LabBench("tracing", paths) as lab:
        with probe_of("all") as probe:
            points = [_point(lab, path, options.frames[0], probe) for path in paths]
            await study(
                points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s, progress=progress,
                found=functools.partial(_report, result, points),
            )  # fmt: skip


def _traced(path: str, every: int) -> str:
    return f"{path}, all told" if every == ALL else f"{path}, 1 in {every}"


def _point(lab: LabBench, path: str, frame: int, probe: Probe) -> Point:
    alone = lab.stream(path, TO_WIRE, frame, name=path)

    def traced(every: int) -> Contender:
        async def run(seconds: float) -> Slice:
            watched = _watched_whole(lab.lab.channel) if every == ALL else _recorded(lab.lab.channel, every)
            async with watched:
                return await alone.run(seconds)

        return Contender(_traced(path, every), run)

    contenders = [Contender(path, alone.run, prepare=alone.prepare), traced(SAMPLED), traced(ALL)]
    where: Row = {"direction": TO_WIRE, "frame": frame, "cores": "all"}
    return Point(path, where, contenders, path, probe, [Question(_traced(path, SAMPLED), path, METRIC, ENOUGH)])


@contextlib.asynccontextmanager
async def _recorded(keeper: Channel, every: int) -> AsyncIterator[None]:
    """As ``launch.py run --trace`` does it, into a file that nobody keeps."""
    said: list[Seen] = []
    with tempfile.TemporaryFile("w") as file:
        async with recording(keeper, [trace_sink(file)], said, every=every):
            yield
    if said[0].error is not None:
        raise said[0].error
    _all_told(said[0].left_out)


@contextlib.asynccontextmanager
async def _watched_whole(keeper: Channel) -> AsyncIterator[None]:
    """All of it, as a capture looks at it, and nothing is done with it."""

    async def read(viewer: Viewer) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            viewer.read()

    async with Viewer(keeper, ALL) as viewer:
        _all_told(viewer.left_out)
        reading = asyncio.ensure_future(read(viewer))
        try:
            yield
        finally:
            reading.cancel()


def _all_told(left_out: Mapping[str, str]) -> None:
    """Raise RuntimeError if somebody was not looked at but xenstored, who has no loop: it would be measured untraced."""
    if missing := {name: why for name, why in left_out.items() if name != "xenstored"}:
        raise RuntimeError(f"not looked at: {missing}")


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    result.forget()
    for point in points:
        if not point.samples.taken:
            continue
        path, sampled, everything = point.title, _traced(point.title, SAMPLED), _traced(point.title, ALL)
        for name in (path, sampled, everything):
            result.take(point.samples, name, {"path": name}, point.where)
        for name in (sampled, everything):
            result.compare(point.samples, name, path, METRIC, point.where)
        result.claims.append(point.claim(point.questions[0], f"{path}'s rate with 1 frame in {SAMPLED} told of ÷ untraced"))
