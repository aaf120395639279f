"""xenstored as a process of its own, for tests: a server and its clients, raw ones and asyncio's."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import uvloop

from dom0.xenstore.journal import Journal, MemoryFile
from dom0.xenstore.server import Xenstored
from dom0.xenstore.tree import Saved
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType
from hyp.xenstore.client import XenstoreClient, XenstoreError
from tests.support.patience import patient

LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}


class Raw:
    """A client that sends what it is told, well-formed or not."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(patient(20))
        self._decoder = xs_wire.Decoder()
        self._received: list[Message] = []
        self.bytes_received = 0

    def send(self, type_: int, *strings: str, tx: int = 0, req: int = 1) -> None:
        """Send a request."""
        self.sock.sendall(xs_wire.pack(type_, req, tx, xs_wire.join(strings)))

    def receive(self) -> Message:
        """The next message. EOFError at the end of the connection."""
        while not self._received:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self.bytes_received += len(data)
            self._received += self._decoder.feed(data)
        return self._received.pop(0)

    def call(self, type_: int, *strings: str, tx: int = 0) -> bytes:
        """Payload of the reply, past any events; an error's is its name."""
        self.send(type_, *strings, tx=tx)
        while (reply := self.receive()).type == MessageType.WATCH_EVENT:
            pass
        assert reply.type in (type_, MessageType.ERROR)
        return reply.payload

    def ended(self) -> bool:
        """Whether the server has closed the connection, after whatever it had sent."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self.receive()
        return True


class Served:
    """A running xenstored: client sockets per domain, and what it reports at its end."""

    def __init__(self, pid: int, control: socket.socket, clients: dict[int, list[socket.socket]]) -> None:
        self.pid, self.control, self.clients = pid, control, clients
        self.report: dict[str, Any] = {}

    def raw(self, domid: int) -> Raw:
        """One of a domain's connections that is not used yet."""
        return Raw(self.clients[domid].pop())

    def stop(self) -> dict[str, Any]:
        """End it; its disconnections by cause, and its log."""
        if not self.report:
            self.control.shutdown(socket.SHUT_WR)
            self.control.settimeout(patient(20))
            received = b""
            while data := self.control.recv(1 << 16):
                received += data
            self.report = json.loads(received)
        return self.report


async def _server(control: socket.socket, ends: list[tuple[int, socket.socket]], path: str) -> None:
    lines: list[str] = []
    _log_to(lines)
    server = Xenstored(journal=Journal(MemoryFile(os.memfd_create("journal"))))
    for domid in {domid for domid, _ in ends} - {0}:
        server.introduce(domid)
    for domid, sock in ends:
        server.add_connection(domid, sock)
    if path:
        await server.serve_unix(path)
    control.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(control, b"r")
    await loop.sock_recv(control, 1)
    report = {"disconnects": dict(server.disconnects), "log": lines}
    server.close()
    await loop.sock_sendall(control, json.dumps(report).encode())


def _log_to(lines: list[str]) -> None:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("dom0.xenstore.server")
    logger.addHandler(Lines())
    logger.setLevel(logging.INFO)


def forked(body: Callable[[], object]) -> int:
    """Run `body` in a child process; its pid. Exit status 1 upon any exception."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def succeeded(pid: int) -> bool:
    """Wait for a child's end; whether its exit status was 0."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextlib.contextmanager
def xenstored(domids: Sequence[int], loop: str = "uvloop", path: str = "") -> Iterator[Served]:
    """A server with one connection for each of `domids`, which may repeat."""
    control, control_end = socket.socketpair()
    clients: dict[int, list[socket.socket]] = {domid: [] for domid in domids}
    ends = []
    for domid in domids:
        client, end = socket.socketpair()
        clients[domid].append(client)
        ends.append((domid, end))
    everyone = [sock for socks in clients.values() for sock in socks]

    def run() -> None:
        for sock in [control, *everyone]:
            sock.close()
        LOOPS[loop](_server(control_end, ends, path))

    pid = forked(run)
    for sock in [control_end, *(end for _, end in ends)]:
        sock.close()
    control.settimeout(patient(20))
    assert control.recv(1) == b"r"
    served = Served(pid, control, clients)
    try:
        yield served
    finally:
        killed = False
        try:
            served.stop()
        except (OSError, ValueError):
            killed = True
            os.kill(pid, signal.SIGKILL)
        assert succeeded(pid) or killed
        for sock in [control, *everyone]:
            sock.close()


class Kept:
    """xenstored as the keeper has it: forked again when it was killed, with its journal; clients get new streams, also to it.

    For a test that runs an event loop, which xenstored is forked from.
    """

    def __init__(self, domids: Sequence[int]) -> None:
        self.journal = os.memfd_create("journal")
        self._domids, self._queues = domids, dict[asyncio.Queue[socket.socket], int]()
        self._streams: dict[asyncio.Queue[socket.socket], socket.socket] = {}
        self.pid, self.kills = 0, 0
        self._control: socket.socket

    async def client(self, domid: int) -> XenstoreClient:
        """A client that outlasts xenstored."""
        return await XenstoreClient.lasting(self._register(domid).get)

    async def stream(self, domid: int) -> socket.socket:
        """A stream of a domain's that does not."""
        return await self._register(domid).get()

    def _register(self, domid: int) -> "asyncio.Queue[socket.socket]":
        queue: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._queues[queue] = domid
        self._bring(queue)
        return queue

    def length(self) -> int:
        """How far the journal has come, holes included."""
        return os.fstat(self.journal).st_size

    def memory(self) -> int:
        """Bytes that it takes."""
        return os.fstat(self.journal).st_blocks * 512

    def _bring(self, queue: "asyncio.Queue[socket.socket]") -> None:
        ours, theirs = socket.socketpair()
        self._streams[queue] = theirs
        queue.put_nowait(ours)
        with theirs.dup() as sent:
            socket.send_fds(self._control, [bytes([self._queues[queue]])], [sent.fileno()])

    def start(self) -> None:
        """Fork it."""
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        others = [self._control, *self._streams.values()]

        def run() -> None:
            for sock in others:
                sock.close()
            uvloop.run(self._serve(control))

        self.pid = forked(run)
        control.close()
        for queue in self._queues:
            self._bring(queue)

    async def _serve(self, control: socket.socket) -> None:
        server = Xenstored(journal=Journal(MemoryFile(self.journal)))
        for domid in {*self._domids} - server.store.introduced:
            server.introduce(domid)
        ended = asyncio.Event()

        def take() -> None:
            packet, fds, _, _ = socket.recv_fds(control, 1, 1)
            if packet:
                server.expect(packet[0], socket.socket(fileno=fds[0]))
            else:
                ended.set()

        asyncio.get_running_loop().add_reader(control, take)
        await ended.wait()

    def kill(self) -> None:
        """Kill it, and fork the next one."""
        self.kills += 1
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._control.close()
        for sock in self._streams.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self.start()

    def saved(self) -> Saved:
        """What the journal says, once nobody writes any more."""
        saved = Journal(MemoryFile(self.journal)).saved
        assert saved is not None
        return saved

    def close(self) -> None:
        """End everything."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        unclaimed = [queue.get_nowait() for queue in self._queues for _ in range(queue.qsize())]
        for sock in [self._control, *self._streams.values(), *unclaimed]:
            sock.close()
        os.close(self.journal)


@contextlib.contextmanager
def kept(domids: Sequence[int]) -> Iterator[Kept]:
    """A running one, with these domains."""
    made = Kept(domids)
    made.start()
    try:
        yield made
    finally:
        made.close()


def with_clients(loop: str, domids: Sequence[int], body: Callable[..., Awaitable[None]]) -> dict[str, Any]:
    """Run `body` with a client for each domain; the server's report."""
    with xenstored(domids, loop) as served:

        async def main() -> None:
            async with contextlib.AsyncExitStack() as stack:
                socks = [served.clients[domid].pop(0) for domid in domids]
                await body(*[await stack.enter_async_context(await XenstoreClient.open(sock)) for sock in socks])

        LOOPS[loop](main())
        return served.stop()


async def fails(name: str, request: Awaitable[object]) -> XenstoreError:
    """A request that must fail with this error."""
    with pytest.raises(XenstoreError) as caught:
        await request
    assert caught.value.name == name
    return caught.value
