"""The store's journal: wherever it is cut off, or a compaction is interrupted, the tree is that of the last whole record."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.xenstore import journal as journals
from dom0.xenstore.journal import BODY, Journal, JournalError, MemoryFile
from dom0.xenstore.store import Store
from dom0.xenstore.tree import Node, Quota, StoreError
from hyp.abi.xs_wire import Access, Permission
from hyp.control.limited_log import BURST

Tree = dict[str, Node]
State = tuple[dict[str, tuple[object, ...]], set[int]]
GUESTS = (5, 6, 7)


class Recorded(MemoryFile):
    """A file that remembers each thing that was done to it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("journal")
        super().__init__(self.fd)
        self.steps: list[Callable[[MemoryFile, int | None], None]] = []
        self.lengths: list[int] = []  # of what is written; 0 for others

    def write(self, offset: int, data: bytes) -> None:
        self.steps.append(lambda file, cut: file.write(offset, data if cut is None else data[:cut]))
        self.lengths.append(len(data))
        super().write(offset, data)

    def punch(self, offset: int, length: int) -> None:
        self.steps.append(lambda file, cut: file.punch(offset, length))
        self.lengths.append(0)
        super().punch(offset, length)

    def cut(self, size: int) -> None:
        self.steps.append(lambda file, cut: file.cut(size))
        self.lengths.append(0)
        super().cut(size)

    def memory(self) -> int:
        """Bytes that it takes."""
        return os.fstat(self.fd).st_blocks * 512


class World:
    """A store with a journal, and what the store was after each record."""

    def __init__(self, quota: Quota | None = None, file: Recorded | None = None) -> None:
        self.file = file or Recorded()
        self.journal = Journal(self.file)
        self.store = Store(quota or Quota())
        self.journal.follow(self.store.tree.nodes, self.store.introduced)
        self.store.tree.puts.clear()
        self.states: list[tuple[int, State]] = []  # steps that were done, and the state of then
        self.commit()
        self.sessions = {domid: self.store.connect(domid) for domid in (0, *GUESTS)}

    def commit(self, *, domains: bool = False) -> None:
        if self.store.tree.puts or domains:
            self.journal.commit(self.store.tree.puts, domains=domains)
        self.store.tree.puts.clear()
        self.store.tree.changes.clear()
        self.states.append((len(self.file.steps), state_of(self.store.tree.nodes, self.store.introduced)))

    def close(self) -> None:
        os.close(self.file.fd)


@contextmanager
def world(quota: Quota | None = None, file: Recorded | None = None) -> Iterator[World]:
    made = World(quota, file)
    try:
        yield made
    finally:
        made.close()


def state_of(nodes: Tree, introduced: set[int]) -> State:
    """Everything, the order of children included."""
    return {p: (n.value, n.permissions, n.children, n.generation) for p, n in nodes.items()}, set(introduced)


def restored(file: Recorded, steps: int, cut: int | None = None) -> State:
    """What a journal says of which so many steps were done, and of one more `cut` bytes."""
    fd = os.memfd_create("copy")
    try:
        copy = MemoryFile(fd)
        for step in file.steps[:steps]:
            step(copy, None)
        if cut is not None:
            file.steps[steps](copy, cut)
        saved = Journal(copy).saved
        assert saved is not None
        return state_of(saved.nodes, saved.introduced)
    finally:
        os.close(fd)


NAMES = ("a", "b", "c")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
OPERATIONS = st.tuples(
    st.sampled_from(["write", "write", "mkdir", "rm", "perms", "introduce", "release", "transaction"]),
    st.sampled_from(GUESTS),
    PATHS,
    st.integers(0, 60),
    st.lists(st.tuples(st.sampled_from(["write", "mkdir", "rm"]), PATHS), max_size=5),
)


def operate(w: World, operation: tuple[str, int, str, int, list[tuple[str, str]]]) -> None:
    """One request, which may be refused."""
    kind, domid, path, number, more = operation
    session = w.sessions[domid]
    try:
        if kind == "introduce":
            w.store.introduce(domid)
            w.commit(domains=True)
        elif kind == "release":
            w.store.release(domid)
            w.commit(domains=True)
        elif kind == "transaction":
            tx = session.transaction_start()
            for what, where in more:
                try:
                    if what == "write":
                        session.write(where, b"t" * number, tx)
                    else:
                        getattr(session, what)(where, tx)
                except StoreError:
                    pass
            session.transaction_end(tx, number % 4 > 0)
        elif kind == "perms":
            other = GUESTS[number % len(GUESTS)]
            session.set_perms(path, [Permission(domid, Access(number % 4)), Permission(other, Access.READ)])
        elif kind == "write":
            session.write(path, bytes([number]) * number)
        else:
            getattr(session, kind)(path)
    except StoreError:
        pass
    w.commit()


@contextmanager
def small(least: int, step: int) -> Iterator[None]:
    """Compactions after so many bytes, in small steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "LEAST", least)
        patch.setattr(journals, "STEP", step)
        yield


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(OPERATIONS, max_size=60), st.integers(1, 300))
def test_after_each_step_the_tree_is_that_of_the_last_whole_record(operations: Sequence[tuple], step: int) -> None:  # type: ignore[type-arg]
    """Steps are writes of records, of where it begins, and what is given back: a death between any two of them."""
    with small(2000, step), world() as w:
        for domid in GUESTS:
            w.store.introduce(domid)
            w.commit(domains=True)
        for operation in operations:
            operate(w, operation)
        expected = w.states[0][1]
        found = dict(w.states)
        for steps in range(w.states[0][0], len(w.file.steps) + 1):
            if steps in found:
                expected = found[steps]
                assert restored(w.file, steps) == expected
            else:  # within a commit: the record is its first step
                following = next(state for number, state in w.states if number > steps)
                assert restored(w.file, steps) in (expected, following)


def test_cut_at_every_byte() -> None:
    """A record that is torn is none, and what was before it is all there."""
    with small(1500, 100), world() as w:
        rng = random.Random(1)
        for domid in GUESTS:
            w.store.introduce(domid)
            w.commit(domains=True)
        for k in range(70):
            path = "/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))
            operate(w, (rng.choice(["write", "rm", "transaction"]), rng.choice(GUESTS), path, k, [("write", path), ("mkdir", "d")]))
        found, switched = dict(w.states), 0
        state = w.states[0][1]
        for steps in range(w.states[0][0], len(w.file.steps)):
            state = found.get(steps, state)
            following = next(state for number, state in w.states if number > steps)
            if w.file.lengths[steps] == 8:  # where it begins: there, or not there
                switched += 1
                assert restored(w.file, steps) == following
                continue
            for cut in range(w.file.lengths[steps]):
                assert restored(w.file, steps, cut) in (state, following)  # following: torn in a snapshot's part
        assert switched >= 2


def test_what_is_written_behind_a_torn_record_is_read() -> None:
    with world() as w:
        w.sessions[0].write("/tool/a", b"1")
        w.commit()
        size = os.fstat(w.file.fd).st_size
        w.sessions[0].write("/tool/b", b"2" * 50)
        w.commit()
        os.ftruncate(w.file.fd, size + 40)
        again = Journal(MemoryFile(w.file.fd))
        store = Store(saved=again.saved)
        again.follow(store.tree.nodes, store.introduced)
        assert store.toolstack.directory("/tool") == ("a",)
        store.toolstack.write("/tool/c", b"3")
        again.commit(store.tree.puts)
        third = Journal(MemoryFile(w.file.fd)).saved
        assert third is not None
        assert third.nodes["/tool"].children == ("a", "c")
        assert third.nodes == {path: third.nodes[path] for path in store.tree.nodes}


def test_one_that_was_never_begun_is_begun() -> None:
    with world() as w:
        first = w.states[0][0]
        for steps in range(first):
            fd = os.memfd_create("copy")
            copy = MemoryFile(fd)
            for step in w.file.steps[:steps]:
                step(copy, None)
            if w.file.lengths[steps] != 16:
                again = Journal(copy)
                assert again.saved is None
                again.follow(w.store.tree.nodes, w.store.introduced)
                saved = Journal(copy).saved
                assert saved is not None
                assert saved.nodes.keys() == w.store.tree.nodes.keys()
            os.close(fd)


@pytest.mark.parametrize("damage", ["none", "lost", "other"])
def test_what_does_not_say_the_tree_is_refused(damage: str) -> None:
    with world() as w:
        if damage == "none":
            os.pwrite(w.file.fd, b"?", 0)
        elif damage == "lost":
            os.pwrite(w.file.fd, bytes(8), 8)
        else:
            os.pwrite(w.file.fd, bytes(8), BODY)
        with pytest.raises(JournalError):
            Journal(MemoryFile(w.file.fd))


def test_a_restored_store_goes_on_as_the_first_would_have() -> None:
    """Owners' counts, quotas, permissions, rights that are gone with a domain, numbers of nodes, who is introduced."""
    with world(Quota(nodes=10)) as w:
        for domid in (5, 6):
            w.store.introduce(domid)
        five, six = w.sessions[5], w.sessions[6]
        for k in range(8):
            five.write(f"n{k}", b"")
        five.set_perms("n1", [Permission(5, Access.NONE), Permission(6, Access.READ)])
        five.set_perms("n2", [Permission(5, Access.NONE), Permission(6, Access.READ)])
        generation = five.node("n2").generation
        assert six.read("/local/domain/5/n1") == b""
        w.store.release(6)
        w.commit(domains=True)
        saved = Journal(MemoryFile(w.file.fd)).saved
        store = Store(Quota(nodes=10), saved)
        assert store.tree.owned == w.store.tree.owned
        assert store.introduced == {0, 5}
        store.introduce(6)
        with pytest.raises(StoreError, match="EACCES"):
            store.connect(6).read("/local/domain/5/n1")
        again = store.connect(5)
        again.write("n8", b"")
        with pytest.raises(StoreError, match="ENOSPC"):
            again.write("n9", b"")
        assert again.node("n8").generation > generation


@pytest.mark.long
def test_memory_stays_bounded_however_much_is_written() -> None:
    """A guest that writes without end, with all that its quota allows, and one that makes and removes: the bound is the tree's."""
    with world() as w:
        w.store.introduce(5)
        w.commit(domains=True)
        guest, rng = w.sessions[5], random.Random(2)
        names = [f"{k}{'x' * 300}" for k in range(900)]
        for name in names:
            guest.write(name, bytes(2048))
            w.commit()
        tree = sum(len(path) + len(node.value) for path, node in w.store.tree.nodes.items())
        most, written = 0, 0
        while written < 12 * tree:
            name = rng.choice(names)
            if rng.random() < 0.2:
                guest.rm(name)
            guest.write(name, rng.randbytes(2048))
            w.commit()
            w.file.steps.clear()
            w.states.clear()
            written += 2500
            most = max(most, w.file.memory())
        assert most < 6 * tree
        saved = Journal(MemoryFile(w.file.fd)).saved
        assert saved is not None
        assert state_of(saved.nodes, saved.introduced) == state_of(w.store.tree.nodes, w.store.introduced)


class Full(Recorded):
    """A file that has no room beyond `room` bytes."""

    room = 1 << 40

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.room:
            super().write(offset, data[: max(self.room - offset, 0)])
            raise OSError(28, "No space left on device")
        super().write(offset, data)


def test_who_takes_the_memory_and_gives_it_back_again_and_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with world(file=(file := Full())) as w:
        for k in range(BURST):
            file.room = BODY
            w.sessions[0].write("/tool/last", f"{k}".encode())
            w.commit()
            file.room = 1 << 40
            while w.journal._lost:
                w.sessions[0].write("/tool/last", b"again")
                w.commit()
    assert 1 < len(caplog.records) < 2 * BURST


def test_without_memory_it_goes_on_and_is_whole_again_later() -> None:
    with world(file=(file := Full())) as w:
        file.room = os.fstat(w.file.fd).st_size + 100
        for k in range(10):
            w.sessions[0].write(f"/tool/{k}", bytes(50))
            w.commit()
        with pytest.raises(JournalError, match="no memory"):
            Journal(MemoryFile(w.file.fd))
        assert w.file.memory() <= 2 * BODY
        file.room = 1 << 40
        for k in range(2 * journals.RETRY):
            w.sessions[0].write("/tool/last", f"{k}".encode())
            w.commit()
        saved = Journal(MemoryFile(w.file.fd)).saved
        assert saved is not None
        assert state_of(saved.nodes, saved.introduced) == w.states[-1][1]
