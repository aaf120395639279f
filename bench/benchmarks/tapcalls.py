"""What moving small frames through a TAP costs, by one system call each or by one for many (io_uring).

``python -m bench tapcalls [--frames 64]``

Why the TAP program writes in batches and reads one by one: domu/programs/tap.py.
"""

import asyncio
import functools
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.method.contenders import probe_of
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.report.results import BenchmarkResult, Row
from domu.netns import can_create
from hyp.control import Channel, ControlError

SINGLE, BATCH = "a call each", "one call"
BURSTS = (1, 4, 16, 64)
METRIC = "ns_per_frame"

TITLE = "Calls of a TAP"
ABOUT = (
    "Small frames read from a TAP and written to it, each by a call of its own or a burst by one (io_uring). Time in the calls "
    "alone, which is mostly the kernel's work on the frames. Nothing but a TAP takes part: no path, no other process."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Reads and writes of each size of burst."""
    if (reason := can_create()) is not None:
        result.notes.append(f"left out: {reason}")
        return
    async with _worker() as worker:
        if (reason := (await worker.call("why")).value) is not None:
            result.notes.append(f"one call for many is not to be had: {reason}")
            return
        with probe_of("all") as probe:
            points = [_point(worker, what, options.frames[0], burst, probe) for what in ("read", "write") for burst in BURSTS]
            await study(
                points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s, progress=progress,
                found=functools.partial(_report, result, points),
            )  # fmt: skip


@asynccontextmanager
async def _worker() -> AsyncIterator[Channel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.floor.tapcalls", str(theirs.fileno()), pass_fds=[theirs.fileno()],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    channel = Channel(ours, name="the TAP's calls")
    try:
        yield channel
    finally:
        channel.close()
        await process.wait()


def _point(worker: Channel, what: str, frame: int, burst: int, probe: Probe) -> Point:
    contenders = [_contender(worker, name, what, frame, burst) for name in (SINGLE, BATCH)]
    where: Row = {"direction": f"{what} × {burst}", "frame": frame, "cores": "all"}
    return Point(f"{what}, {burst} at a time", where, contenders, SINGLE, probe, [Question(SINGLE, BATCH, METRIC)])


def _contender(worker: Channel, name: str, what: str, frame: int, burst: int) -> Contender:
    async def run(seconds: float) -> Slice:
        try:
            reply = await worker.call(
                "time_calls", operation=what, frame=frame, burst=burst, batch=name == BATCH, seconds=seconds
            )  # fmt: skip
        except ControlError as error:
            return Slice(errors=[str(error)])
        return Slice({METRIC: float(reply.value)})

    return Contender(name, run, "floor")


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    result.forget()
    for point in points:
        if not point.samples.taken:
            continue
        for name in (SINGLE, BATCH):
            result.take(point.samples, name, {"floor": name}, point.where, [METRIC])
        result.compare(point.samples, SINGLE, BATCH, METRIC, point.where)
        for question in point.questions:
            result.claims.append(point.claim(question, f"{BATCH} is cheaper than {SINGLE}: {point.title}"))
