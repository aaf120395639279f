"""``launch.py trace``, ``explain`` and ``capture``: frames of a running topology on their way (lab/trace/).

launch.py trace [--seconds S] [--every N] [--out FILE]     watch, and write a trace for Perfetto or say where the time went
launch.py trace FROM TO [--frames N]                       send N frames, and tell each one's way hop by hop
launch.py explain FILE                                     where the time went, of a trace that was written
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyp.abi.frame import HEADER_ONLY, MIN_TEST_FRAME
from hyp.capture.format import CaptureError
from hyp.capture.write import CaptureWriter
from hyp.control import Channel, ControlError
from lab.command.clients import ClientError, connect, the_one
from lab.owner import open_console
from lab.trace.explain import explained, plain, summary, told
from lab.trace.perfetto import read
from lab.trace.recording import LIVE, Seen, capture_sink, record, trace_sink, way_sink
from lab.trace.story import Way, Ways
from lab.trace.viewer import Viewer

Answer = tuple[dict[str, Any], list[str]]
"""What there is to say: for JSON, and in lines."""
LOOK_S = 0.05
MOST_S, MOST_FRAMES = 3600.0, 1000
FRAME = 64
LOST_S = 2.0
WIRE, OWN_PROGRAM = "wire", "traffic"


@contextlib.contextmanager
def _asked(topology: str) -> Iterator[None]:
    """What the topology refuses, or that it ends, is a ClientError."""
    try:
        yield
    except ControlError as error:
        raise ClientError(f"topology {topology}: {error}") from error


async def watch(topology: str | None, seconds: float, every: int, out: Path | None, *, ascii_only: bool) -> Answer:
    """Watch one in `every` frames for some time. ClientError; OSError if the file can't be made."""
    run, ways = the_one(topology), list[Way]()
    keeper = await connect(run)
    with contextlib.ExitStack() as stack:
        stack.callback(keeper.close)
        sinks = [way_sink(ways)]
        if out is not None:
            sinks.append(trace_sink(stack.enter_context(out.open("w"))))
        with _asked(run.name):
            seen = await record(keeper, sinks, _until(seconds), every=every)
    found = {**summary(ways), "seen": len(ways), "missed": sum(seen.missed.values()), "notes": said_of(seen)}
    if out is None or seen.error is not None:
        return found, [*explained(ways, ascii_only=ascii_only), *said_of(seen)]
    return found, [f"{len(ways)} frames in {out}: open it at ui.perfetto.dev, or `launch.py explain {out}`", *said_of(seen)]


async def capture(topology: str | None, guest: str | None, out: Path | None, seconds: float | None, snap: int) -> list[str]:
    """Write frames to a capture file, or to standard output, until it is over or Ctrl-C. ClientError; CaptureError."""
    run = the_one(topology)
    keeper = await connect(run)
    try:
        with _asked(run.name):
            guests = [one["name"] for one in (await keeper.call("status")).value["guests"]]
            if guest is not None and guest not in guests:
                raise ClientError(f"topology {run.name} has no guest {guest!r}; there are {', '.join(guests)}")
            try:
                writer = CaptureWriter("standard output", os.dup(1)) if out is None else CaptureWriter(str(out))
            except CaptureError as error:
                raise ClientError(str(error)) from error
            sink = await capture_sink(keeper, writer, guest)
            seen = await record(keeper, [sink], _until(seconds), snap=snap, share=LIVE)
        return [f"{writer.frames} frames in {writer.path}", *said_of(seen)]
    finally:
        keeper.close()


def _until(seconds: float | None) -> asyncio.Event:
    """Set after some time, or by SIGINT or SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    return stop


def said_of(seen: Seen) -> list[str]:
    """What went wrong, for people."""
    said = [str(seen.error)] if seen.error is not None else []
    said += [f"{name} is not watched: {why}" for name, why in seen.left_out.items() if name != "xenstored"]
    if seen.missed:
        said.append(f"missed, as there were too many at a time: {sum(seen.missed.values())} (--every takes fewer)")
    return said


async def explain(file: Path) -> Answer:
    """Where the time of a trace's frames went. ClientError if it can't be read."""
    try:
        ways = list(read(file))
        return summary(ways), list(explained(ways, ascii_only=_ascii_only()))
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ClientError(str(error)) from error


def _ascii_only() -> bool:
    return "utf" not in (sys.stdout.encoding or "").lower()


async def trace(
    ends: list[str], topology: str | None, seconds: float, every: int, frames: int, length: int, out: Path | None
) -> Answer:
    """What `launch.py trace` does. ClientError."""
    if len(ends) > 2:
        raise ClientError("trace: a topology's name, or where frames come from and where they go")
    try:
        if len(ends) == 2:
            return await follow(topology, ends[0], ends[1], frames, length)
        return await watch(ends[0] if ends else topology, seconds, every, out, ascii_only=_ascii_only())
    except OSError as error:
        raise ClientError(f"{out}: {error.strerror}") from error


async def follow(topology: str | None, sender: str, receiver: str, frames: int, length: int) -> Answer:
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
            if next((one["program"] for one in status["guests"] if one["name"] == sender), OWN_PROGRAM) != OWN_PROGRAM:
                raise ClientError(f"{sender}'s program sends no frames for us: `launch.py trace --seconds 5` watches what it sends")
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


async def _told(viewer: Viewer, keeper: Channel, stream: int, frames: int) -> Answer:
    ways, found, until = Ways(), list[Way](), asyncio.get_running_loop().time() + LOST_S

    def ours(way: Way) -> bool:
        return way.steps[0].sighting.key >> 47 == stream

    while len(found) < frames and asyncio.get_running_loop().time() < until:
        await asyncio.wait([keeper.closed], timeout=LOOK_S)
        found += filter(ours, ways.add(viewer.read()))
    found += filter(ours, ways.rest())
    lines = [line for way in found for line in told(way)]
    return {"ways": [plain(way) for way in found]}, lines or ["nothing was seen of them"]
