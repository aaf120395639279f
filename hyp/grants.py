"""Grants: how a domain lets others at single pages of its RAM, and how the hypervisor holds them to it.

Layouts are in `hyp.abi.grant`. Three parties:

*The granting domain* writes entries of its own table (`grant_access`, `end_access`) and keeps its free references
private (`init_grefs`, `alloc_gref`, `free_gref`).

*The caller* (a back end) asks the hypervisor to pin a page or to copy (`pin`, `map_grant`, `grant_copy`). As a
hypercall runs on the caller's CPU, these run on the caller's thread, on the hypervisor's memory: the active table.
They trust no word that the granting domain can write. An entry is loaded once, judged, and marked in use by a
compare-and-swap of all its 64 bits, so that the frame that is used is the frame that was judged. A domain that
rewrites an entry in use can only redirect the *next* access to another page of its own, and loses the marks that
protect it.

*The hypervisor's own process* gives a dead caller's pins back (`release_mapper`): who holds what is in the active
table.

An active word is changed under its lock bit, in five steps that may end at any of them by ``kill -9``:

1. lock the active word, naming the mapper    from here on `release_mapper` finds it
2. mark the shared entry                      from here on the granting domain cannot revoke it
3. use the page
4. clear the marks that no pin needs any more
5. write the new counts, which unlocks

The lock is waited for only by threads of domains that hold the same page at the same time; a wait is bounded and ends
in GNTST_EAGAIN.
"""

from typing import Any

import numpy as np

from hyp.abi.grant import (
    ACTIVE_COUNT_MASK,
    ACTIVE_LOCK,
    ACTIVE_MAPPER_MASK,
    ACTIVE_READER,
    ACTIVE_WRITER,
    COPY_BYTES,
    COPY_DEST,
    COPY_DEST_DOMID,
    COPY_DEST_GREF,
    COPY_DEST_OFFSET,
    COPY_FLAGS,
    COPY_LEN,
    COPY_SOURCE,
    COPY_SOURCE_DOMID,
    COPY_SOURCE_GREF,
    COPY_SOURCE_OFFSET,
    COPY_STATUS,
    DOMID_SELF,
    ENTRY_BYTES,
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
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_SUB_PAGE,
    GTF_TYPE_MASK,
    GTF_WRITING,
    NR_RESERVED_ENTRIES,
    PAGE_BYTES,
    PAGE_SHIFT,
)
from hyp.atomics import (
    cas16,
    cas64,
    cpu_relax,
    load16_once,
    load64_once,
    memcpy,
    record_view,
    store16_once,
    store16_release,
    store64_release,
    sys_getppid,
)
from hyp.kernels import compiled, entry, i64
from hyp.memory import Mapping

REFS_PER_FRAME = PAGE_BYTES // ENTRY_BYTES
ACTIVE_BYTES_PER_REF = 8

LOCK_SPINS = 1000  # some tens of µs: a holder that takes longer has lost its CPU
MARK_TRIES = 5  # as Xen: an entry that changes under each of them is unstable, and its domain misbehaves

DOMAIN_VIEW = np.dtype(
    [
        ("grant_table", "i8"),  # address of the shared table
        ("refs", "i8"),  # entries in it
        ("active", "i8"),  # address of the active table
        ("ram", "i8"),  # address of guest-physical 0
        ("ram_bytes", "i8"),
        ("present", "i8"),  # 0: there is no such domain
    ]
)
"""What the hypercalls of one process know of a domain. Private; an array of them is indexed by domain id."""
DOMAIN_VIEW_BYTES = DOMAIN_VIEW.itemsize

view_at = record_view(DOMAIN_VIEW)

COPY_COUNTS = np.dtype([("hypercalls", "i8"), ("copies", "i8"), ("copied_bytes", "i8"), ("grant_faults", "i8")])
"""What `grant_copy` counts: system calls, copies done, their bytes, copies refused. Any such record will do."""
copy_counts_at = record_view(COPY_COUNTS)


# --- the granting domain ---------------------------------------------------------------------------------------------


@compiled
def grant_access(table: int, ref: int, domid: int, frame: int, readonly: int) -> None:
    """Let `domid` use page `frame`. The whole entry appears at once, which is more than the protocol asks for."""
    flags = GTF_PERMIT_ACCESS | GTF_READONLY if readonly else GTF_PERMIT_ACCESS
    store64_release(table + ref * ENTRY_BYTES, flags | (domid << 16) | (frame << 32))


@compiled
def end_access(table: int, ref: int) -> int:
    """Revoke a grant. 1: nobody uses the page, nor will. 0: it is in use; ask again later, do not reuse the page."""
    address = table + ref * ENTRY_BYTES
    flags = load16_once(address)
    if flags & (GTF_READING | GTF_WRITING):
        return 0
    return 1 if cas16(address, flags, 0) == flags else 0


@compiled
def init_grefs(free: Any) -> None:
    """Make all references but the reserved ones free. `free` is private, int64[references]: a list threaded through it.

    ``free[0]`` heads the list (0: none left), ``free[1]`` counts it, ``free[ref]`` is the next, or −1 if taken.
    """
    free[:] = -1
    free[0] = NR_RESERVED_ENTRIES if len(free) > NR_RESERVED_ENTRIES else 0
    free[1] = max(0, len(free) - NR_RESERVED_ENTRIES)
    for ref in range(NR_RESERVED_ENTRIES, len(free)):
        free[ref] = ref + 1 if ref + 1 < len(free) else 0


@compiled
def alloc_gref(free: Any) -> int:
    """A free reference (the one freed last), or GNTST_NO_SPACE."""
    ref = free[0]
    if ref == 0:
        return GNTST_NO_SPACE
    free[0], free[ref] = free[ref], -1
    free[1] -= 1
    return int(ref)


@compiled
def free_gref(free: Any, ref: int) -> int:
    """Give back a reference whose access has ended. 1, or 0 if it was not taken (a bug of the caller)."""
    if ref < NR_RESERVED_ENTRIES or ref >= len(free) or free[ref] != -1:
        return 0
    free[ref], free[0] = free[0], ref
    free[1] += 1
    return 1


# --- the hypervisor, on the caller's thread --------------------------------------------------------------------------


@compiled
def _lock(active: int, mapper: int) -> int:
    """Lock an active word for `mapper` (domain id + 1). The word as it was, or a negative status."""
    for _ in range(LOCK_SPINS):
        word = load64_once(active)
        if word & ACTIVE_LOCK == 0:
            owner = word & ACTIVE_MAPPER_MASK
            if owner != 0 and owner != mapper:
                return GNTST_GENERAL_ERROR  # another domain has it: the entry was rewritten in use
            if cas64(active, word, word | mapper | ACTIVE_LOCK) == word:
                return int(word)
        cpu_relax()
    return GNTST_EAGAIN


@compiled
def _mark(entry_address: int, caller: int, write: int, pages: int) -> int:
    """Judge a shared entry and mark it in use, in one step. The frame, or a negative status."""
    word = load64_once(entry_address)
    for _ in range(MARK_TRIES):
        # Sub-page grants are of version 2: here there would be nothing that says which part of the page
        if word & (GTF_TYPE_MASK | GTF_SUB_PAGE) != GTF_PERMIT_ACCESS or (word >> 16) & 0xFFFF != caller:
            return GNTST_GENERAL_ERROR
        if write and word & GTF_READONLY:
            return GNTST_GENERAL_ERROR
        frame = (word >> 32) & 0xFFFFFFFF
        if frame >= pages:
            return GNTST_BAD_PAGE
        marked = word | (GTF_READING | GTF_WRITING if write else GTF_READING)
        # Already marked: by a pin of this mapper, which stays at least as long as the lock is held
        found = word if marked == word else cas64(entry_address, word, marked)
        if found == word:
            return int(frame)
        word = found
    return GNTST_GENERAL_ERROR


@compiled
def _unmark(entry_address: int, marks: int) -> None:
    """Clear marks, whatever the granting domain does to the entry meanwhile."""
    for _ in range(MARK_TRIES):
        flags = load16_once(entry_address)
        if flags & marks == 0 or cas16(entry_address, flags, flags & ~marks) == flags:
            return
    store16_release(entry_address, load16_once(entry_address) & ~marks)  # it writes to an entry in use: let it lose


@compiled
def _begin(view: Any, ref: int, caller: int, write: int) -> Any:
    """Steps 1 and 2. ``(frame, active word as it was)``, locked; or ``(negative status, 0)``, not locked."""
    if ref < 0 or ref >= view.refs:
        return GNTST_BAD_GNTREF, 0
    active = view.active + ref * ACTIVE_BYTES_PER_REF
    word = _lock(active, caller + 1)
    if word < 0:
        return word, 0
    frame = _mark(view.grant_table + ref * ENTRY_BYTES, caller, write, view.ram_bytes >> PAGE_SHIFT)
    if frame < 0:
        store64_release(active, word)
        return frame, 0
    return frame, word


@compiled
def _settle(table: int, active: int, ref: int, word: int) -> None:
    """Steps 4 and 5: `word` (without lock) is what is left of the pins."""
    pinned, writers = word >> 16, (word >> 32) & ACTIVE_COUNT_MASK
    if writers == 0:
        _unmark(table + ref * ENTRY_BYTES, GTF_WRITING if pinned else GTF_READING | GTF_WRITING)
    store64_release(active + ref * ACTIVE_BYTES_PER_REF, word if pinned else 0)


@compiled
def pin(view: Any, ref: int, caller: int, write: int) -> int:
    """Hold a granted page until `unpin`: `caller` may write it if `write`. The frame, or a negative GNTST status.

    BAD_GNTREF: no such reference. GENERAL_ERROR: not granted to the caller, or read-only, or pinned by another domain.
    BAD_PAGE: not in the granting domain's RAM. NO_SPACE: pinned 65535 times. EAGAIN: another thread is at it.
    """
    frame, word = _begin(view, ref, caller, write)
    if frame < 0:
        return int(frame)
    one = ACTIVE_WRITER if write else ACTIVE_READER
    full = ACTIVE_COUNT_MASK * one
    if word & full == full:
        _settle(view.grant_table, view.active, ref, word)
        return GNTST_NO_SPACE
    store64_release(view.active + ref * ACTIVE_BYTES_PER_REF, (word | (caller + 1)) + one)
    return int(frame)


@compiled
def unpin(view: Any, ref: int, caller: int, write: int) -> int:
    """Let go of what `pin` with the same arguments held. GNTST_OKAY, or what is wrong (then nothing has changed)."""
    if ref < 0 or ref >= view.refs:
        return GNTST_BAD_GNTREF
    active = view.active + ref * ACTIVE_BYTES_PER_REF
    word = _lock(active, caller + 1)
    if word < 0:
        return GNTST_BAD_HANDLE if word == GNTST_GENERAL_ERROR else word
    one = ACTIVE_WRITER if write else ACTIVE_READER
    if word & (ACTIVE_COUNT_MASK * one) == 0:
        store64_release(active, word)
        return GNTST_BAD_HANDLE
    _settle(view.grant_table, view.active, ref, word - one)
    return GNTST_OKAY


@compiled
def map_grant(domains: Any, n_domains: int, caller: int, domid: int, ref: int, write: int) -> int:
    """Pin a page of domain `domid` and keep it. Its frame in that domain's RAM, or a negative status."""
    if domid < 0 or domid >= n_domains or domains[domid].present == 0:
        return GNTST_BAD_DOMAIN
    return int(pin(domains[domid], ref, caller, write))


@compiled
def unmap_grant(domains: Any, n_domains: int, caller: int, domid: int, ref: int, write: int) -> int:
    """Undo `map_grant`. GNTST_OKAY or a negative status."""
    if domid < 0 or domid >= n_domains or domains[domid].present == 0:
        return GNTST_BAD_DOMAIN
    return int(unpin(domains[domid], ref, caller, write))


@compiled
def map_grant_at(views: int, n_domains: int, caller: int, domid: int, ref: int, write: int) -> int:
    """`map_grant` for an address of DOMAIN_VIEW records. The address of the page here, or a negative status."""
    if domid < 0 or domid >= n_domains or _view(views, domid).present == 0:
        return GNTST_BAD_DOMAIN
    view = _view(views, domid)
    frame = pin(view, ref, caller, write)
    return frame if frame < 0 else view.ram + (frame << PAGE_SHIFT)


@compiled
def unmap_grant_at(views: int, n_domains: int, caller: int, domid: int, ref: int, write: int) -> int:
    """Undo `map_grant_at`. GNTST_OKAY or a negative status."""
    if domid < 0 or domid >= n_domains or _view(views, domid).present == 0:
        return GNTST_BAD_DOMAIN
    return unpin(_view(views, domid), ref, caller, write)


# --- batched copy ----------------------------------------------------------------------------------------------------


@compiled
def _view(views: int, domid: int) -> Any:
    """The DOMAIN_VIEW of a domain, by address: to hand the array down is to count references to it, atomically."""
    return view_at(views + domid * DOMAIN_VIEW_BYTES)


@compiled
def _own_page(view: Any, domid: int, caller: int, frame: int) -> int:
    """Address of a frame of the caller's own RAM, or a negative status."""
    if domid != caller:
        return GNTST_PERMISSION_DENIED  # frame numbers of others are never taken, as in Xen
    if frame < 0 or frame >= view.ram_bytes >> PAGE_SHIFT:
        return GNTST_BAD_PAGE
    return int(view.ram + (frame << PAGE_SHIFT))


@compiled
def _open_side(views: int, n_domains: int, caller: int, domid: int, where: int, is_gref: int, write: int) -> Any:
    """One side of a copy: ``(address of its page, active word)``, or ``(negative status, 0)``."""
    if not is_gref:
        return _own_page(_view(views, caller), domid, caller, where), 0
    if domid >= n_domains or _view(views, domid).present == 0:
        return GNTST_BAD_DOMAIN, 0
    view = _view(views, domid)
    frame, word = _begin(view, where & 0xFFFFFFFF, caller, write)
    if frame < 0:
        return frame, 0
    return view.ram + (frame << PAGE_SHIFT), word


@compiled
def _close_side(views: int, domid: int, where: int, is_gref: int, word: int) -> None:
    if is_gref:
        view = _view(views, domid)
        _settle(view.grant_table, view.active, where & 0xFFFFFFFF, word)


@compiled
def _copy_one(views: int, n_domains: int, caller: int, op: int) -> int:
    """Carry out one gnttab_copy. Bytes copied, or a negative status."""
    # 1. take one copy of what was asked for
    length, flags = load16_once(op + COPY_LEN), load16_once(op + COPY_FLAGS)
    source, from_domid = load64_once(op + COPY_SOURCE), load16_once(op + COPY_SOURCE_DOMID)
    dest, to_domid = load64_once(op + COPY_DEST), load16_once(op + COPY_DEST_DOMID)
    source_offset, dest_offset = load16_once(op + COPY_SOURCE_OFFSET), load16_once(op + COPY_DEST_OFFSET)
    source_gref, dest_gref = flags & COPY_SOURCE_GREF, flags & COPY_DEST_GREF
    # 2. judge it
    from_domid = caller if from_domid == DOMID_SELF else from_domid
    to_domid = caller if to_domid == DOMID_SELF else to_domid
    if source_offset + length > PAGE_BYTES or dest_offset + length > PAGE_BYTES:
        return GNTST_BAD_COPY_ARG
    if source_gref and dest_gref and from_domid == to_domid and (source ^ dest) & 0xFFFFFFFF == 0:
        return GNTST_BAD_COPY_ARG  # a page onto itself: would wait for its own lock
    # 3. open both sides
    from_page, from_word = _open_side(views, n_domains, caller, from_domid, source, source_gref, 0)
    if from_page < 0:
        return int(from_page)
    to_page, to_word = _open_side(views, n_domains, caller, to_domid, dest, dest_gref, 1)
    # 4. copy (two references to one page may overlap: then its owner gets what it asked for)
    if to_page >= 0:
        memcpy(to_page + dest_offset, from_page + source_offset, length)
        _close_side(views, to_domid, dest, dest_gref, to_word)
    _close_side(views, from_domid, source, source_gref, from_word)
    return length if to_page >= 0 else int(to_page)


@compiled
def grant_copy_at(views: int, n_domains: int, caller: int, ops: int, count: int, counts: Any) -> int:
    """Carry out `count` copies for domain `caller`: one hypercall. The number that were refused.

    `views` is the address of an array of DOMAIN_VIEW, in which the caller is present, `ops` the address of GNTTAB_COPY
    records (8-byte aligned), `counts` a COPY_COUNTS record. Each op gets its status: those of `pin`, and BAD_DOMAIN,
    BAD_COPY_ARG (over the end of a page, or a reference onto itself), PERMISSION_DENIED (a foreign frame number).
    """
    sys_getppid()  # what entering the hypervisor costs
    refused, copied_bytes = 0, 0
    for k in range(count):
        op = ops + k * COPY_BYTES
        done = _copy_one(views, n_domains, caller, op)
        store16_once(op + COPY_STATUS, min(done, GNTST_OKAY))
        refused += done < 0
        copied_bytes += max(done, 0)
    counts.hypercalls += 1
    counts.copies += count - refused
    counts.copied_bytes += copied_bytes
    counts.grant_faults += refused
    return refused


@compiled
def grant_copy(domains: Any, n_domains: int, caller: int, ops: int, count: int, counts: Any) -> int:
    """`grant_copy_at` for a DOMAIN_VIEW array."""
    return int(grant_copy_at(i64(domains.ctypes.data), n_domains, caller, ops, count, counts))


# --- the hypervisor's own process ------------------------------------------------------------------------------------


@entry(i64(i64, i64, i64, i64))
def _release_pins(table: int, active: int, refs: int, mapper: int) -> int:
    """Give back every pin that `mapper` (domain id + 1) has in one table. The number of references it held."""
    held = 0
    for ref in range(refs):
        if load64_once(active + ref * ACTIVE_BYTES_PER_REF) & ACTIVE_MAPPER_MASK == mapper:
            _settle(table, active, ref, 0)
            held += 1
    return held


def release_mapper(table: Mapping, active: Mapping, domid: int) -> int:
    """Release every pin that the dead domain `domid` had in one grant table, and what it was copying when it died.

    Call it after the last process of `domid` is dead and before one with the same id may start. Returns the number of
    references that it held.
    """
    refs = min(table.size // ENTRY_BYTES, active.size // ACTIVE_BYTES_PER_REF)
    return int(_release_pins(table.address, active.address, refs, domid + 1))
