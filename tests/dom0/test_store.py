"""The pure store: permissions, watches, transactions, quotas, and what a hostile domain may try with them."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.xenstore.store import TOKEN_MAX, Session, Store
from dom0.xenstore.tree import Node, Quota, StoreError, domain_path, parent_of
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Access, Permission, parse_permission

GUEST, OTHER = 5, 6


def refused(name: str, operation: Callable[..., object], *args: object) -> None:
    with pytest.raises(StoreError) as caught:
        operation(*args)
    assert caught.value.name == name


def attempt(operation: Callable[..., object], *args: object) -> str:
    """The error's name, or nothing."""
    try:
        operation(*args)
    except StoreError as error:
        return error.name
    return ""


def perms(*strings: str) -> list[Permission]:
    return [parse_permission(string) for string in strings]


def fired(store: Store) -> list[tuple[str, str]]:
    """(path, token) of everything watches are to be told."""
    return [(event.path, event.watch.token) for event in store.events(store.tree.changes) if event is not None]


@pytest.fixture
def store() -> Store:
    store = Store()
    for domid in (GUEST, OTHER):
        store.introduce(domid)
    assert fired(store) == []
    return store


@pytest.fixture
def dom0(store: Store) -> Session:
    return store.connect(0)


@pytest.fixture
def guest(store: Store) -> Session:
    return store.connect(GUEST)


@pytest.fixture
def other(store: Store) -> Session:
    return store.connect(OTHER)


# Nodes and paths.


def test_write_creates_parents_and_directory_lists_in_order(guest: Session) -> None:
    guest.write("device/vif/0/mac", b"00:16\x00\xff")
    guest.write("device/vif/0/state", b"1")
    assert guest.read("/local/domain/5/device/vif/0/mac") == b"00:16\x00\xff"
    assert guest.directory("device/vif/0") == ("mac", "state")
    assert guest.read("device") == b""
    guest.mkdir("device")
    assert guest.directory("device") == ("vif",), "mkdir of a node that is there changes nothing"


def test_rm_takes_the_subtree_and_needs_a_parent(guest: Session, store: Store) -> None:
    guest.write("a/b/c", b"")
    owned = store.tree.owned[GUEST]
    guest.rm("a/b")
    assert guest.directory("a") == ()
    assert store.tree.owned[GUEST] == owned - 2
    refused("ENOENT", guest.read, "a/b/c")
    guest.rm("a/b")
    refused("ENOENT", guest.rm, "a/b/c")
    refused("EINVAL", store.connect(0).rm, "/")


@pytest.mark.parametrize(
    "path",
    ["", "//", "/a//b", "/a/", "a/", "/a b", "/a\n", "/a\udcff", "/a:b", "/..", "@x", "/" + "a" * 3072, "a" * 2049],
)
def test_bad_paths(dom0: Session, path: str) -> None:
    for operation in (dom0.read, dom0.mkdir, dom0.rm, dom0.directory, dom0.get_perms):
        refused("EINVAL", operation, path)
    refused("EINVAL", dom0.watch, path, "token")


def test_longest_path_is_a_path(dom0: Session) -> None:
    path = "/a" * (xs_wire.ABS_PATH_MAX // 2)
    dom0.write(path, b"deep")
    assert dom0.read(path) == b"deep"
    dom0.rm("/a")
    refused("ENOENT", dom0.read, "/a")


# Permissions.


def test_guest_is_confined_to_its_home(guest: Session, dom0: Session) -> None:
    dom0.write("/tool/secret", b"x")
    for path in ("/tool/secret", "/tool/none", "/local/domain/6", "/local/domain/6/none", "/"):
        for operation in (guest.read, guest.directory, guest.get_perms, guest.mkdir):
            refused("EACCES", operation, path)
        refused("EACCES", guest.write, path, b"")
    refused("EACCES", guest.rm, "/tool/secret")
    refused("EACCES", guest.set_perms, "/tool/secret", perms("n5"))
    refused("EACCES", guest.rm, "/local/domain/6")


@pytest.mark.parametrize(("letter", "read", "write"), [("n", 0, 0), ("r", 1, 0), ("w", 0, 1), ("b", 1, 1)])
def test_what_each_letter_allows(guest: Session, other: Session, letter: str, read: int, write: int) -> None:
    guest.write("shared", b"1")
    for entries in (["n5", f"{letter}6"], [f"{letter}5"]):  # named, and as the default for all
        guest.set_perms("shared", perms(*entries))
        path = "/local/domain/5/shared"
        if read:
            assert other.read(path) == b"1"
        else:
            refused("EACCES", other.read, path)
        if write:
            other.write(path, b"1")
        else:
            refused("EACCES", other.write, path, b"2")
        refused("EACCES", other.set_perms, path, perms("b5", "b6"))


def test_created_nodes_inherit_permissions_and_belong_to_a_guest_that_creates_them(
    guest: Session, other: Session, dom0: Session
) -> None:
    guest.mkdir("inbox")
    guest.set_perms("inbox", perms("n5", "b6", "r0"))
    other.write("/local/domain/5/inbox/letter", b"hello")
    assert [str(p) for p in dom0.get_perms("/local/domain/5/inbox/letter")] == ["n6", "b6", "r0"]
    dom0.write("/local/domain/5/inbox/note", b"")
    assert [str(p) for p in dom0.get_perms("/local/domain/5/inbox/note")] == ["n5", "b6", "r0"]


def test_a_guest_cannot_give_its_nodes_away_to_escape_its_quota(guest: Session, dom0: Session) -> None:
    guest.write("node", b"")
    refused("EPERM", guest.set_perms, "node", perms("b6"))
    refused("EINVAL", guest.set_perms, "node", [])
    refused("ENOSPC", guest.set_perms, "node", perms("n5", "r1", "r2", "r3", "r4", "r7"))
    refused("EINVAL", dom0.set_perms, "/", perms("n5"))
    dom0.set_perms("/local/domain/5/node", perms("n6"))
    refused("EACCES", guest.read, "node")


# Watches.


def test_watch_fires_at_once_then_for_the_node_and_all_below(guest: Session, store: Store) -> None:
    guest.watch("/local/domain/5/a", "t")
    assert fired(store) == [("/local/domain/5/a", "t")]
    guest.write("a", b"1")
    guest.write("a/b/c", b"1")
    guest.write("ab", b"1")
    guest.mkdir("a/b")
    assert fired(store) == [("/local/domain/5/a", "t"), ("/local/domain/5/a/b/c", "t")]
    guest.unwatch("/local/domain/5/a", "t")
    guest.write("a", b"2")
    assert fired(store) == []
    refused("ENOENT", guest.unwatch, "/local/domain/5/a", "t")


def test_relative_watch_gets_relative_paths(guest: Session, dom0: Session, store: Store) -> None:
    guest.watch("device", "rel")
    dom0.write("/local/domain/5/device/vif/0/state", b"4")
    dom0.watch("a", "dom0")
    dom0.write("/local/domain/0/a/b", b"")
    assert fired(store) == [("device", "rel"), ("device/vif/0/state", "rel"), ("a", "dom0"), ("a/b", "dom0")]


def test_removal_fires_for_each_watch_in_the_subtree_with_its_own_path(dom0: Session, store: Store) -> None:
    dom0.write("/x/y/z", b"")
    for path in ("/x", "/x/y", "/x/y/z", "/x/none"):
        dom0.watch(path, "t" + path)
    fired(store)
    dom0.rm("/x/y")
    assert Counter(fired(store)) == Counter([("/x/y", "t/x"), ("/x/y", "t/x/y"), ("/x/y/z", "t/x/y/z")])
    dom0.rm("/x/y")
    assert fired(store) == []


def test_special_watches_are_for_domain_0(guest: Session, dom0: Session, store: Store) -> None:
    refused("EACCES", guest.watch, "@introduceDomain", "t")
    dom0.watch("@introduceDomain", "i")
    dom0.watch("@releaseDomain", "r")
    fired(store)
    store.introduce(7)
    assert fired(store) == [("@introduceDomain", "i")]
    store.release(7)
    assert fired(store) == [("@releaseDomain", "r")]


def test_a_watch_tells_nothing_about_nodes_its_domain_cannot_read(guest: Session, other: Session, store: Store) -> None:
    other.watch("/local/domain/5", "spy")
    assert fired(store) == [("/local/domain/5", "spy")], "the first fire says only that it is registered"
    guest.write("private", b"1")
    guest.rm("private")
    assert fired(store) == []
    guest.write("public", b"1")
    assert fired(store) == []
    guest.set_perms("public", perms("n5", "r6"))
    assert fired(store) == [("/local/domain/5/public", "spy")]
    guest.rm("public")
    assert fired(store) == [("/local/domain/5/public", "spy")], "it could read what is gone"


def test_watch_registration_errors(guest: Session) -> None:
    guest.watch("a", "t")
    refused("EEXIST", guest.watch, "a", "t")
    guest.watch("/local/domain/5/a", "t")
    guest.watch("a", "t2")
    guest.watch("a", "x" * TOKEN_MAX)
    refused("E2BIG", guest.watch, "a", "x" * (TOKEN_MAX + 1))


def test_a_closed_session_hears_nothing_even_of_what_had_happened(guest: Session, store: Store) -> None:
    guest.watch("a", "t")
    guest.write("a", b"")
    guest.close()
    assert fired(store) == []
    assert store.watches == {}


def test_events_stop_for_a_session_closed_between_two_of_them(guest: Session, store: Store) -> None:
    for token in ("1", "2", "3"):
        guest.watch("a", token)
    events = (event for event in store.events(store.tree.changes) if event is not None)
    next(events)
    guest.close()
    assert list(events) == []


# Transactions.


def test_transaction_is_invisible_until_committed(guest: Session, store: Store) -> None:
    guest.watch("a", "t")
    fired(store)
    tx = guest.transaction_start()
    guest.write("a", b"1", tx)
    guest.write("a", b"2", tx)
    guest.mkdir("b/c", tx)
    assert guest.read("a", tx) == b"2"
    refused("ENOENT", guest.read, "a")
    assert fired(store) == []
    guest.transaction_end(tx, True)
    assert (guest.read("a"), guest.directory("b")) == (b"2", ("c",))
    assert fired(store) == [("a", "t")], "once, however often it was written"
    refused("ENOENT", guest.read, "a", tx)
    refused("ENOENT", guest.transaction_end, tx, True)


def test_aborted_transaction_leaves_nothing(guest: Session, store: Store) -> None:
    guest.write("a", b"1")
    before, owned = dict(store.tree.nodes), store.tree.owned[GUEST]
    tx = guest.transaction_start()
    guest.rm("a", tx)
    guest.write("b/c/d", b"", tx)
    guest.transaction_end(tx, False)
    assert store.tree.nodes == before
    assert store.tree.owned[GUEST] == owned


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda s: s.write("a", b"2"),
        lambda s: s.write("a", b"1"),
        lambda s: s.rm("a"),
        lambda s: s.mkdir("a/child"),
        lambda s: s.set_perms("a", perms("n5", "r6")),
        lambda s: (s.rm("a"), s.write("a", b"1")),
    ],
)
@pytest.mark.parametrize("use", [lambda s, tx: s.read("a", tx), lambda s, tx: s.write("a", b"9", tx)])
def test_conflict(guest: Session, use: Callable[..., object], meanwhile: Callable[..., object]) -> None:
    guest.write("a", b"1")
    tx = guest.transaction_start()
    use(guest, tx)
    guest.write("out", b"x", tx)
    meanwhile(guest)
    before = dict(guest.store.tree.nodes)
    refused("EAGAIN", guest.transaction_end, tx, True)
    assert guest.store.tree.nodes == before
    refused("ENOENT", guest.transaction_end, tx, True)


def test_conflict_on_a_node_seen_absent(guest: Session) -> None:
    tx = guest.transaction_start()
    refused("ENOENT", guest.read, "a", tx)
    guest.write("a", b"")
    refused("EAGAIN", guest.transaction_end, tx, True)


def test_no_conflict_elsewhere(guest: Session, other: Session) -> None:
    guest.write("a", b"1")
    guest.write("dir/b", b"1")
    tx = guest.transaction_start()
    guest.write("a", b"2", tx)
    other.write("unrelated", b"")
    guest.write("dir/b", b"2")
    guest.transaction_end(tx, True)
    assert guest.read("a") == b"2"


def test_removing_a_subtree_that_shrank_meanwhile_is_a_conflict(guest: Session) -> None:
    guest.write("a/b/c", b"")
    tx = guest.transaction_start()
    guest.directory("a/b", tx)
    guest.rm("a/b/c")
    refused("EAGAIN", guest.rm, "a", tx)
    refused("EAGAIN", guest.transaction_end, tx, True)


def test_transactions_belong_to_their_session(guest: Session, store: Store) -> None:
    tx = guest.transaction_start()
    refused("ENOENT", store.connect(GUEST).write, "a", b"", tx)
    guest.reset()
    refused("ENOENT", guest.write, "a", b"", tx)


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
    assert sorted((w.path, w.token) for watches in store.watches.values() for w in watches) == live


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
