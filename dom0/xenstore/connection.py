"""One client of xenstored: its socket, its session of the store, what it asks, and what it has not read yet.

Nothing is read of a client while a request of it waits, or while more than PAUSE_BYTES of its replies and events are unread. So
what a client can have here is bounded: the requests of one read, its unread output, the events that its last request has still to
cause.

An event that waits unsent already is not queued again. Beyond EVENTS_LIMIT unread a watch fires for the watched path as a whole:
whoever causes the events may not be who has to read them, so that nobody is disconnected for being slow.

A guest that polls its socket many times over is sent to seldom, and received from (hyp/control/debt.py): each packet that is taken
from it has the kernel go through all of these places. A stream is received from by the byte, whatever packets these are in; so of
a client from whom that was too dear once, not more is taken at a time than the fewest.

One that sends descriptors is disconnected before they are received: to close them may take as long as it chose.
"""

import socket
from collections import deque
from itertools import islice

from dom0.xenstore.store import Session
from dom0.xenstore.tree import Change
from hyp.abi import xs_wire
from hyp.abi.domids import DOM0
from hyp.abi.xs_wire import Message, MessageType
from hyp.control.debt import NO_DEBT, Debt
from hyp.control.descriptors import receive_plain
from hyp.control.served import ServedGuest

READ_SIZE = xs_wire.HEADER.size + xs_wire.PAYLOAD_MAX
PAUSE_BYTES = 64 << 10  # unread output at which a client's requests have to wait
EVENTS_LIMIT = 256 << 10  # unread output at which events become coarse
FEW = 1  # bytes
DEAR_NS = 2_000_000  # of CPU time, for one read: as long as a hundred take
_IOV = 64
_EventKey = tuple[str, str]


class Connection:
    """A client, and the bytes that go to and fro. When they do is the server's."""

    def __init__(self, domid: int, sock: socket.socket, session: Session, served: ServedGuest) -> None:
        """`served`: of the domain, by all control planes."""
        self.domid, self.sock, self.session = domid, sock, session
        self.unread = 0  # bytes
        self.debt = Debt(served=served) if domid != DOM0 else NO_DEBT
        self._most = READ_SIZE  # bytes that are received at a time
        self.held = False  # it owes too much to be sent to
        self.closed = False
        self.paused = False  # its domain has no credit
        self.reading = self.writing = False  # what the loop watches the socket for
        self.changes: deque[Change] = deque()  # of its last request, whose watches have not been told
        self._decoder = xs_wire.Decoder()
        self._queue: deque[tuple[bytes, _EventKey | None]] = deque()
        self._events: set[_EventKey] = set()

    @property
    def congested(self) -> bool:
        return self.unread > PAUSE_BYTES

    @property
    def partial(self) -> int:
        """Bytes received of a message that is not complete."""
        return self._decoder.partial

    def receive(self) -> bool:
        """Read once, READ_SIZE at most. False at the end of the connection. OSError, also if it sends descriptors."""
        try:
            with self.debt.pays():
                received = receive_plain(self.sock, self._most)
        except (BlockingIOError, InterruptedError):
            return True
        if self.debt.last_ns > DEAR_NS:
            self._most = FEW
        self._decoder.add(received)
        return bool(received)

    def request(self) -> Message | None:
        """The next request that is complete. WireError if what comes is none."""
        return self._decoder.take()

    def send(self, message: bytes) -> None:
        """Queue a reply."""
        self._enqueue(message, None)

    def send_event(self, path: str, token: str, whole: str) -> None:
        """Queue an event, unless it waits already. `whole`: the watched path."""
        if self.unread > EVENTS_LIMIT:
            path = whole
        if (path, token) not in self._events:
            self._events.add((path, token))
            self._enqueue(xs_wire.pack(MessageType.WATCH_EVENT, 0, 0, xs_wire.join([path, token])), (path, token))

    def _enqueue(self, message: bytes, key: _EventKey | None) -> None:
        self._queue.append((message, key))
        self.unread += len(message)

    def flush(self) -> None:
        """Send what the socket takes, unless to wake the peer is too dear. Raises OSError if the peer is gone."""
        while self._queue and self.debt.wait_s() == 0:
            try:
                with self.debt.pays():
                    sent = self.sock.sendmsg([message for message, _ in islice(self._queue, _IOV)])
            except (BlockingIOError, InterruptedError):
                return
            self._sent(sent)

    def _sent(self, count: int) -> None:
        self.unread -= count
        while count:
            message, key = self._queue.popleft()
            if key is not None:
                self._events.discard(key)
            if count < len(message):
                self._queue.appendleft((message[count:], None))
            count -= min(count, len(message))
