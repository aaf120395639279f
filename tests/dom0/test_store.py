"""The pure store: nodes, permissions, watches, transactions, and what a hostile domain may try with them."""

from collections import Counter
from collections.abc import Callable

import pytest

from dom0.xenstore.store import TOKEN_MAX, Session, Store
from dom0.xenstore.tree import Quota, domain_path
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Access, Permission
from tests.support.stores import GUEST, fired, perms, refused

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


def test_a_guests_paths_have_so_many_levels(guest: Session, dom0: Session) -> None:
    """One request is one turn: a path of a thousand levels would take those of many."""
    longest = "/".join("a" * (Quota().levels - 3))  # below /local/domain/N
    guest.mkdir(longest)
    for operation in (guest.read, guest.mkdir, guest.rm, guest.directory, guest.get_perms):
        refused("EINVAL", operation, longest + "/b")
    refused("EINVAL", guest.watch, longest + "/b", "token")
    dom0.mkdir(f"{domain_path(GUEST)}/{longest}/b")
    guest.rm("a")


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


def test_who_makes_a_change_goes_by_no_watches_of_those_who_may_not_hear_of_it(guest: Session, dom0: Session, store: Store) -> None:
    """Anybody may watch any path, 128 times; whoever writes there tells it, in a turn of its own."""
    guest.write("data/by", b"")
    store.tree.changes.clear()

    def steps() -> tuple[int, int]:
        guest.write("data/by", b"x")
        told = list(store.events(store.tree.changes))
        return len(told), sum(event is not None for event in told)

    before = steps()
    deaf, paths = store.connect(GUEST + 1), ("/", "/local", "/local/domain", domain_path(GUEST), f"{domain_path(GUEST)}/data/by")
    for number in range(100):
        deaf.watch(paths[number % len(paths)], str(number))
    list(store.events(store.tree.changes))
    assert steps() == before
    dom0.watch("/local", "hears")
    deaf_now_hears = Permission(GUEST + 1, Access.READ)
    dom0.set_perms(f"{domain_path(GUEST)}/data/by", [Permission(GUEST, Access.NONE), deaf_now_hears])
    list(store.events(store.tree.changes))
    assert steps() == (before[0] + 101, before[1] + 101)


def test_who_is_named_as_one_that_may_not_read_hears_nothing_of_what_all_others_hear(
    guest: Session, dom0: Session, store: Store
) -> None:
    guest.write("data/by", b"")
    others = [store.connect(GUEST + k) for k in (1, 2)]
    store.introduce(GUEST + 2)
    guest.set_perms("data", [Permission(GUEST, Access.NONE)])
    guest.set_perms("data/by", [Permission(GUEST, Access.READ), Permission(GUEST + 1, Access.NONE)])
    for other in others:
        other.watch(f"{domain_path(GUEST)}/data/by", "token")
    list(store.events(store.tree.changes))
    guest.write("data/by", b"x")
    assert [event.watch.session.domid for event in store.events(store.tree.changes) if event is not None] == [GUEST + 2]
