"""A vif's control ring (Xen's io/netif.h): requests beside the frames, one after the other. Control plane.

Who owns what: the page is the front end's, mapped by grant while the vif is connected. This task (`ControlRing.serve`) is its only
consumer, and a slot is copied once, judged and then served, one after the other; it sleeps until the front end's event, which
arrives at an upcall of the control plane's own (hyp/upcall.py). A ring that ran away ends the task, and the vif with it. What the
requests take of Domain 0's time is their guest's debt (hyp/control/debt.py): while it owes too much, the next one waits.

What a request asks for is done by dom0/control/mappings.py (static grant mappings) or dom0/control/hashing.py (hash control), which
have the tables of answers; all others are NOT_SUPPORTED.
"""

import asyncio
from collections.abc import Callable

import numpy as np

from dom0.control.hashing import HashControl
from dom0.control.mappings import StaticMappings
from hyp.abi.netif import CTRL_REQUEST, CTRL_RESPONSE, CTRL_SLOT_BYTES, CTRL_STATUS_NOT_SUPPORTED
from hyp.atomics import load32_once, memcpy, store32
from hyp.control.debt import Debt
from hyp.events import raise_event
from hyp.kernels import entry, i64
from hyp.ring import (
    PROTOCOL_FAULT,
    arm_requests,
    next_request_slot,
    next_response_slot,
    push_responses,
    ring_at,
    unconsumed_requests,
)

LEAST_NS = 50_000
"""Of a request: to take it, and to answer."""
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


class ControlRing:
    """One vif's: `serve` is its life, from `open` on until it is cancelled; then `close`."""

    def __init__(
        self,
        ring: int,
        event_fd: int,
        debts: tuple[Debt, Debt],
        mappings: StaticMappings,
        hashing: HashControl,
        found: Callable[[], None],
    ) -> None:
        """`ring`: the address of its RING record. `debts`: the guest's, for notifications and for work. `found`: an upcall's."""
        self._ring, self._event_fd, self._found = ring, event_fd, found
        self._debt, self._work = debts
        self._mappings, self._hashing = mappings, hashing
        self._request, self._response = np.zeros(1, CTRL_REQUEST), np.zeros(1, CTRL_RESPONSE)
        self.woken = asyncio.Event()

    async def serve(self) -> None:
        """Answer requests. Returns when the ring's index has run away."""
        request, response = (int(array.ctypes.data) for array in (self._request, self._response))
        while (found := _take(self._ring, request)) != PROTOCOL_FAULT:
            if found == _NOTHING:
                await self.woken.wait()
                self.woken.clear()
                continue
            self._found()
            number, kind, data = self._request[0]["id"], self._request[0]["type"], [int(word) for word in self._request[0]["data"]]
            status, answer = await self._work.charged(self._carry_out(int(kind), *data), fair_ns=0)
            self._work.owe(LEAST_NS)
            self._response[0] = (number, kind, status, answer)
            if _answer(self._ring, response, self._response.nbytes):
                await asyncio.sleep(self._debt.wait_s())  # mostly not at all
                with self._debt.pays():
                    raise_event(self._event_fd)
            await asyncio.sleep(self._work.wait_s())  # others' turn, if nothing else

    async def _carry_out(self, kind: int, *data: int) -> tuple[int, int]:
        """(status, data) of a request."""
        for service in (self._mappings, self._hashing):
            if kind in service.KINDS:
                return await service.carry_out(kind, *data)
        return CTRL_STATUS_NOT_SUPPORTED, 0

    def close(self) -> None:
        """Give back what is mapped. The port is no more, and nobody serves any more."""
        self._mappings.close()
