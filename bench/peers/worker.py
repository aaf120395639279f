"""A worker process of a socket peer: one end of it. ``python -m bench.peers.worker FD CPU``, FD its control socket.

Operations::

    open    {length, receives} + [socket]   prepare buffers; again for another length
    start   {stream}                        run the loop in its thread
    read    {}                              → [CLOCK_MONOTONIC ns, frames so far]
    stop    {}                              → {frames, errno, corrupt, duplicated, foreign, lost}, once the loop has ended

The loop's thread lives as long as the process, so that its CPU time can be read when the loop has ended.
"""

import asyncio
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import uvloop

from bench.peers import loops
from hyp import linux
from hyp.abi.counters import COLUMNS, CORRUPT, DUPLICATED, FOREIGN, LOST
from hyp.abi.sizes import FRAME_BUFFER
from hyp.control import Channel, Handler, Refused
from hyp.load.frames import TRACKER, TRACKERS


class Loop:
    """One end's buffers, message headers and control words."""

    def __init__(self) -> None:
        self.control = np.zeros(loops.CONTROL_BYTES // 8, np.int64)
        self.buffers = np.zeros(loops.BUFFERS * FRAME_BUFFER, np.uint8)
        self.headers = np.zeros((loops.BUFFERS, loops.MMSGHDR_BYTES // 8), np.int64)
        self.iovecs = np.zeros((loops.BUFFERS, loops.IOVEC_BYTES // 8), np.int64)
        self.trackers = np.zeros(TRACKERS, TRACKER)
        self.row = np.zeros(COLUMNS, np.int64)
        self.socket: socket.socket | None = None
        self.length, self.receives = 0, False
        self._executor = ThreadPoolExecutor(1)
        self._running: asyncio.Future[Any] | None = None

    def open(self, length: int, receives: bool, fds: list[int]) -> None:
        """Take the socket, aim the headers at the buffers."""
        if self._running is not None or len(fds) != 1:
            raise Refused("EINVAL", "one socket, and no loop may be running")
        if self.socket is not None:
            self.socket.close()
        self.socket, self.length, self.receives = socket.socket(fileno=fds.pop()), length, receives
        places = np.arange(loops.BUFFERS, dtype=np.int64)
        self.iovecs[:, 0] = self.buffers.ctypes.data + places * FRAME_BUFFER
        self.iovecs[:, 1] = FRAME_BUFFER if receives else length
        self.headers[:, loops.MSG_IOV // 8] = self.iovecs.ctypes.data + places * loops.IOVEC_BYTES
        self.headers[:, loops.MSG_IOVLEN // 8] = 1

    def start(self, stream: int) -> None:
        """Run the loop."""
        if self._running is not None or self.socket is None:
            raise Refused("EINVAL", "open first, and one loop at a time")
        for array in (self.control, self.trackers, self.row):
            array[:] = np.zeros(1, array.dtype)[0]
        common = self.control.ctypes.data, self.socket.fileno(), self.headers.ctypes.data, self.buffers.ctypes.data
        if self.receives:
            body = partial(loops.receive, *common, self.trackers.ctypes.data, self.row.ctypes.data)
        else:
            body = partial(loops.send, *common, self.length, stream)
        self._running = asyncio.get_running_loop().run_in_executor(self._executor, body)

    def read(self) -> tuple[int, int]:
        """Time and count, read together."""
        return time.monotonic_ns(), int(self.control[loops.COUNT // 8])

    async def stop(self) -> dict[str, int]:
        """End the loop; what it has to say."""
        if self._running is None:
            raise Refused("EINVAL", "no loop is running")
        self.control[loops.STOP // 8] = 1
        await self._running
        self._running = None
        found = {"frames": self.read()[1], "errno": int(self.control[loops.ERRNO // 8])}
        columns = {"corrupt": CORRUPT, "duplicated": DUPLICATED, "foreign": FOREIGN, "lost": LOST}
        return {**found, **{name: int(self.row[column]) for name, column in columns.items()}}


async def _serve(sock: socket.socket) -> None:
    loop = Loop()
    loops.send.load()
    loops.receive.load()
    handlers: dict[str, Handler] = {"open": loop.open, "start": loop.start, "read": loop.read, "stop": loop.stop}
    # a loop in its thread would keep an orderly exit waiting, and there is nothing to save
    channel = Channel(sock, handlers, name="the bench", takes_fds={"open"}, on_close=lambda: os._exit(0))
    channel.tell("ready")
    await channel.closed


def main() -> None:
    """Serve until the other end of the control socket is closed."""
    linux.die_with_parent()
    linux.set_name("peer-worker")
    os.sched_setaffinity(0, {int(sys.argv[2])})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
