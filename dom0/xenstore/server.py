"""xenstored: the store, served over Xen's wire protocol.

Each connection is an AF_UNIX stream socket, and the domain it speaks for was decided by whoever made the socket.
Everything happens on the loop's thread, asyncio's or uvloop's.

What a client can cost the others is bounded. Of the time each has an equal share, in small turns (dom0/xenstore/turns.py). A
client's turn is its requests, one by one, and what these cause: before the events of one are out, for however many watches, the
next is not looked at. Of memory: its quota (dom0/xenstore/tree.py), and what a connection may hold (dom0/xenstore/connection.py). A
guest that makes Domain 0's transactions fail, or has it told of very much, has to wait (dom0/xenstore/credit.py).

What a request has changed is in the journal before it is answered (dom0/xenstore/journal.py): the next xenstored has it, if this
one dies.
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
from collections.abc import Iterator

from dom0.xenstore.connection import Connection
from dom0.xenstore.credit import CONFLICTS, EVENTS, Credit
from dom0.xenstore.journal import Journal
from dom0.xenstore.requests import answer
from dom0.xenstore.store import Store
from dom0.xenstore.tree import Change, Event, Watcher
from dom0.xenstore.turns import SLICE_NS, Turns, Worker
from hyp.abi.domids import DOM0
from hyp.abi.xs_wire import WireError
from hyp.control.descriptors import hang_up, refuse_descriptors, urgent_in_line
from hyp.control.limited_log import LimitedLog
from hyp.control.served import Served

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512  # beyond it a listening socket takes no more
WATCH_AGAIN_S = 0.1
_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid


class _Telling(Worker):
    """Tells watches of changes, one at a time, which domain `domid` has made."""

    def __init__(self, server: "Xenstored", domid: int, changes: deque[Change]) -> None:
        self._server, self._domid, self.changes = server, domid, changes
        self._events: Iterator[Event | None] = iter(())

    def work(self) -> bool:
        """A step. False if all have been told."""
        for event in self._events:
            if event is not None:
                self._server.tell(event, self._domid)
            return True
        self._events = self._server.store.events(self.changes)
        return bool(self.changes)


class _Client(Worker):
    """Serves a connection's requests."""

    def __init__(self, server: "Xenstored", connection: Connection) -> None:
        self._server, self.connection = server, connection
        self._telling = _Telling(server, connection.domid, connection.changes)

    def work(self) -> bool:
        """Tell a watch, also when the client has gone; or answer a request."""
        return self._telling.work() or self._server.serve_request(self.connection)


class Xenstored:
    """The server. Create and use it on a running event loop."""

    def __init__(self, store: Store | None = None, journal: Journal | None = None, served: Served | None = None) -> None:
        self.store = store if store is not None else Store(saved=journal.saved if journal else None)
        self.journal, self._served = journal, served or Served()
        if journal is not None:
            journal.follow(self.store.tree.nodes, self.store.introduced)
            self.store.tree.puts.clear()
        self.connections: dict[Watcher, Connection] = {}
        self.disconnects: Counter[str] = Counter()  # by cause: closed, malformed, error, removed, released
        self.turns = Turns(self._flush_all)
        self._log = LimitedLog(log, "xenstored")
        self._loop = asyncio.get_running_loop()
        self._clients: dict[Connection, _Client] = {}
        self._credits = {"conflicts": Credit(*CONFLICTS), "events": Credit(*EVENTS)}
        self._own = _Telling(self, DOM0, deque())  # of what no request has caused
        self._unflushed: set[Connection] = set()
        self._listeners: list[tuple[socket.socket, str]] = []
        self._expected: dict[int, list[socket.socket]] = {}  # connections of domains that are not introduced yet

    # What the toolstack calls.

    def add_connection(self, domid: int, sock: socket.socket) -> Connection:
        """Serve `sock`, a connected AF_UNIX stream socket, as domain `domid`. The socket is the server's from here."""
        sock.setblocking(False)
        urgent_in_line(sock)
        if domid != DOM0:
            refuse_descriptors(sock)
        connection = Connection(domid, sock, self.store.connect(domid), self._served.of(domid))
        self.connections[connection.session] = connection
        self._clients[connection] = _Client(self, connection)
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
        self._record(domains=True)
        for sock in self._expected.pop(domid, []):
            self.add_connection(domid, sock)
        self._tell_all()

    def release(self, domid: int) -> None:
        """A domain is gone: end its connections, remove what was its own, fire @releaseDomain.

        Raises StoreError EINVAL for Domain 0, ENOENT if it is not introduced.
        """
        for sock in self._expected.pop(domid, []):
            hang_up(sock)
        self.store.release(domid)
        self._record(domains=True)
        for connection in [c for c in self.connections.values() if c.domid == domid]:
            self._disconnect(connection, "released", "its domain was released")
        for credit in self._credits.values():
            credit.forget(domid)
        self._tell_all()

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
            hang_up(sock)
        self._expected.clear()
        for connection in list(self.connections.values()):
            self._disconnect(connection, "removed", "the server ends")

    # Sockets.

    def _accept(self, listener: socket.socket, domid: int) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            self._log.warning(f"no new connection: {error}")
            return
        _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid != os.geteuid():  # the file's mode keeps all but root out, if nobody changes it
            self._log.warning(f"connection refused, uid {uid} is not the topology's user")
            sock.close()
            return
        if len(self.connections) >= CONNECTIONS_MAX:
            self._log.warning(f"connection refused, {len(self.connections)} are open")
            sock.close()
            return
        self.add_connection(domid, sock)

    def _readable(self, connection: Connection) -> None:
        try:
            there = connection.receive()
        except OSError as error:
            self._disconnect(connection, "error", f"receiving: {error}")
            return
        if there:
            self._ready(connection)
        else:
            self._disconnect(connection, "closed", f"closed by the client, {connection.partial} bytes into a message")

    def _ready(self, connection: Connection) -> None:
        """It may have requests: it is in line for them."""
        connection.paused = False
        if not connection.closed:
            self.turns.ready(self._clients[connection])
        if not connection.closed:
            self._watch_socket(connection)

    def _flush(self, connection: Connection) -> None:
        congested = connection.congested
        try:
            connection.flush()
        except OSError as error:
            self._disconnect(connection, "error", f"sending: {error}")
            return
        if connection.unread and not connection.held and (wait_s := connection.debt.wait_s()) > 0:
            connection.held = True
            self._loop.call_later(wait_s, self._release_held, connection)
        if congested and not connection.congested:  # requests had to wait
            self._ready(connection)
        else:
            self._watch_socket(connection)

    def _release_held(self, connection: Connection) -> None:
        """It has paid off what it owed."""
        connection.held = False
        if not connection.closed:
            self._flush(connection)

    def _watch_socket(self, connection: Connection) -> None:
        """Read unless a request may wait, write if there is something left to write."""
        waits = connection.congested or connection.paused or self._clients[connection].waiting
        reading, writing = not waits, connection.unread > 0 and not connection.held
        try:
            if reading and not connection.reading:
                self._loop.add_reader(connection.sock, self._readable, connection)
            elif connection.reading and not reading:
                self._loop.remove_reader(connection.sock)
            connection.reading = reading
            if writing and not connection.writing:
                self._loop.add_writer(connection.sock, self._flush, connection)
            elif connection.writing and not writing:
                self._loop.remove_writer(connection.sock)
            connection.writing = writing
        except OSError as error:  # the user has all the epoll watches that he may have (fs.epoll.max_user_watches)
            self._log.error(f"{connection.sock} cannot be watched: {error.strerror}; tried again in {WATCH_AGAIN_S:g} s")
            self._loop.call_later(WATCH_AGAIN_S, self._watch_again, connection)

    def _watch_again(self, connection: Connection) -> None:
        if not connection.closed:
            self._watch_socket(connection)

    def _disconnect(self, connection: Connection, cause: str, text: str) -> None:
        if connection.closed:
            return
        connection.closed = True
        del self.connections[connection.session]
        client = self._clients.pop(connection)
        self._unflushed.discard(connection)
        self._loop.remove_reader(connection.sock)
        self._loop.remove_writer(connection.sock)
        hang_up(connection.sock)
        connection.session.close()
        self.disconnects[cause] += 1
        expected = cause in ("closed", "removed", "released")
        log.log(logging.INFO if expected else logging.WARNING, "domain %d disconnected: %s", connection.domid, text)
        self.turns.ready(client)  # of what it has done others are still to be told

    # Turns.

    def serve_request(self, connection: Connection) -> bool:
        """Answer a request. False if there is none, or it has to wait: for the client to read, or for its domain's credit."""
        if connection.closed or connection.congested or connection.paused:
            return False
        wait_s = max(connection.debt.wait_s(), *(credit.wait_s(connection.domid) for credit in self._credits.values()))
        if wait_s > 0:
            connection.paused = True
            self._loop.call_later(wait_s, self._ready, connection)
            self._unflushed.add(connection)
            return False
        try:
            message = connection.request()
        except WireError as error:
            self._disconnect(connection, "malformed", str(error))
            return False
        if message is None:
            self._unflushed.add(connection)  # it may be read from again
            return False
        with connection.debt.pays(SLICE_NS):
            reply = answer(connection.session, message, self)
            self._record()
        connection.send(reply)
        self._unflushed.add(connection)
        for domid in self.store.blamed:
            self._credits["conflicts"].debit(domid)
        self.store.blamed.clear()
        connection.changes.extend(self.store.tree.changes)
        self.store.tree.changes.clear()
        return True

    def _record(self, *, domains: bool = False) -> None:
        """Let the journal know what has changed since the last time, `domains` introduced or released included."""
        puts = self.store.tree.puts
        if self.journal is not None and (puts or domains):
            self.journal.commit(puts, domains=domains)
        puts.clear()

    def tell(self, event: Event, by: int) -> None:
        """Let a watch's client know of what domain `by` has done."""
        watch = event.watch
        connection = self.connections.get(watch.session)
        if connection is not None:
            if connection.domid == DOM0 != by and self.store.is_introduced(by):
                self._credits["events"].debit(by)
            connection.send_event(event.path, watch.token, watch.path.removeprefix(watch.prefix))
            self._unflushed.add(connection)

    def _tell_all(self) -> None:
        """Tell watches of what has changed outside of a request."""
        self._own.changes.extend(self.store.tree.changes)
        self.store.tree.changes.clear()
        if self._own.changes:
            self.turns.ready(self._own)

    def _flush_all(self) -> None:
        while self._unflushed:
            self._flush(self._unflushed.pop())


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
