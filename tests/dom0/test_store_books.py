"""The pure store's books: quotas, domains that come and go under one number, and any sequence of operations."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.xenstore.store import Session, Store
from dom0.xenstore.tree import Node, Quota, domain_path, parent_of
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Access, Permission
from tests.support.stores import GUEST, OTHER, attempt, perms, refused

# Quotas: small, to see each of them bite.


SMALL = Quota(nodes=10, watches=3, transactions=2, value_bytes=16, permissions=5, transaction_nodes=6)


@pytest.fixture
def tight() -> Session:
    store = Store(SMALL)
    store.introduce(GUEST)
    return store.connect(GUEST)


def test_node_quota_counts_whole_paths_and_leaves_nothing_half_made(tight: Session) -> None:
    before = dict(tight.store.tree.nodes)
    refused("ENOSPC", tight.write, "/".join("abcdefghij"), b"")
    assert tight.store.tree.nodes == before
    for name in "abcdefghi":  # and its home makes ten
        tight.mkdir(name)
    refused("ENOSPC", tight.mkdir, "j")
    tight.write("a", b"still allowed")
    tight.rm("b")
    tight.mkdir("j")


def test_node_quota_cannot_be_beaten_by_parallel_transactions(tight: Session) -> None:
    for name in "abc":
        tight.mkdir(name)
    first, second = tight.transaction_start(), tight.transaction_start()
    for tx, parent in ((first, "a"), (second, "b")):
        for name in "12345":
            assert attempt(tight.mkdir, f"{parent}/{name}", tx) in ("", "ENOSPC")
    tight.transaction_end(first, True)
    refused("ENOSPC", tight.transaction_end, second, True)
    assert tight.store.tree.owned[GUEST] <= SMALL.nodes


def test_value_watch_and_transaction_quotas(tight: Session) -> None:
    tight.write("a", b"x" * 16)
    refused("ENOSPC", tight.write, "a", b"x" * 17)
    for token in "123":
        tight.watch("a", token)
    refused("E2BIG", tight.watch, "a", "4")
    refused("E2BIG", tight.store.connect(GUEST).watch, "a", "4")  # a second connection is the same domain
    tight.unwatch("a", "1")
    tight.watch("a", "4")
    tight.transaction_start()
    tx = tight.transaction_start()
    refused("ENOSPC", tight.transaction_start)
    tight.transaction_end(tx, False)


def test_what_a_transaction_remembers_is_bounded(tight: Session) -> None:
    tx = tight.transaction_start()
    for number in range(SMALL.transaction_nodes - 1):  # and its home, which each of these is judged by
        refused("ENOENT", tight.read, f"none{number}", tx)
    refused("ENOSPC", tight.read, "one-more", tx)
    refused("ENOENT", tight.read, "none0", tx)


def test_domain_0_has_no_quota(tight: Session) -> None:
    dom0 = tight.store.connect(0)
    tx = dom0.transaction_start()
    for number in range(20):
        dom0.write(f"/local/domain/5/{number}", b"x" * 100, tx)
        dom0.watch(f"/{number}", "t")
        dom0.transaction_start()
    dom0.transaction_end(tx, True)
    assert tight.store.tree.owned[GUEST] == 21
    refused("ENOSPC", tight.mkdir, "mine")


# Domains.


def test_introduce_and_release(store: Store, dom0: Session) -> None:
    store.introduce(7)
    assert [str(p) for p in dom0.get_perms(domain_path(7))] == ["n7"]
    refused("EEXIST", store.introduce, 7)
    for domid in (0, -1, xs_wire.DOMID_MAX + 1):
        refused("EINVAL", store.introduce, domid)
    store.release(7)
    assert not store.is_introduced(7)
    refused("ENOENT", dom0.read, domain_path(7))
    refused("ENOENT", store.release, 7)
    refused("EINVAL", store.release, 0)


def test_introduce_keeps_a_home_that_domain_0_prepared(store: Store, dom0: Session) -> None:
    dom0.write("/local/domain/7/name", b"web")
    dom0.set_perms("/local/domain/7", perms("n0", "r7"))
    store.introduce(7)
    assert dom0.read("/local/domain/7/name") == b"web"
    assert [str(p) for p in dom0.get_perms("/local/domain/7")] == ["n0", "r7"]


def test_the_next_domain_with_an_id_inherits_nothing(store: Store, guest: Session, other: Session, dom0: Session) -> None:
    dom0.write("/local/domain/0/backend/vif/5/0/state", b"2")
    dom0.set_perms("/local/domain/0/backend/vif/5/0/state", perms("n0", "r5"))
    other.mkdir("inbox")
    other.set_perms("inbox", perms("n6", "b5"))
    guest.write("/local/domain/6/inbox/mine/deep", b"")
    guest.watch("a", "t")
    guest.transaction_start()
    store.release(GUEST)
    store.introduce(GUEST)
    heir = store.connect(GUEST)
    refused("EACCES", heir.read, "/local/domain/0/backend/vif/5/0/state")
    refused("EACCES", heir.directory, "/local/domain/6/inbox")
    assert other.directory("inbox") == ()
    assert dom0.read("/local/domain/0/backend/vif/5/0/state") == b"2"
    assert store.watches == {}
    assert store.tree.owned[GUEST] == 1
    check_invariants(store)


def test_what_a_transaction_has_given_a_domain_does_not_come_to_the_next_one(store: Store, other: Session, dom0: Session) -> None:
    """Xen's advisory XSA-322, by way of transactions that are open when the domain goes: of a guest's and of Domain 0's."""
    other.mkdir("inbox")
    for session, path, owner in ((other, "inbox", "n6"), (dom0, "/tool/theirs", "n0")):
        tx = session.transaction_start()
        session.mkdir(path, tx)
        session.set_perms(path, perms(owner, "b5"), tx)
        store.release(GUEST)
        store.introduce(GUEST)
        refused("EAGAIN", session.transaction_end, tx, True)
    tx = dom0.transaction_start()
    dom0.mkdir("/tool/owned", tx)
    dom0.set_perms("/tool/owned", perms("n5"), tx)
    store.release(GUEST)
    refused("EAGAIN", dom0.transaction_end, tx, True)
    store.introduce(GUEST)
    refused("EACCES", store.connect(GUEST).directory, "/local/domain/6/inbox")
    check_invariants(store)


def test_what_a_guest_gives_to_a_domain_that_is_not_there_is_nobodys(store: Store, other: Session, dom0: Session) -> None:
    other.mkdir("inbox")
    other.set_perms("inbox", perms("n6", "b5", "b7"))
    assert [str(one) for one in other.get_perms("inbox")] == ["n6", "b5"]
    dom0.mkdir("/tool/prepared")
    dom0.set_perms("/tool/prepared", perms("n0", "r7"))  # the toolstack's: before the domain there are its nodes
    store.introduce(7)
    refused("EACCES", store.connect(7).directory, "/local/domain/6/inbox")
    assert store.connect(7).directory("/tool/prepared") == ()


# Anything at all: only StoreError, and the books stay in order.


def check_invariants(store: Store) -> None:
    nodes = store.tree.nodes
    owned = Counter(node.owner for node in nodes.values())
    assert +store.tree.owned == +owned
    listed = {"/"}
    for path, node in nodes.items():
        assert len(set(node.children)) == len(node.children)
        listed |= {f"{path}/{name}".replace("//", "/") for name in node.children}
        assert parent_of(path) in nodes
    assert listed == set(nodes)
    live = sorted((w.path, w.token) for session in store.sessions for w in session.watches.values())
    assert sorted((w.path, w.token) for domains in store.watches.values() for watches in domains.values() for w in watches) == live


OPERATIONS = ["write", "mkdir", "rm", "perms", "watch", "unwatch", "read", "start", "commit", "abort", "release"]
PATHS = ["a", "a/b", "a/b/c", "d", "/local/domain/5/a", "/local/domain/6/a/b", "/local/domain/0/x", "/", "/tool", "b//"]
PERMS = [perms("n5"), perms("b5", "b6"), perms("n6", "r5"), perms("n0", "b5", "b6"), []]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS),
        st.sampled_from([0, GUEST, OTHER]),
        st.sampled_from(PATHS),
        st.integers(0, 3),
        st.sampled_from(PERMS),
    ),
    max_size=60,
)


Step = tuple[str, int, str, int, list[Permission]]


def run_step(store: Store, sessions: dict[int, Session], step: Step) -> None:
    name, domid, path, n, permissions = step
    session = sessions[domid]
    tx = n if n in session.transactions else 0
    if name == "release" and domid:
        store.release(domid)
        store.introduce(domid)
        sessions[domid] = store.connect(domid)
        return
    operations: dict[str, Callable[[], object]] = {
        "write": lambda: session.write(path, b"x" * n * 6, tx),
        "mkdir": lambda: session.mkdir(path, tx),
        "rm": lambda: session.rm(path, tx),
        "perms": lambda: session.set_perms(path, permissions, tx),
        "watch": lambda: session.watch(path, str(n)),
        "unwatch": lambda: session.unwatch(path, str(n)),
        "read": lambda: session.directory(path, tx),
        "start": session.transaction_start,
        "commit": lambda: session.transaction_end(n, True),
        "abort": lambda: session.transaction_end(n, False),
        "release": lambda: store.release(domid),
    }
    operations[name]()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_any_sequence_keeps_the_books_in_order(steps: list[Step]) -> None:
    store = Store(Quota(nodes=8, watches=3, transactions=2, value_bytes=16, transaction_nodes=12))
    for domid in (GUEST, OTHER):
        store.introduce(domid)
    sessions = {domid: store.connect(domid) for domid in (0, GUEST, OTHER)}
    for each in steps:
        before = dict(store.tree.nodes)
        error = attempt(run_step, store, sessions, each)
        assert error in xs_wire.ERROR_NAMES | {""}
        assert not error or store.tree.nodes == before, "a refused operation changes nothing"
        list(store.events(store.tree.changes))
        check_invariants(store)


def test_access_of_owner_and_domain_0_cannot_be_taken() -> None:
    node = Node(b"", tuple(perms("n5", "n0", "n5", "r6", "w6")), (), 1)
    assert node.access(0) == node.access(5) == Access.BOTH
    assert node.access(6) == Access.READ, "the first entry for a domain counts"
    assert node.access(7) == Access.NONE
