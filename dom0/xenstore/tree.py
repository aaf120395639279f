"""The versioned tree of the store: nodes with permissions, what happened to them, and transactions on them.

A node is replaced, never altered. A transaction therefore needs no copy of the store: it remembers which node objects
it has seen, and at its end a path where the store has another object than the one seen is a conflict (EAGAIN). A node
includes the names of its children, so that two transactions that each add a child to one parent conflict, as in Xen.
What a transaction reads may mix two states of the store if others write meanwhile; then it will not be committed.

Who may do what is decided above, in dom0/xenstore/store.py.
"""

import re
from collections import Counter, deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hyp.abi import xs_wire
from hyp.abi.xs_wire import Access, Permission

_PATH = re.compile(r"/|(?:/[-A-Za-z0-9_@]+)+")


class StoreError(Exception):
    """An operation was refused: `name` is the xenstore error name (``ENOENT``), `path` what it was about."""

    def __init__(self, name: str, path: str, reason: str = "") -> None:
        super().__init__(f"{name}: {path}" + (f" ({reason})" if reason else ""))
        self.name, self.path = name, path


@dataclass(frozen=True, slots=True)
class Quota:
    """What one unprivileged domain may use at most, over all its sessions. Names and values as in Xen's xenstored."""

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    value_bytes: int = 2048
    permissions: int = 5
    transaction_nodes: int = 1024  # different paths one transaction may touch
    levels: int = 64  # of a path; not Xen's: to make, or look for, a path of a thousand is the work of many turns


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node as it was at one time; compared by identity."""

    value: bytes
    permissions: tuple[Permission, ...]
    children: tuple[str, ...]
    generation: int

    @property
    def owner(self) -> int:
        """The domain it belongs to."""
        return self.permissions[0].domid

    def access(self, domid: int) -> Access:
        """What `domid` may do with this node."""
        if domid in (0, self.owner):
            return Access.BOTH
        for permission in self.permissions[1:]:
            if permission.domid == domid:
                return permission.access
        return self.permissions[0].access


class Watcher(Protocol):
    """Who has watches: a session (store.py) of a domain."""

    domid: int


@dataclass(slots=True, eq=False)
class Watch:
    """A registered watch: absolute path, the client's token, and the prefix its events' paths are stripped of."""

    session: Watcher
    path: str
    token: str
    prefix: str
    live: bool = True


class Event(NamedTuple):
    """One firing: `path` is as the client is to be told, relative if it watches a relative path."""

    watch: Watch
    path: str


class Change(NamedTuple):
    """What happened to a node: `before` is what it was, None if it was not there. `only`: for this watch alone."""

    path: str
    before: Node | None
    exact: bool = False  # part of a removed subtree: only watches on this very path hear of it
    only: Watch | None = None


Put = tuple[str, Node | None]
"""A path, and the node that is there now; None: it is gone, with all that was below it."""


class Saved(NamedTuple):
    """What of a store outlives its process: the nodes, and which domains are introduced."""

    nodes: dict[str, Node]
    introduced: set[int]


def parent_of(path: str) -> str:
    """The path one level up; the root's is the root."""
    return path.rpartition("/")[0] or "/"


def domain_path(domid: int) -> str:
    """Home of a domain, which its relative paths start from."""
    return f"/local/domain/{domid}"


def check_path(path: str) -> None:
    """EINVAL if this is not an absolute path."""
    if len(path) > xs_wire.ABS_PATH_MAX or not _PATH.fullmatch(path):
        raise StoreError("EINVAL", path, "not a path")


class Tree:
    """The committed nodes, who owns how many, and the changes that watches have not been told of."""

    def __init__(self, nodes: dict[str, Node] | None = None) -> None:
        self.nodes: dict[str, Node] = nodes or {}
        self.owned: Counter[int] = Counter(node.owner for node in self.nodes.values())
        self.changes: deque[Change] = deque()
        self.puts: list[Put] = []
        """Since the journal was told last (journal.py); whoever tells it takes them out."""
        self.seen: dict[str, set[Transaction]] = {}
        """Which open transactions have seen a path."""

    def get(self, path: str) -> Node | None:
        """The node at a path, or None."""
        return self.nodes.get(path)

    def put(self, path: str, node: Node | None, domid: int) -> None:
        """Set the node at a path, for domain `domid`; None removes it."""
        for transaction in self.seen.get(path, ()):
            transaction.spoilers.add(domid)
        before = self.nodes.pop(path, None) if node is None else self.nodes.get(path)
        if before is not None or node is not None:
            self.puts.append((path, node))
        if before is not None:
            self.owned[before.owner] -= 1
        if node is not None:
            self.nodes[path] = node
            self.owned[node.owner] += 1

    def nodes_owned(self, domid: int) -> int:
        """How many nodes belong to a domain."""
        return self.owned[domid]

    def changed(self, change: Change) -> None:
        """Watches are to be told."""
        self.changes.append(change)


class Transaction:
    """What one transaction has seen of the tree, and would put in its place. Whoever has one has to `close` it."""

    def __init__(self, tree: Tree, limit: int | None) -> None:
        self._tree, self._limit = tree, limit
        self._seen: dict[str, Node | None] = {}
        self._written: dict[str, Node | None] = {}
        self._remade: set[str] = set()  # removed, and made once more
        self._owned: Counter[int] = Counter()
        self._changes: dict[str, Change] = {}
        self._void = False
        self.spoilers: set[int] = set()
        """Domains that have since written what it has seen."""

    def get(self, path: str) -> Node | None:
        """The node at a path as this transaction sees it. ENOSPC if it touches too many."""
        if path in self._written:
            return self._written[path]
        if path not in self._seen:
            if self._limit is not None and len(self._seen) >= self._limit:
                raise StoreError("ENOSPC", path, "transaction touches too many nodes")
            self._seen[path] = self._tree.get(path)
            self._tree.seen.setdefault(path, set()).add(self)
        return self._seen[path]

    def put(self, path: str, node: Node | None, domid: int) -> None:
        """Set the node at a path, for this transaction; None removes it. ENOSPC as `get`."""
        before = self.get(path)
        if before is not None:
            self._owned[before.owner] -= 1
        if node is not None:
            self._owned[node.owner] += 1
            if before is None and self._written.pop(path, self) is None:  # again: it is its parent's youngest child now
                self._remade.add(path)
        self._written[path] = node

    def nodes_owned(self, domid: int) -> int:
        """How many nodes would belong to a domain if it were committed now."""
        return self._tree.owned[domid] + self._owned[domid]

    def changed(self, change: Change) -> None:
        """Watches are to be told once it is committed."""
        # Once per path, however often it is written: a transaction's memory is bounded by the paths it touches.
        first = self._changes.pop(change.path, None)
        self._changes[change.path] = change if first is None else change._replace(before=first.before)

    def commit(self, domid: int, quota: Quota | None) -> None:
        """Make it so. Raises EAGAIN upon a conflict, ENOSPC if `domid` would end up with more nodes than its quota."""
        if self._void:
            raise StoreError("EAGAIN", domain_path(domid), "a domain that it has written of has been released")
        for path, node in self._seen.items():
            if self._tree.get(path) is not node:
                raise StoreError("EAGAIN", path)
        if quota is not None and self._owned[domid] > 0 and self.nodes_owned(domid) > quota.nodes:
            raise StoreError("ENOSPC", domain_path(domid), "too many nodes")
        for path, node in self._written.items():
            if node is None or path in self._remade:
                self._tree.put(path, None, domid)
        for path, node in self._written.items():
            if node is not None:
                self._tree.put(path, node, domid)
        self._tree.changes.extend(self._changes.values())

    def release(self, domid: int) -> None:
        """A domain is gone: what it was given here, or owns, must not come to the next one of that number."""
        for node in self._written.values():
            self._void |= node is not None and any(permission.domid == domid for permission in node.permissions)

    def close(self) -> None:
        """It has ended, one way or another."""
        for path in self._seen:
            others = self._tree.seen[path]
            others.discard(self)
            if not others:
                del self._tree.seen[path]
