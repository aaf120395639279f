"""Static grant mappings of a vif (Xen's io/netif.h): pages that its front end names on the control ring. Control plane.

A static mapping is a page of a queue's tables of dom0/mapped_pages.py: pinned here, entered there, and unpinned here when it is
deleted or the vif is disconnected. The table that names references is in the guest's memory, and may change at any time: it is
copied once.

=====================  =========================================================================================================
GET_GREF_MAPPING_SIZE  how many pages a front end may have mapped for a queue: MOST_MAPPINGS
ADD_GREF_MAPPING       all pages of the table are mapped, or none (INVALID_PARAMETER): already mapped, twice in the table, unknown
                       flags, not granted, too many
DEL_GREF_MAPPING       how many were unmapped; each entry's `status` says whether it was. A page goes when Dom0's loop has let go of
                       it, which is before the answer
=====================  =========================================================================================================
"""

from typing import Final

import numpy as np

from dom0.build import EngineState
from dom0.control.pages import Grants, fetch, map_page, mapped, unmap_page
from dom0.mapped_pages import STATIC_PAGE
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import (
    CTRL_STATUS_INVALID_PARAMETER,
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_DEL_GREF_MAPPING,
    CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    CTRLF_GREF_READONLY,
    GREF,
)
from hyp.abi.sizes import SPLIT_RINGS, SPLIT_SLOTS
from hyp.atomics import store16_once
from hyp.kernels import entry, i64, void

MOST_MAPPINGS: Final = SPLIT_RINGS * SPLIT_SLOTS
"""Of a queue: a page for each slot of both rings."""
MOST_ENTRIES: Final = PAGE_BYTES // GREF.itemsize
GREF_STATUS: Final = 6
"""Where an entry has its status."""


@entry(void(i64, i64))
def _write_status(at: int, status: int) -> None:
    store16_once(at, status)


class StaticMappings:
    """One vif's: requests of these `KINDS`, one after the other; then `close`."""

    KINDS: Final = frozenset({CTRL_TYPE_GET_GREF_MAPPING_SIZE, CTRL_TYPE_ADD_GREF_MAPPING, CTRL_TYPE_DEL_GREF_MAPPING})

    def __init__(self, state: EngineState, number: int, grants: Grants, queues: int) -> None:
        """Of the vif whose first port is `number`, which has so many queues. `grants`: of `map_page`."""
        self._state, self._number, self._grants = state, number, grants
        self._mapped: list[dict[int, int]] = [{} for _ in range(queues)]  # reference → whether it is pinned for writing
        self._entered = np.zeros(0, STATIC_PAGE)

    async def carry_out(self, kind: int, queue: int, gref: int, count: int) -> tuple[int, int]:
        """(status, data) of a request."""
        if queue >= len(self._mapped):
            return CTRL_STATUS_INVALID_PARAMETER, 0
        if kind == CTRL_TYPE_GET_GREF_MAPPING_SIZE:
            return CTRL_STATUS_SUCCESS, MOST_MAPPINGS
        if not 1 <= count <= MOST_ENTRIES:
            return CTRL_STATUS_INVALID_PARAMETER, 0
        with mapped(self._grants, gref, 1) as page:
            if page < 0:
                return CTRL_STATUS_INVALID_PARAMETER, 0
            table = np.zeros(count, GREF)
            fetch(table, page)
            if kind == CTRL_TYPE_ADD_GREF_MAPPING:
                return await self._add(queue, table), 0
            return CTRL_STATUS_SUCCESS, await self._delete(queue, table, page)

    async def _add(self, queue: int, table: "np.ndarray[tuple[int], np.dtype[np.void]]") -> int:
        writable = (table["flags"] & np.uint16(CTRLF_GREF_READONLY)) == 0
        wanted = dict(zip(table["ref"].tolist(), writable.tolist(), strict=True))
        here = self._mapped[queue]
        fresh = len(wanted) == len(table) and not wanted.keys() & here.keys()
        if not fresh or (table["flags"] & ~np.uint16(CTRLF_GREF_READONLY)).any() or len(here) + len(wanted) > MOST_MAPPINGS:
            return CTRL_STATUS_INVALID_PARAMETER
        places, pinned = [], dict[int, int]()
        for ref, write in wanted.items():
            page = map_page(*self._grants, ref, int(write))
            if page < 0:
                self._unpin(pinned)
                return CTRL_STATUS_INVALID_PARAMETER
            pinned[ref] = int(write)
            places.append((ref, page, write))
        here |= pinned  # whatever happens from here on, `close` gives them back
        await self._enter(queue, np.array(places, STATIC_PAGE))
        return CTRL_STATUS_SUCCESS

    async def _delete(self, queue: int, table: "np.ndarray[tuple[int], np.dtype[np.void]]", page: int) -> int:
        here, gone = self._mapped[queue], dict[int, int]()
        for k, ref in enumerate(table["ref"].tolist()):
            known = ref in here and ref not in gone
            if known:
                gone[ref] = here[ref]
            status = CTRL_STATUS_SUCCESS if known else CTRL_STATUS_INVALID_PARAMETER
            _write_status(page + k * GREF.itemsize + GREF_STATUS, status)
        if gone:
            entries = np.zeros(len(gone), STATIC_PAGE)
            entries["gref"], entries["write"] = list(gone), 1
            await self._enter(queue, entries)
            for ref in gone:
                del here[ref]
            self._unpin(gone)
        return len(gone)

    async def _enter(self, queue: int, entries: "np.ndarray[tuple[int], np.dtype[np.void]]") -> None:
        self._entered = entries  # the engine reads them, even if this task is cancelled now
        await self._state.enter_pages(self._number, queue, entries)

    def _unpin(self, pages: dict[int, int]) -> None:
        for ref, write in pages.items():
            unmap_page(*self._grants, ref, write)

    def close(self) -> None:
        """Give back what is mapped. The port is no more, and nobody serves any more."""
        for pages in self._mapped:
            self._unpin(pages)
            pages.clear()
