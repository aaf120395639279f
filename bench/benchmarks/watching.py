"""What it costs those who are watched: streams with a viewer beside them and without, in turns.

``python -m bench watching``

Viewers are ``launch.py top`` on a terminal of its own, and ``launch.py web`` with somebody who has its page open, both at their
usual interval. They live all the time and stand still (SIGSTOP) while they are not to watch, so that their start is in no slice. A
slice here is as long as two intervals, whatever was asked for: a shorter one would have a look in it or none. What a browser needs
to draw the page is not in it.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

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
from lab.stopping import stop

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
    f"Streams to the wire with `launch.py top` beside them, with a page that somebody looks at (`launch.py web`), a look each "
    f"{INTERVAL_S:g} s, and without, in turns; and the CPU that the viewer takes."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Each path with a viewer and without."""
    paths = [path for path in options.paths if path in PATHS]
    async with LabBench("watching", paths) as lab, _top(lab.lab.name) as top, _page(lab.lab.name) as page:
        with probe_of("all") as probe:
            points = [_point(lab, path, options.frames[0], {"top": top, "page": page}, probe) for path in paths]
            await study(
                points, rounds=max(12, options.rounds // 4), seconds=options.slice_s, budget_s=options.budget_s, progress=progress,
                found=functools.partial(_report, result, points),
            )  # fmt: skip


@contextlib.asynccontextmanager
async def _top(topology: str) -> AsyncIterator[int]:
    """The process, which stands still; what it draws is read and thrown away."""
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
        async with _still(process):
            yield process.pid
    finally:
        loop.remove_reader(master)
        os.close(master)


@contextlib.asynccontextmanager
async def _page(topology: str) -> AsyncIterator[int]:
    """The server's process, which stands still, with one viewer, who throws away what comes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "launch", "web", topology, "--port", "0", cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    printed = await process.stdout.readuntil(b"/#token=")
    port = int(printed.removesuffix(b"/#token=").rpartition(b":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
    await reader.readuntil(b"\n\n")  # a view has come
    looking = asyncio.ensure_future(_throw_away(reader))
    try:
        async with _still(process):
            yield process.pid
    finally:
        looking.cancel()
        writer.close()


async def _throw_away(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


@contextlib.asynccontextmanager
async def _still(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """It is stopped now, and ended at the end."""
    try:
        await stop(process.pid)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        await process.wait()


def _point(lab: LabBench, path: str, frame: int, viewers: Mapping[str, int], probe: Probe) -> Point:
    alone = lab.stream(path, TO_WIRE, frame, name=path)

    async def unwatched(_: float) -> Slice:
        return await alone.run(WATCHED_S)

    def watched(viewer: int) -> Callable[[float], Awaitable[Slice]]:
        async def run(_: float) -> Slice:
            before, start = usage(viewer), time.monotonic()
            os.kill(viewer, signal.SIGCONT)
            try:
                found = await alone.run(WATCHED_S)
            finally:
                await stop(viewer)
            used = (usage(viewer) - before).cpu_ns / 1e9 / (time.monotonic() - start)
            return Slice({**found.figures, VIEWER: used}, found.errors, found.detail)

        return run

    contenders = [Contender(path, unwatched, prepare=alone.prepare)]
    contenders += [Contender(f"{path}, {name}", watched(viewer)) for name, viewer in viewers.items()]
    where: Row = {"direction": TO_WIRE, "frame": frame, "cores": "all"}
    asked = [Question(f"{path}, {name}", path, METRIC, ENOUGH) for name in viewers]
    return Point(path, where, contenders, path, probe, asked)


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    result.forget()
    for point in points:
        if not point.samples.taken:
            continue
        for contender in point.contenders:
            result.take(point.samples, contender.name, {"path": contender.name}, point.where)
        for question in point.questions:
            result.compare(point.samples, question.of, point.title, METRIC, point.where)
            result.claims.append(point.claim(question, f"rate with {question.of.partition(', ')[2]} ÷ without, {point.title}"))
            used = point.samples.figure(question.of, VIEWER).median
            result.claims.append(
                Claim.counted(f"CPU of {question.of.partition(', ')[2]} at {point.title}, cores", used, "≤", LITTLE)
            )
