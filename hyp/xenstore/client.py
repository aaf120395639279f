"""xenstore's client, for asyncio. Paths are absolute, or relative to the home of the domain that its socket speaks for.

Requests may be made from many tasks at once. A client that is `lasting` goes on when xenstored dies and is started again
(hyp/xenstore/link.py): requests take longer, watches fire once more, and a transaction fails as by a conflict, with EAGAIN, though
it may have been committed if that was at its end.
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from typing import TypeVar

from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType, WireError
from hyp.xenstore.link import Again, Link, Reply, TransactionId, TransactionLost

T = TypeVar("T")

# Paths a watch holds that nobody took yet. Beyond it the watched path stands for all of them: a guest that writes
# without end costs Domain 0 no memory.
WATCH_BACKLOG = 1024
MOST_CHANGES = 4
"""Of a long directory while it is read. Who goes on changing it would have it read without end."""


class XenstoreError(Exception):
    """A request failed: `name` is xenstore's error name, EIO if the store is gone for good; `op` the request, on `path`."""

    def __init__(self, name: str, path: str, op: str) -> None:
        super().__init__(f"xenstore {op} {path}: {name}")
        self.name, self.path, self.op = name, path, op


class Watch:
    """The paths a watch has fired for: ``async for path in watch``, or ``await watch.get()``.

    A path waits once however often it fires. A path that is the watched one may stand for anything at or below it: the
    store does that when a tree is removed, and this class when more than WATCH_BACKLOG paths wait.
    """

    def __init__(self, path: str, token: str) -> None:
        self.path, self.token = path, token
        self._paths: dict[str, None] = {}
        self._ready = asyncio.Event()
        self._end: Exception | None = None

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await self.get()

    async def get(self) -> str:
        """The next path. Raises StopAsyncIteration once unwatched, XenstoreError EIO once the store is gone for good."""
        while not self._paths:
            if self._end is not None:
                raise self._end
            self._ready.clear()
            await self._ready.wait()
        path = next(iter(self._paths))
        del self._paths[path]
        return path

    def _concerns(self, path: str) -> bool:
        return self.path in (path, "/") or path.startswith(f"{self.path}/")

    def _fire(self, path: str) -> None:
        if len(self._paths) >= WATCH_BACKLOG:
            self._paths.clear()
            path = self.path
        self._paths[path] = None
        self._ready.set()

    def _finish(self, end: Exception) -> None:
        self._end = self._end or end
        self._ready.set()


class _Nodes:
    """The requests that may be part of a transaction."""

    async def _request(self, type_: MessageType, path: str, payload: bytes) -> bytes:
        raise NotImplementedError

    async def _path_request(self, type_: MessageType, path: str, *more: str) -> bytes:
        return await self._request(type_, path, _join(type_, path, more))

    async def read_bytes(self, path: str) -> bytes:
        """A node's value. Raises XenstoreError, as all of these do: ENOENT, EACCES, EINVAL …"""
        return await self._path_request(MessageType.READ, path)

    async def read(self, path: str) -> str:
        """A node's value as text; bytes that are not UTF-8 are kept as surrogate escapes."""
        return xs_wire.text(await self.read_bytes(path))

    async def write(self, path: str, value: str | bytes) -> None:
        """Set a node's value; creates it and its parents. E2BIG if the message would be too long; ENOSPC: quota."""
        raw = value if isinstance(value, bytes) else xs_wire.encode(value)
        await self._request(MessageType.WRITE, path, _join(MessageType.WRITE, path, ()) + raw)

    async def mkdir(self, path: str) -> None:
        """Create a node and its parents unless they are there."""
        await self._path_request(MessageType.MKDIR, path)

    async def rm(self, path: str) -> None:
        """Remove a node, if it is there, and all below it."""
        await self._path_request(MessageType.RM, path)

    async def directory(self, path: str) -> list[str]:
        """Names of a node's children; takes several requests if they do not fit one message.

        EAGAIN if they have changed each time before all were there, which does not happen in a transaction.
        """
        try:
            return xs_wire.split(await self._path_request(MessageType.DIRECTORY, path))
        except XenstoreError as error:
            if error.name != "E2BIG":
                raise
        return await self._long_directory(path)

    async def _long_directory(self, path: str) -> list[str]:
        generation, names, offset, changes = b"", b"", 0, 0
        while changes < MOST_CHANGES:
            reply = await self._path_request(MessageType.DIRECTORY_PART, path, str(offset))
            now, _, part = reply.partition(b"\0")
            if not part:
                raise XenstoreError("EIO", path, "DIRECTORY_PART")
            if offset and now != generation:  # it changed meanwhile: from the start
                names, offset, changes = b"", 0, changes + 1
                continue
            generation = now
            names += part
            offset = len(names)
            if names == b"\0" or names.endswith(b"\0\0"):
                return xs_wire.split(names[:-1])
        raise XenstoreError("EAGAIN", path, "DIRECTORY_PART")

    async def get_perms(self, path: str) -> list[str]:
        """A node's permissions, as in ``["n5", "r0"]``: owner 5, others nothing, domain 0 may read."""
        return xs_wire.split(await self._path_request(MessageType.GET_PERMS, path))

    async def set_perms(self, path: str, permissions: Iterable[str]) -> None:
        """Replace a node's permissions. For its owner and Domain 0."""
        await self._path_request(MessageType.SET_PERMS, path, *permissions)


class Transaction(_Nodes):
    """The node requests, inside one transaction."""

    def __init__(self, client: "XenstoreClient", number: TransactionId) -> None:
        self._client, self._number = client, number

    async def _request(self, type_: MessageType, path: str, payload: bytes) -> bytes:
        return await self._client._call(type_, path, payload, self._number)


class XenstoreClient(_Nodes):
    """One client. Make it with `lasting`, `open` or `connect`; ``async with`` closes it."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], again: Again | None = None) -> None:
        self._watches: list[Watch] = []
        self._link = Link(streams, again, self._told, self._registrations, self._ended)

    @classmethod
    async def lasting(cls, again: Again) -> "XenstoreClient":
        """A client that outlasts xenstored: `again` gives its first socket, and the next one when that has died. Raises OSError."""
        sock = await again()
        sock.setblocking(False)
        return cls(await asyncio.open_unix_connection(sock=sock), again)

    @classmethod
    async def open(cls, sock: socket.socket) -> "XenstoreClient":
        """A client on a connected socket, which is the client's from here on."""
        sock.setblocking(False)
        return cls(await asyncio.open_unix_connection(sock=sock))

    @classmethod
    async def connect(cls, path: str) -> "XenstoreClient":
        """A client of the xenstored that listens at `path`. Raises OSError."""
        return cls(await asyncio.open_unix_connection(path))

    @property
    def lost(self) -> str:
        """Why there is no store any more; empty while there is."""
        return self._link.lost

    async def __aenter__(self) -> "XenstoreClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection: its watches and transactions end, what waits for a reply fails with EIO."""
        await self._link.close()

    # Watches.

    def fileno(self) -> int:
        """The descriptor of its present stream; −1 while it has none."""
        return self._link.fileno()

    async def watch(self, path: str, token: str) -> Watch:
        """Watch a node and all below it. Fires at once, for `path` itself. Raises EEXIST if it is registered."""
        watch = Watch(path, token)
        if any((w.path, w.token) == (path, token) for w in self._watches):
            raise XenstoreError("EEXIST", path, "WATCH")
        self._watches.append(watch)  # before the request: the first event may come with the reply
        try:
            await self._call(MessageType.WATCH, path, _join(MessageType.WATCH, path, (token,)), about=watch)
        except XenstoreError:
            self._watches.remove(watch)
            raise
        except BaseException:
            self.forget(watch)
            raise
        return watch

    def forget(self, watch: Watch) -> None:
        """Remove a watch without waiting for xenstored to have done so."""
        self._watches.remove(watch)
        watch._finish(StopAsyncIteration())
        self._link.post(MessageType.UNWATCH, xs_wire.join([watch.path, watch.token]))

    async def unwatch(self, path: str, token: str) -> None:
        """Remove a watch; whoever iterates over it comes to its end. Raises ENOENT if there is none."""
        await self._path_request(MessageType.UNWATCH, path, token)
        for watch in [w for w in self._watches if (w.path, w.token) == (path, token)]:
            self._watches.remove(watch)
            watch._finish(StopAsyncIteration())

    async def directory(self, path: str) -> list[str]:
        """See `_Nodes.directory`; of what changes all the time in a transaction, for which xenstored holds up who changes it."""
        try:
            return await super().directory(path)
        except XenstoreError as error:
            if error.name != "EAGAIN":
                raise
        return await self.retry(lambda transaction: transaction.directory(path))

    # Transactions.

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Requests that happen together or not at all: committed at the end, dropped upon an exception.

        Raises XenstoreError EAGAIN at its end if others changed what it used; `retry` does it again then.
        """
        starting = asyncio.ensure_future(self._transaction_start())
        try:
            number = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._abandon)
            raise
        try:
            yield Transaction(self, number)
        except BaseException:
            self._link.post(MessageType.TRANSACTION_END, b"F\0", number)
            raise
        await self._call(MessageType.TRANSACTION_END, "", b"T\0", number)

    async def retry(self, body: Callable[[Transaction], Awaitable[T]], attempts: int = 100) -> T:
        """Run `body` in a transaction, again if that conflicts, or xenstored dies. Raises EAGAIN after so many attempts.

        When xenstored dies at its end `body` may be run once more after it was committed: it has to be one that may.
        """
        for _ in range(attempts - 1):
            try:
                async with self.transaction() as transaction:
                    return await body(transaction)
            except XenstoreError as error:
                if error.name != "EAGAIN":
                    raise
        async with self.transaction() as transaction:
            return await body(transaction)

    async def _transaction_start(self) -> TransactionId:
        reply = await self._answer(MessageType.TRANSACTION_START, "", b"\0")
        return TransactionId(reply.socket, xs_wire.parse_number(_first(reply.message.payload)))

    def _abandon(self, started: asyncio.Future[TransactionId]) -> None:
        """End a transaction whose starter was cancelled before it knew the id."""
        if not started.cancelled() and started.exception() is None:
            self._link.post(MessageType.TRANSACTION_END, b"F\0", started.result())

    # Domains.

    async def introduce(self, domid: int) -> None:
        """A domain exists. For Domain 0. Raises EACCES, EEXIST, EINVAL."""
        await self._path_request(MessageType.INTRODUCE, str(domid), "0", "0")

    async def release(self, domid: int) -> None:
        """A domain is gone. For Domain 0. Raises EACCES, ENOENT, EINVAL."""
        await self._path_request(MessageType.RELEASE, str(domid))

    async def is_introduced(self, domid: int) -> bool:
        """Whether the domain exists."""
        return _first(await self._path_request(MessageType.IS_DOMAIN_INTRODUCED, str(domid))) == "T"

    async def domain_path(self, domid: int) -> str:
        """The domain's home."""
        return _first(await self._path_request(MessageType.GET_DOMAIN_PATH, str(domid)))

    # Messages.

    async def _request(self, type_: MessageType, path: str, payload: bytes) -> bytes:
        return await self._call(type_, path, payload)

    async def _call(
        self, type_: MessageType, path: str, payload: bytes, transaction: TransactionId | None = None, about: object = None
    ) -> bytes:
        """Send a request and wait for its reply's payload."""
        return (await self._answer(type_, path, payload, transaction, about)).message.payload

    async def _answer(
        self, type_: MessageType, path: str, payload: bytes, transaction: TransactionId | None = None, about: object = None
    ) -> Reply:
        if len(payload) > xs_wire.PAYLOAD_MAX:
            raise XenstoreError("E2BIG", path, type_.name)
        try:
            reply = await self._link.call(type_, payload, transaction, about)
        except TransactionLost as error:
            raise XenstoreError("EAGAIN", path, type_.name) from error
        except OSError as error:
            raise XenstoreError("EIO", path, type_.name) from error
        message = reply.message
        if message.type == MessageType.ERROR:
            name = _first(message.payload)
            if reply.resent and name == _DONE_BEFORE.get(type_):
                return reply._replace(message=message._replace(payload=b"OK\0"))
            raise XenstoreError(name, path, type_.name)
        if message.type != type_:
            raise XenstoreError("EIO", path, f"{type_.name} (answered by {message.type})")
        return reply

    def _told(self, message: Message) -> None:
        path, token, *_ = [*xs_wire.split(message.payload), "", ""]
        for watch in self._watches:
            if watch.token == token and watch._concerns(path):
                watch._fire(path)

    def _registrations(self, asked: Collection[object]) -> list[tuple[MessageType, bytes, Callable[[Message], None]]]:
        """All watches, on a new connection."""

        def registered(watch: Watch, message: Message) -> None:
            if message.type == MessageType.ERROR:
                watch._finish(XenstoreError(_first(message.payload), watch.path, "watch, again"))

        return [
            (MessageType.WATCH, xs_wire.join([watch.path, watch.token]), functools.partial(registered, watch))
            for watch in self._watches
            if watch not in asked
        ]

    def _ended(self, cause: str) -> None:
        for watch in self._watches:
            watch._finish(XenstoreError("EIO", watch.path, f"watch ({cause})"))


_DONE_BEFORE = {MessageType.INTRODUCE: "EEXIST", MessageType.RELEASE: "ENOENT"}
"""What the second of two equal requests is refused with when the first one was done."""


def _join(type_: MessageType, path: str, more: Iterable[str]) -> bytes:
    """Path and further strings, NUL-terminated. Raises XenstoreError EINVAL if one cannot be sent."""
    try:
        return xs_wire.join([path, *more])
    except WireError as error:
        raise XenstoreError("EINVAL", path, type_.name) from error


def _first(payload: bytes) -> str:
    return xs_wire.text(payload.partition(b"\0")[0])
