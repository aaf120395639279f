"""Grants: every status, revocation, hostile granting domains, and mappers that die holding pages."""

import mmap
import os
import signal
import time
from collections.abc import Callable

import numba
import numpy as np
import pytest

from hyp.abi.grant import (
    ACTIVE_LOCK,
    ACTIVE_READER,
    ACTIVE_WRITER,
    COPY_DEST_GREF,
    COPY_SOURCE_GREF,
    DOMID_SELF,
    GNTST_BAD_COPY_ARG,
    GNTST_BAD_DOMAIN,
    GNTST_BAD_GNTREF,
    GNTST_BAD_HANDLE,
    GNTST_BAD_PAGE,
    GNTST_EAGAIN,
    GNTST_GENERAL_ERROR,
    GNTST_NO_SPACE,
    GNTST_OKAY,
    GNTST_PERMISSION_DENIED,
    GNTTAB_COPY,
    GTF_ACCEPT_TRANSFER,
    GTF_INVALID,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_SUB_PAGE,
    GTF_TRANSITIVE,
    GTF_WRITING,
    NR_RESERVED_ENTRIES,
    PAGE_BYTES,
)
from hyp.atomics import clock_ns, cpu_relax, load64_once, memzero, store64_once, store64_release
from hyp.grants import (
    COPY_COUNTS,
    DOMAIN_VIEW,
    REFS_PER_FRAME,
    alloc_gref,
    end_access,
    free_gref,
    grant_access,
    grant_copy,
    init_grefs,
    map_grant,
    release_mapper,
    unmap_grant,
)
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping

VIEWS = numba.types.Array(numba.from_dtype(DOMAIN_VIEW), 1, "C")
COUNTS = numba.types.Array(numba.from_dtype(COPY_COUNTS), 1, "C")
MAP, UNMAP, GRANT, END = range(4)
INIT, ALLOC, FREE = range(3)
SECOND = 1_000_000_000
TIME_LIMIT = 20 * SECOND  # of a process whose parent has crashed

DOM0, GUEST, OTHER, ABSENT = range(4)
PAGES = {DOM0: 64, GUEST: 16, OTHER: 16}
REF = 40
GUARD, GUEST_BYTE, DOM0_BYTE = 0xEE, 0x5A, 0x11


@entry(i64(VIEWS, i64, i64, i64, i64, i64, i64))
def operate(domains, op, caller, domid, ref, write, frame):
    """What `caller` does with reference `ref` of `domid`; for GRANT and END, `caller` is the grantee."""
    if op == MAP:
        return map_grant(domains, len(domains), caller, domid, ref, write)
    if op == UNMAP:
        return unmap_grant(domains, len(domains), caller, domid, ref, write)
    if op == GRANT:
        grant_access(domains[domid].grant_table, ref, caller, frame, 1 - write)
        return 0
    return end_access(domains[domid].grant_table, ref)


@entry(i64(VIEWS, i64, i64, i64, COUNTS, i64))
def copy_batches(domains, caller, ops, count, counts, stop):
    """One batch, or, if `stop` is an address, batches until there is something at it or TIME_LIMIT. Copies refused."""
    finish = clock_ns() + TIME_LIMIT
    refused = grant_copy(domains, len(domains), caller, ops, count, counts[0])
    while stop and load64_once(stop) == 0 and clock_ns() < finish:
        refused += grant_copy(domains, len(domains), caller, ops, count, counts[0])
    return refused


@entry(void(i64, i64, i64, i64))
def rewrite(table, ref, seed, stop):
    """A hostile guest: entry `ref` is another one at every moment, granted, foreign or nonsense."""
    word, finish = seed, clock_ns() + TIME_LIMIT
    while load64_once(stop) == 0 and clock_ns() < finish:
        word = word * 6364136223846793005 + 1442695040888963407
        flags = GTF_PERMIT_ACCESS | (word >> 33) & (GTF_READONLY | GTF_READING | GTF_WRITING)
        if (word >> 40) & 7 == 0:
            flags = (word >> 20) & 0xFFFF
        domid = (word >> 43) & 3 if (word >> 45) & 3 == 0 else 0
        frame = (word >> 16) & 0xFFFFFFFF if (word >> 50) & 3 == 0 else (word >> 52) & 15
        store64_once(table + ref * 8, flags | (domid << 16) | (frame << 32))
        for _ in range((word >> 56) & 31):
            cpu_relax()


@entry(i64(i64, i64, i64, i64, i64, i64[::1]))
def grant_and_revoke(table, ref, frame, page, stop, tally):
    """A correct guest, for a second: grant a page to Dom0, revoke it, and see whether it is left alone from then on.

    tally: grants made, revocations that had to wait. Returns the words that changed after the page was revoked.
    """
    touched, finish = 0, clock_ns() + SECOND
    while clock_ns() < finish:
        grant_access(table, ref, DOM0, frame, 0)
        for _ in range(tally[0] * 37 % 400):
            cpu_relax()
        waited = 0
        while not end_access(table, ref):
            waited = 1
            cpu_relax()
        memzero(page, PAGE_BYTES)
        for _ in range(tally[0] * 11 % 300):
            cpu_relax()
        for word in range(PAGE_BYTES // 8):
            touched += load64_once(page + word * 8) != 0
        tally[0] += 1
        tally[1] += waited
    store64_release(stop, 1)
    return touched


@entry(i64(i64[::1], i64, i64))
def references(free, op, ref):
    """The allocator of references."""
    if op == INIT:
        init_grefs(free)
        return 0
    return alloc_gref(free) if op == ALLOC else free_gref(free, ref)


class World:
    """Dom0 and two guests, a guard page on each side of their RAM, all in memory that outlives a fork."""

    def __init__(self) -> None:
        self.arena = self._map(sum(PAGES.values()) + len(PAGES) + 1)
        self.arena.array[:] = GUARD
        self.control = self._map(1).words("<i8")
        self.tables = {domid: self._map(1) for domid in PAGES}
        self.actives = {domid: self._map(1) for domid in PAGES}
        self.domains = np.zeros(len(PAGES) + 1, DOMAIN_VIEW)
        self.ram: dict[int, np.ndarray[tuple[int, int], np.dtype[np.uint8]]] = {}
        page = 1
        for domid, pages in PAGES.items():
            ram = self.arena.array[page * PAGE_BYTES : (page + pages) * PAGE_BYTES]
            ram[:] = DOM0_BYTE if domid == DOM0 else GUEST_BYTE
            self.ram[domid] = ram.reshape(pages, PAGE_BYTES)
            table, active = self.tables[domid].address, self.actives[domid].address
            self.domains[domid] = (table, REFS_PER_FRAME, active, ram.ctypes.data, ram.nbytes, 1)
            page += pages + 1

    @staticmethod
    def _map(pages: int) -> Mapping:
        fd = os.memfd_create("test_grants")
        try:
            os.ftruncate(fd, pages * PAGE_BYTES)
            return Mapping(fd, pages * PAGE_BYTES)
        finally:
            os.close(fd)

    def flags(self, domid: int = GUEST, ref: int = REF) -> int:
        return int(self.tables[domid].words("<u2")[4 * ref])

    def write_entry(self, flags: int, domid: int, frame: int, owner: int = GUEST, ref: int = REF) -> None:
        self.tables[owner].words("<u8")[ref] = flags | domid << 16 | frame << 32

    def active(self, domid: int = GUEST, ref: int = REF) -> int:
        return int(self.actives[domid].words("<i8")[ref])

    def set_active(self, word: int, domid: int = GUEST, ref: int = REF) -> None:
        self.actives[domid].words("<i8")[ref] = word

    def grant(self, frame: int, *, to: int = DOM0, write: int = 1, domid: int = GUEST, ref: int = REF) -> None:
        operate(self.domains, GRANT, to, domid, ref, write, frame)

    def revoke(self, domid: int = GUEST, ref: int = REF) -> int:
        return int(operate(self.domains, END, 0, domid, ref, 0, 0))

    def map(self, *, write: int = 0, caller: int = DOM0, domid: int = GUEST, ref: int = REF) -> int:
        return int(operate(self.domains, MAP, caller, domid, ref, write, 0))

    def unmap(self, *, write: int = 0, caller: int = DOM0, domid: int = GUEST, ref: int = REF) -> int:
        return int(operate(self.domains, UNMAP, caller, domid, ref, write, 0))

    def release(self, mapper: int, domid: int = GUEST) -> int:
        return release_mapper(self.tables[domid], self.actives[domid], mapper)

    def guards_intact(self) -> bool:
        edges = np.cumsum([0, *(pages + 1 for pages in PAGES.values())])
        return bool((self.arena.array.reshape(-1, PAGE_BYTES)[edges] == GUARD).all())

    def at_rest(self) -> bool:
        """Nothing is pinned, locked or marked."""
        marks = [self.flags(domid, ref) & (GTF_READING | GTF_WRITING) for domid in PAGES for ref in range(REFS_PER_FRAME)]
        return not any(active.array.any() for active in self.actives.values()) and not any(marks)


@pytest.fixture
def world() -> World:
    return World()


def in_child(run: Callable[[], None]) -> int:
    """A child process that does `run` and ends. Its pid."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return child


def ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- pins ------------------------------------------------------------------------------------------------------------


def test_marks_follow_the_pins(world: World) -> None:
    world.grant(5)
    steps = [
        (world.map, 0, 5, GTF_READING),
        (world.map, 1, 5, GTF_READING | GTF_WRITING),
        (world.map, 1, 5, GTF_READING | GTF_WRITING),
        (world.unmap, 1, GNTST_OKAY, GTF_READING | GTF_WRITING),
        (world.unmap, 1, GNTST_OKAY, GTF_READING),
    ]
    for operation, write, result, marks in steps:
        assert operation(write=write) == result
        assert world.flags() == GTF_PERMIT_ACCESS | marks
        assert world.revoke() == 0
    assert world.unmap() == GNTST_OKAY
    assert world.at_rest()
    assert world.revoke() == 1
    assert world.flags() == GTF_INVALID


@pytest.mark.parametrize(
    ("flags", "domid", "frame", "write", "status"),
    [
        pytest.param(GTF_INVALID, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="not granted"),
        pytest.param(GTF_ACCEPT_TRANSFER, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="accepts a transfer"),
        pytest.param(GTF_TRANSITIVE, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="transitive"),
        pytest.param(GTF_PERMIT_ACCESS | GTF_SUB_PAGE, DOM0, 5, 0, GNTST_GENERAL_ERROR, id="part of a page"),
        pytest.param(GTF_PERMIT_ACCESS, OTHER, 5, 0, GNTST_GENERAL_ERROR, id="granted to another"),
        pytest.param(GTF_PERMIT_ACCESS, DOMID_SELF, 5, 0, GNTST_GENERAL_ERROR, id="granted to nobody"),
        pytest.param(GTF_PERMIT_ACCESS | GTF_READONLY, DOM0, 5, 1, GNTST_GENERAL_ERROR, id="read-only"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, PAGES[GUEST], 0, GNTST_BAD_PAGE, id="one page beyond RAM"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, 0x8000_0000, 0, GNTST_BAD_PAGE, id="frame with the sign bit"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, 0xFFFF_FFFF, 1, GNTST_BAD_PAGE, id="last frame there can be"),
        pytest.param(GTF_PERMIT_ACCESS | GTF_READONLY, DOM0, 5, 0, 5, id="read-only, for reading"),
        pytest.param(GTF_PERMIT_ACCESS, DOM0, PAGES[GUEST] - 1, 1, PAGES[GUEST] - 1, id="last page"),
    ],
)
def test_entry_is_judged(world: World, flags: int, domid: int, frame: int, write: int, status: int) -> None:
    world.write_entry(flags, domid, frame)
    assert world.map(write=write) == status
    if status < 0:
        assert world.flags() == flags
        assert world.at_rest()


@pytest.mark.parametrize("ref", [-1, REFS_PER_FRAME, 0xFFFF_FFFF, 1 << 61])
def test_reference_outside_the_table(world: World, ref: int) -> None:
    assert world.map(ref=ref) == GNTST_BAD_GNTREF
    assert world.unmap(ref=ref) == GNTST_BAD_GNTREF


@pytest.mark.parametrize("domid", [-1, ABSENT, ABSENT + 1, DOMID_SELF])
def test_unknown_domain(world: World, domid: int) -> None:
    assert operate(world.domains, MAP, DOM0, domid, REF, 0, 0) == GNTST_BAD_DOMAIN
    assert operate(world.domains, UNMAP, DOM0, domid, REF, 0, 0) == GNTST_BAD_DOMAIN


@pytest.mark.parametrize(("write", "one"), [(0, ACTIVE_READER), (1, ACTIVE_WRITER)])
def test_more_pins_than_can_be_counted(world: World, write: int, one: int) -> None:
    world.grant(5)
    world.set_active(DOM0 + 1 + 0xFFFF * one)
    assert world.map(write=write) == GNTST_NO_SPACE
    assert world.active() == DOM0 + 1 + 0xFFFF * one
    assert world.map(write=1 - write) == 5


def test_lock_holder_that_lost_its_cpu(world: World) -> None:
    world.grant(5)
    locked = DOM0 + 1 + ACTIVE_READER + ACTIVE_LOCK
    world.set_active(locked)
    assert world.map() == GNTST_EAGAIN
    assert world.map(caller=OTHER) == GNTST_EAGAIN  # the holder may be about to let go of the entry
    assert world.unmap() == GNTST_EAGAIN
    assert world.active() == locked


def test_unpin_what_was_not_pinned(world: World) -> None:
    world.grant(5)
    assert world.unmap() == GNTST_BAD_HANDLE
    world.map(write=0)
    assert world.unmap(write=1) == GNTST_BAD_HANDLE
    assert world.unmap(caller=OTHER) == GNTST_BAD_HANDLE
    assert world.active() == DOM0 + 1 + ACTIVE_READER
    assert world.unmap() == GNTST_OKAY
    assert world.unmap() == GNTST_BAD_HANDLE
    assert world.at_rest()


def test_guest_hands_a_pinned_entry_to_another_domain(world: World) -> None:
    world.grant(5)
    world.map(write=1)
    world.write_entry(GTF_PERMIT_ACCESS, OTHER, 6)
    assert world.map(caller=OTHER) == GNTST_GENERAL_ERROR
    assert world.map() == GNTST_GENERAL_ERROR  # nor does the old one get more
    assert world.unmap(write=1) == GNTST_OKAY
    assert world.map(caller=OTHER) == 6


def test_guest_wipes_the_marks_of_a_pinned_entry(world: World) -> None:
    world.grant(5)
    world.map(write=1)
    world.grant(7)
    assert world.map() == 7  # another page of its own, and the marks are back
    assert world.revoke() == 0
    assert (world.unmap(), world.unmap(write=1)) == (GNTST_OKAY, GNTST_OKAY)
    assert world.at_rest()


def test_references_are_given_out_once() -> None:
    free = np.zeros(64, np.int64)
    references(free, INIT, 0)
    taken = [references(free, ALLOC, 0) for _ in range(64 - NR_RESERVED_ENTRIES)]
    assert sorted(taken) == list(range(NR_RESERVED_ENTRIES, 64))
    assert references(free, ALLOC, 0) == GNTST_NO_SPACE
    assert [references(free, FREE, ref) for ref in (20, 9, 63)] == [1, 1, 1]
    assert references(free, FREE, 9) == 0  # freed twice
    assert [references(free, FREE, ref) for ref in (-1, 0, NR_RESERVED_ENTRIES - 1, 64)] == [0, 0, 0, 0]
    assert {references(free, ALLOC, 0) for _ in range(3)} == {20, 9, 63}
    assert references(free, ALLOC, 0) == GNTST_NO_SPACE


# --- batched copy ----------------------------------------------------------------------------------------------------

Side = tuple[int, int, int]  # domain, reference or frame, offset


def op(source: Side, dest: Side, length: int, flags: int) -> tuple[int, ...]:
    return (source[1], source[0], source[2], dest[1], dest[0], dest[2], length, flags, 99)


def copy(world: World, *ops: tuple[int, ...], caller: int = DOM0) -> list[int]:
    """One batch. The statuses."""
    records = np.array(list(ops), GNTTAB_COPY)
    counts = np.zeros(1, COPY_COUNTS)
    refused = copy_batches(world.domains, caller, records.ctypes.data, len(ops), counts, 0)
    statuses = [int(s) for s in records["status"]]
    done = [int(r["len"]) for r in records if r["status"] == GNTST_OKAY]
    assert refused == sum(s < 0 for s in statuses)
    assert counts[0].tolist() == (1, len(done), sum(done), refused)
    return statuses


BOTH = COPY_SOURCE_GREF | COPY_DEST_GREF
OWN = (DOMID_SELF, 3, 0)
GRANTED = (GUEST, REF, 0)


@pytest.mark.parametrize("flags", [0, COPY_SOURCE_GREF, COPY_DEST_GREF, BOTH])
@pytest.mark.parametrize(("source_offset", "dest_offset", "length"), [(0, 0, 4096), (7, 4001, 95), (4095, 0, 1), (9, 9, 0)])
def test_copy_moves_these_bytes_and_no_others(world: World, flags: int, source_offset: int, dest_offset: int, length: int) -> None:
    world.grant(5, write=0)
    world.grant(2, domid=OTHER)
    source = (GUEST, REF) if flags & COPY_SOURCE_GREF else (DOMID_SELF, 3)
    dest = (OTHER, REF) if flags & COPY_DEST_GREF else (DOM0, 4)  # DOM0 is the caller: as good as DOMID_SELF
    from_page = world.ram[GUEST][5] if flags & COPY_SOURCE_GREF else world.ram[DOM0][3]
    to_page = world.ram[OTHER][2] if flags & COPY_DEST_GREF else world.ram[DOM0][4]
    from_page[:] = np.random.default_rng(1).integers(0, 256, PAGE_BYTES)
    wanted = world.arena.array.copy()
    at = int(to_page.ctypes.data - world.arena.address) + dest_offset
    wanted[at : at + length] = from_page[source_offset : source_offset + length]
    assert copy(world, op((*source, source_offset), (*dest, dest_offset), length, flags)) == [GNTST_OKAY]
    assert (world.arena.array == wanted).all()
    assert world.at_rest()


@pytest.mark.parametrize(
    ("source", "dest", "length", "flags", "status"),
    [
        pytest.param((*OWN[:2], 4000), OWN, 97, 0, GNTST_BAD_COPY_ARG, id="source over the end of the page"),
        pytest.param(OWN, (*GRANTED[:2], 4095), 2, COPY_DEST_GREF, GNTST_BAD_COPY_ARG, id="dest over the end"),
        pytest.param((*GRANTED[:2], 65535), OWN, 65535, COPY_SOURCE_GREF, GNTST_BAD_COPY_ARG, id="sum over 16 bits"),
        pytest.param((*GRANTED[:2], 65535), OWN, 1, COPY_SOURCE_GREF, GNTST_BAD_COPY_ARG, id="sum is 0 in 16 bits"),
        pytest.param(GRANTED, GRANTED, 8, BOTH, GNTST_BAD_COPY_ARG, id="a reference onto itself"),
        pytest.param((DOM0, REF, 0), (DOMID_SELF, REF, 8), 8, BOTH, GNTST_BAD_COPY_ARG, id="the same under two names"),
        pytest.param((GUEST, 5, 0), OWN, 8, 0, GNTST_PERMISSION_DENIED, id="frame of another domain as source"),
        pytest.param(OWN, (GUEST, 5, 0), 8, 0, GNTST_PERMISSION_DENIED, id="frame of another domain as dest"),
        pytest.param((DOMID_SELF, PAGES[DOM0], 0), OWN, 8, 0, GNTST_BAD_PAGE, id="own frame beyond RAM"),
        pytest.param(OWN, (DOMID_SELF, 1 << 63, 0), 8, 0, GNTST_BAD_PAGE, id="own frame with the sign bit"),
        pytest.param(OWN, (DOMID_SELF, (1 << 52) + 3, 0), 8, 0, GNTST_BAD_PAGE, id="own frame whose address wraps"),
        pytest.param((ABSENT, REF, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_BAD_DOMAIN, id="domain that is not there"),
        pytest.param(OWN, (0xFFFF, REF, 0), 8, COPY_DEST_GREF, GNTST_BAD_DOMAIN, id="domain beyond the table"),
        pytest.param((GUEST, REFS_PER_FRAME, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_BAD_GNTREF, id="reference too large"),
        pytest.param(OWN, (GUEST, 0xFFFF_FFFF, 0), 8, COPY_DEST_GREF, GNTST_BAD_GNTREF, id="largest reference"),
        pytest.param(OWN, (GUEST, REF + 1, 0), 8, COPY_DEST_GREF, GNTST_GENERAL_ERROR, id="read-only as dest"),
        pytest.param((GUEST, REF + 2, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_GENERAL_ERROR, id="not granted"),
        pytest.param((GUEST, REF + 3, 0), OWN, 8, COPY_SOURCE_GREF, GNTST_BAD_PAGE, id="granted frame beyond RAM"),
        pytest.param(GRANTED, (GUEST, REF + 1, 0), 8, BOTH, GNTST_GENERAL_ERROR, id="good source, bad dest"),
    ],
)
def test_copy_is_refused(world: World, source: Side, dest: Side, length: int, flags: int, status: int) -> None:
    world.grant(5)
    world.grant(6, write=0, ref=REF + 1)
    world.grant(PAGES[GUEST], ref=REF + 3)
    world.grant(7, domid=DOM0)
    before = world.arena.array.copy()
    good = op(GRANTED, (DOMID_SELF, 3, 0), 0, COPY_SOURCE_GREF)
    assert copy(world, good, op(source, dest, length, flags), good) == [GNTST_OKAY, status, GNTST_OKAY]
    assert (world.arena.array == before).all()
    assert world.at_rest()


def test_own_frames_are_the_callers_not_dom0s(world: World) -> None:
    assert copy(world, op(OWN, (DOMID_SELF, PAGES[OTHER], 0), 8, 0), caller=OTHER) == [GNTST_BAD_PAGE]
    assert copy(world, op((DOM0, 3, 0), OWN, 8, 0), caller=OTHER) == [GNTST_PERMISSION_DENIED]


def test_copy_leaves_the_marks_of_pins_that_stay(world: World) -> None:
    world.grant(5)
    world.map(write=1)
    assert copy(world, op(GRANTED, OWN, 64, COPY_SOURCE_GREF), op(OWN, GRANTED, 64, COPY_DEST_GREF)) == [0, 0]
    assert world.flags() == GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING
    assert world.active() == DOM0 + 1 + ACTIVE_WRITER
    assert world.revoke() == 0
    world.unmap(write=1)
    assert world.at_rest()


def test_copy_from_an_entry_that_another_mapper_holds(world: World) -> None:
    world.grant(5, to=OTHER)
    world.map(caller=OTHER)
    world.grant(6)
    assert copy(world, op(GRANTED, OWN, 64, COPY_SOURCE_GREF)) == [GNTST_GENERAL_ERROR]
    assert world.active() == OTHER + 1 + ACTIVE_READER


# --- against a second process ----------------------------------------------------------------------------------------


def test_guest_rewrites_the_entry_while_it_is_copied_from(world: World) -> None:
    """Refused means nothing was copied; done means bytes of the guest's RAM, and of nowhere else."""
    table, stop = world.tables[GUEST].address, int(world.control.ctypes.data)
    rewrite.load()
    frames = PAGES[DOM0]
    ops = np.array([op(GRANTED, (DOMID_SELF, k, 0), 4096, COPY_SOURCE_GREF) for k in range(frames)], GNTTAB_COPY)
    counts, seen = np.zeros(1, COPY_COUNTS), set()
    guest = in_child(lambda: rewrite(table, REF, 12345, stop))
    finish = time.monotonic() + 0.7
    try:
        while time.monotonic() < finish:
            world.ram[DOM0][:] = DOM0_BYTE
            copy_batches(world.domains, DOM0, ops.ctypes.data, frames, counts, 0)
            done = ops["status"] == GNTST_OKAY
            seen |= set(ops["status"].tolist())
            assert (world.ram[DOM0][done] == GUEST_BYTE).all()
            assert (world.ram[DOM0][~done] == DOM0_BYTE).all()
    finally:
        world.control[0] = 1
        assert ended_well(guest)
    assert seen == {GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_BAD_PAGE}
    assert world.active() == 0
    assert world.guards_intact()


def test_guest_rewrites_the_entry_while_it_is_copied_to(world: World) -> None:
    """Whatever the entry says, only the guest's own RAM is written; nothing stays pinned."""
    table, stop = world.tables[GUEST].address, int(world.control.ctypes.data)
    rewrite.load()
    ops = np.array([op((DOMID_SELF, k, 0), GRANTED, 4096, COPY_DEST_GREF) for k in range(64)], GNTTAB_COPY)
    counts = np.zeros(1, COPY_COUNTS)
    guest = in_child(lambda: rewrite(table, REF, 54321, stop))
    finish = time.monotonic() + 0.7
    try:
        while time.monotonic() < finish:
            copy_batches(world.domains, DOM0, ops.ctypes.data, 64, counts, 0)
    finally:
        world.control[0] = 1
        assert ended_well(guest)
    assert counts[0]["copies"] > 0
    assert counts[0]["grant_faults"] > 0
    assert world.active() == 0
    assert world.guards_intact()
    assert (world.ram[DOM0] == DOM0_BYTE).all()
    assert (world.ram[OTHER] == GUEST_BYTE).all()
    assert (world.ram[GUEST] == DOM0_BYTE).any()


@pytest.mark.parametrize("copiers", [1, 2])
def test_page_is_left_alone_once_its_revocation_succeeded(world: World, copiers: int) -> None:
    """A guest revokes in the middle of copies into its page, by one thread of Dom0 or by two at the same reference."""
    stop = int(world.control.ctypes.data)
    tallies = np.frombuffer(mmap.mmap(-1, PAGE_BYTES), COPY_COUNTS, copiers)
    grant_and_revoke.load()

    def copy_in(number: int) -> None:
        ops = np.array([op((DOMID_SELF, 3, 0), GRANTED, 4096, COPY_DEST_GREF)] * 4, GNTTAB_COPY)
        counts = np.zeros(1, COPY_COUNTS)
        copy_batches(world.domains, DOM0, ops.ctypes.data, len(ops), counts, stop)
        tallies[number] = counts[0]

    children = [in_child(lambda number=number: copy_in(number)) for number in range(copiers)]  # type: ignore[misc]
    tally = np.zeros(2, np.int64)
    page = int(world.ram[GUEST][5].ctypes.data)
    touched = grant_and_revoke(world.tables[GUEST].address, REF, 5, page, stop, tally)
    assert [ended_well(child) for child in children] == [True] * copiers
    print(f"{tally[0]} grants, {tally[1]} waited for; {tallies['copies'].sum()} copies")
    assert touched == 0
    assert tally[1] > 0
    assert tallies["copies"].sum() > 0
    assert world.at_rest()


# --- mappers that die ------------------------------------------------------------------------------------------------


def test_mapper_killed_in_mid_copy(world: World) -> None:
    """SIGKILL while it holds one page and copies into another: both are the guest's again, a third mapper's stays."""
    world.grant(5)
    world.grant(6, ref=REF + 1)
    world.grant(7, to=OTHER, ref=REF + 2)
    assert world.map(caller=OTHER, ref=REF + 2) == 7
    stop = int(world.control.ctypes.data)
    copy_batches.load()

    def mapper() -> None:
        assert world.map(write=1) == 5
        ops = np.array([op(OWN, (GUEST, REF + 1, 0), 4096, COPY_DEST_GREF)] * 1000, GNTTAB_COPY)
        copy_batches(world.domains, DOM0, ops.ctypes.data, len(ops), np.zeros(1, COPY_COUNTS), stop)

    child = in_child(mapper)
    caught = False
    finish = time.monotonic() + 15
    while time.monotonic() < finish and not caught:  # stop it until that happens to be in mid-copy
        if world.flags(ref=REF + 1) & GTF_WRITING == 0:
            continue  # it has no core just now, or is between two copies
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        caught = world.flags(ref=REF + 1) & GTF_WRITING != 0
        if not caught:
            os.kill(child, signal.SIGCONT)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert caught
    assert [world.revoke(ref=ref) for ref in (REF, REF + 1, REF + 2)] == [0, 0, 0]
    assert world.release(DOM0) == 2
    assert [world.revoke(ref=ref) for ref in (REF, REF + 1, REF + 2)] == [1, 1, 0]
    assert world.release(DOM0) == 0
    assert world.unmap(caller=OTHER, ref=REF + 2) == GNTST_OKAY
    assert world.at_rest()
    world.grant(8)
    assert world.map() == 8  # by the domain's next incarnation


@pytest.mark.parametrize("pins", [0, ACTIVE_READER, 3 * ACTIVE_WRITER], ids=["unpinned", "reader", "writers"])
@pytest.mark.parametrize("marks", [0, GTF_READING, GTF_READING | GTF_WRITING], ids=["unmarked", "read", "written"])
@pytest.mark.parametrize("lock", [0, ACTIVE_LOCK], ids=["unlocked", "locked"])
def test_mapper_died_at_this_step(world: World, pins: int, marks: int, lock: int) -> None:
    world.write_entry(GTF_PERMIT_ACCESS | marks, DOM0, 5)
    world.set_active(DOM0 + 1 | pins | lock)
    assert world.release(OTHER) == 0
    assert world.active() != 0
    assert world.release(DOM0) == 1
    assert world.at_rest()
    assert world.map(write=1) == 5


def test_dead_mapper_of_an_entry_that_was_granted_anew(world: World) -> None:
    """It died between clearing its marks and unlocking; the guest revoked, and granted the reference to another."""
    world.set_active(DOM0 + 1 | ACTIVE_LOCK)
    world.grant(9, to=OTHER)
    assert world.map(caller=OTHER) == GNTST_EAGAIN
    assert world.release(DOM0) == 1
    assert world.map(caller=OTHER) == 9
