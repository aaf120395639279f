"""A kernel veth pair between two network namespaces, UDP: what containers on one machine get.

A UDP payload is 42 bytes shorter than its Ethernet frame. A test frame has 48 bytes at least, hence frames smaller than 90 bytes
are sent as 90 (``frame_bytes`` in the slices' detail). UDP has no flow control: what the receiver's socket has no room for is
dropped, and counted by the kernel, whose count is held against the loss.

Most of the receiving half runs in the sender's system call (softirq); what ksoftirqd takes over is in no process's CPU time.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

from bench.peers.base import PeerError
from bench.peers.sockets import (
    ANSWER_S,
    ROOT,
    SK_MEMINFO_RMEM_ALLOC,
    SO_RCVBUFFORCE,
    SocketPeer,
    buffer_for,
    depth_of,
    meminfo,
    set_buffer,
)

HEADERS = 14 + 20 + 8


@dataclass(frozen=True)
class Pair:
    """The two ends of a new veth pair, the sender's first: connected UDP sockets, and descriptors of their namespaces."""

    sockets: tuple[socket.socket, socket.socket]
    user: int
    networks: tuple[int, int]

    def close(self) -> None:
        """Let go of all; the pair is gone once nobody holds anything of it."""
        for one in self.sockets:
            one.close()
        for fd in (self.user, *self.networks):
            os.close(fd)


def make_pair() -> Pair:
    """PeerError if it cannot be done."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-m", "bench.peers.namespaces", str(theirs.fileno())]
        try:
            done = subprocess.run(
                command, pass_fds=[theirs.fileno()], cwd=ROOT, capture_output=True, text=True, timeout=ANSWER_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise PeerError("making a veth pair took too long") from None
        if done.returncode:
            raise PeerError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        _, fds, _, _ = socket.recv_fds(ours, 1, 5)
        sender, receiver = (socket.socket(fileno=fd) for fd in fds[:2])
        return Pair((sender, receiver), fds[2], (fds[3], fds[4]))


class Veth(SocketPeer):
    """The pair's two sockets, one for each worker; no process lives in the namespaces."""

    name = "veth"
    overhead = HEADERS

    @staticmethod
    def missing(cores: int = 2) -> str | None:
        """Tries it."""
        if shutil.which("ip") is None:
            return "the command ip is not here: apt install iproute2"
        try:
            make_pair().close()
        except PeerError as error:
            return f"needs network namespaces (root, or user namespaces): {error}"
        return None

    async def open_sockets(self) -> tuple[socket.socket, socket.socket]:
        """See `make_pair`."""
        pair = await asyncio.to_thread(make_pair)
        for fd in (pair.user, *pair.networks):
            os.close(fd)
        return pair.sockets

    def set_depth(self, length: int) -> int:
        """The receiver's buffer limits what is under way; one frame tells what a frame takes of it."""
        sender, receiver = self._sockets
        sender.send(bytes(length))
        receiver.recv(length, socket.MSG_PEEK)  # it has arrived
        truesize = meminfo(receiver)[SK_MEMINFO_RMEM_ALLOC]
        receiver.recv(length)
        size = set_buffer(receiver, buffer_for(truesize), socket.SO_RCVBUF, SO_RCVBUFFORCE)
        return depth_of(size, truesize)
