"""xenstore's client: an asyncio connection to xenstored over a connected AF_UNIX stream socket.

Requests may be made from many tasks at once; a reply finds its request by req_id. Paths are absolute, or relative to
the home of the domain that the socket speaks for.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType, WireError

T = TypeVar("T")

# Paths a watch holds that nobody took yet. Beyond it the watched path stands for all of them: a guest that writes
# without end costs Domain 0 no memory.
WATCH_BACKLOG = 1024


class XenstoreError(Exception):
    """A request failed: `name` is xenstore's error name, EIO if the connection is lost; `op` the request, on `path`."""

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
        """The next path. Raises StopAsyncIteration once unwatched, XenstoreError EIO once the connection is lost."""
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

    tx_id = 0

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
        """Names of a node's children; takes several requests if they do not fit one message."""
        try:
            return xs_wire.split(await self._path_request(MessageType.DIRECTORY, path))
        except XenstoreError as error:
            if error.name != "E2BIG":
                raise
        return await self._long_directory(path)

    async def _long_directory(self, path: str) -> list[str]:
        generation, names, offset = b"", b"", 0
        while True:
            reply = await self._path_request(MessageType.DIRECTORY_PART, path, str(offset))
            now, _, part = reply.partition(b"\0")
            if not part:
                raise XenstoreError("EIO", path, "DIRECTORY_PART")
            if offset and now != generation:  # it changed meanwhile: from the start
                names, offset = b"", 0
                continue
            generation = now
            names += part
            offset = len(names)
            if names == b"\0" or names.endswith(b"\0\0"):
                return xs_wire.split(names[:-1])

    async def get_perms(self, path: str) -> list[str]:
        """A node's permissions, as in ``["n5", "r0"]``: owner 5, others nothing, domain 0 may read."""
        return xs_wire.split(await self._path_request(MessageType.GET_PERMS, path))

    async def set_perms(self, path: str, permissions: Iterable[str]) -> None:
        """Replace a node's permissions. For its owner and Domain 0."""
        await self._path_request(MessageType.SET_PERMS, path, *permissions)


class Transaction(_Nodes):
    """The node requests, inside one transaction."""

    def __init__(self, client: "XenstoreClient", tx_id: int) -> None:
        self._client, self.tx_id = client, tx_id

    async def _request(self, type_: MessageType, path: str, payload: bytes) -> bytes:
        return await self._client._call(type_, path, payload, self.tx_id)


class XenstoreClient(_Nodes):
    """One connection. Make it with `open` or `connect`; ``async with`` closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._watches: list[Watch] = []
        self._lost = ""
        self._receiver = asyncio.get_running_loop().create_task(self._receive())

    @classmethod
    async def open(cls, sock: socket.socket) -> "XenstoreClient":
        """A client on a connected socket, which is the client's from here on."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock))

    @classmethod
    async def connect(cls, path: str) -> "XenstoreClient":
        """A client of the xenstored that listens at `path`. Raises OSError."""
        return cls(*await asyncio.open_unix_connection(path))

    async def __aenter__(self) -> "XenstoreClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection: its watches and transactions end, what waits for a reply fails with EIO."""
        self._receiver.cancel()
        await asyncio.wait({self._receiver})
        self._end("closed")  # which the receiver has not done if it never ran
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    # Watches.

    async def watch(self, path: str, token: str) -> Watch:
        """Watch a node and all below it. Fires at once, for `path` itself. Raises EEXIST if it is registered."""
        watch = Watch(path, token)
        if any((w.path, w.token) == (path, token) for w in self._watches):
            raise XenstoreError("EEXIST", path, "WATCH")
        self._watches.append(watch)  # before the request: the first event may come with the reply
        try:
            await self._path_request(MessageType.WATCH, path, token)
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
        self._post(MessageType.UNWATCH, xs_wire.join([watch.path, watch.token]))

    async def unwatch(self, path: str, token: str) -> None:
        """Remove a watch; whoever iterates over it comes to its end. Raises ENOENT if there is none."""
        await self._path_request(MessageType.UNWATCH, path, token)
        for watch in [w for w in self._watches if (w.path, w.token) == (path, token)]:
            self._watches.remove(watch)
            watch._finish(StopAsyncIteration())

    # Transactions.

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Requests that happen together or not at all: committed at the end, dropped upon an exception.

        Raises XenstoreError EAGAIN at its end if others changed what it used; `retry` does it again then.
        """
        starting = asyncio.ensure_future(self._transaction_start())
        try:
            transaction = Transaction(self, await asyncio.shield(starting))
        except asyncio.CancelledError:
            starting.add_done_callback(self._abandon)
            raise
        try:
            yield transaction
        except BaseException:
            self._post(MessageType.TRANSACTION_END, b"F\0", transaction.tx_id)
            raise
        await self._call(MessageType.TRANSACTION_END, "", b"T\0", transaction.tx_id)

    async def retry(self, body: Callable[[Transaction], Awaitable[T]], attempts: int = 100) -> T:
        """Run `body` in a transaction, again if that conflicts. Raises EAGAIN after so many attempts."""
        for _ in range(attempts - 1):
            try:
                async with self.transaction() as transaction:
                    return await body(transaction)
            except XenstoreError as error:
                if error.name != "EAGAIN":
                    raise
        async with self.transaction() as transaction:
            return await body(transaction)

    async def _transaction_start(self) -> int:
        return xs_wire.parse_number(_first(await self._call(MessageType.TRANSACTION_START, "", b"\0")))

    def _abandon(self, started: asyncio.Future[int]) -> None:
        """End a transaction whose starter was cancelled before it knew the id."""
        if not started.cancelled() and started.exception() is None:
            self._post(MessageType.TRANSACTION_END, b"F\0", started.result())

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

    async def _call(self, type_: MessageType, path: str, payload: bytes, tx_id: int = 0) -> bytes:
        """Send a request and wait for its reply's payload."""
        if len(payload) > xs_wire.PAYLOAD_MAX:
            raise XenstoreError("E2BIG", path, type_.name)
        if self._lost:
            raise XenstoreError("EIO", path, type_.name) from ConnectionError(self._lost)
        req_id = self._next_id()
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[req_id] = reply
        try:
            self._writer.write(xs_wire.pack(type_, req_id, tx_id, payload))
            await self._writer.drain()
            message = await reply
        except OSError as error:
            raise XenstoreError("EIO", path, type_.name) from error
        finally:
            if not reply.cancel() and not reply.cancelled():
                reply.exception()  # taken note of, also if it was sending that failed
        if message.type == MessageType.ERROR:
            raise XenstoreError(_first(message.payload), path, type_.name)
        if message.type != type_:
            raise XenstoreError("EIO", path, f"{type_.name} (answered by {message.type})")
        return message.payload

    def _post(self, type_: MessageType, payload: bytes, tx_id: int = 0) -> None:
        """Send a request whose reply does not matter."""
        if not self._lost:
            self._writer.write(xs_wire.pack(type_, self._next_id(), tx_id, payload))

    def _next_id(self) -> int:
        return next(i for n in self._ids if (i := n & 0xFFFF_FFFF) not in self._pending)

    async def _receive(self) -> None:
        decoder = xs_wire.Decoder()
        cause = "closed by xenstored"
        try:
            while received := await self._reader.read(1 << 16):
                for message in decoder.feed(received):
                    self._dispatch(message)
        except (OSError, WireError) as error:
            cause = str(error)
        except asyncio.CancelledError:
            cause = "closed"
            raise
        finally:
            self._end(cause)

    def _dispatch(self, message: Message) -> None:
        if message.type == MessageType.WATCH_EVENT:
            path, token, *_ = [*xs_wire.split(message.payload), "", ""]
            for watch in self._watches:
                if watch.token == token and watch._concerns(path):
                    watch._fire(path)
            return
        reply = self._pending.pop(message.req_id, None)
        if reply is not None and not reply.done():  # done: whoever asked was cancelled
            reply.set_result(message)

    def _end(self, cause: str) -> None:
        self._lost = self._lost or cause
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(ConnectionError(cause))
        self._pending.clear()
        for watch in self._watches:
            watch._finish(XenstoreError("EIO", watch.path, f"watch ({cause})"))
        self._writer.close()


def _join(type_: MessageType, path: str, more: Iterable[str]) -> bytes:
    """Path and further strings, NUL-terminated. Raises XenstoreError EINVAL if one cannot be sent."""
    try:
        return xs_wire.join([path, *more])
    except WireError as error:
        raise XenstoreError("EINVAL", path, type_.name) from error


def _first(payload: bytes) -> str:
    return xs_wire.text(payload.partition(b"\0")[0])
