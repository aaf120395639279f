"""One end of a control socket: our calls, the peer's requests, the end."""

import array
import asyncio
import errno
import logging
import reprlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import msgpack

from hyp import limits
from hyp.control.debt import ASKED_NS, BILLED, FAIR_TURN_NS, NO_DEBT, PAYER, Bill, Debt
from hyp.control.descriptors import brings_descriptors, close_all, hang_up, refuse_descriptors
from hyp.control.errors import PeerGone, Refused, describe
from hyp.control.limited_log import TRACEBACKS_S, LimitedLog
from hyp.control.outbox import RETRY_S, Outbox
from hyp.control.served import ServedGuest
from hyp.control.words import printable

log = logging.getLogger(__name__)

MAX_MESSAGE = 160 * 1024
MAX_FDS = 250  # the kernel's own limit is 253
MAX_PENDING = 64
MAX_UNSENT = 64
MAX_UNSENT_FDS = 8
MAX_ITEMS = 8192  # of an array or a map, from who is not trusted
TURN_S = 0.0005
LAST_TURNS = 16
"""In which a peer is heard that has gone: what it said before, the cause of its end perhaps."""


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
class _Call:
    """Of ours, under way."""

    reply: asyncio.Future[Reply]
    payer: Debt | None


@dataclass(slots=True)
class _Inbox:
    calls: dict[int, _Call] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    paused: bool = False


class Channel:
    """One end of a control socket. `handlers` serves the peer's requests; `call` makes ours.

    `untrusted`: the peer is a guest, or speaks for one. Nothing that it does costs more than this channel.
    `bills`: what others do for its requests is its debt, too (hyp/control/debt.py). `served`: of the guest, by all who serve it.
    """

    def __init__(
        self,
        sock: socket.socket,
        handlers: dict[str, Handler] | None = None,
        *,
        name: str = "peer",
        generation: int = 0,
        takes_fds: Set[str] = frozenset(),
        untrusted: bool = False,
        bills: bool = False,
        served: ServedGuest | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        if untrusted:
            refuse_descriptors(sock)
        self.name, self.generation = name, generation
        self._sock, self._handlers, self._takes_fds, self._on_close = sock, handlers or {}, takes_fds, on_close
        self._untrusted, self._bills = untrusted, bills
        self._loop = asyncio.get_running_loop()
        self._inbox = _Inbox()
        self._debt = Debt(served=served) if untrusted else NO_DEBT
        self._outbox = Outbox(sock, self._gone, self._pause_or_go_on, self._debt)
        self._paid: asyncio.TimerHandle | None = None  # when it has paid what it owes
        self._next_id = 1
        self._log = LimitedLog(log, name, TRACEBACKS_S)
        self.closed = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._readable)

    # -- sending --

    async def call(self, op: str, /, *, fds: Sequence[int] = (), **args: Any) -> Reply:
        """Ask the peer; waits for its answer. `Refused` if it refuses, or we cannot send that; `PeerGone` if it goes."""
        if self.closed.done():
            raise PeerGone(f"{self.name} is gone; {op} was not sent")
        number, self._next_id = self._next_id, self._next_id + 1
        payer = PAYER.get()
        packet = self._packed({"id": number, "op": op, "args": args} | ({} if payer is None else {"bill": True}), op)
        future: asyncio.Future[Reply] = self._loop.create_future()

        def not_sent(error: OSError) -> None:
            if not future.done():
                future.set_exception(self._not_sent(op, error))

        self._inbox.calls[number] = _Call(future, payer)
        letter = self._outbox.send(packet, fds, not_sent)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                close_all(future.result().fds)  # the answer came in the turn in which we were cancelled
            raise
        finally:
            self._inbox.calls.pop(number, None)
            if letter is not None:
                self._outbox.withdraw(letter)

    def tell(self, op: str, /, *, fds: Sequence[int] = (), **args: Any) -> None:
        """Send an event; nothing comes back. Nothing happens if the peer is gone, or is untrusted and does not read."""
        if self.closed.done() or (self._untrusted and len(self._outbox) >= MAX_UNSENT) or not self._may_keep(fds):
            return
        try:
            packet = self._packed({"op": op, "args": args}, op)
        except Refused as error:
            self._log.error(str(error))
        else:
            self._outbox.send(packet, fds, lambda error: self._log.error(str(self._not_sent(op, error))))

    def charge(self, ns: int) -> None:
        """What the peer asks for has cost so much beside the time in which it was served: if it is not trusted, its debt."""
        if self._untrusted:
            self._debt.owe(ns)

    def close(self) -> None:
        """End the channel; calls under way raise `PeerGone`."""
        self._end("closed here")

    def _answer(self, op: str, number: int | None, debt: Debt, result: Any = None, error: Exception | None = None) -> None:
        """Reply to a request that was served with `result`, or `error`; close what was handed out. `debt`: who pays for it."""
        answer = result if isinstance(result, Answer) else Answer(result)
        head = {"id": number, "gen": self.generation} | ({"ns": debt.ns} if isinstance(debt, Bill) else {})

        def instead(why: Exception) -> bytes:
            return bytes(msgpack.packb({**head, "error": describe(why)}))

        try:
            if number is None or self.closed.done():
                return
            if error is None and not self._may_keep(answer.fds):
                error = Refused("ENOBUFS", f"{op}: {self.name} has not taken the descriptors of what it was answered before")
            if error is None:
                try:
                    packet = self._packed({**head, "ok": answer.value}, op)
                except Exception as wrong:  # it is too long, or nothing that can be packed
                    error = wrong
            if error is not None:
                self._outbox.send(instead(error), (), lambda why: None)
            else:
                self._outbox.send(packet, answer.fds, lambda why: instead(self._not_sent(op, why)))
        finally:
            close_all(answer.close)
            self._pause_or_go_on()

    def _may_keep(self, fds: Sequence[int]) -> bool:
        """If they have to wait: one message's may, and of several to a peer that is not trusted MAX_UNSENT_FDS together."""
        waiting = self._outbox.descriptors if self._untrusted and fds else 0
        return waiting == 0 or waiting + len(fds) <= MAX_UNSENT_FDS

    def _packed(self, message: dict[str, Any], op: str) -> bytes:
        packet = bytes(msgpack.packb(message))
        if len(packet) > MAX_MESSAGE:
            raise Refused(
                "EMSGSIZE", f"{op}: a message of {len(packet)} bytes to {self.name} is too long, by the limit of {MAX_MESSAGE}"
            )
        return packet

    def _not_sent(self, op: str, error: OSError) -> Refused:
        name, reason = describe(error)
        if name == "ETOOMANYREFS":
            reason = "this user has more descriptors under way in sockets than one process can have open (ulimit -n)"
        return Refused(name, f"{op}: not sent to {self.name}: {reason}")

    # -- receiving --

    def _readable(self) -> None:
        """Serve the peer for one turn: one packet, and more while they take no longer than `TURN_S` together."""
        until = 0.0
        while not self.closed.done() and not self._inbox.paused:
            now = time.monotonic()
            if until == 0.0:
                until = now + TURN_S
            elif now > until:
                return
            try:
                with self._debt.pays():
                    packet, fds, lacking = self._receive()
            except BlockingIOError:
                return
            except ConnectionResetError:  # it left what we had sent unread; what it has sent comes next, and then the end
                continue
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
                    with self._debt.pays(FAIR_TURN_NS):
                        self._dispatch(packet, fds)
                    self._pause_or_go_on()
            except Exception as error:  # anything an untrusted packet can provoke ends this channel alone
                self._end(f"broke the protocol: {printable(str(error))}")
                return

    def _receive(self) -> tuple[bytes | None, list[int], bool]:
        """The next packet (None at the end), its descriptors, and if this process could not take them, being at its limit."""
        if self._untrusted and brings_descriptors(self._sock):
            raise OSError(errno.EPERM, "it sent descriptors, and nobody takes any from it")
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

    def _unpacked(self, packet: bytes) -> Any:
        """What a packet says. An array is made as long as it says it is, so those who are not trusted may not say too much."""
        most = {"max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS} if self._untrusted else {}
        return msgpack.unpackb(packet, strict_map_key=True, **most)

    def _do_without(self, packet: bytes) -> None:
        """Refuse a request whose descriptors we could not take, or fail the call whose reply they came with."""
        message, refusal = self._unpacked(packet), ["EMFILE", limits.descriptor_reason()]
        self._log.error(refusal[1])
        if "op" not in message:
            self._take_reply({"id": message["id"], "error": refusal}, [])
        elif isinstance(message.get("id"), int):
            self._answer(str(message["op"]), message["id"], self._debt, error=Refused(*refusal))

    def _dispatch(self, packet: bytes, fds: list[int]) -> None:
        try:
            message = self._unpacked(packet)
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
        call = self._inbox.calls.get(message["id"])
        if call is not None and call.payer is not None and not self._untrusted:
            call.payer.owe(ASKED_NS + BILLED * int(message.get("ns", 0)))
        future = None if call is None else call.reply
        if future is None or future.done():
            close_all(fds)
        elif "error" in message:
            name, text = message["error"]
            future.set_exception(Refused(printable(name, 40), printable(text)))
            close_all(fds)
        else:
            future.set_result(Reply(message.get("ok"), fds, int(message.get("gen", 0))))

    def _take_request(self, message: dict[str, Any], fds: list[int]) -> None:
        op, args, number = message["op"], message.get("args", {}), message.get("id")
        if not isinstance(op, str) or not isinstance(args, dict) or not (number is None or isinstance(number, int)):
            raise ValueError("op, args or id has the wrong type")
        debt = Bill() if "bill" in message and not self._untrusted else self._debt
        try:
            handler = self._handlers.get(op)
            if handler is None:
                raise Refused("ENOSYS", f"there is no operation {reprlib.repr(op)}")
            if op in self._takes_fds:
                args, fds = {**args, "fds": fds}, []
            with debt.pays() if isinstance(debt, Bill) else nullcontext():
                result = handler(**args)
        except Exception as error:
            self._failed(op, number, debt, error)
            return
        finally:
            close_all(fds)
        if isinstance(result, Awaitable):
            task = self._loop.create_task(self._finish(op, number, debt, result))
            self._inbox.tasks.add(task)
            task.add_done_callback(self._finished)
        else:
            self._answer(op, number, debt, result)

    async def _finish(self, op: str, number: int | None, debt: Debt, under_way: Awaitable[Any]) -> None:
        PAYER.set(debt if self._bills else None)
        try:
            result = await debt.charged(under_way)
        except Exception as error:
            self._failed(op, number, debt, error)
        else:
            self._answer(op, number, debt, result)

    def _failed(self, op: str, number: int | None, debt: Debt, error: Exception) -> None:
        if describe(error)[0] == "EFAULT" and not isinstance(error, Refused):  # who has refused it has logged it
            with debt.pays():
                self._log.error(f"operation {printable(op)} failed", error)
        self._answer(op, number, debt, error=error)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._inbox.tasks.discard(task)
        self._pause_or_go_on()

    def _pause_or_go_on(self) -> None:
        """Read the peer's packets, unless it has as many requests under way as it may have, leaves our replies unread, or owes.

        One that is not trusted leaves them unread as soon as descriptors wait: each of them is one that we have open.
        """
        if self.closed.done():
            return
        unread = self._untrusted and (len(self._outbox) >= MAX_UNSENT or self._outbox.descriptors > 0)
        owes_s = self._debt.wait_s()
        paused = unread or len(self._inbox.tasks) >= MAX_PENDING or owes_s > 0
        if owes_s > 0 and self._paid is None:
            self._paid = self._loop.call_later(owes_s, self._is_paid)
        if paused == self._inbox.paused:
            return
        try:
            if paused:
                self._loop.remove_reader(self._sock.fileno())
            else:
                self._loop.add_reader(self._sock.fileno(), self._readable)
        except OSError:  # the user has all the epoll watches that he may have
            self._loop.call_later(RETRY_S, self._pause_or_go_on)
        else:
            self._inbox.paused = paused

    def _is_paid(self) -> None:
        self._paid = None
        self._pause_or_go_on()

    # -- the end --

    def _gone(self, reason: str) -> None:
        """Sending has shown that the peer is no more, or does not read for good."""
        self._loop.call_soon(self._hear_last, reason)

    def _hear_last(self, reason: str) -> None:
        for _ in range(LAST_TURNS):
            self._readable()
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._outbox.close()
        if self._paid is not None:
            self._paid.cancel()
        if not self._inbox.paused:
            self._loop.remove_reader(self._sock.fileno())
        hang_up(self._sock)
        self._log.end()
        for call in self._inbox.calls.values():
            if not call.reply.done():
                call.reply.set_exception(PeerGone(f"{self.name} is gone ({reason})"))
        if self._on_close is not None:
            self._on_close()
