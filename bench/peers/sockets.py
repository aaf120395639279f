"""Peers whose two ends are sockets: two worker processes with compiled loops (bench/peers/loops.py)."""

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers.base import DEPTH, PeerError, PeerSlice, check_slice, cpu_ns
from hyp.control import Channel, ControlError, socketpair

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILE_S, ANSWER_S = 120, 10
LOOK_US = 20_000  # so often a loop that waits for its socket looks whether it is to stop
# asm-generic/socket.h, linux/sock_diag.h, asm-generic/ioctls.h
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_MEMINFO, SIOCOUTQ = 32, 33, 55, 0x5411
SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF, SK_MEMINFO_DROPS = 0, 1, 8


class Worker:
    """One worker process and the channel to it."""

    def __init__(self, cpu: int) -> None:
        ours, theirs = socketpair()
        self._ready = asyncio.Event()
        with theirs:
            command = [sys.executable, "-m", "bench.peers.worker", str(theirs.fileno()), str(cpu)]
            # in a session of its own: Ctrl-C is for the bench, which ends its peers in order
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, start_new_session=True)
        self.channel = Channel(ours, {"ready": self._ready.set}, name="a peer's worker", on_close=self._ready.set)

    async def ready(self) -> None:
        """Wait until its loops are loaded; the first time ever they are compiled."""
        async with asyncio.timeout(COMPILE_S):
            await self._ready.wait()
        if self.channel.closed.done():
            raise PeerError("a peer's worker ended before it was ready; what it printed says why")

    async def call(self, op: str, fds: Sequence[int] = (), **args: Any) -> Any:
        """Ask it. PeerError if it is gone, refuses, or does not answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return (await self.channel.call(op, fds=fds, **args)).value
        except (ControlError, TimeoutError) as error:
            raise PeerError(f"a peer's worker: {op}: {error or 'no answer'}") from error

    def end(self) -> None:
        """Kill it and wait for its end."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class SocketPeer(ABC):
    """A pair of sockets, and one worker at each end. Subclasses say where the sockets come from and what a frame is."""

    name: str
    overhead = 0
    """Bytes of an Ethernet frame that the payload does not have."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._sockets: list[socket.socket] = []
        self._stream = 0
        self._detail: dict[str, Any] = {}

    @abstractmethod
    async def open_sockets(self) -> tuple[socket.socket, socket.socket]:
        """The sender's socket and the receiver's, blocking."""

    @abstractmethod
    def set_depth(self, length: int) -> int:
        """Let DEPTH payloads of `length` bytes be under way; the number that the kernel really allows."""

    async def start(self, frame: int, cpus: Sequence[int]) -> None:
        """Open the sockets, start the workers, hand them over."""
        try:
            self._sockets = list(await self.open_sockets())
            for sock, which in zip(self._sockets, (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO), strict=True):
                sock.setsockopt(socket.SOL_SOCKET, which, struct.pack("ll", 0, LOOK_US))
            for cpu in (cpus[0], cpus[-1]):
                self._workers.append(Worker(cpu))
            for worker in self._workers:
                await worker.ready()
            await self.set_frame(frame)
        except BaseException:
            await self.stop()
            raise

    async def set_frame(self, frame: int) -> None:
        """See `Peer`. The payload is at least the 48 bytes that a test frame has."""
        length = max(frame - self.overhead, 48)
        depth = self.set_depth(length)
        for worker, sock, receives in zip(self._workers, self._sockets, (False, True), strict=True):
            await worker.call("open", fds=[sock.fileno()], length=length, receives=receives)
        self._detail = {
            "touched": "payload", "payload_bytes": length, "frame_bytes": length + self.overhead, "depth": depth,
        }  # fmt: skip

    async def slice(self, seconds: float) -> PeerSlice:
        """See `Peer`. The counter is read while both loops run."""
        check_slice(seconds)
        sender, receiver = self._workers
        pids = [worker.process.pid for worker in self._workers]
        self._stream = self._stream % 0x3000 + 1
        drops = self.drops()
        await receiver.call("start", stream=self._stream)
        await sender.call("start", stream=self._stream)
        (from_ns, from_frames), from_cpu = await receiver.call("read"), cpu_ns(pids)
        await asyncio.sleep(seconds)
        (to_ns, to_frames), to_cpu = await receiver.call("read"), cpu_ns(pids)
        out, into = await sender.call("stop"), await receiver.call("stop")
        frames, named = to_frames - from_frames, self.drops() - drops
        lost = out["frames"] - into["frames"]
        errors = _errors(out, into, lost, named)
        detail = {**self._detail, "drops": {"receive_buffer": named} if named else {}, "verified": into["frames"]}
        return PeerSlice(frames, (to_ns - from_ns) / 1e9, to_cpu - from_cpu, out["frames"], lost, detail, errors)

    def drops(self) -> int:
        """Frames that the kernel says it dropped at the receiver's socket so far (modulo 2³²)."""
        return meminfo(self._sockets[1])[SK_MEMINFO_DROPS]

    async def stop(self) -> None:
        """See `Peer`."""
        while self._workers:
            self._workers.pop().end()
        while self._sockets:
            self._sockets.pop().close()


def _errors(out: dict[str, int], into: dict[str, int], lost: int, named: int) -> list[str]:
    """Reasons why a slice gives no figure."""
    ends = {"sender": out, "receiver": into}
    found = [f"the {who} stopped: {os.strerror(end['errno'])}" for who, end in ends.items() if end["errno"]]
    found += [f"{into[what]} frames {what}" for what in ("corrupt", "duplicated", "foreign") if into[what]]
    if lost != named:
        found.append(f"{lost} frames lost, of which the kernel names {named}")
    return found


def meminfo(sock: socket.socket) -> tuple[int, ...]:
    """SO_MEMINFO: what the kernel's bookkeeping says of a socket."""
    return struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))


def out_queue(sock: socket.socket) -> int:
    """Bytes of kernel memory that hold what was sent and not yet received."""
    found: int = struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0]
    return found


def set_buffer(sock: socket.socket, size: int, plain: int, force: int) -> int:
    """Set a socket's buffer to about `size` bytes of kernel memory, above the user's limit if we may; what it is then."""
    for option in (force, plain):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, size // 2)  # the kernel doubles it
            break
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
    return sock.getsockopt(socket.SOL_SOCKET, plain)


def buffer_for(truesize: int) -> int:
    """A buffer that takes DEPTH frames of `truesize` and refuses the next: the kernel looks whether it is full *before* it adds."""
    return (DEPTH - 1) * truesize + truesize // 2


def depth_of(buffer: int, truesize: int) -> int:
    """How many frames of `truesize` a buffer takes."""
    return -(-buffer // truesize)
