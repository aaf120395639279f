"""Watches a topology and writes what is seen, as a trace, as a capture or both, until it is told to stop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hyp.capture.format import CaptureError
from hyp.capture.write import CaptureWriter
from hyp.control import Channel
from lab.counters import CounterReader
from lab.trace.capture import SNAP, Capture
from lab.trace.perfetto import TraceWriter
from lab.trace.story import Way, Ways
from lab.trace.viewer import LEAST_SNAP, Sighting, Viewer

LOOK_S = 0.05
AGAIN_S = 1.0
"""Between looks for processes that have been started again."""

Sink = Callable[[list[Sighting], bool], None]
"""Takes sightings, in the order of time; the second argument says that these are the last."""


def trace_sink(out: IO[str]) -> Sink:
    """Writes ways to a trace file."""
    writer, ways = TraceWriter(out), Ways()

    def take(sightings: list[Sighting], last: bool) -> None:
        for way in [*ways.add(sightings), *(ways.rest() if last else ())]:
            writer.add(way)
        if last:
            writer.close()

    return take


def way_sink(found: list[Way]) -> Sink:
    """Gathers ways."""
    ways = Ways()

    def take(sightings: list[Sighting], last: bool) -> None:
        found.extend([*ways.add(sightings), *(ways.rest() if last else ())])

    return take


async def capture_sink(keeper: Channel, writer: CaptureWriter, guest: str | None = None) -> Sink:
    """Writes frames to a capture file, all of them or those that have to do with a guest. KeyError if there is none such."""
    guests = (await keeper.call("status")).value["guests"]
    held = await keeper.call("held", suffix=".counters")
    rows = CounterReader.adopt(held.value, held.fds).read()
    only = None if guest is None else {one["name"]: str(one["mac"]) for one in guests}[guest]
    capture = Capture(writer, {domid: one["name"] for domid, one in enumerate(guests, 1)}, rows, only)

    def take(sightings: list[Sighting], last: bool) -> None:
        capture.add(sightings)
        if last:
            writer.close()

    return take


@dataclass(slots=True)
class Seen:
    """What there is to say when it is over: who was not watched and why, and how much was missed, by loop."""

    left_out: dict[str, str] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    """Of a sink's, after which it was given nothing more."""


async def record(keeper: Channel, sinks: Iterable[Sink], stop: asyncio.Event, *, every: int = 1, snap: int = LEAST_SNAP) -> Seen:
    """Until `stop` is set or the topology ends. A sink that fails ends the recording, and no traffic."""
    seen, to = Seen(), list(sinks)
    async with Viewer(keeper, every, snap) as viewer:
        ending, looks = asyncio.ensure_future(stop.wait()), 0
        try:
            while not ending.done() and not keeper.closed.done():
                await asyncio.wait([ending, keeper.closed], timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                looks += 1
                if looks * LOOK_S >= AGAIN_S and not keeper.closed.done():
                    looks = 0
                    await viewer.look_again()
                _give(to, viewer.read(), last=False)
            _give(to, viewer.read(last=True), last=True)
        except (OSError, ValueError, CaptureError) as error:
            seen.error = error
        finally:
            ending.cancel()
        seen.left_out, seen.missed = viewer.left_out, viewer.missed
    return seen


def _give(sinks: Iterable[Sink], sightings: list[Sighting], *, last: bool) -> None:
    for sink in sinks:
        sink(sightings, last)


@contextlib.asynccontextmanager
async def recorded(keeper: Channel, trace: Path | None, capture: Path | None, every: int = 1) -> AsyncIterator[list[Seen]]:
    """What happens inside is recorded; the list has what there is to say afterwards. OSError, CaptureError: there is no file."""
    said: list[Seen] = []
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        if trace is not None:
            sinks.append(trace_sink(stack.enter_context(trace.open("w"))))
        if capture is not None:
            sinks.append(await capture_sink(keeper, CaptureWriter(str(capture))))
        if not sinks:
            yield said
            return
        stop = asyncio.Event()
        snap = SNAP if capture is not None else LEAST_SNAP
        recording = asyncio.ensure_future(record(keeper, sinks, stop, every=every, snap=snap))
        try:
            yield said
        finally:
            stop.set()
            said.append(await recording)
