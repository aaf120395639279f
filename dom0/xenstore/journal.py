"""The journal: what of the store outlives xenstored, in a file without a name (memfd) that the keeper holds for the next one.

Who owns what: the keeper makes the file and hands it to each xenstored, one after the other; it never looks into it. The living
xenstored alone reads and writes it. The next one is forked when the last one has been reaped, so nobody writes meanwhile. Watches,
transactions that have not ended, and conflict credit die with the connections they belong to.

::

    0        8        16                4096 (BODY)         begin              end
    +--------+--------+-----------------+-------------------+------------------+
    | MAGIC  | begin  | zeroes          | hole (punched)    | records          |  numbers little-endian
    +--------+--------+-----------------+-------------------+------------------+

    record   u32 length, u32 CRC-32 of length and payload, payload, zeroes up to 8 bytes; payload: a msgpack array of
             [PUT, path, generation, value, [domid, access, ...]]              a node; a new one is its parent's youngest child
             [NODE, path, generation, value, [domid, access, ...], [child, ...]]    the same of a snapshot, with its children
             [REMOVE, path]                                                    a node, and all below it
             [DOMAINS, [domid, ...]]                                           who is introduced

*A record is what one request has changed*, and a transaction's commit is one request. It is written before the request is
answered, by one pwrite: so what was answered is there, and of a request that was not it is there as a whole or not at all. A
process that is killed has written a record's beginning at most. Its length or CRC says so: it and what would be behind it are cut
off.

*Compaction* needs no second place. Its beginning is a position B in the same log; from there on every record brings besides its
own change some nodes as they are now (`NODE`). When all nodes that there were at B have come or been changed, the records from B
on say everything: `begin` is set to B by one write of 8 bytes, and what is before is given back, a piece with each record. Read
from the old `begin` or from B, it is the same tree at any time between: a node's last record is right, whoever wrote it. What a
node that has not come yet is changed by is applied to an empty one, which its NODE record, with all its children in their order,
completes.

*Who writes pays*: a record of n bytes brings PACE * n bytes of nodes, or STEP, and gives back as much. So a guest that writes
without end compacts in its own turns (turns.py), and nobody waits for a compaction; and there is a bound: begun at GROWTH times
the tree, or LEAST, it is done when half as much as the tree has been written besides. The tree is bounded by quotas (tree.py).

*Memory is full*: xenstored goes on without a journal, and says so in its log. `begin` is 0 then, and the memory is given back.
Requests are not refused: what takes rights away from a dead domain must never fail, and who has filled the memory would have
stopped everybody's set-up. Every RETRY records it is tried to begin again, which ends with a `begin` that counts. A xenstored that
finds 0 there does not start: it would have an old tree, or half of one.

=========================  ===================================================================================
killed                     the next one has
=========================  ===================================================================================
within a record            the tree without that request; its client was not answered, and asks again
before the answer is sent  the tree with it; its client asks again, and gets the same answer (hyp/xenstore/client.py)
within a compaction        the same tree: it reads the old records and the nodes behind them
between `begin` and holes  the same tree; it gives the rest back
before the first record    an empty one: nobody has been answered
=========================  ===================================================================================

That 8 bytes are there whole: a signal that kills is looked at between pages of a write, and before a process's next instruction.

Source: the log and checkpoint of Rosenblum and Ousterhout's log-structured file system (1992), in one stream.
"""

import errno
import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Protocol
from zlib import crc32

import msgpack

from dom0.xenstore.tree import Node, Put, Saved, parent_of
from hyp.abi.xs_wire import Access, Permission
from hyp.control.limited_log import LimitedLog
from hyp.linux import punch_hole

log = logging.getLogger(__name__)

MAGIC = b"xbl.log1"
BODY = 4096
LEAST, GROWTH = 256 << 10, 2
"""When compaction begins: so many bytes of records, and so many times as many as the tree takes."""
PACE, STEP = 2, 4096
RETRY = 256

PUT, NODE, REMOVE, DOMAINS = range(4)
_BEGIN = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<II")


class File(Protocol):
    """What holds a journal."""

    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def punch(self, offset: int, length: int) -> None: ...

    def cut(self, size: int) -> None: ...


class MemoryFile:
    """A memfd, which is this object's from here on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0 and (part := os.pread(self._fd, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """All of it. OSError if it can't be."""
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def punch(self, offset: int, length: int) -> None:
        punch_hole(self._fd, offset, length)

    def cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)


class JournalError(Exception):
    """There is a journal, and it doesn't say what the tree was."""


class Journal:
    """Of one store: `saved` is what its last one had, None if there was none. Then `follow`, then `commit` what has changed."""

    def __init__(self, file: File) -> None:
        self._file, self._log = file, LimitedLog(log, "the journal")
        self.saved: Saved | None = None
        self._nodes: Mapping[str, Node] = {}
        self._introduced: Set[int] = frozenset()
        self._begin = self._punched = self._end = BODY
        self._tree_bytes = 0  # by the last snapshot
        self._snapshot: _Snapshot | None = None
        self._lost = 0  # records that could not be written; 0: it is whole
        if file.size() > 0:
            self._restore()

    @property
    def length(self) -> int:
        """Bytes of records, those that are to be given back included."""
        return self._end - self._punched

    def follow(self, nodes: Mapping[str, Node], introduced: Set[int]) -> None:
        """What it is to say, now and by its snapshots: nodes, and which domains there are. A new journal says that at once."""
        self._nodes, self._introduced = nodes, introduced
        if self.saved is None:
            everything = ([NODE, path, *_contents(node), node.children] for path, node in nodes.items())
            self._append(_record([[DOMAINS, sorted(introduced)], *everything]))
            self._file.write(0, MAGIC + _BEGIN.pack(self._begin))

    def commit(self, puts: Sequence[Put], *, domains: bool = False) -> None:
        """One record: nodes, and who is introduced if that has changed (`domains`). The tree has them already."""
        if self._lost:
            self._lost += 1
            if self._snapshot is None and self._lost % RETRY:
                return
        own = _record(_changes(puts, self._introduced if domains else None))
        room = max(PACE * len(own), STEP)
        try:
            if self._snapshot is None and (self._lost or self._end - self._begin > max(LEAST, GROWTH * self._tree_bytes)):
                self._snapshot = _Snapshot(self._end, list(self._nodes))
                own += _record([[DOMAINS, sorted(self._introduced)]])
            if self._snapshot is None:
                self._append(own)
            else:
                self._append(own + self._snapshot.next(self._nodes, room))
                if self._snapshot.done:
                    self._switch(self._snapshot)
            self._give_back(room)
        except OSError as error:
            self._lose(error)

    def _append(self, records: bytes) -> None:
        self._file.write(self._end, records)
        self._end += len(records)

    def _switch(self, snapshot: "_Snapshot") -> None:
        """From here on it says everything."""
        self._file.write(len(MAGIC), _BEGIN.pack(snapshot.begin))
        self._begin, self._tree_bytes, self._snapshot = snapshot.begin, snapshot.bytes, None
        if self._lost:
            self._log.warning("it is whole again")
            self._lost = 0

    def _give_back(self, room: int) -> None:
        if self._punched < self._begin & -BODY:
            until = min(self._begin, self._punched + max(PACE * room, 1 << 20)) & -BODY  # a page is given back as a whole
            self._file.punch(self._punched, until - self._punched)
            self._punched = until

    def _lose(self, error: OSError) -> None:
        """No room for a record."""
        if not self._lost:
            self._log.error(f"it is not kept ({error.strerror}): if xenstored dies before it is, it is not started again")
        self._lost, self._snapshot = self._lost or 1, None
        self._file.write(len(MAGIC), _BEGIN.pack(0))  # in a page that is there
        self._file.cut(BODY)
        self._begin = self._punched = self._end = BODY

    # -- what another one has left --

    def _restore(self) -> None:
        """Read the records, and cut off what is none."""
        head = self._file.read(0, len(MAGIC) + _BEGIN.size)
        if not any(head):  # killed before the first record: nobody has been answered
            self._file.cut(0)
            return
        if len(head) < len(MAGIC) + _BEGIN.size or not head.startswith(MAGIC):
            raise JournalError("this is no journal")
        (self._begin,) = _BEGIN.unpack_from(head, len(MAGIC))
        if self._begin == 0:
            raise JournalError("the journal is not whole: there was no memory for it")
        size = self._file.size()
        replay = _Replay()
        for payload, end in _records(self._file.read(self._begin, size - self._begin)):
            replay.apply(msgpack.unpackb(payload, strict_map_key=False))
            self._end = self._begin + end
        self._file.cut(max(self._end, self._begin))
        self._end = max(self._end, self._begin)
        if self._begin > BODY:
            self._file.punch(BODY, self._begin - BODY)
        self._punched = self._begin & -BODY
        self.saved = replay.saved()
        self._tree_bytes = sum(len(path) + len(node.value) + 32 for path, node in self.saved.nodes.items())


class _Snapshot:
    """The nodes on their way into the log."""

    def __init__(self, begin: int, paths: list[str]) -> None:
        self.begin, self.bytes = begin, 0
        self._paths = iter(paths)
        self.done = False

    def next(self, nodes: Mapping[str, Node], room: int) -> bytes:
        """A record of some nodes, of `room` bytes and one node at most, unless there are none any more."""
        found: list[list[Any]] = []
        taken = 0
        for path in self._paths:
            if (node := nodes.get(path)) is not None:
                found.append([NODE, path, *_contents(node), node.children])
                taken += len(path) + len(node.value) + sum(map(len, node.children))
                if taken >= room:
                    break
        else:
            self.done = True
        record = _record(found) if found else b""
        self.bytes += len(record)
        return record


class _Entry:
    """A node while records are read; `there`: its own has come."""

    __slots__ = ("children", "generation", "permissions", "there", "value")

    def __init__(self) -> None:
        self.children: dict[str, None] = {}
        self.value, self.generation, self.there = b"", 0, False
        self.permissions: tuple[Permission, ...] = ()


class _Replay:
    """The tree that records make."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._introduced: set[int] = set()

    def apply(self, changes: list[list[Any]]) -> None:
        """A record."""
        for kind, *rest in changes:
            if kind == REMOVE:
                self._remove(rest[0])
            elif kind == DOMAINS:
                self._introduced = set(rest[0])
            else:
                entry = self._entry(rest[0])
                entry.generation, entry.value, numbers = rest[1:4]
                pairs = zip(numbers[::2], numbers[1::2], strict=True)
                entry.permissions = tuple(Permission(domid, Access(access)) for domid, access in pairs)
                entry.there = True
                if kind == NODE:
                    entry.children = dict.fromkeys(rest[4])

    def saved(self) -> Saved:
        """JournalError if they do not make one."""
        if "/" not in self._entries or not all(entry.there for entry in self._entries.values()):
            raise JournalError("the journal has gaps")
        nodes = {p: Node(e.value, e.permissions, tuple(e.children), e.generation) for p, e in self._entries.items()}
        return Saved(nodes, self._introduced)

    def _entry(self, path: str) -> _Entry:
        """That of a path, made if need be with those above it."""
        entry = self._entries.get(path)
        if entry is not None:
            return entry
        entry = self._entries[path] = _Entry()
        while path != "/":
            name, path = path.rpartition("/")[2], parent_of(path)
            above = self._entries.get(path)
            self._entries.setdefault(path, above or _Entry()).children[name] = None
            if above is not None:
                break
        return entry

    def _remove(self, path: str) -> None:
        above = self._entries.get(parent_of(path))
        if above is not None:
            above.children.pop(path.rpartition("/")[2], None)
        doomed = [path]
        for one in doomed:
            entry = self._entries.pop(one, None)
            if entry is not None:
                doomed += [f"{one}/{name}" for name in entry.children]


def _contents(node: Node) -> tuple[int, bytes, list[int]]:
    return node.generation, node.value, [number for p in node.permissions for number in (p.domid, int(p.access))]


def _changes(puts: Sequence[Put], introduced: Set[int] | None) -> list[list[Any]]:
    """What a record has to say of puts; not what goes with one above it."""
    changes: list[list[Any]] = [] if introduced is None else [[DOMAINS, sorted(introduced)]]
    gone = "\0"
    for path, node in puts:
        if node is not None:
            changes.append([PUT, path, *_contents(node)])
            gone = "\0"
        elif not path.startswith(gone):
            changes.append([REMOVE, path])
            gone = f"{path}/"
    return changes


def _record(changes: list[list[Any]]) -> bytes:
    payload: bytes = msgpack.packb(changes)
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _LENGTH.pack(crc32(payload, crc32(length))), payload, bytes(-len(payload) % 8)))


def _records(data: bytes) -> Iterator[tuple[memoryview, int]]:
    """Payloads of the whole records that there are, each with where it ends."""
    at, view = 0, memoryview(data)
    while at + _RECORD.size <= len(data):
        length, checksum = _RECORD.unpack_from(data, at)
        start, end = at + _RECORD.size, at + _RECORD.size + length
        at = end + -length % 8
        if length == 0 or at > len(data) or crc32(view[start:end], crc32(_LENGTH.pack(length))) != checksum:
            return
        yield view[start:end], at
