"""What a small frame's way through a TAP costs, by one system call each or many by one: ``python -m bench.floor.tapcalls FD``.

A process in a network namespace of its own, with a TAP there; it serves `time_calls` on the SEQPACKET socket FD and ends with it.
Frames to read come from a packet socket in the namespace; frames that are written are nobody's. Only the calls are timed.
"""

import asyncio
import errno
import os
import socket
import sys
import time

import numpy as np

from domu.device import BURST
from domu.netns import INTERFACE, Addresses, create
from hyp.abi.io_uring import OP_READV, OP_WRITEV
from hyp.abi.vnet import VNET_BYTES
from hyp.atomics import clock_ns, record_view, sys_readv, sys_writev
from hyp.control import Channel
from hyp.kernels import entry, i64
from hyp.linux import die_with_parent, set_name
from hyp.process import adopt_socket
from hyp.uring.batch import Batches, outcome, run_batch, set_request, uring_at
from hyp.uring.ring import Ring, why_plain

OPERATIONS = {"read": OP_READV, "write": OP_WRITEV}
_MAC = "02:00:00:00:00:01"
_HEADER = bytes.fromhex("02000000000102000000000288b5")  # an EtherType for experiments: nobody takes it
_ROOM = 2048
_PIECES, _IOVEC_BYTES = 2, 16
_CALLS = np.dtype([("tap_fd", "i8"), ("operation", "i8"), ("iov", "i8"), ("whole", "i8"), ("uring", "i8")])
_calls_at = record_view(_CALLS)


@entry(i64(i64, i64, i64))
def _time_calls(address: int, frames: int, batch: int) -> int:
    """Move so many frames; the time in ns, or −1 if one was not moved whole."""
    c = _calls_at(address)
    u = uring_at(c.uring)
    moved = 0
    begin = clock_ns()
    if batch != 0:
        for k in range(frames):
            set_request(u, k, c.operation, c.iov + k * _PIECES * _IOVEC_BYTES, _PIECES)
        run_batch(u, frames)
        for k in range(frames):
            moved += outcome(u, k) == c.whole
    elif c.operation == OP_READV:
        for k in range(frames):
            moved += sys_readv(c.tap_fd, c.iov + k * _PIECES * _IOVEC_BYTES, _PIECES) == c.whole
    else:
        for k in range(frames):
            moved += sys_writev(c.tap_fd, c.iov + k * _PIECES * _IOVEC_BYTES, _PIECES) == c.whole
    return clock_ns() - begin if moved == frames else -1


class TapCalls:
    """The TAP, its buffers and its ring."""

    def __init__(self) -> None:
        self._tap = create(_MAC, Addresses("10.0.0.1/24"), 1500)
        self.why_plain = why_plain(self._tap.fd)
        self._batches = Batches(None if self.why_plain else Ring(self._tap.fd, BURST))
        self._source = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._source.bind((INTERFACE, 0))
        self._memory = np.zeros((BURST, _ROOM), np.uint8)
        self._vnet = np.zeros((BURST, _IOVEC_BYTES), np.uint8)
        self._iov = np.zeros((BURST, _PIECES, 2), np.int64)
        self._iov[:, 0, 0] = [row.ctypes.data for row in self._vnet]
        self._iov[:, 0, 1] = VNET_BYTES
        self._iov[:, 1, 0] = [row.ctypes.data for row in self._memory]
        self._record = np.zeros(1, _CALLS)
        row = self._record[0]
        row["tap_fd"], row["iov"], row["uring"] = self._tap.fd, self._iov.ctypes.data, self._batches.address

    def why(self) -> str | None:
        """None if there can be batches; else why not."""
        return self.why_plain

    def time_calls(self, operation: str, frame: int, burst: int, batch: bool, seconds: float) -> float:
        """Move bursts of frames of `frame` bytes for that long. Nanoseconds a frame, in calls alone."""
        row = self._record[0]
        row["operation"], row["whole"] = OPERATIONS[operation], frame + VNET_BYTES
        self._iov[:, 1, 1] = frame if operation == "write" else _ROOM
        sent = _HEADER.ljust(frame, b"\0")
        end, spent, frames = time.monotonic() + seconds, 0, 0
        while time.monotonic() < end:
            self._memory[:burst, :frame] = np.frombuffer(sent, np.uint8)
            self._vnet[:] = 0
            if operation == "read":
                for _ in range(burst):
                    self._source.send(sent)
            took = _time_calls(int(self._record.ctypes.data), burst, int(batch))
            if took < 0:
                raise OSError(errno.EIO, "a frame did not go through the TAP")
            spent, frames = spent + took, frames + burst
        return spent / frames


async def serve(fd: int) -> None:
    """Load the kernels, then serve; the end of the socket is the end of the process."""
    calls = TapCalls()
    _time_calls.load()
    Channel(
        adopt_socket(fd), {"why": calls.why, "time_calls": calls.time_calls}, name="the TAP's calls", on_close=lambda: os._exit(0)
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    die_with_parent()
    set_name("tapcalls")
    asyncio.run(serve(int(sys.argv[1])))
