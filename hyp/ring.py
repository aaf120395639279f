"""Operations on Xen's shared ring (`hyp.abi.ring`): a front end's, and a back end's.

`r` is a private record (`RING`) of the side that uses it. Neither side reads its own indices back from the page, and
the other side's are believed only as far as the protocol lets them go: further is `PROTOCOL_FAULT`, and stays it until
the peer takes the index back. The peer's index is fetched only when what was last seen of it is used up, so that a
busy ring does not pull the peer's cache line over for every slot.

One batch, front and back::

    n = free_requests(r)                       n = unconsumed_requests(r)
    n times: slot = next_request(r)            n times: slot = next_request_slot(r); copy it, validate the copy
             write the slot                             slot = next_response_slot(r); write the slot
    push_requests(r): 1 = notify               push_responses(r): 1 = notify
    n = unconsumed_responses(r)                before sleeping: arm_requests(r): 1 = stay awake
    n times: slot = next_response(r)
    before sleeping: arm_responses(r): 1 = stay awake

The ring knows nothing of eventfds or loops: the caller notifies and sleeps.
"""

from typing import Any

import numpy as np

from hyp.abi.ring import FIRST_SLOT, HEADER_BYTES, PAGE_BYTES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hyp.atomics import (
    full_fence,
    load32_acquire,
    load32_once,
    memzero,
    record_view,
    store32_once,
    store32_release,
    u32_add,
    u32_sub,
)
from hyp.events import passed
from hyp.kernels import compiled

PROTOCOL_FAULT = -1

RING = np.dtype(
    [
        ("sring", "i8"),  # address of the shared page
        ("entries", "i8"),  # slots, a power of two
        ("entry_bytes", "i8"),
        ("req_prod_pvt", "i8"),  # front: next request to write
        ("req_prod_pushed", "i8"),  # front: requests in front of it are published
        ("rsp_cons", "i8"),  # front: next response to read
        ("rsp_prod_seen", "i8"),  # front: the back end's index when last fetched, validated
        ("rsp_prod_pvt", "i8"),  # back: next response to write
        ("rsp_prod_pushed", "i8"),  # back: responses in front of it are published
        ("req_cons", "i8"),  # back: next request to read
        ("req_prod_seen", "i8"),  # back: the front end's index when last fetched, validated
    ]
)
"""One side's private state. All indices are free-running 32-bit values."""
RING_BYTES = RING.itemsize
ring_at = record_view(RING)


def ring_size(entry_bytes: int, page_bytes: int = PAGE_BYTES) -> int:
    """Slots in a ring of `page_bytes`: as many as fit behind the header, rounded down to a power of two."""
    return 1 << ((page_bytes - HEADER_BYTES) // entry_bytes).bit_length() - 1


@compiled
def signed16(value: int) -> int:
    """The signed value of 16 bits that were loaded zero-extended (statuses)."""
    return (value & 0xFFFF ^ 0x8000) - 0x8000


# --- set-up ----------------------------------------------------------------------------------------------------------


@compiled
def sring_init(sring: int, start: int = 0) -> None:
    """Initialise the shared page (the front end does, before it grants it): nothing produced, notify of the first."""
    memzero(sring, HEADER_BYTES)
    store32_once(sring + REQ_PROD, start)
    store32_once(sring + RSP_PROD, start)
    store32_once(sring + REQ_EVENT, u32_add(start, 1))
    store32_release(sring + RSP_EVENT, u32_add(start, 1))


@compiled
def attach_front(r: Any, sring: int, entries: int, entry_bytes: int, start: int = 0) -> None:
    """Begin as the front end with both indices at `start` (0 on a fresh page)."""
    r.sring, r.entries, r.entry_bytes = sring, entries, entry_bytes
    r.req_prod_pvt = r.req_prod_pushed = start
    r.rsp_cons = r.rsp_prod_seen = start


@compiled
def attach_back(r: Any, sring: int, entries: int, entry_bytes: int, start: int = 0) -> None:
    """Begin as the back end with both indices at `start`: after a restart, the first request that was not answered."""
    r.sring, r.entries, r.entry_bytes = sring, entries, entry_bytes
    r.rsp_prod_pvt = r.rsp_prod_pushed = start
    r.req_cons = r.req_prod_seen = start


@compiled
def resume_back(r: Any, sring: int, entries: int, entry_bytes: int) -> int:
    """Begin as the back end of a ring that may have been in use before: at its `rsp_prod`, with what is asked for since then.

    0, or PROTOCOL_FAULT if that is more than the ring has slots.
    """
    start = load32_once(sring + RSP_PROD)
    if u32_sub(load32_acquire(sring + REQ_PROD), start) > entries:
        return PROTOCOL_FAULT
    attach_back(r, sring, entries, entry_bytes, start)
    return 0


@compiled
def slot_address(r: Any, index: int) -> int:
    """Address of the slot of a free-running index."""
    address: int = r.sring + FIRST_SLOT + (index & (r.entries - 1)) * r.entry_bytes
    return address


@compiled
def _publish(prod: int, event: int, old: int, new: int) -> int:
    """Move the producer index at address `prod` from `old` to `new`. 1 if the other side asked, at `event`, to be notified."""
    store32_release(prod, new)  # the other side sees the slots before the index
    full_fence()  # and the index before its event index is read
    return 1 if passed(load32_once(event), old, new) else 0


# --- front end -------------------------------------------------------------------------------------------------------


@compiled
def free_requests(r: Any) -> int:
    """Requests that may be written: a slot is free once its response was consumed."""
    free: int = r.entries - u32_sub(r.req_prod_pvt, r.rsp_cons)
    return free


@compiled
def next_request(r: Any) -> int:
    """Address of the next request to write. Only while `free_requests` is positive."""
    slot = slot_address(r, r.req_prod_pvt)
    r.req_prod_pvt = u32_add(r.req_prod_pvt, 1)
    return slot


@compiled
def push_requests(r: Any) -> int:
    """Publish the requests written so far. 1 if the back end is to be notified, else 0."""
    old, new = r.req_prod_pushed, r.req_prod_pvt
    if new == old:
        return 0
    r.req_prod_pushed = new
    return _publish(r.sring + REQ_PROD, r.sring + REQ_EVENT, old, new)  # pairs with arm_requests


@compiled
def unconsumed_responses(r: Any) -> int:
    """Responses ready to be read, or PROTOCOL_FAULT if the back end claims more than it was asked for."""
    ready = u32_sub(r.rsp_prod_seen, r.rsp_cons)
    if ready == 0:
        seen = load32_acquire(r.sring + RSP_PROD)
        ready = u32_sub(seen, r.rsp_cons)
        if ready > u32_sub(r.req_prod_pushed, r.rsp_cons):
            return PROTOCOL_FAULT  # an index that ran ahead, or went back, would have us read slots nobody answered
        r.rsp_prod_seen = seen
    return ready


@compiled
def next_response(r: Any) -> int:
    """Address of the next response to read. Only as often as `unconsumed_responses` says."""
    slot = slot_address(r, r.rsp_cons)
    r.rsp_cons = u32_add(r.rsp_cons, 1)
    return slot


@compiled
def arm_responses(r: Any, ahead: int = 1) -> int:
    """Ask to be notified of the `ahead`-th response from now. 1 if it is there already (do not sleep), else 0.

    More than the next one is for a front end that waits for room: Linux's netfront asks for half of what is pending.
    """
    if u32_sub(r.rsp_prod_seen, r.rsp_cons) >= ahead:
        return 1
    store32_once(r.sring + RSP_EVENT, u32_add(r.rsp_cons, ahead))
    full_fence()  # the back end sees the event index before its producer index is read; pairs with push_responses
    return 1 if u32_sub(load32_acquire(r.sring + RSP_PROD), r.rsp_cons) >= ahead else 0


# --- back end --------------------------------------------------------------------------------------------------------


@compiled
def unconsumed_requests(r: Any) -> int:
    """Requests ready to be read, or PROTOCOL_FAULT if the front end overran the ring."""
    ready = u32_sub(r.req_prod_seen, r.req_cons)
    if ready == 0:
        seen = load32_acquire(r.sring + REQ_PROD)
        ready = u32_sub(seen, r.req_cons)
        # A front end can have used each slot once since the responses it could see
        if ready > r.entries - u32_sub(r.req_cons, r.rsp_prod_pushed):
            return PROTOCOL_FAULT
        r.req_prod_seen = seen
    return ready


@compiled
def next_request_slot(r: Any) -> int:
    """Address of the next request to read. Only as often as `unconsumed_requests` says."""
    slot = slot_address(r, r.req_cons)
    r.req_cons = u32_add(r.req_cons, 1)
    return slot


@compiled
def next_response_slot(r: Any) -> int:
    """Address of the next response to write: a slot whose request was read, and copied, before."""
    slot = slot_address(r, r.rsp_prod_pvt)
    r.rsp_prod_pvt = u32_add(r.rsp_prod_pvt, 1)
    return slot


@compiled
def push_responses(r: Any) -> int:
    """Publish the responses written so far. 1 if the front end is to be notified, else 0."""
    old, new = r.rsp_prod_pushed, r.rsp_prod_pvt
    if new == old:
        return 0
    r.rsp_prod_pushed = new
    return _publish(r.sring + RSP_PROD, r.sring + RSP_EVENT, old, new)  # pairs with arm_responses


@compiled
def arm_requests(r: Any) -> int:
    """Ask to be notified of the next request. 1 if there is something already (do not sleep), else 0."""
    if u32_sub(r.req_prod_seen, r.req_cons) != 0:
        return 1
    store32_once(r.sring + REQ_EVENT, u32_add(r.req_cons, 1))
    full_fence()  # pairs with push_requests
    return 1 if load32_acquire(r.sring + REQ_PROD) != r.req_cons else 0
