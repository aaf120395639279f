"""`launch.py forward`: a TCP port of a guest's, served on the caller's loopback.

Guests' addresses are on the lab's own network: nothing outside leads there. So connections are accepted here, on 127.0.0.1 and
::1, and each is carried, in both directions, by one that is made inside the guest: to its own loopback, or else to its addresses,
whichever its program listens on. Nothing of it is a frame on the guest's path.

Whoever is slow holds up who sends (no more than a buffer's worth is kept); an end of sending is passed on, and the other direction
goes on; a side that breaks off breaks off the other.

A server in the guest may never close what its client has left. So a connection that one side has ended is broken off when nothing
has come from the other one for HALF_CLOSED_S; and where there are as many connections as descriptors allow, the one of those in
which nothing has come for longest makes room. If there is none, who connects is refused.
"""

import asyncio
import errno
import os
import socket
import struct
import sys

from hyp import limits
from lab.command.clients import ClientError
from lab.execute.sockets import GuestSockets
from lab.execute.supervisor import Machine

CHUNK = 65536
HALF_CLOSED_S = 60.0
"""Linux keeps a connection that its program has closed, and whose other end does not, for as long (tcp_fin_timeout)."""
OWN_DESCRIPTORS = 256
"""That are no connection's: this process's own, and those of who is accepted, many in one turn perhaps, to be refused."""
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
        most = limits.descriptor_limit()
        self._most = (most - min(OWN_DESCRIPTORS, most // 2)) // 2  # each has two descriptors
        self._half_closed: dict[asyncio.Timeout, None] = {}  # first that in which nothing has come for longest

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
        try:
            self._make_room()
            self._carrying.add(task)
            await self._carry(reader, writer)
        except Exception as error:  # whatever it is, the client is not left waiting
            self._tell(_reason(error))
            _break_off(writer)
        finally:
            self._carrying.discard(task)

    def _make_room(self) -> None:
        """For one more connection: OSError (EMFILE) if there are as many as can be, and both sides of each may send."""
        if len(self._carrying) < self._most:
            return
        if not self._half_closed:
            raise OSError(errno.EMFILE, f"refused, as {len(self._carrying)} connections are open (ulimit -n)")
        longest = next(iter(self._half_closed))
        del self._half_closed[longest]
        if not longest.expired():  # else its time has come anyway
            longest.reschedule(asyncio.get_running_loop().time())
        self._tell(f"one that a side has ended is closed, as {len(self._carrying)} connections are open (ulimit -n)")

    async def _carry(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        guest_reader, guest = await self._connect()
        whole, idle = False, asyncio.timeout(None)
        try:
            async with idle, asyncio.TaskGroup() as both:
                both.create_task(self._carry_one_way(client_reader, guest, idle))
                both.create_task(self._carry_one_way(guest_reader, client, idle))
            whole = True
        except* OSError:  # one side has gone, and with it the other; or TimeoutError
            if idle.expired() and idle in self._half_closed:
                self._tell(f"closed, as one side has ended, and nothing has come from the other one for {HALF_CLOSED_S:g} s")
        finally:
            self._half_closed.pop(idle, None)
            for writer in (client, guest):
                if whole:
                    writer.close()
                else:
                    _break_off(writer)

    async def _carry_one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: asyncio.Timeout) -> None:
        while data := await reader.read(CHUNK):
            self._moves(idle, None)  # whoever takes its time to take that is there
            writer.write(data)
            await writer.drain()
            self._moves(idle, HALF_CLOSED_S)
        writer.write_eof()
        self._half_closed[idle] = None
        self._moves(idle, HALF_CLOSED_S)

    def _moves(self, idle: asyncio.Timeout, limit_s: float | None) -> None:
        """Something has come, or an end: nothing may come for so long, if only one side is left that may send."""
        if idle in self._half_closed and not idle.expired():
            del self._half_closed[idle]
            self._half_closed[idle] = None  # the last one now
            idle.reschedule(None if limit_s is None else asyncio.get_running_loop().time() + limit_s)

    def _tell(self, what: str) -> None:
        print(f"{self._name}:{self._port}: {what}", file=sys.stderr)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To whichever address answers first. OSError: that of the first; EMFILE if descriptors have run out."""
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
                if error.errno == errno.EMFILE:
                    raise
                failures.append(error)
        raise failures[0]


def _reason(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return str(error.strerror) if error.errno == errno.EMFILE else os.strerror(error.errno or 0)


def _break_off(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, so that its other end does not take what it has got for all."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():  # else its descriptor may be somebody else's by now
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()
