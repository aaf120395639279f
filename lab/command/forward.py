"""`launch.py forward`: a TCP port of a guest's, served on the caller's loopback.

Guests' addresses are on the lab's own network: nothing outside leads there. So connections are accepted here, on 127.0.0.1 and
::1, and each is carried, in both directions, by one that is made inside the guest: to its own loopback, or else to its addresses,
whichever its program listens on. Nothing of it is a frame on the guest's path.

Whoever is slow holds up who sends (no more than a buffer's worth is kept); an end of sending is passed on, and the other direction
goes on; a side that breaks off breaks off the other.
"""

import asyncio
import errno
import os
import socket
import struct
import sys

from lab.command.clients import ClientError
from lab.execute.sockets import GuestSockets
from lab.execute.supervisor import Machine

CHUNK = 65536
AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: closing resets the connection


def family_of(address: str) -> int:
    """Of an address as text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(port: int) -> list[socket.socket]:
    """Sockets that listen on both loopbacks, on one port: `port`, or any that is free if that is 0. ClientError if it is taken."""
    first = _listen("127.0.0.1", port)
    try:
        return [first, _listen("::1", first.getsockname()[1])]
    except ClientError:
        first.close()
        raise
    except OSError:  # no IPv6 here
        return [first]


def _listen(address: str, port: int) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ClientError(f"port {port} of {address} is in use: say another one (0: any that is free)") from error
        if error.errno == errno.EACCES:
            raise ClientError(f"port {port} of {address}: {os.strerror(error.errno)}; say one above 1023") from error
        raise
    return sock


class Forward:
    """Carries connections to port `port` of a guest."""

    def __init__(self, sockets: GuestSockets, guest: Machine, name: str, port: int) -> None:
        self._sockets, self._guest, self._name, self._port = sockets, guest, name, port
        self._carrying: set[asyncio.Task[None] | None] = set()  # else nobody has a connection that is not being read

    async def serve(self, listening: list[socket.socket]) -> None:
        """Accept and carry until the guest is gone: ClientError says so."""
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._guest.process, gone.set)
        servers = [await asyncio.start_server(self._accept, sock=sock) for sock in listening]
        await gone.wait()
        for server in servers:
            server.close()
        raise ClientError(f"{self._name} is gone")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._carrying.add(task)
        try:
            await self._carry(reader, writer)
        finally:
            self._carrying.discard(task)

    async def _carry(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            guest_reader, guest = await self._connect()
        except OSError as error:
            print(f"{self._name}:{self._port}: {os.strerror(error.errno or 0)}", file=sys.stderr)
            _break_off(client)
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry_one_way(client_reader, guest))
                both.create_task(_carry_one_way(guest_reader, client))
        except* OSError:  # one side has gone, and with it the other
            _break_off(client)
            _break_off(guest)
        client.close()
        guest.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To whichever address answers first. OSError: that of the first."""
        failures = []
        for address in ("127.0.0.1", "::1", *self._guest.addresses):
            try:
                sock = self._sockets.tcp(family_of(address))
                try:
                    await asyncio.get_running_loop().sock_connect(sock, (address, self._port))
                    return await asyncio.open_connection(sock=sock)
                except BaseException:
                    sock.close()
                    raise
            except OSError as error:
                failures.append(error)
        raise failures[0]


async def _carry_one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _break_off(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, so that its other end does not take what it has got for all."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()
