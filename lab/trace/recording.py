"""Watches a topology and writes what is seen, as a trace, as a capture or both, until it is told to stop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hyp.capture.format import CaptureError
from hyp.capture.write import CaptureWriter
from hyp.control import Channel
from lab.counters import CounterReader
from lab.trace.capture import SNAP, Capture
from lab.trace.perfetto import TraceWriter
from lab.trace.story import Way, Ways
from lab.trace.viewer import LEAST_SNAP, Sighting, Viewer

LOOK_S, ASIDE_LOOK_S = 0.05, 0.2
"""Between looks at the rings: for somebody who reads meanwhile, and for a record of what goes on, which has less to disturb."""
ASIDE, LIVE = 0.01, 1.0
"""Shares of a core: for the latter, and for the former."""
MOST_BACKLOG = 64 << 20
"""Bytes of records that may wait for the end, which then takes some seconds. Beyond it rings get full, and that is missed."""
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


class _Pace:
    """How much of a core goes into what was told, while traffic goes on: a core that it needs itself, where there are few.

    Each look has its share of the time since the one before. What it does not suffice for waits, until there is little again, or
    the end.
    """

    def __init__(self, share: float) -> None:
        self._share, self._left, self._looked = share, 0.0, time.monotonic()
        self._a_byte = 1e-7  # seconds; a guess until the first has been timed

    def look(self) -> None:
        """Time has passed."""
        now = time.monotonic()
        self._left = min(self._left + self._share * (now - self._looked), LOOK_S)
        self._looked = now

    def may(self, size: int) -> bool:
        """There is time for so many bytes of records."""
        return size * self._a_byte <= self._left

    @contextlib.contextmanager
    def spending(self, size: int) -> Iterator[None]:
        """Time goes into that."""
        begin = time.monotonic()
        yield
        spent = time.monotonic() - begin
        self._left -= spent
        if size > 0:
            self._a_byte += 0.2 * (spent / size - self._a_byte)


async def record(
    keeper: Channel,
    sinks: Iterable[Sink],
    stop: asyncio.Event,
    *,
    began: asyncio.Event | None = None,
    every: int = 1,
    snap: int = LEAST_SNAP,
    share: float = ASIDE,
) -> Seen:
    """Until `stop` is set or the topology ends. A sink that fails ends the recording, and no traffic.

    `began`: set when all loops tell. `share`: of a core, what may go into sinks while traffic goes on; the rest is done at the end.
    """
    seen, to, pace = Seen(), list(sinks), _Pace(share)
    async with Viewer(keeper, every, snap) as viewer:
        if began is not None:
            began.set()
        ending, looks = asyncio.ensure_future(stop.wait()), 0
        look_s = LOOK_S if share >= LIVE else ASIDE_LOOK_S
        try:
            while not ending.done() and not keeper.closed.done():
                await asyncio.wait([ending, keeper.closed], timeout=look_s, return_when=asyncio.FIRST_COMPLETED)
                looks += 1
                if looks * look_s >= AGAIN_S and not keeper.closed.done():
                    looks = 0
                    await viewer.look_again()
                pace.look()
                viewer.copy(MOST_BACKLOG)
                while viewer.backlog and pace.may(viewer.backlog[0]):
                    with pace.spending(viewer.backlog[0]):
                        _give(to, viewer.take_apart(), last=False)
            viewer.copy()
            await viewer.close()  # nobody is to tell anything while the rest is written
            while viewer.backlog:
                _give(to, viewer.take_apart(), last=False)
                await asyncio.sleep(0)
            _give(to, viewer.rest(), last=True)
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
        snap, share = (SNAP, LIVE) if capture is not None else (LEAST_SNAP, ASIDE)
        async with recording(keeper, sinks, said, every=every, snap=snap, share=share):
            yield said


@contextlib.asynccontextmanager
async def recording(keeper: Channel, sinks: Iterable[Sink], said: list[Seen], **options: Any) -> AsyncIterator[None]:
    """`record` as long as the block lasts, from its beginning on; what there is to say is added to `said`."""
    stop, began = asyncio.Event(), asyncio.Event()
    beginning = asyncio.ensure_future(began.wait())
    task = asyncio.ensure_future(record(keeper, sinks, stop, began=began, **options))
    try:
        await asyncio.wait([beginning, task], return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        stop.set()
        beginning.cancel()
        said.append(await task)
