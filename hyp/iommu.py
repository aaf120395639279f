"""IOMMU tables: what the NIC may reach for a context, and how a translation is taken away again.

Table: one u64 per IOVA page, written by the hypervisor, mapped read-only by the NIC::

    bit 0  READ   the device may read the page
    bit 1  WRITE  the device may write the page
    2..11  run    how many of the entries that follow this one have the same rights and the frames that follow, at most MAX_RUN
    12..   frame  page number in the owning domain's RAM

`run` lets one look-up do for a whole pool of buffers, as large pages do in other tables.

Shootdown. An engine may use a translation from the moment it looked it up until its batch ends. It therefore publishes an
*epoch*: odd in a batch, even when it sleeps or is between two. To take a translation away:

1. hypervisor: clear the entries, and shorten the runs that they were part of; full fence; read every engine's epoch.
   An even epoch: the engine's next batch begins with a full fence, after which it reads the cleared entry. Done with it.
2. For those that were odd: count `shootdown_request` up; full fence; done with an engine as soon as its epoch differs.
3. engine: at each batch boundary publish the epoch; full fence; if `shootdown_request` moved, signal the hypervisor, at
   this boundary and at the next.

Steps 2 and 3 are Dekker's pattern: either the hypervisor sees the next epoch or the engine, having published it, sees the
request. The epoch is read *before* the request is made: one read after it may be of a batch that began after the engine had
answered, whose end nobody would be told. And the engine signals twice, because it may have seen the request at the boundary
that began the batch that is waited for. The hypervisor waits in its event loop, so a stopped NIC cannot hang it; the NIC's
death ends all waits. Only then may a page be reused.

A page's translation is *pinned* as long as a registration holds it: registrations are counted per page.
"""

import numpy as np

from hyp.abi.nic import PAGE
from hyp.abi.platform import EPOCH, SHOOTDOWN_REQUEST
from hyp.atomics import full_fence, load64, load64_acquire, load64_once, store64_once, store64_release
from hyp.kernels import compiled, entry, i64, void
from hyp.memory import Mapping

READ, WRITE = 1, 2
RIGHTS = READ | WRITE
MAX_RUN = 1023
NO_TRANSLATION = 0


@compiled
def translate(table: int, table_pages: int, ram: int, ram_pages: int, iova: int, rights: int) -> tuple[int, int]:
    """Address in this process of `iova`, and the number of bytes from there on that this look-up is good for.

    (NO_TRANSLATION, 0) if there is no translation with `rights`.
    """
    page = iova >> 12
    if iova < 0 or page >= table_pages:
        return NO_TRANSLATION, 0
    word = load64_once(table + page * 8)
    frame = word >> 12
    if (word & rights) != rights or frame < 0 or frame >= ram_pages:
        return NO_TRANSLATION, 0
    pages, within = min(_run(word) + 1, ram_pages - frame), iova & (PAGE - 1)
    return ram + (frame << 12) + within, (pages << 12) - within


@compiled
def _run(word: int) -> int:
    return (word >> 2) & MAX_RUN


@compiled
def _entry(page: int, rights: int, following: int) -> int:
    """The entry of a page; `following` is the next page's."""
    if rights == 0:
        return 0
    run = min(_run(following) + 1, MAX_RUN) if following & RIGHTS == rights else 0
    return (page << 12) | (run << 2) | rights


@entry(void(i64, i64, i64, i64, i64))
def _write_entries(table: int, pages: int, first: int, count: int, rights: int) -> None:
    """Give `count` entries from page `first` on the rights at address `rights` (i64 each; 0 clears), frames as pages are numbered.

    From the last one down, since a run depends on what follows; and on in front of them as far as runs change by it.
    """
    end = first + count
    following = load64_once(table + end * 8) if end < pages else 0
    for page in range(end - 1, -1, -1):
        before = load64_once(table + page * 8)
        word = _entry(page, load64(rights + (page - first) * 8) if page >= first else before & RIGHTS, following)
        if page < first and word == before:
            break
        store64_once(table + page * 8, word)
        following = word
    full_fence()


@entry(void(i64))
def _count_request(platform: int) -> None:
    store64_release(platform + SHOOTDOWN_REQUEST, load64_once(platform + SHOOTDOWN_REQUEST) + 1)
    full_fence()


@entry(i64(i64))
def _read_epoch(engine_page: int) -> int:
    return load64_acquire(engine_page + EPOCH)


class IommuTable:
    """One domain's table with its registrations. IOVA = guest-physical address."""

    def __init__(self, mapping: Mapping, pages: int) -> None:
        self._table, self.pages = mapping, pages
        self._readers = np.zeros(pages, np.int32)
        self._writers = np.zeros(pages, np.int32)

    def register(self, addr: int, length: int, *, writable: bool) -> None:
        """Enter the pages of [addr, addr + length) and pin them. ValueError names what is wrong with the range."""
        first, count = self._pages(addr, length)
        self._readers[first : first + count] += 1
        if writable:
            self._writers[first : first + count] += 1
        self._rewrite(first, count)

    def deregister(self, addr: int, length: int, *, writable: bool) -> bool:
        """Drop one registration; True if a translation or a right went away, so that a shootdown is due."""
        first, count = self._pages(addr, length)
        pages = slice(first, first + count)
        self._readers[pages] -= 1
        if writable:
            self._writers[pages] -= 1
        self._rewrite(first, count)
        return bool((self._readers[pages] == 0).any() or (writable and (self._writers[pages] == 0).any()))

    def clear(self) -> None:
        """Take every translation away (the domain ends); a shootdown is due."""
        self._readers[:] = 0
        self._writers[:] = 0
        self._rewrite(0, self.pages)

    def _pages(self, addr: int, length: int) -> tuple[int, int]:
        if addr < 0 or length <= 0 or addr > self.pages * PAGE - length:
            raise ValueError(f"[{addr:#x}, +{length:#x}) is not inside the domain's {self.pages * PAGE:#x} bytes of RAM")
        if addr % PAGE or length % PAGE:
            raise ValueError(f"[{addr:#x}, +{length:#x}) is not made of whole pages")
        return addr // PAGE, length // PAGE

    def _rewrite(self, first: int, count: int) -> None:
        """Write entries [first, first + count) from the pin counts."""
        pages = slice(first, first + count)
        rights = np.where(self._readers[pages] > 0, READ, 0) | np.where(self._writers[pages] > 0, WRITE, 0)
        rights = np.ascontiguousarray(rights, np.int64)
        _write_entries(self._table.address, self.pages, first, count, rights.ctypes.data)


class Shootdown:
    """The wait of step 2, begun when it is made, after the entries were cleared. `is_over` is asked again upon each signal."""

    def __init__(self, platform: Mapping, engine_pages: list[Mapping]) -> None:
        epochs = [(page, _read_epoch(page.address)) for page in engine_pages]
        self._waiting = [(page, epoch) for page, epoch in epochs if epoch & 1]
        if self._waiting:
            _count_request(platform.address)

    def is_over(self) -> bool:
        """True once no engine can still use what was cleared before this object was made."""
        self._waiting = [(page, epoch) for page, epoch in self._waiting if _read_epoch(page.address) == epoch]
        return not self._waiting
