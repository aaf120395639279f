"""A client's connection to xenstored, which outlasts xenstored: requests and their replies, over one socket after the other.

A xenstored that dies leaves streams of which nobody knows how far they were read. So its successor's clients come over new sockets.
Who made the link says where the next one is to be had (`again`): in a topology's process the keeper brings it (hyp/process.py), who
came to a listening socket goes there again. While there is none, requests wait.

What becomes of requests that were not answered, for all that anybody knows done or not done:

* In a transaction, its end included: `TransactionLost`. It has ended with its connection, and may have been committed.
* All others are sent again, in their order. Each leaves the same behind, done once or twice. (What others have written between the
  two times is overwritten; who asks cannot tell that from a request that was slow.) `Reply.resent` tells that an error may only
  say that it had been done.

Watches end with the connection. The owner's `registrations` make them again, before all else: each fires once then, as a new one
does, so that nobody misses what happened between.

States: *there* → *between* (end of file) → *there* …, and *lost* at last: there is no next socket within AGAIN_S, `again` says
that there will be none, FRUITLESS of them in a row have brought nothing, what came is no message, or the owner closes it. A link
that is lost stays lost; what waits fails with ConnectionError.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType, WireError

AGAIN_S = 15.0
"""How long the next socket is waited for. A keeper that gives up says so before."""
FRUITLESS = 16
"""So often requests are sent over a new socket that ends before anything has come: who listens wants no more clients, then."""

Again = Callable[[], Awaitable[socket.socket]]
"""The next socket, connected; OSError if there will be none."""


class TransactionLost(Exception):
    """The transaction ended with its connection."""


class TransactionId(NamedTuple):
    """`number` on the wire, on the link's socket number `socket`."""

    socket: int
    number: int


class Reply(NamedTuple):
    """A message, the link's which socket it came over, and if its request was sent more than once."""

    message: Message
    socket: int
    resent: bool


@dataclass(slots=True, eq=False)
class _Request:
    packet: bytes
    reply: "asyncio.Future[Reply]"
    in_transaction: bool
    about: object
    sent: int = 0


class Link:
    """One client's.

    `told(message)` gets what is no reply; `registrations(asked)` gives requests, each with who takes its reply, that make all
    watches again but those in `asked`, which are the `about` of requests that are sent again anyway; `ended(cause)` is called
    once it is lost.
    """

    def __init__(
        self,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        again: Again | None,
        told: Callable[[Message], None],
        registrations: Callable[[Collection[object]], Sequence[tuple[MessageType, bytes, Callable[[Message], None]]]],
        ended: Callable[[str], None],
    ) -> None:
        self.lost = ""
        """Why."""
        self._again, self._told, self._registrations, self._ended = again, told, registrations, ended
        self._socket = 1
        self._ids = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._registering: dict[int, Callable[[Message], None]] = {}
        self._writer: asyncio.StreamWriter | None = streams[1]
        self._life = asyncio.get_running_loop().create_task(self._live(*streams))

    def fileno(self) -> int:
        """The descriptor of the present stream; −1 while there is none."""
        sock = None if self._writer is None else self._writer.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    async def close(self) -> None:
        """End it."""
        writer = self._writer
        self._life.cancel()
        await asyncio.wait({self._life})
        self._end("closed")  # which `_live` has not done if it never ran
        if writer is not None:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def call(
        self, type_: MessageType, payload: bytes, transaction: TransactionId | None = None, about: object = None
    ) -> Reply:
        """Send a request and wait for its reply. ConnectionError once the link is lost, TransactionLost."""
        if self.lost:
            raise ConnectionError(self.lost)
        if transaction is not None and transaction.socket != self._socket:
            raise TransactionLost
        number = self._next_id()
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        packet = xs_wire.pack(type_, number, transaction.number if transaction else 0, payload)
        request = self._requests[number] = _Request(packet, reply, transaction is not None, about)
        try:
            if self._writer is not None and self._send(request):
                with contextlib.suppress(OSError):  # the reader sees it, too
                    await self._writer.drain()
            return await reply
        finally:
            if not reply.cancel() and not reply.cancelled():
                reply.exception()  # taken note of

    def post(self, type_: MessageType, payload: bytes, transaction: TransactionId | None = None) -> None:
        """Send a request that is about this connection alone, and whose reply does not matter."""
        if transaction is None or transaction.socket == self._socket:
            self._write(xs_wire.pack(type_, self._next_id(), transaction.number if transaction else 0, payload))

    def _send(self, request: _Request) -> bool:
        sent = self._write(request.packet)
        request.sent += sent
        return sent

    def _write(self, packet: bytes) -> bool:
        """False if there is nothing to write to: between two sockets, or at the end of one, which `_receive` is to see yet."""
        if self._writer is None or self._writer.transport.is_closing():
            return False
        self._writer.write(packet)
        return True

    def _next_id(self) -> int:
        taken = (self._requests, self._registering)
        return next(i for n in self._ids if not any((i := n & 0xFFFF_FFFF) in ids for ids in taken))

    # -- from socket to socket --

    async def _live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cause, fruitless = "closed", 0
        try:
            while True:
                cause, brought = await self._receive(reader)
                fruitless = 0 if brought else fruitless + bool(self._requests)
                self._let_go(writer)
                if self._again is None or fruitless >= FRUITLESS:
                    return
                async with asyncio.timeout(AGAIN_S):
                    sock = await self._again()
                    sock.setblocking(False)
                    reader, writer = await asyncio.open_unix_connection(sock=sock)
                self._go_on(writer)
        except TimeoutError:
            cause += f", and there is no other one after {AGAIN_S:g} s"
        except (OSError, WireError) as error:
            cause = str(error)
        except asyncio.CancelledError:
            cause = "closed"
            raise
        finally:
            writer.close()
            self._end(cause)

    async def _receive(self, reader: asyncio.StreamReader) -> tuple[str, bool]:
        """Take what comes until the connection's end; why that was, and whether anything came. WireError."""
        decoder, brought = xs_wire.Decoder(), False
        try:
            while received := await reader.read(1 << 16):
                for message in decoder.feed(received):
                    brought = True
                    self._dispatch(message)
        except OSError as error:
            return str(error), brought
        return "closed by xenstored", brought

    def _dispatch(self, message: Message) -> None:
        if message.type == MessageType.WATCH_EVENT:
            self._told(message)
        elif (registered := self._registering.pop(message.req_id, None)) is not None:
            registered(message)
        elif (request := self._requests.pop(message.req_id, None)) is not None and not request.reply.done():  # done: cancelled
            request.reply.set_result(Reply(message, self._socket, request.sent > 1))

    def _let_go(self, writer: asyncio.StreamWriter) -> None:
        """This connection has ended, and what was of it alone."""
        writer.close()
        self._writer = None
        self._socket += 1
        self._registering.clear()
        for number, request in list(self._requests.items()):
            if request.in_transaction and not request.reply.done():
                request.reply.set_exception(TransactionLost())
            if request.reply.done():
                del self._requests[number]

    def _go_on(self, writer: asyncio.StreamWriter) -> None:
        """On a new connection: watches, then all that waits."""
        self._writer = writer
        waiting = [request for request in self._requests.values() if not request.reply.done()]
        for type_, payload, registered in self._registrations({request.about for request in waiting}):
            number = self._next_id()
            self._registering[number] = registered
            self._write(xs_wire.pack(type_, number, 0, payload))
        for request in waiting:
            self._send(request)

    def _end(self, cause: str) -> None:
        if self.lost:
            return
        self.lost = cause
        self._writer = None
        for request in self._requests.values():
            if not request.reply.done():
                request.reply.set_exception(ConnectionError(cause))
        self._requests.clear()
        self._registering.clear()
        self._ended(cause)
