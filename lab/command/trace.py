"""``launch.py trace`` and ``explain``: frames of a running topology on their way (lab/trace/).

launch.py trace [--seconds S] [--every N] [--out FILE]     watch, and write a trace for Perfetto or say where the time went
launch.py trace FROM TO [--frames N]                       send N frames, and tell each one's way hop by hop
launch.py explain FILE                                     where the time went, of a trace that was written
"""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyp.control import Channel, ControlError
from hyp.load.frames import HEADER_ONLY, MIN_TEST_FRAME
from lab.command.clients import ClientError, connect, the_one
from lab.owner import open_console
from lab.trace.explain import explained, told
from lab.trace.perfetto import TraceWriter, read
from lab.trace.story import Way, Ways
from lab.trace.viewer import Viewer

LOOK_S = 0.05
MOST_S, MOST_FRAMES = 3600.0, 1000
FRAME = 64
LOST_S = 2.0
WIRE = "wire"


@contextlib.contextmanager
def _asked(topology: str) -> Iterator[None]:
    """What the topology refuses, or that it ends, is a ClientError."""
    try:
        yield
    except ControlError as error:
        raise ClientError(f"topology {topology}: {error}") from error


async def watch(topology: str | None, seconds: float, every: int, out: Path | None, *, ascii_only: bool) -> list[str]:
    """Watch one in `every` frames for some time. Returns what to say. ClientError; OSError if the file can't be written."""
    run = the_one(topology)
    keeper, found = await connect(run), list[Way]()
    with contextlib.ExitStack() as stack:
        stack.callback(keeper.close)
        file = stack.enter_context(out.open("w")) if out is not None else None
        writer = TraceWriter(file) if file is not None else None
        with _asked(run.name):
            async with Viewer(keeper, every) as viewer:
                ways, until = Ways(), asyncio.get_running_loop().time() + seconds

                def take(*, last: bool = False) -> None:
                    for way in itertools.chain(ways.add(viewer.read(last=last)), ways.rest() if last else ()):
                        found.append(way)
                        if writer is not None:
                            writer.add(way)

                while (left := until - asyncio.get_running_loop().time()) > 0 and not keeper.closed.done():
                    await asyncio.wait([keeper.closed], timeout=min(left, LOOK_S))
                    take()
                take(last=True)
                said = _missed(viewer)
        if writer is not None:
            writer.close()
    if out is not None:
        return [f"{len(found)} frames in {out}: open it at ui.perfetto.dev, or `launch.py explain {out}`", *said]
    return [*explained(found, ascii_only=ascii_only), *said]


def _missed(viewer: Viewer) -> list[str]:
    said = [f"{name} is not watched: {why}" for name, why in viewer.left_out.items() if name != "xenstored"]
    if viewer.missed:
        said.append(f"missed, as there were too many at a time: {sum(viewer.missed.values())} (--every takes fewer)")
    return said


def explain(file: Path, *, ascii_only: bool) -> list[str]:
    """Where the time of a trace's frames went. ClientError if it can't be read."""
    try:
        return list(explained(read(file), ascii_only=ascii_only))
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ClientError(str(error)) from error


async def follow(topology: str | None, sender: str, receiver: str, frames: int, length: int) -> list[str]:
    """Send frames from a guest, or the wire, to another, and tell their ways. ClientError."""
    run = the_one(topology)
    keeper = await connect(run)
    try:
        with _asked(run.name):
            status = (await keeper.call("status")).value
            macs = {one["name"]: one["mac"] for one in status["guests"]} | {WIRE: status["nic"]["wire"]["mac"]}
            for name in (sender, receiver):
                if name not in macs:
                    raise ClientError(f"topology {run.name} has no guest {name!r}; there are {', '.join(macs)}")
            async with Viewer(keeper) as viewer:
                stream = int.from_bytes(os.urandom(2), "little") % HEADER_ONLY
                console = await open_console(keeper, "nic" if sender == WIRE else sender)
                try:
                    job: dict[str, Any] = {
                        "mac": macs[receiver],
                        "frame": max(length, MIN_TEST_FRAME),
                        "stream": stream,
                        "frames": frames,
                    }
                    await console.call("wire_generate" if sender == WIRE else "send_stream", **job)
                    return await _told(viewer, keeper, stream, frames)
                finally:
                    console.close()
    finally:
        keeper.close()


async def _told(viewer: Viewer, keeper: Channel, stream: int, frames: int) -> list[str]:
    ways, found, until = Ways(), list[Way](), asyncio.get_running_loop().time() + LOST_S

    def ours(way: Way) -> bool:
        return way.steps[0].sighting.key >> 47 == stream

    while len(found) < frames and asyncio.get_running_loop().time() < until:
        await asyncio.wait([keeper.closed], timeout=LOOK_S)
        found += filter(ours, ways.add(viewer.read()))
    found += filter(ours, ways.rest())
    lines = [line for way in found for line in told(way)]
    return lines or ["nothing was seen of them"]
