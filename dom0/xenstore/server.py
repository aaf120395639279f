"""xenstored: the store, served over Xen's wire protocol.

Each connection is an AF_UNIX stream socket, and the domain it speaks for was decided by whoever made the socket.
Everything happens on the loop's thread, asyncio's or uvloop's.

What a client can cost the others is bounded: one read, of a message's size at most, per turn of the loop; no further
requests from a client that leaves its replies unread; and a guest whose unread output passes a limit is disconnected.
An event that waits unsent already is not queued again. Domain 0 is not disconnected for being slow, as any guest could
then cause it: beyond the limit its watches fire for the watched path as a whole.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import islice

from dom0.xenstore.store import Session, Store
from dom0.xenstore.tree import Event, StoreError, Watcher, domain_path
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType, WireError

log = logging.getLogger(__name__)

READ_SIZE = xs_wire.HEADER.size + xs_wire.PAYLOAD_MAX
PAUSE_BYTES = 64 << 10  # unread output at which a client's requests have to wait
OUTPUT_LIMIT = 256 << 10  # unread output that ends a guest's connection
CONNECTIONS_MAX = 512  # beyond it a listening socket takes no more
_IOV = 64
_OK = b"OK\0"
_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid
_EventKey = tuple[str, str]


class Connection:
    """One client: its socket, its session of the store, and what it has not read yet."""

    def __init__(self, domid: int, sock: socket.socket, session: Session) -> None:
        self.domid, self.sock, self.session = domid, sock, session
        self.decoder = xs_wire.Decoder()
        self.unread = 0  # bytes
        self.closed = False
        self.reading = self.writing = False  # what the loop watches the socket for
        self._queue: deque[tuple[bytes, _EventKey | None]] = deque()
        self._events: set[_EventKey] = set()

    @property
    def congested(self) -> bool:
        return self.unread > PAUSE_BYTES

    def send(self, message: bytes, key: _EventKey | None = None) -> None:
        """Queue a message; one with a `key` that waits already is dropped."""
        if key is not None:
            if key in self._events:
                return
            self._events.add(key)
        self._queue.append((message, key))
        self.unread += len(message)

    def flush(self) -> None:
        """Send what the socket takes. Raises OSError if the peer is gone."""
        while self._queue:
            try:
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


class Xenstored:
    """The server. Create and use it on a running event loop."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store if store is not None else Store()
        self.connections: dict[Watcher, Connection] = {}
        self.disconnects: Counter[str] = Counter()  # by cause: closed, malformed, overflow, error, removed, released
        self._loop = asyncio.get_running_loop()
        self._unflushed: set[Connection] = set()
        self._listeners: list[tuple[socket.socket, str]] = []
        self._expected: dict[int, list[socket.socket]] = {}  # connections of domains that are not introduced yet

    # What the toolstack calls.

    def add_connection(self, domid: int, sock: socket.socket) -> Connection:
        """Serve `sock`, a connected AF_UNIX stream socket, as domain `domid`. The socket is the server's from here."""
        sock.setblocking(False)
        connection = Connection(domid, sock, self.store.connect(domid))
        self.connections[connection.session] = connection
        self._watch_socket(connection)
        return connection

    def expect(self, domid: int, sock: socket.socket) -> None:
        """Serve `sock` as `domid` from the domain's introduction on; what it asks before waits in its socket, as in Xen's ring."""
        if self.store.is_introduced(domid):
            self.add_connection(domid, sock)
        else:
            self._expected.setdefault(domid, []).append(sock)

    def remove_connection(self, connection: Connection) -> None:
        """End a connection; its watches and transactions go with it, its domain's nodes stay."""
        self._disconnect(connection, "removed", "removed by the toolstack")

    def introduce(self, domid: int) -> None:
        """A domain exists: create its home, fire @introduceDomain, serve whom it `expect`ed. Raises StoreError EINVAL or EEXIST."""
        self.store.introduce(domid)
        for sock in self._expected.pop(domid, []):
            self.add_connection(domid, sock)
        self._deliver()

    def release(self, domid: int) -> None:
        """A domain is gone: end its connections, remove what was its own, fire @releaseDomain.

        Raises StoreError EINVAL for Domain 0, ENOENT if it is not introduced.
        """
        for sock in self._expected.pop(domid, []):
            sock.close()
        self.store.release(domid)
        for connection in [c for c in self.connections.values() if c.domid == domid]:
            self._disconnect(connection, "released", "its domain was released")
        self._deliver()

    async def serve_unix(self, path: str, domid: int = 0) -> None:
        """Listen on a Unix socket (mode 0600); whoever connects speaks for `domid`. Returns once it listens.

        With ``XENSTORED_PATH`` set to `path`, Xen's own xenstore-utils are clients. Replaces a dead socket.
        Raises OSError if one is served there, or the path cannot be used.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _bind(listener, path)
            os.chmod(path, 0o600)  # before anybody can connect
            listener.listen()
        except BaseException:
            listener.close()
            raise
        self.listen(listener, domid, path)

    def listen(self, listener: socket.socket, domid: int = 0, path: str = "") -> None:
        """Serve a listening AF_UNIX socket, the server's from here: this process's user may connect, and speaks for `domid`.

        `path`: to be removed at the end.
        """
        listener.setblocking(False)
        self._listeners.append((listener, path))
        self._loop.add_reader(listener, self._accept, listener, domid)

    def close(self) -> None:
        """End all connections, stop listening and remove the sockets from the file system."""
        for listener, path in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
            if path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        self._listeners.clear()
        for sock in [sock for socks in self._expected.values() for sock in socks]:
            sock.close()
        self._expected.clear()
        for connection in list(self.connections.values()):
            self._disconnect(connection, "removed", "the server ends")

    # Sockets.

    def _accept(self, listener: socket.socket, domid: int) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            log.warning("xenstored: no new connection: %s", error)
            return
        _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != os.geteuid():  # the file's mode keeps all but root out, if nobody changes it
            log.warning("xenstored: connection refused, uid %d is not the topology's user", uid)
            sock.close()
            return
        if len(self.connections) >= CONNECTIONS_MAX:
            log.warning("xenstored: connection refused, %d are open", len(self.connections))
            sock.close()
            return
        self.add_connection(domid, sock)

    def _readable(self, connection: Connection) -> None:
        try:
            received = connection.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._disconnect(connection, "error", f"receiving: {error}")
            return
        if received:
            self._serve(connection, received)
        else:
            partial = connection.decoder.partial
            self._disconnect(connection, "closed", f"closed by the client, {partial} bytes into a message")

    def _writable(self, connection: Connection) -> None:
        self._flush(connection)
        if not connection.closed and not connection.congested:
            self._serve(connection, b"")  # requests that had to wait

    def _flush(self, connection: Connection) -> None:
        try:
            connection.flush()
        except OSError as error:
            self._disconnect(connection, "error", f"sending: {error}")
        else:
            self._watch_socket(connection)

    def _watch_socket(self, connection: Connection) -> None:
        """Read unless congested, write if there is something left to write."""
        reading, writing = not connection.congested, connection.unread > 0
        if reading != connection.reading:
            if reading:
                self._loop.add_reader(connection.sock, self._readable, connection)
            else:
                self._loop.remove_reader(connection.sock)
        if writing != connection.writing:
            if writing:
                self._loop.add_writer(connection.sock, self._writable, connection)
            else:
                self._loop.remove_writer(connection.sock)
        connection.reading, connection.writing = reading, writing

    def _disconnect(self, connection: Connection, cause: str, text: str) -> None:
        if connection.closed:
            return
        connection.closed = True
        self.connections.pop(connection.session, None)
        self._unflushed.discard(connection)
        self._loop.remove_reader(connection.sock)
        self._loop.remove_writer(connection.sock)
        connection.sock.close()
        connection.session.close()
        self.disconnects[cause] += 1
        expected = cause in ("closed", "removed", "released")
        log.log(logging.INFO if expected else logging.WARNING, "domain %d disconnected: %s", connection.domid, text)

    # Requests.

    def _serve(self, connection: Connection, received: bytes) -> None:
        """Answer the requests that are complete; while the replies are not taken, the rest waits in the decoder."""
        left = True
        while left and not connection.closed and not connection.congested:
            left = self._serve_until_congested(connection, received)
            received = b""
            self._flush_all()

    def _serve_until_congested(self, connection: Connection, received: bytes) -> bool:
        """True if requests may be left."""
        try:
            for message in connection.decoder.feed(received):
                self._send(connection, self._answer(connection, message))
                self._queue_events()
                if connection.closed or connection.congested:
                    return True
        except WireError as error:
            self._disconnect(connection, "malformed", str(error))
        return False

    def _answer(self, connection: Connection, message: Message) -> bytes:
        """The reply to one request, packed."""
        request = _REQUESTS.get(message.type)
        try:
            if message.type in _FOR_DOM0 and connection.domid != 0:  # before anything else: whatever it says
                raise StoreError("EACCES", domain_path(connection.domid), "for Domain 0")
            if request is None:
                raise StoreError("ENOSYS", f"request {message.type}")
            payload = request(self, connection.session, message)
            type_ = message.type
        except StoreError as error:
            type_, payload = MessageType.ERROR, error.name.encode() + b"\0"
        except WireError:
            type_, payload = MessageType.ERROR, b"EINVAL\0"
        if len(payload) > xs_wire.PAYLOAD_MAX:
            type_, payload = MessageType.ERROR, b"E2BIG\0"
        return xs_wire.pack(type_, message.req_id, message.tx_id, payload)

    def _deliver(self) -> None:
        self._queue_events()
        self._flush_all()

    def _queue_events(self) -> None:
        for event in self.store.events():
            connection = self.connections.get(event.watch.session)
            if connection is not None:
                self._send_event(connection, event)

    def _send_event(self, connection: Connection, event: Event) -> None:
        path, token = event.path, event.watch.token
        if connection.domid == 0 and connection.unread > OUTPUT_LIMIT:
            path = event.watch.path.removeprefix(event.watch.prefix)
        payload = xs_wire.join([path, token])
        self._send(connection, xs_wire.pack(MessageType.WATCH_EVENT, 0, 0, payload), (path, token))

    def _send(self, connection: Connection, message: bytes, key: _EventKey | None = None) -> None:
        if connection.closed:
            return
        connection.send(message, key)
        self._unflushed.add(connection)
        if connection.domid != 0 and connection.unread > OUTPUT_LIMIT:
            self._disconnect(connection, "overflow", f"{connection.unread} B of replies and events unread")

    def _flush_all(self) -> None:
        while self._unflushed:
            self._flush(self._unflushed.pop())

    # One method a request: each returns the payload of its reply.

    def _directory(self, session: Session, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        return xs_wire.join(session.directory(path, message.tx_id))

    def _directory_part(self, session: Session, message: Message) -> bytes:
        path, offset = _strings(message, 2)
        node = session.node(path, message.tx_id)
        head = f"{node.generation}\0".encode()
        rest = xs_wire.join(node.children)[xs_wire.parse_number(offset) :] + b"\0"  # an empty string ends the list
        room = xs_wire.PAYLOAD_MAX - len(head)
        if len(rest) > room:
            rest = rest[: rest.rfind(b"\0", 0, room) + 1]
        return head + rest

    def _read(self, session: Session, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        return session.read(path, message.tx_id)

    def _write(self, session: Session, message: Message) -> bytes:
        path, nul, value = message.payload.partition(b"\0")
        if not nul:
            raise WireError("no value")
        session.write(xs_wire.text(path), value, message.tx_id)
        return _OK

    def _mkdir(self, session: Session, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        session.mkdir(path, message.tx_id)
        return _OK

    def _rm(self, session: Session, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        session.rm(path, message.tx_id)
        return _OK

    def _get_perms(self, session: Session, message: Message) -> bytes:
        (path,) = _strings(message, 1)
        return xs_wire.join(str(permission) for permission in session.get_perms(path, message.tx_id))

    def _set_perms(self, session: Session, message: Message) -> bytes:
        path, *permissions = _strings(message, 2, at_least=True)
        session.set_perms(path, [xs_wire.parse_permission(p) for p in permissions], message.tx_id)
        return _OK

    def _watch(self, session: Session, message: Message) -> bytes:
        path, token, *_ = _strings(message, 2, at_least=True)
        session.watch(path, token)
        return _OK

    def _unwatch(self, session: Session, message: Message) -> bytes:
        path, token, *_ = _strings(message, 2, at_least=True)
        session.unwatch(path, token)
        return _OK

    def _reset_watches(self, session: Session, message: Message) -> bytes:
        session.reset()
        return _OK

    def _transaction_start(self, session: Session, message: Message) -> bytes:
        if message.tx_id:
            raise StoreError("EBUSY", domain_path(session.domid), "transactions do not nest")
        return f"{session.transaction_start()}\0".encode()

    def _transaction_end(self, session: Session, message: Message) -> bytes:
        (outcome,) = _strings(message, 1)
        if outcome not in ("T", "F"):
            raise WireError(f"transaction ends in {outcome[:16]!r}")
        session.transaction_end(message.tx_id, outcome == "T")
        return _OK

    def _introduce(self, session: Session, message: Message) -> bytes:
        # The ring's frame and event channel that follow the domain id are not used: a domain has a socket instead.
        domid, *_ = _strings(message, 3, at_least=True)
        self.introduce(xs_wire.parse_domid(domid))
        return _OK

    def _release(self, session: Session, message: Message) -> bytes:
        (domid,) = _strings(message, 1)
        self.release(xs_wire.parse_domid(domid))
        return _OK

    def _resume(self, session: Session, message: Message) -> bytes:
        (domid,) = _strings(message, 1)
        if not self.store.is_introduced(xs_wire.parse_domid(domid)):
            raise StoreError("ENOENT", domain_path(int(domid)))
        return _OK

    def _get_domain_path(self, session: Session, message: Message) -> bytes:
        (domid,) = _strings(message, 1)
        return xs_wire.join([domain_path(xs_wire.parse_domid(domid))])

    def _is_domain_introduced(self, session: Session, message: Message) -> bytes:
        (domid,) = _strings(message, 1)
        return b"T\0" if self.store.is_introduced(xs_wire.parse_domid(domid)) else b"F\0"

    def _control(self, session: Session, message: Message) -> bytes:
        raise StoreError("EINVAL", "control", "no commands")


_REQUESTS: dict[int, Callable[[Xenstored, Session, Message], bytes]] = {
    MessageType.CONTROL: Xenstored._control,
    MessageType.DIRECTORY: Xenstored._directory,
    MessageType.DIRECTORY_PART: Xenstored._directory_part,
    MessageType.READ: Xenstored._read,
    MessageType.WRITE: Xenstored._write,
    MessageType.MKDIR: Xenstored._mkdir,
    MessageType.RM: Xenstored._rm,
    MessageType.GET_PERMS: Xenstored._get_perms,
    MessageType.SET_PERMS: Xenstored._set_perms,
    MessageType.WATCH: Xenstored._watch,
    MessageType.UNWATCH: Xenstored._unwatch,
    MessageType.RESET_WATCHES: Xenstored._reset_watches,
    MessageType.TRANSACTION_START: Xenstored._transaction_start,
    MessageType.TRANSACTION_END: Xenstored._transaction_end,
    MessageType.INTRODUCE: Xenstored._introduce,
    MessageType.RELEASE: Xenstored._release,
    MessageType.RESUME: Xenstored._resume,
    MessageType.GET_DOMAIN_PATH: Xenstored._get_domain_path,
    MessageType.IS_DOMAIN_INTRODUCED: Xenstored._is_domain_introduced,
}


_FOR_DOM0 = frozenset({MessageType.CONTROL, MessageType.INTRODUCE, MessageType.RELEASE, MessageType.RESUME, MessageType.SET_TARGET})


def _strings(message: Message, count: int, *, at_least: bool = False) -> Sequence[str]:
    """The strings of a request. Raises WireError unless there are `count` of them (or more, with `at_least`)."""
    payload = message.payload
    if message.type == MessageType.DIRECTORY_PART and not payload.endswith(b"\0"):
        payload += b"\0"  # xenstore.txt has the offset end with the message
    strings = xs_wire.split(payload)
    if len(strings) < count or (len(strings) > count and not at_least):
        raise WireError(f"{len(strings)} strings where {count} are due")
    return strings


def _bind(listener: socket.socket, path: str) -> None:
    """Bind, in place of a socket that nobody listens on any more if there is one."""
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if not stat.S_ISSOCK(os.stat(path).st_mode) or probe.connect_ex(path) != errno.ECONNREFUSED:
                raise
        os.unlink(path)
        listener.bind(path)
