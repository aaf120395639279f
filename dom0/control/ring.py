"""A vif's control ring (Xen's io/netif.h): requests beside the frames, and the static grant mappings that they make. Control plane.

Who owns what: the page is the front end's, mapped by grant while the vif is connected. This task (`ControlRing.serve`) is its only
consumer, and a slot is copied once, judged and then served, one after the other; it sleeps until the front end's event, which
arrives at an upcall of the control plane's own (dom0/control/upcall.py). A ring that ran away ends the task, and the vif with it.

==================================  ===========================================================================================
request                             answer
==================================  ===========================================================================================
GET_GREF_MAPPING_SIZE queue         how many pages a front end may have mapped: MOST_MAPPINGS; 0 with persistent grants
ADD_GREF_MAPPING queue, gref, n     all `n` of the table's pages are mapped, or none (INVALID_PARAMETER): already mapped, twice in
                                    the table, unknown flags, not granted, too many
DEL_GREF_MAPPING queue, gref, n     how many were unmapped; each entry's `status` says whether it was. A page goes when Dom0's loop
                                    has let go of it, which is before the answer
all others                          NOT_SUPPORTED: hash control, which is of use with several queues
==================================  ===========================================================================================

A static mapping is a page of the tables of dom0/persistent.py: pinned here, entered there, and unpinned here when it is deleted or
the vif is disconnected. The table that names references is in the guest's memory, and may change at any time: it is copied once.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from dom0.build import EngineState
from dom0.control.pages import Grants, map_page, unmap_page
from dom0.persistent import STATIC_PAGE
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    CTRL_SLOT_BYTES,
    CTRL_STATUS_INVALID_PARAMETER,
    CTRL_STATUS_NOT_SUPPORTED,
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_DEL_GREF_MAPPING,
    CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    CTRLF_GREF_READONLY,
    GREF,
)
from hyp.abi.sizes import SPLIT_RINGS, SPLIT_SLOTS
from hyp.atomics import load32_once, memcpy, store16_once, store32
from hyp.events import raise_event
from hyp.kernels import entry, i64, void
from hyp.ring import (
    PROTOCOL_FAULT,
    arm_requests,
    next_request_slot,
    next_response_slot,
    push_responses,
    ring_at,
    unconsumed_requests,
)

MOST_MAPPINGS: Final = SPLIT_RINGS * SPLIT_SLOTS
"""A page for each slot of both rings."""
MOST_ENTRIES: Final = PAGE_BYTES // GREF.itemsize
GREF_STATUS: Final = 6
"""Where an entry has its status."""
_NOTHING, _TAKEN = 0, 1


@entry(i64(i64, i64))
def _take(ring: int, request: int) -> int:
    """Copy the next request. _TAKEN, _NOTHING (and its event has been asked for), or PROTOCOL_FAULT."""
    r = ring_at(ring)
    ready = unconsumed_requests(r)
    if ready == 0 and arm_requests(r) != 0:
        ready = unconsumed_requests(r)
    if ready <= 0:
        return PROTOCOL_FAULT if ready < 0 else _NOTHING
    slot = next_request_slot(r)
    for k in range(0, CTRL_SLOT_BYTES, 4):
        store32(request + k, load32_once(slot + k))
    return _TAKEN


@entry(i64(i64, i64, i64))
def _answer(ring: int, response: int, size: int) -> int:
    """Write a response and publish it. 1 if the front end asked to be told."""
    r = ring_at(ring)
    memcpy(next_response_slot(r), response, size)
    return push_responses(r)


@entry(void(i64, i64, i64))
def _copy(to: int, source: int, size: int) -> None:
    memcpy(to, source, size)


@entry(void(i64, i64))
def _write_status(at: int, status: int) -> None:
    store16_once(at, status)


class ControlRing:
    """One vif's: `serve` is its life, from `open` on until it is cancelled; then `close`."""

    def __init__(self, state: EngineState, number: int, ring: int, event_fd: int, grants: Grants, *, mappings: bool) -> None:
        """`ring`: the address of its RING record. `grants`: of `map_page`. `mappings`: static ones may be made on port `number`."""
        self._state, self._number, self._ring, self._event_fd, self._grants = state, number, ring, event_fd, grants
        self._most = MOST_MAPPINGS if mappings else 0
        self._mapped: dict[int, int] = {}  # reference → whether it is pinned for writing
        self._request, self._response = np.zeros(1, CTRL_REQUEST), np.zeros(1, CTRL_RESPONSE)
        self._entered = np.zeros(0, STATIC_PAGE)
        self.woken = asyncio.Event()

    async def serve(self) -> None:
        """Answer requests. Returns when the ring's index has run away."""
        request, response = (int(array.ctypes.data) for array in (self._request, self._response))
        while (found := _take(self._ring, request)) != PROTOCOL_FAULT:
            if found == _NOTHING:
                await self.woken.wait()
                self.woken.clear()
                continue
            number, kind, data = self._request[0]["id"], self._request[0]["type"], [int(word) for word in self._request[0]["data"]]
            status, answer = await self._carry_out(int(kind), *data)
            self._response[0] = (number, kind, status, answer)
            if _answer(self._ring, response, self._response.nbytes):
                raise_event(self._event_fd)
            await asyncio.sleep(0)  # others' turn

    async def _carry_out(self, kind: int, queue: int, gref: int, count: int) -> tuple[int, int]:
        """(status, data) of a request."""
        if kind not in (CTRL_TYPE_GET_GREF_MAPPING_SIZE, CTRL_TYPE_ADD_GREF_MAPPING, CTRL_TYPE_DEL_GREF_MAPPING):
            return CTRL_STATUS_NOT_SUPPORTED, 0
        if queue != 0:
            return CTRL_STATUS_INVALID_PARAMETER, 0
        if kind == CTRL_TYPE_GET_GREF_MAPPING_SIZE:
            return CTRL_STATUS_SUCCESS, self._most
        if self._most == 0:
            return CTRL_STATUS_NOT_SUPPORTED, 0
        if not 1 <= count <= MOST_ENTRIES:
            return CTRL_STATUS_INVALID_PARAMETER, 0
        with self._page(gref) as page:
            if page < 0:
                return CTRL_STATUS_INVALID_PARAMETER, 0
            table = np.zeros(count, GREF)
            _copy(int(table.ctypes.data), page, table.nbytes)
            if kind == CTRL_TYPE_ADD_GREF_MAPPING:
                return await self._add(table), 0
            return CTRL_STATUS_SUCCESS, await self._delete(table, page)

    @contextmanager
    def _page(self, gref: int) -> Iterator[int]:
        """The page that holds a table, mapped for writing: its address, or a negative grant status."""
        page = map_page(*self._grants, gref, 1)
        try:
            yield page
        finally:
            if page >= 0:
                unmap_page(*self._grants, gref, 1)

    async def _add(self, table: "np.ndarray[tuple[int], np.dtype[np.void]]") -> int:
        wanted = {int(row["ref"]): int(row["flags"]) & CTRLF_GREF_READONLY == 0 for row in table}
        fresh = len(wanted) == len(table) and not wanted.keys() & self._mapped.keys()
        if not fresh or (table["flags"] & ~np.uint16(CTRLF_GREF_READONLY)).any() or len(self._mapped) + len(wanted) > self._most:
            return CTRL_STATUS_INVALID_PARAMETER
        entries, pinned = np.zeros(len(wanted), STATIC_PAGE), dict[int, int]()
        for k, (ref, write) in enumerate(wanted.items()):
            page = map_page(*self._grants, ref, int(write))
            if page < 0:
                self._unpin(pinned)
                return CTRL_STATUS_INVALID_PARAMETER
            pinned[ref], entries[k] = int(write), (ref, page, write)
        self._mapped |= pinned  # whatever happens from here on, `close` gives them back
        await self._enter(entries)
        return CTRL_STATUS_SUCCESS

    async def _delete(self, table: "np.ndarray[tuple[int], np.dtype[np.void]]", page: int) -> int:
        gone = dict[int, int]()
        for k, row in enumerate(table):
            ref = int(row["ref"])
            known = ref in self._mapped and ref not in gone
            if known:
                gone[ref] = self._mapped[ref]
            status = CTRL_STATUS_SUCCESS if known else CTRL_STATUS_INVALID_PARAMETER
            _write_status(page + k * GREF.itemsize + GREF_STATUS, status)
        if gone:
            entries = np.zeros(len(gone), STATIC_PAGE)
            entries["gref"], entries["write"] = list(gone), 1
            await self._enter(entries)
            for ref in gone:
                del self._mapped[ref]
            self._unpin(gone)
        return len(gone)

    async def _enter(self, entries: "np.ndarray[tuple[int], np.dtype[np.void]]") -> None:
        self._entered = entries  # the engine reads them, even if this task is cancelled now
        await self._state.enter_pages(self._number, entries)

    def _unpin(self, pages: dict[int, int]) -> None:
        for ref, write in pages.items():
            unmap_page(*self._grants, ref, write)

    def close(self) -> None:
        """Give back what is mapped. The port is no more, and nobody serves any more."""
        self._unpin(self._mapped)
        self._mapped.clear()
