"""Static grant mappings (Xen's io/netif.h), asked for: the split front end has its back end map all pages of its pools for good.

With ``grants = "persistent"`` the front end grants every page of both pools once, at set-up, and revokes none: a page is shared
with Dom0 as long as the device is up, and a request or its answer says only whose turn it is to use it. Dom0 could read or change a
page out of turn; such a guest trusts it not to. Then it names these pages to the back end, on a control ring, so that neither of
the two makes a hypercall for a frame. The back end's side: dom0/control/ring.py, dom0/control/mappings.py.

Who owns what: two pages of ours, granted as long as the device is. The first is the control ring: one request at a time is written,
published and notified of; then we sleep until its answer's event, which arrives at the guest's control plane. The second is the
table that a request speaks of: the back end's from the request to its answer. Whenever the back end was made anew, the ring begins
anew before we are Connected, and the pages are named again once it is; frames go meanwhile, by grant copy of the same pages.

| fails | and then |
|---|---|
| the back end has no control ring, or refuses; at set-up | the device cannot be connected, and says why |
| the same, after the back end was made anew | it is logged, and frames go by grant copy |
| the back end leaves Connected, or does not answer; at set-up | the same |
| it dies before it has answered, later | whoever waits is cancelled, when the device is made anew |
| it answers what was not asked | as if it refused |
"""

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from domu.device import InUse
from domu.frontends.split_state import BACKEND, RX_SLOTS, TX_SLOTS
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    CTRL_RING_REF,
    CTRL_SLOT_BYTES,
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    CTRLF_GREF_READONLY,
    EVENT_CHANNEL_CTRL,
    GREF,
)
from hyp.atomics import load32_once, memcpy, store32
from hyp.events import raise_event
from hyp.grants import end_access, grant_access
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.ring import (
    RING,
    arm_responses,
    attach_front,
    next_request,
    next_response,
    push_requests,
    ring_at,
    ring_size,
    sring_init,
    unconsumed_responses,
)

if TYPE_CHECKING:
    from domu.guest import Guest

PAGES = 2
REFS = PAGES
"""Grant references that it takes."""
SLOTS = ring_size(CTRL_SLOT_BYTES)
_RESPONSE_BYTES = CTRL_RESPONSE.itemsize


@entry(void(i64, i64))
def _begin(ring: int, sring: int) -> None:
    """A fresh ring, in which nothing has been asked."""
    sring_init(sring)
    attach_front(ring_at(ring), sring, SLOTS, CTRL_SLOT_BYTES)


@entry(i64(i64, i64))
def _ask(ring: int, request: int) -> int:
    """Write a request and publish it. 1: the back end is to be notified."""
    r = ring_at(ring)
    memcpy(next_request(r), request, CTRL_SLOT_BYTES)
    return push_requests(r)


@entry(i64(i64, i64))
def _take(ring: int, response: int) -> int:
    """Copy the answer: 1; 0: there is none yet, and its event has been asked for; PROTOCOL_FAULT."""
    r = ring_at(ring)
    ready = unconsumed_responses(r)
    if ready == 0 and arm_responses(r) != 0:
        ready = unconsumed_responses(r)
    if ready > 0:
        slot = next_response(r)
        for k in range(0, _RESPONSE_BYTES, 4):
            store32(response + k, load32_once(slot + k))
        return 1
    return ready


@entry(void(i64, i64, i64))
def _grant(table: int, ref: int, frame: int) -> None:
    for k in range(PAGES):
        grant_access(table, ref + k, BACKEND, frame + k, 0)


@entry(i64(i64, i64))
def _revoke(table: int, ref: int) -> int:
    """How many pages are still in use."""
    used = 0
    for k in range(PAGES):
        used += 1 - end_access(table, ref + k)
    return used


class Unmapped(Exception):
    """The back end does not map the pages, and why."""


class Mappings:
    """One device's: `nodes` are written before Connected, `map_pools` is called after it, each time; then `close`.

    `sring`: the address of the ring's page; `event_fd`: its notifier, -1 before `map_pools`; `table_ref`: the grant of the table.
    """

    def __init__(self, guest: "Guest", table: Mapping, ref: int, pools: Sequence[tuple[int, int]]) -> None:
        """Granted as `ref` and the ones behind it. `pools`: the first references of each queue's pages, to send and to receive."""
        self._guest, self._table, self._ref = guest, table, ref
        self.table_ref = ref + 1
        self._pages = guest.ram.allocate(PAGES * PAGE_BYTES)
        at = guest.ram.address + self._pages
        self._ring, self._request, self._response = np.zeros(1, RING), np.zeros(1, CTRL_REQUEST), np.zeros(1, CTRL_RESPONSE)
        self.sring, self._named = at, guest.ram.view(self._pages + PAGE_BYTES, PAGE_BYTES).view(GREF)
        self._pools = pools
        self._woken = asyncio.Event()
        self.event_fd = -1

    async def open(self) -> None:
        """Take the event channel, and grant the pages."""
        upcall = await self._guest.control_upcall()
        made = await self._guest.hyp.call("evtchn_alloc_unbound", remote=BACKEND, upcall=upcall.number)
        self._port = int(made.value["port"])
        upcall.join(self._woken)
        _grant(self._table.address, self._ref, self._pages // PAGE_BYTES)
        self.begin_again()

    def nodes(self) -> dict[str, int]:
        """What the back end must know of the ring."""
        return {CTRL_RING_REF: self._ref, EVENT_CHANNEL_CTRL: self._port}

    def begin_again(self) -> None:
        """Begin the ring anew. No back end is behind it."""
        _begin(int(self._ring.ctypes.data), self.sring)

    async def map_pools(self) -> None:
        """Have the back end, which has just connected, map every page. Unmapped if it does not; Refused if it is gone."""
        fds = (await self._guest.hyp.call("evtchn_notifier", port=self._port)).fds
        self._notify_by(fds[0])
        for queue, (tx, rx) in enumerate(self._pools):
            refs = [*range(tx, tx + TX_SLOTS), *range(rx, rx + RX_SLOTS)]
            if (most := await self._answered(CTRL_TYPE_GET_GREF_MAPPING_SIZE, queue)) < len(refs):
                raise Unmapped(f"the back end maps {most} pages of a queue for good, and there are {len(refs)}")
            self._named["ref"], self._named["flags"], self._named["status"] = refs, 0, 0
            self._named["flags"][:TX_SLOTS] = CTRLF_GREF_READONLY
            await self._answered(CTRL_TYPE_ADD_GREF_MAPPING, queue, self.table_ref, len(refs))

    async def _answered(self, kind: int, *data: int) -> int:
        """The data of an answer. Unmapped if it is not SUCCESS."""
        ring, response = int(self._ring.ctypes.data), int(self._response.ctypes.data)
        number = (int(self._request[0]["id"]) + 1) & 0xFFFF
        self._request[0] = (number, kind, [*data, *[0] * (3 - len(data))])
        if _ask(ring, int(self._request.ctypes.data)):
            raise_event(self.event_fd)
        while (taken := _take(ring, response)) == 0:
            await self._woken.wait()
            self._woken.clear()
        answer: Any = self._response[0]
        if taken < 0 or (int(answer["id"]), int(answer["type"])) != (number, kind):
            raise Unmapped(f"the back end answered control request {number} with what was not asked for")
        if int(answer["status"]) != CTRL_STATUS_SUCCESS:
            raise Unmapped(f"the back end answered control request {kind} of io/netif.h with status {int(answer['status'])}")
        return int(answer["data"])

    def _notify_by(self, event_fd: int) -> None:
        if self.event_fd >= 0:
            os.close(self.event_fd)
        self.event_fd = event_fd

    async def close(self) -> None:
        """Give the event channel back and revoke the pages. InUse if the back end has not let go of them."""
        (await self._guest.control_upcall()).leave(self._woken)
        self._notify_by(-1)
        await self._guest.hyp.call("evtchn_close", port=self._port)
        if _revoke(self._table.address, self._ref):
            raise InUse("the back end has not let go of the control ring")
