"""Ends of a control channel: a server, clients of it, and a hostile peer on a raw socket; and the loop that they run on."""

import asyncio
import gc
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvloop

from hyp.control import MAX_MESSAGE, Answer, Channel, Refused, socketpair
from tests.support.patience import patient

WAIT_S = 20.0
LINGER_S = 600
"""More than any test may take."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in time; what it leaves unhandled is an error."""
    unhandled: list[dict[str, Any]] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(patient(WAIT_S)):
            await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
        gc.collect()  # futures whose exception nobody fetched complain when they go
    assert unhandled == []


class Server:
    """Handlers as a trusted process has them."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.gate = asyncio.Event()
        self.most = self.running = 0
        self.closed: list[str] = []

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """What can be called, by name."""
        names = ("add", "fail", "refuse", "slow", "note", "sizes", "file", "gated", "gated_file", "twice")
        return {name: getattr(self, name) for name in names}

    def add(self, a: int, b: int) -> int:
        return a + b

    def fail(self) -> None:
        raise RuntimeError("our own mistake")

    def refuse(self, name: str) -> None:
        raise Refused(name, f"because of {name}")

    async def slow(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    async def gated(self, value: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.gate.wait()
        self.running -= 1
        return value

    async def gated_file(self, content: str) -> Answer:
        self.running += 1
        await self.gate.wait()
        return self.file(content)

    def twice(self, value: bytes) -> bytes:
        return 2 * value

    def note(self, value: int) -> None:
        self.events.append(value)

    def sizes(self, fds: list[int]) -> list[int]:
        found = [os.fstat(fd).st_size for fd in fds]
        for fd in fds:
            os.close(fd)
        return found

    def file(self, content: str) -> Answer:
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(content.encode())
            fd = os.dup(file.fileno())
        return Answer({"length": len(content)}, fds=[fd], close=[fd])

    def channel(self, sock: socket.socket) -> Channel:
        """Its end of a connection."""
        return Channel(sock, self.handlers(), name="the guest", generation=5, takes_fds=frozenset({"sizes"}))

    def guarded(self, sock: socket.socket) -> Channel:
        """The same for a peer that is not trusted, and has no descriptors to send."""
        return Channel(sock, self.handlers(), name="the guest", generation=5, untrusted=True)


def serve() -> tuple[Server, Channel, Channel]:
    """A server, its channel, and a client's channel to it."""
    server = Server()
    ours, theirs = socketpair()
    return server, server.channel(ours), Channel(theirs, {"echo": lambda value: value}, name="the hypervisor")


async def attack(*, guarded: bool = False) -> tuple[Server, Channel, socket.socket, Channel]:
    """A server with a hostile peer on a raw socket, and its channel to that; and a bystander's channel to the same server."""
    server = Server()
    ours, theirs = socketpair()
    hostile = server.guarded(ours) if guarded else server.channel(ours)
    ours2, theirs2 = socketpair()
    server.channel(ours2)
    return server, hostile, theirs, Channel(theirs2, name="the hypervisor")


async def still_serves(bystander: Channel) -> None:
    """A call of the bystander is answered."""
    assert (await bystander.call("add", a=20, b=3)).value == 23


async def ended(channel: Channel) -> str:
    """Wait for the end of a channel; why it ended."""
    return str(await asyncio.wait_for(asyncio.shield(channel.closed), patient(WAIT_S)))


async def send(sock: socket.socket, packet: bytes) -> None:
    """Send a packet on a raw socket, once there is room."""
    while True:
        try:
            sock.send(packet)
            return
        except BlockingIOError:
            await asyncio.sleep(0)


async def receive(sock: socket.socket) -> bytes:
    """The next packet of a raw socket."""
    while True:
        try:
            return sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            await asyncio.sleep(0)


@contextmanager
def lingering() -> Iterator[int]:
    """A descriptor whose last close takes `LINGER_S`: a TCP socket with data that its peer does not take."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            sock.setblocking(True)  # else the close would not wait
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
            fd = sock.detach()
            yield fd


def close(*channels: Channel) -> None:
    """Close channels."""
    for channel in channels:
        channel.close()


async def fill(sock: socket.socket, packet: bytes, beside: Channel | None = None) -> int:
    """Send a packet until there has been no room for it in a hundred turns of the loop; how many there were.

    `beside`: who is served meanwhile.
    """
    sent = turns_full = 0
    while turns_full < 100:
        try:
            sock.send(packet)
            sent, turns_full = sent + 1, 0
        except BlockingIOError:
            turns_full += 1
        await asyncio.sleep(0)
        if beside is not None and sent % 50 == 0:
            await still_serves(beside)
    return sent
