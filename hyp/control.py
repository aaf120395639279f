"""The control protocol: msgpack maps over a Unix SOCK_SEQPACKET socket, descriptors by SCM_RIGHTS (docs/hypercalls.md).

One message a packet, both directions alike::

    request  {"id": n, "op": name, "args": {...}}
    reply    {"id": n, "gen": g, "ok": value}  or  {"id": n, "gen": g, "error": [errno name, message]}
    event    {"op": name, "args": {...}}                     no id: no reply

`gen` is the answering side's generation (the hypervisor counts its starts), so that a client can tell a restarted peer. The
end of the socket is the peer's end: calls under way fail with `PeerGone`, later ones at once.

An untrusted peer can: send anything (a message that is no such map ends the channel), send descriptors (closed unless the
operation takes them), never read (a full socket buffer ends the channel), and send fast (no more than `MAX_PENDING` of its
requests are under way; further packets stay in the socket).
"""

import array
import asyncio
import errno
import logging
import os
import reprlib
import socket
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import msgpack

from hyp import limits

log = logging.getLogger(__name__)

MAX_MESSAGE = 160 * 1024
MAX_FDS = 250  # the kernel's own limit is 253
MAX_PENDING = 64


class ControlError(Exception):
    """Base of what a call can raise."""


class PeerGone(ControlError):
    """The other side closed its socket, died, or broke the protocol."""


class Refused(ControlError):
    """The other side answered with an error: `name` as in errno (``"EINVAL"``), and a sentence that says why."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(slots=True)
class Reply:
    """What a call returned: a msgpack value and the descriptors that came with it (now the caller's)."""

    value: Any
    fds: list[int]
    generation: int = 0


@dataclass(slots=True)
class Answer:
    """What a handler returns when it also hands out descriptors; those in `close` are closed once sent."""

    value: Any = None
    fds: Sequence[int] = ()
    close: Sequence[int] = ()


Handler = Callable[..., Any]
"""``handler(fds=[...], **args)`` for operations in `takes_fds`, else ``handler(**args)``; may be a coroutine function."""


def socketpair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of SOCK_SEQPACKET sockets, non-blocking."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
    return pair


@dataclass(slots=True)
class _Inbox:
    calls: dict[int, asyncio.Future[Reply]] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    paused: bool = False


class Channel:
    """One end of a control socket. `handlers` serves the peer's requests; `call` makes ours."""

    def __init__(
        self,
        sock: socket.socket,
        handlers: dict[str, Handler] | None = None,
        *,
        name: str = "peer",
        generation: int = 0,
        takes_fds: Set[str] = frozenset(),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.name, self.generation = name, generation
        self._sock, self._handlers, self._takes_fds, self._on_close = sock, handlers or {}, takes_fds, on_close
        self._loop = asyncio.get_running_loop()
        self._inbox = _Inbox()
        self._next_id = 1
        self.closed = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._readable)

    # -- our calls --

    async def call(self, op: str, /, *, fds: Sequence[int] = (), **args: Any) -> Reply:
        """Ask the peer; waits for its answer. `Refused` if it refuses, `PeerGone` if it goes."""
        if self.closed.done():
            raise PeerGone(f"{self.name} is gone; {op} was not sent")
        number, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._inbox.calls[number] = future
        try:
            await self._send_patiently({"id": number, "op": op, "args": args}, fds)
            return await future
        finally:
            self._inbox.calls.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # fetched here too, for a call that could not even be sent

    def tell(self, op: str, /, **args: Any) -> None:
        """Send an event; nothing comes back. Nothing happens if the peer is gone."""
        self._send_or_end({"op": op, "args": args}, ())

    def close(self) -> None:
        """End the channel; calls under way raise `PeerGone`."""
        self._end("closed here")

    # -- sending --

    async def _send_patiently(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        """Our own requests wait for room in the socket: they come from trusted code, which may burst."""
        packet = msgpack.packb(message)
        while not self.closed.done():
            try:
                socket.send_fds(self._sock, [packet], list(fds))
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except OSError as error:
                self._end(str(error))
        raise PeerGone(f"{self.name} is gone")

    def _send_or_end(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        if self.closed.done():
            return
        try:
            socket.send_fds(self._sock, [msgpack.packb(message)], list(fds))
        except BlockingIOError:
            self._end("does not read its replies")
        except OSError as error:
            self._end(str(error))

    # -- receiving --

    def _readable(self) -> None:
        for _ in range(16):
            if self.closed.done() or self._inbox.paused:
                return
            try:
                packet, fds, lacking = self._receive()
            except BlockingIOError:
                return
            except OSError as error:
                self._end(str(error))
                return
            if packet is None:
                close_all(fds)  # an empty packet, which looks like the end, can carry some
                self._end("end of file")
                return
            try:
                if lacking:
                    self._do_without(packet)
                else:
                    self._dispatch(packet, fds)
            except Exception as error:  # anything an untrusted packet can provoke ends this channel alone
                self._end(f"broke the protocol: {error}")
                return

    def _receive(self) -> tuple[bytes | None, list[int], bool]:
        """The next packet (None at the end), its descriptors, and if this process could not take them, being at its limit."""
        fds = array.array("i")
        space = socket.CMSG_SPACE(MAX_FDS * fds.itemsize)
        packet, ancillary, flags, _ = self._sock.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(fds)
            if flags & socket.MSG_TRUNC or len(fds) == MAX_FDS:
                raise OSError(errno.EMSGSIZE, "a packet or its descriptors did not fit")
            return (packet or None), [], True
        return (packet or None), list(fds), False

    def _do_without(self, packet: bytes) -> None:
        """Refuse a request whose descriptors we could not take, or fail the call whose reply they came with."""
        message, refusal = msgpack.unpackb(packet, strict_map_key=True), ["EMFILE", limits.descriptor_reason()]
        log.error("%s: %s", self.name, refusal[1])
        if "op" not in message:
            self._take_reply({"id": message["id"], "error": refusal}, [])
        elif isinstance(message.get("id"), int):
            self._send_or_end({"id": message["id"], "gen": self.generation, "error": refusal}, ())

    def _dispatch(self, packet: bytes, fds: list[int]) -> None:
        try:
            message = msgpack.unpackb(packet, strict_map_key=True)
            if not isinstance(message, dict):
                raise ValueError("a message is not a map")
            if "op" in message:
                self._take_request(message, fds)
            else:
                self._take_reply(message, fds)
        except Exception:
            close_all(fds)
            raise

    def _take_reply(self, message: dict[str, Any], fds: list[int]) -> None:
        future = self._inbox.calls.get(message["id"])
        if future is None or future.done():
            close_all(fds)
        elif "error" in message:
            name, text = message["error"]
            future.set_exception(Refused(str(name), str(text)))
            close_all(fds)
        else:
            future.set_result(Reply(message.get("ok"), fds, int(message.get("gen", 0))))

    def _take_request(self, message: dict[str, Any], fds: list[int]) -> None:
        op, args, number = message["op"], message.get("args", {}), message.get("id")
        if not isinstance(op, str) or not isinstance(args, dict) or not (number is None or isinstance(number, int)):
            raise ValueError("op, args or id has the wrong type")
        task = self._loop.create_task(self._serve(op, args, number, fds))
        self._inbox.tasks.add(task)
        task.add_done_callback(self._served)
        if len(self._inbox.tasks) >= MAX_PENDING:
            self._inbox.paused = True
            self._loop.remove_reader(self._sock.fileno())

    def _served(self, task: asyncio.Task[None]) -> None:
        self._inbox.tasks.discard(task)
        if self._inbox.paused and not self.closed.done():
            self._inbox.paused = False
            self._loop.add_reader(self._sock.fileno(), self._readable)

    async def _serve(self, op: str, args: dict[str, Any], number: int | None, fds: list[int]) -> None:
        reply: dict[str, Any] = {"id": number, "gen": self.generation}
        answer = Answer()
        try:
            handler = self._handlers.get(op)
            if handler is None:
                raise Refused("ENOSYS", f"there is no operation {reprlib.repr(op)}")
            if op in self._takes_fds:
                args, fds = {**args, "fds": fds}, []
            result = handler(**args)
            if isinstance(result, Awaitable):
                result = await result
            answer = result if isinstance(result, Answer) else Answer(result)
            reply["ok"] = answer.value
        except Exception as error:
            reply["error"] = describe(error)
            if reply["error"][0] == "EFAULT":
                log.exception("%s: operation %s failed", self.name, op)
        finally:
            close_all(fds)
        if number is not None:
            self._send_or_end(reply, answer.fds if "error" not in reply else ())
        close_all(answer.close)

    # -- the end --

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        if not self._inbox.paused:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for future in self._inbox.calls.values():
            if not future.done():
                future.set_exception(PeerGone(f"{self.name} is gone ({reason})"))
        if self._on_close is not None:
            self._on_close()


def describe(error: Exception) -> list[str]:
    """An exception as ``[errno name, message]`` for a reply. What is nobody's fault but ours is EFAULT."""
    if isinstance(error, Refused):
        return [error.name, str(error)]
    if isinstance(error, PeerGone):
        return ["ENOTCONN", str(error)]
    if isinstance(error, TimeoutError):
        return ["ETIMEDOUT", str(error) or "it took too long"]
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return ["EMFILE", limits.descriptor_reason()]
    if isinstance(error, OSError) and error.errno:
        return [errno.errorcode.get(error.errno, "EIO"), error.strerror or str(error)]
    if isinstance(error, (ValueError, TypeError, KeyError, LookupError)):
        return ["EINVAL", f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)]
    return ["EFAULT", f"{type(error).__name__}: {error}"]


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, each of which is the caller's: one that was closed before may be somebody else's by now."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass
