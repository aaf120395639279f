"""Dom0 and two guests with grant tables, what they do with them, compiled, and child processes to do it in."""

import os
from collections.abc import Callable

import numba
import numpy as np

from hyp.abi.grant import (
    COPY_DEST_GREF,
    COPY_SOURCE_GREF,
    DOMID_SELF,
    GNTST_OKAY,
    GNTTAB_COPY,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_WRITING,
    PAGE_BYTES,
)
from hyp.atomics import clock_ns, cpu_relax, load64_once, memzero, store64_once, store64_release
from hyp.grants import (
    COPY_COUNTS,
    DOMAIN_VIEW,
    REFS_PER_FRAME,
    end_access,
    grant_access,
    grant_copy,
    map_grant,
    release_mapper,
    unmap_grant,
)
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping

VIEWS = numba.types.Array(numba.from_dtype(DOMAIN_VIEW), 1, "C")
COUNTS = numba.types.Array(numba.from_dtype(COPY_COUNTS), 1, "C")
MAP, UNMAP, GRANT, END = range(4)
SECOND = 1_000_000_000
TIME_LIMIT = 20 * SECOND  # of a process whose parent has crashed

DOM0, GUEST, OTHER, ABSENT = range(4)
PAGES = {DOM0: 64, GUEST: 16, OTHER: 16}
REF = 40
GUARD, GUEST_BYTE, DOM0_BYTE = 0xEE, 0x5A, 0x11

Side = tuple[int, int, int]  # domain, reference or frame, offset
BOTH = COPY_SOURCE_GREF | COPY_DEST_GREF
OWN = (DOMID_SELF, 3, 0)
GRANTED = (GUEST, REF, 0)


@entry(i64(VIEWS, i64, i64, i64, i64, i64, i64))
def operate(domains, op, caller, domid, ref, write, frame):  # type: ignore[no-untyped-def]
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
def copy_batches(domains, caller, ops, count, counts, stop):  # type: ignore[no-untyped-def]
    """One batch, or, if `stop` is an address, batches until there is something at it or TIME_LIMIT. Copies refused."""
    finish = clock_ns() + TIME_LIMIT
    refused = grant_copy(domains, len(domains), caller, ops, count, counts[0])
    while stop and load64_once(stop) == 0 and clock_ns() < finish:
        refused += grant_copy(domains, len(domains), caller, ops, count, counts[0])
    return refused


@entry(void(i64, i64, i64, i64))
def rewrite(table, ref, seed, stop):  # type: ignore[no-untyped-def]
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
def grant_and_revoke(table, ref, frame, page, stop, tally):  # type: ignore[no-untyped-def]
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
        """An entry's flags."""
        return int(self.tables[domid].words("<u2")[4 * ref])

    def write_entry(self, flags: int, domid: int, frame: int, owner: int = GUEST, ref: int = REF) -> None:
        """Write an entry of `owner`'s table, whatever it says."""
        self.tables[owner].words("<u8")[ref] = flags | domid << 16 | frame << 32

    def active(self, domid: int = GUEST, ref: int = REF) -> int:
        """The word that says who has pinned the entry."""
        return int(self.actives[domid].words("<i8")[ref])

    def set_active(self, word: int, domid: int = GUEST, ref: int = REF) -> None:
        """As somebody would have left that word."""
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
        """Nothing was written outside anybody's RAM."""
        edges = np.cumsum([0, *(pages + 1 for pages in PAGES.values())])
        return bool((self.arena.array.reshape(-1, PAGE_BYTES)[edges] == GUARD).all())

    def at_rest(self) -> bool:
        """Nothing is pinned, locked or marked."""
        marks = [self.flags(domid, ref) & (GTF_READING | GTF_WRITING) for domid in PAGES for ref in range(REFS_PER_FRAME)]
        return not any(active.array.any() for active in self.actives.values()) and not any(marks)


def op(source: Side, dest: Side, length: int, flags: int) -> tuple[int, ...]:
    """One copy, as the fields of GNTTAB_COPY."""
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
    """Wait for a child's end; whether it was a good one."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
