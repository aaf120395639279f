"""The store behind xenstored: domains, their sessions, watches and quotas, on the tree (tree.py). No sockets, no clock.

A client is a `Session`: it speaks for one domain, and its watches and transactions end with it. Domain 0 is
privileged: no permission and no quota binds it. Every operation either happens or raises `StoreError` with the error's
xenstore name, and then has changed nothing. What watches have to be told is collected; `Store.events` hands it out.

Semantics: Xen's docs/misc/xenstore.txt. Errors per case are those of Xen's xenstored.
"""

import itertools
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import replace

from dom0.xenstore.tree import (
    Change,
    Event,
    Node,
    Quota,
    Saved,
    StoreError,
    Transaction,
    Tree,
    Watch,
    check_path,
    domain_path,
    parent_of,
)
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Access, Permission

# A watch event carries an absolute path and the token in one message.
TOKEN_MAX = xs_wire.PAYLOAD_MAX - xs_wire.ABS_PATH_MAX - 2
SPECIAL_WATCHES = (xs_wire.INTRODUCE_SPECIAL, xs_wire.RELEASE_SPECIAL)
DEFAULT_QUOTA = Quota()


class Store:
    """The tree, its domains and their watches. `saved`: what another one had when it died (journal.py)."""

    def __init__(self, quota: Quota = DEFAULT_QUOTA, saved: Saved | None = None) -> None:
        self.quota = quota
        self.tree = Tree(saved.nodes if saved else None)
        self.watches: dict[str, dict[int, dict[Watch, None]]] = {}  # by path and domain, in their order
        self.blamed: set[int] = set()
        """Guests that made transactions of Domain 0's fail; whoever looks after that takes them out."""
        self.sessions: set[Session] = set()
        self.introduced = set(saved.introduced) if saved else {0}
        # What a node has had since is less: who removes one gives a new number to the node above it
        self._generations = itertools.count(1 + max((node.generation for node in self.tree.nodes.values()), default=0))
        self.toolstack = self.connect(0)
        if saved is None:
            self.tree.put("/", Node(b"", (Permission(0, Access.NONE),), (), self.next_generation()), 0)
            for path in ("/tool", domain_path(0)):
                self.toolstack.mkdir(path)
            self.tree.changes.clear()

    def next_generation(self) -> int:
        """A number no node has had."""
        return next(self._generations)

    def connect(self, domid: int) -> "Session":
        """A new client that speaks for `domid`."""
        session = Session(self, domid)
        self.sessions.add(session)
        return session

    def is_introduced(self, domid: int) -> bool:
        return domid in self.introduced

    def introduce(self, domid: int) -> None:
        """A domain has been created: give it a home of its own, unless Domain 0 has prepared one.

        Raises EINVAL if `domid` is not a guest's, EEXIST if it is introduced already.
        """
        if not 0 < domid <= xs_wire.DOMID_MAX:
            raise StoreError("EINVAL", domain_path(domid), "not a guest's domain id")
        if domid in self.introduced:
            raise StoreError("EEXIST", domain_path(domid))
        self.introduced.add(domid)
        if self.tree.get(domain_path(domid)) is None:
            self.toolstack.mkdir(domain_path(domid))
            self.toolstack.set_perms(domain_path(domid), [Permission(domid, Access.NONE)])
        self.tree.changed(Change(xs_wire.INTRODUCE_SPECIAL, None))

    def release(self, domid: int) -> None:
        """A domain is gone: end its sessions, remove its home and all it owns, and whatever it was allowed elsewhere.

        The next domain with this id thus starts with nothing. EINVAL for Domain 0, ENOENT if it is not introduced.
        """
        if domid == 0:
            raise StoreError("EINVAL", domain_path(domid), "Domain 0 stays")
        if domid not in self.introduced:
            raise StoreError("ENOENT", domain_path(domid))
        self.introduced.remove(domid)
        for session in list(self.sessions):
            if session.domid == domid:
                session.close()
            for transaction in session.transactions.values():
                transaction.release(domid)
        for path in list(self.tree.nodes):
            node = self.tree.get(path)
            if node is None:
                continue  # went with one above it
            if node.owner == domid or path == domain_path(domid):
                self.toolstack.rm(path)
            elif any(permission.domid == domid for permission in node.permissions):
                kept = tuple(p for p in node.permissions if p.domid != domid)
                self.tree.put(path, replace(node, permissions=kept, generation=self.next_generation()), 0)
        self.tree.changed(Change(xs_wire.RELEASE_SPECIAL, None))

    def events(self, changes: deque[Change]) -> Iterator[Event | None]:
        """What watches are to be told of `changes`, in their order; each is taken out. None: nothing yet, after some work.

        Anything may happen while this is iterated.
        """
        while changes:
            change = changes.popleft()
            for watch in self._concerned(change):
                yield Event(watch, change.path.removeprefix(watch.prefix)) if watch is not None and watch.live else None

    def _concerned(self, change: Change) -> Iterator[Watch | None]:
        """Watches on the path and on those above it, of domains that may hear of it; None after each path.

        Those of others are not even looked at: who makes a change pays for telling it, and anybody may watch any path.
        """
        if change.only is not None:
            yield change.only
            return
        path, above = change.path, True
        while above:
            here = self.watches.get(path)
            for domid in self._named(change, here) if here else ():  # most paths have no watches
                if self._may_hear(domid, change):
                    yield from list(self.watches.get(path, {}).get(domid, ()))
            yield None
            above = not change.exact and path.startswith("/") and path != "/"
            path = parent_of(path)

    def _seen_by(self, change: Change) -> list[Node]:
        """Nodes that say who may hear of it: who can read that before or after, or see it come and go in its parent."""
        nodes = change.before, self.tree.get(change.path), self.tree.get(parent_of(change.path))
        return [node for node in nodes if node is not None]

    def _named(self, change: Change, here: Collection[int]) -> list[int]:
        """Of the domains with watches `here` those that a permission names; all if one is for whoever is not named."""
        seen_by = self._seen_by(change)
        if any(Access.READ in node.permissions[0].access for node in seen_by):
            return list(here)
        named = dict.fromkeys([0, *(permission.domid for node in seen_by for permission in node.permissions)])
        return [domid for domid in named if domid in here]

    def _may_hear(self, domid: int, change: Change) -> bool:
        return domid == 0 or any(Access.READ in node.access(domid) for node in self._seen_by(change))


class Session:
    """One client's view of the store. Paths may be relative to its domain's home; `tx` is 0 or one of its transactions.

    Every method raises StoreError: EINVAL for a bad path, EACCES without permission (also where a node does not exist,
    if the domain may not know that), ENOENT for an unknown transaction, and what its own text says.
    """

    def __init__(self, store: Store, domid: int) -> None:
        self.store, self.domid = store, domid
        self.watches: dict[tuple[str, str], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self._transaction_ids = itertools.count(1)
        self._quota = store.quota if domid else None

    def close(self) -> None:
        """Forget its watches and transactions."""
        self.reset()
        self.store.sessions.discard(self)

    def reset(self) -> None:
        """RESET_WATCHES: drop all watches and transactions."""
        for watch in list(self.watches.values()):
            self._drop(watch)
        for transaction in self.transactions.values():
            transaction.close()
        self.transactions.clear()

    # Nodes.

    def read(self, path: str, tx: int = 0) -> bytes:
        """A node's value. ENOENT."""
        return self._readable(path, tx).value

    def directory(self, path: str, tx: int = 0) -> tuple[str, ...]:
        """Names of a node's children, oldest first. ENOENT."""
        return self._readable(path, tx).children

    def node(self, path: str, tx: int = 0) -> Node:
        """The node itself: its children together with the generation that says if they have changed. ENOENT."""
        return self._readable(path, tx)

    def get_perms(self, path: str, tx: int = 0) -> tuple[Permission, ...]:
        """A node's permissions, its owner's entry first. ENOENT."""
        return self._readable(path, tx).permissions

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        """Set a node's value; creates it, and its parents, if need be. ENOSPC if a quota is used up."""
        path, tree = self._resolve(path), self._tree(tx)
        if self._quota is not None and len(value) > self._quota.value_bytes:
            raise StoreError("ENOSPC", path, f"value of {len(value)} bytes")
        node = self._writable(tree, path)
        if node is None:
            self._create(tree, path, value)
        else:
            tree.put(path, replace(node, value=value, generation=self.store.next_generation()), self.domid)
        tree.changed(Change(path, node))

    def mkdir(self, path: str, tx: int = 0) -> None:
        """Create a node and its parents, if they are not there. ENOSPC if a quota is used up."""
        path, tree = self._resolve(path), self._tree(tx)
        if self._writable(tree, path) is None:
            self._create(tree, path, b"")
            tree.changed(Change(path, None))

    def rm(self, path: str, tx: int = 0) -> None:
        """Remove a node, if it is there, and all below it. EINVAL for the root, ENOENT if its parent is not there."""
        path, tree = self._resolve(path), self._tree(tx)
        if path == "/":
            raise StoreError("EINVAL", path, "the root stays")
        node, parent = self._writable(tree, path), tree.get(parent_of(path))
        if parent is None:
            raise StoreError("ENOENT", parent_of(path))
        if node is None:
            return
        doomed = self._subtree(tree, path, node)
        name = path.rpartition("/")[2]
        children = tuple(child for child in parent.children if child != name)
        tree.put(parent_of(path), replace(parent, children=children, generation=self.store.next_generation()), self.domid)
        for below, gone in doomed:
            tree.put(below, None, self.domid)
            tree.changed(Change(below, gone, exact=below != path))

    def set_perms(self, path: str, permissions: list[Permission], tx: int = 0) -> None:
        """Replace a node's permissions; for its owner or Domain 0.

        What a guest gives to a domain that there isn't is given to nobody, so that no later one of that number has it.

        ENOENT; EPERM if an owner gives it away; ENOSPC for too many; EINVAL for none, or for a guest to own the root.
        """
        path, tree = self._resolve(path), self._tree(tx)
        if not permissions or (path == "/" and permissions[0].domid != 0):
            raise StoreError("EINVAL", path, "not permissions for this node")
        if self._quota is not None and len(permissions) > self._quota.permissions:
            raise StoreError("ENOSPC", path, f"{len(permissions)} permissions")
        node = self._writable(tree, path)
        if node is None:
            raise StoreError("ENOENT", path)
        if self.domid not in (0, node.owner):
            raise StoreError("EACCES", path, "not the owner")
        if self.domid and permissions[0].domid != node.owner:
            raise StoreError("EPERM", path, "only Domain 0 changes an owner")
        if self.domid:
            permissions = [one for k, one in enumerate(permissions) if k == 0 or self.store.is_introduced(one.domid)]
        tree.put(path, replace(node, permissions=tuple(permissions), generation=self.store.next_generation()), self.domid)
        tree.changed(Change(path, node))

    # Watches.

    def watch(self, path: str, token: str) -> None:
        """Register a watch; it fires at once. EEXIST, or E2BIG if a quota is used up or the token too long."""
        if len(xs_wire.encode(token)) > TOKEN_MAX:
            raise StoreError("E2BIG", path, "token too long")
        absolute = path if path in SPECIAL_WATCHES else self._resolve(path)
        if absolute in SPECIAL_WATCHES and self.domid:
            raise StoreError("EACCES", path)
        if (path, token) in self.watches:
            raise StoreError("EEXIST", path)
        if self._quota is not None and self._in_use("watches") >= self._quota.watches:
            raise StoreError("E2BIG", path, "too many watches")
        prefix = absolute[: len(absolute) - len(path)]
        watch = self.watches[path, token] = Watch(self, absolute, token, prefix)
        self.store.watches.setdefault(absolute, {}).setdefault(self.domid, {})[watch] = None
        self.store.tree.changed(Change(absolute, None, only=watch))

    def unwatch(self, path: str, token: str) -> None:
        """Remove a watch, named as it was registered. ENOENT."""
        watch = self.watches.get((path, token))
        if watch is None:
            raise StoreError("ENOENT", path, "no such watch")
        self._drop(watch)

    # Transactions.

    def transaction_start(self) -> int:
        """A new transaction's id. ENOSPC if a quota is used up."""
        if self._quota is not None and self._in_use("transactions") >= self._quota.transactions:
            raise StoreError("ENOSPC", domain_path(self.domid), "too many transactions")
        tx = next(i for n in self._transaction_ids if (i := n & 0xFFFF_FFFF) not in (0, *self.transactions))
        limit = self._quota.transaction_nodes if self._quota is not None else None
        self.transactions[tx] = Transaction(self.store.tree, limit)
        return tx

    def transaction_end(self, tx: int, commit: bool) -> None:
        """End a transaction, whatever the outcome. EAGAIN if it conflicts with what happened since, ENOSPC, ENOENT."""
        transaction = self.transactions.pop(tx, None)
        if transaction is None:
            raise StoreError("ENOENT", domain_path(self.domid), f"no transaction {tx}")
        try:
            if commit:
                transaction.commit(self.domid, self._quota)
        except StoreError as error:
            if error.name == "EAGAIN" and self.domid == 0:
                self.store.blamed |= transaction.spoilers - {0}
            raise
        finally:
            transaction.close()

    # Below: paths and permissions.

    def _in_use(self, what: str) -> int:
        return sum(len(getattr(session, what)) for session in self.store.sessions if session.domid == self.domid)

    def _drop(self, watch: Watch) -> None:
        watch.live = False
        del self.watches[watch.path.removeprefix(watch.prefix), watch.token]
        here = self.store.watches[watch.path]
        del here[self.domid][watch]
        if not here[self.domid]:
            del here[self.domid]
        if not here:
            del self.store.watches[watch.path]

    def _resolve(self, path: str) -> str:
        """The absolute path, checked."""
        if not path.startswith("/"):
            if path.startswith("@") or len(path) > xs_wire.REL_PATH_MAX:
                raise StoreError("EINVAL", path, "not a path")
            path = f"{domain_path(self.domid)}/{path}"
        check_path(path)
        if self._quota is not None and path.count("/") > self._quota.levels:
            raise StoreError("EINVAL", path, f"more than {self._quota.levels} levels")
        return path

    def _tree(self, tx: int) -> Tree | Transaction:
        if tx == 0:
            return self.store.tree
        if tx not in self.transactions:
            raise StoreError("ENOENT", domain_path(self.domid), f"no transaction {tx}")
        return self.transactions[tx]

    def _readable(self, path: str, tx: int) -> Node:
        path, tree = self._resolve(path), self._tree(tx)
        node = self._permitted(tree, path, Access.READ)
        if node is None:
            raise StoreError("ENOENT", path)
        return node

    def _writable(self, tree: Tree | Transaction, path: str) -> Node | None:
        return self._permitted(tree, path, Access.WRITE)

    def _permitted(self, tree: Tree | Transaction, path: str, access: Access) -> Node | None:
        """The node, or None: then the nearest ancestor's permissions count. EACCES without permission."""
        node = tree.get(path)
        judge, at = node, path
        while judge is None:
            at = parent_of(at)
            judge = tree.get(at)
        if access not in judge.access(self.domid):
            raise StoreError("EACCES", path)
        return node

    def _create(self, tree: Tree | Transaction, path: str, value: bytes) -> None:
        """Add a node and its missing parents. They inherit permissions; what a guest creates is its own."""
        missing, at = [path], parent_of(path)
        while (ancestor := tree.get(at)) is None:
            missing.append(at)
            at = parent_of(at)
        permissions = ancestor.permissions
        if self._quota is not None:
            permissions = (permissions[0]._replace(domid=self.domid), *permissions[1:])
            if tree.nodes_owned(self.domid) + len(missing) > self._quota.nodes:
                raise StoreError("ENOSPC", path, "too many nodes")
        name = missing[-1].rpartition("/")[2]
        children = (*ancestor.children, name)
        tree.put(at, replace(ancestor, children=children, generation=self.store.next_generation()), self.domid)
        for index, new in enumerate(missing):
            below = () if index == 0 else (missing[index - 1].rpartition("/")[2],)
            tree.put(new, Node(value if index == 0 else b"", permissions, below, self.store.next_generation()), self.domid)

    def _subtree(self, tree: Tree | Transaction, path: str, node: Node) -> list[tuple[str, Node]]:
        """A node and all below it, parents first."""
        found = [(path, node)]
        for above, inner in found:
            for name in inner.children:
                below = f"{above}/{name}"
                child = tree.get(below)
                if child is None:  # removed since this transaction saw the parent
                    raise StoreError("EAGAIN", below)
                found.append((below, child))
        return found
