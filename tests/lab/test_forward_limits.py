"""`launch.py forward`'s connections, with a server in this process in place of a guest's: when they end, and how many there are."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.command import forward as forwards
from lab.command.clients import ClientError
from lab.command.forward import Forward, listen
from lab.execute.sockets import GuestSockets
from tests.support.control_ends import run

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class World:
    """A forward, and a server behind it that only accepts."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Ends] = asyncio.Queue()
        self.forward: Any = None
        self._port = 0

    def tcp(self, family: int) -> socket.socket:
        """As `GuestSockets.tcp`."""
        sock = socket.socket(family)
        sock.setblocking(False)
        return sock

    async def serve(self, body: "Callable[[World], Awaitable[None]]") -> None:
        """Let `body` connect."""
        process, living = os.pipe()
        server = await asyncio.start_server(lambda *ends: self.accepted.put_nowait(ends), "127.0.0.1", 0)
        guest = SimpleNamespace(process=process, addresses=())
        self.forward = Forward(cast(Any, self), cast(Any, guest), "alice", server.sockets[0].getsockname()[1])
        listening = listen(0)
        self._port = listening[0].getsockname()[1]
        serving = asyncio.ensure_future(self.forward.serve(listening))
        await body(self)
        os.close(living)
        with pytest.raises(ClientError, match="alice is gone"):
            await serving
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)
        server.close()

    async def connect(self) -> tuple[Ends, Ends]:
        """A client's ends, and the server's of its connection."""
        client = await asyncio.open_connection("127.0.0.1", self._port)
        return client, await self.accepted.get()

    async def refused(self) -> None:
        """Somebody connects, and is hung up on."""
        await broken_off(await asyncio.open_connection("127.0.0.1", self._port))


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """And take what it may have ended by, which else is told of when it is nobody's any more."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def broken_off(ends: Ends) -> None:
    with pytest.raises(ConnectionResetError):
        await ends[0].read()
    await hang_up(ends[1])


def test_one_side_has_ended_and_nothing_comes_any_more(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Whichever it is."""
    monkeypatch.setattr(forwards, "HALF_CLOSED_S", 0.05)

    async def body(world: World) -> None:
        for ended, other in ((0, 1), (1, 0)):
            ends = await world.connect()
            ends[ended][1].write(b"last")
            ends[ended][1].write_eof()
            assert await ends[other][0].read() == b"last"
            await broken_off(ends[ended])
            await hang_up(ends[other][1])

    run(World().serve(body))
    assert capfd.readouterr().err.count("closed, as one side has ended, and nothing has come from the other one for 0.05 s\n") == 2


def test_what_still_comes_has_its_time_anew() -> None:
    async def body(world: World) -> None:
        (reader, writer), (server_reader, server) = await world.connect()
        writer.write_eof()
        assert await server_reader.read() == b""
        (idle,) = world.forward._half_closed
        first = idle.when()
        assert first is not None
        while (now := idle.when()) is None or now == first:  # the loop's clock has milliseconds
            server.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert now > first
        await hang_up(server)
        assert await reader.read() == b""
        await hang_up(writer)
        while world.forward._half_closed:
            await asyncio.sleep(0)

    run(World().serve(body))


def test_one_that_a_side_has_ended_makes_room_and_others_do_not(capfd: pytest.CaptureFixture[str]) -> None:
    async def body(world: World) -> None:
        world.forward._most = 3
        ends = [await world.connect() for _ in range(3)]
        await world.refused()
        for client, server in ends[:2]:
            client[1].write_eof()
            assert await server[0].read() == b""
        new = await world.connect()
        await broken_off(ends[0][0])
        await hang_up(ends[0][1][1])
        for client, server in (ends[1], ends[2], new):
            server[1].write(b"served")
            await hang_up(server[1])
            assert await client[0].read() == b"served"
            await hang_up(client[1])

    run(World().serve(body))
    assert "alice" in (told := capfd.readouterr().err)
    assert [line.split(": ")[1] for line in told.splitlines()] == [
        "refused, as 3 connections are open (ulimit -n)",
        "one that a side has ended is closed, as 3 connections are open (ulimit -n)",
    ]


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("ours"), "RuntimeError: ours"), (OSError(errno.ENOBUFS, ""), "No buffer space available")]
)
def test_whatever_fails_the_client_is_hung_up_on_and_why_is_told(
    error: Exception, told: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(world: World, family: int) -> socket.socket:
        raise error

    async def body(world: World) -> None:
        await world.refused()
        monkeypatch.undo()
        (_, client), (_, server) = await world.connect()
        await hang_up(client)
        await hang_up(server)

    monkeypatch.setattr(World, "tcp", fails)
    run(World().serve(body))
    assert capfd.readouterr().err.endswith(f": {told}\n")


def test_a_socket_for_which_there_is_no_descriptor_is_an_error() -> None:
    """The kernel drops it, and says so by flags alone."""
    sockets = object.__new__(GuestSockets)
    sockets._asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with sockets._asking, answering, socket.socket() as made:
        for _ in range(2):
            socket.send_fds(answering, [struct.pack("i", 0)], [made.fileno()])
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="can have no more descriptors") as lacking:
                sockets.tcp(socket.AF_INET)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert lacking.value.errno == errno.EMFILE
        sockets.tcp(socket.AF_INET).close()
