"""What it costs those who are watched: streams with a viewer beside them and without, in turns.

``python -m bench watching``

The viewer is ``launch.py top`` on a terminal of its own, at its usual interval. It lives all the time and stands still (SIGSTOP)
while nobody is to watch, so that its start is in no slice. A slice here is as long as two of its intervals, whatever was asked
for: a shorter one would have a look in it or none.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Sequence

from bench.method.claims import Claim
from bench.method.contenders import TO_WIRE, LabBench, probe_of
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.report.results import BenchmarkResult, Row
from lab.accounting import usage
from lab.command.top.command import INTERVAL_S
from lab.owner import ROOT

PATHS = ("bypass", "split")
WATCHED_S = 2 * INTERVAL_S
ENOUGH = 0.99
"""What watching may leave of a rate."""
LITTLE = 0.01
"""Of a CPU, for the viewer itself."""
METRIC, VIEWER = "mpps", "viewer_cores"
SCREEN = (50, 160)  # rows, columns

TITLE = "Watching"
ABOUT = (
    f"Streams to the wire with `launch.py top` beside them, a look each {INTERVAL_S:g} s, and without, in turns; and the CPU that "
    "the viewer takes."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Each path with a viewer and without."""
    paths = [path for path in options.paths if path in PATHS]
    async with LabBench("watching", paths) as lab, _viewer(lab.lab.name) as viewer:
        with probe_of("all") as probe:
            points = [_point(lab, path, options.frames[0], viewer, probe) for path in paths]
            await study(
                points, rounds=max(12, options.rounds // 4), seconds=options.slice_s, budget_s=options.budget_s, progress=progress,
                found=functools.partial(_report, result, points),
            )  # fmt: skip


@contextlib.asynccontextmanager
async def _viewer(topology: str) -> AsyncIterator[int]:
    """The viewer's process, which stands still; what it draws is read and thrown away."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *SCREEN, 0, 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "launch", "top", topology, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    drawn = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            os.read(master, 1 << 16)
        except OSError:
            loop.remove_reader(master)
        drawn.set()

    loop.add_reader(master, read)
    try:
        await drawn.wait()
        os.kill(process.pid, signal.SIGSTOP)
        yield process.pid
    finally:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        await process.wait()
        loop.remove_reader(master)
        os.close(master)


def _point(lab: LabBench, path: str, frame: int, viewer: int, probe: Probe) -> Point:
    alone = lab.stream(path, TO_WIRE, frame, name=path)

    async def unwatched(_: float) -> Slice:
        return await alone.run(WATCHED_S)

    async def watched(_: float) -> Slice:
        before, start = usage(viewer), time.monotonic()
        os.kill(viewer, signal.SIGCONT)
        try:
            found = await alone.run(WATCHED_S)
        finally:
            os.kill(viewer, signal.SIGSTOP)
        used = (usage(viewer) - before).cpu_ns / 1e9 / (time.monotonic() - start)
        return Slice({**found.figures, VIEWER: used}, found.errors, found.detail)

    contenders = [Contender(path, unwatched, prepare=alone.prepare), Contender(_watched(path), watched)]
    where: Row = {"direction": TO_WIRE, "frame": frame, "cores": "all"}
    return Point(path, where, contenders, path, probe, [Question(_watched(path), path, METRIC, ENOUGH)])


def _watched(path: str) -> str:
    return f"{path}, watched"


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    result.forget()
    for point in points:
        if not point.samples.taken:
            continue
        for name in (point.title, _watched(point.title)):
            result.take(point.samples, name, {"path": name}, point.where)
        result.compare(point.samples, _watched(point.title), point.title, METRIC, point.where)
        for question in point.questions:
            result.claims.append(point.claim(question, f"{point.title}'s rate while it is watched ÷ unwatched"))
        used = point.samples.figure(_watched(point.title), VIEWER).median
        result.claims.append(Claim.counted(f"CPU of who watches {point.title}, cores", used, "≤", LITTLE))
