"""netback: the back end of a guest's vif, on Xen's rings (hyp/abi/netif.py). Compiled.

Transmit: take requests from the ring (each copied once, then checked), have the hypervisor copy
their frames into Dom0's buffers in one batch, stage them for the bridge. A request is answered only when its frame is
somewhere that survives Dom0.
Receive: a frame for the guest takes the guest's next receive request; the copies of a batch are one hypercall; then the responses.
A vif with persistent grants (dom0/persistent.py) differs in the copy only: it is made here, through pages that stay pinned.
"""

from dom0.persistent import pinned_page, release_pages
from dom0.state import (
    FLUSH,
    PENDING_BYTES,
    STAGE,
    colour,
    give_buffer,
    pending_at,
    port_of,
    staged_of,
    take_buffer,
)
from hyp.abi.counters import (
    BATCHES,
    COPIED_BYTES,
    COPIES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_DOWN,
    EVENTS,
    FAULTS_DESCRIPTOR,
    FAULTS_GRANT,
    FAULTS_PROTOCOL,
    GRANT_COPIED_BYTES,
    GRANT_COPIES,
    HYPERCALLS,
    NOTIFICATIONS,
    RX_BYTES,
    RX_FRAMES,
    SUPPRESSED,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.domids import DOM0
from hyp.abi.grant import (
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
    PAGE_BYTES,
)
from hyp.abi.netif import RSP_ERROR, RSP_OKAY
from hyp.abi.nic import MAX_LONE_FRAME, MIN_FRAME
from hyp.abi.platform import (
    COPY_LIMIT,
    EVENT_SEND_PRICE,
    GRANT_COPY_BYTE_PRICE,
    GRANT_COPY_PRICE,
    HYPERCALL_PRICE,
    KEEP_ARMED,
)
from hyp.atomics import load16, load32_once, load64_once, memcpy, notify, store16, store32, store64
from hyp.counters import count
from hyp.events import wait_at
from hyp.grants import copy_counts_at, grant_copy_at
from hyp.kernels import compiled
from hyp.model.ablation import ablated
from hyp.model.price import charge, charge_bytes
from hyp.ring import (
    PROTOCOL_FAULT,
    arm_requests,
    next_request_slot,
    next_response_slot,
    push_responses,
    ring_at,
    unconsumed_requests,
)


@compiled
def fail_port(e, p, column):
    """The guest broke the protocol: its vif is out of service, and lets go of the guest's pages. Nobody else notices."""
    count(p.counts, column, 1)
    count(p.counts, DROP_DOWN, p.staged - p.next)
    p.next = p.staged
    p.failed = 1
    p.active = 0
    p.dirty = 1
    if p.refs != 0:
        release_pages(e, p)


@compiled
def add_copy(e, source, source_domid, source_offset, dest, dest_domid, dest_offset, length, flags):
    """Append one operation to the batch."""
    op = e.ops + e.op_count * COPY_BYTES
    store64(op + COPY_SOURCE, source)
    store16(op + COPY_SOURCE_DOMID, source_domid)
    store16(op + COPY_SOURCE_OFFSET, source_offset)
    store64(op + COPY_DEST, dest)
    store16(op + COPY_DEST_DOMID, dest_domid)
    store16(op + COPY_DEST_OFFSET, dest_offset)
    store16(op + COPY_LEN, length)
    store16(op + COPY_FLAGS, flags)
    e.op_count += 1


@compiled
def run_copies(e):
    """Execute the batch: one hypercall. Its operations have their status then."""
    platform, copied = wait_at(e.wait).platform, copy_counts_at(e.copy_counts)
    before = copied.copied_bytes
    charge(platform, HYPERCALL_PRICE, e.counts, HYPERCALLS, 1)
    charge(platform, GRANT_COPY_PRICE, e.counts, GRANT_COPIES, e.op_count)
    grant_copy_at(e.views, e.view_count, DOM0, e.ops, e.op_count, copied)
    charge_bytes(platform, GRANT_COPY_BYTE_PRICE, e.counts, GRANT_COPIED_BYTES, copied.copied_bytes - before)


@compiled
def _copied(e, k):
    return load16(e.ops + k * COPY_BYTES + COPY_STATUS) == 0


# --- from the guest ---------------------------------------------------------------------------------------------------


@compiled
def take_requests(e, p):
    """Take up to STAGE transmit requests in and stage their frames. Returns how many."""
    ring = ring_at(p.tx_ring)
    ready = unconsumed_requests(ring)
    if ready == PROTOCOL_FAULT:
        fail_port(e, p, FAULTS_PROTOCOL)
        return 0
    ready = min(ready, min(STAGE, e.free_count))
    if ready == 0:
        return 0
    limit = ablated(wait_at(e.wait).platform, COPY_LIMIT)
    limit = MAX_LONE_FRAME if limit == 0 else limit
    if p.refs != 0:
        _take_pinned(e, p, ring, ready, limit)
    else:
        _take_granted(e, p, ring, ready, limit)
    if ablated(wait_at(e.wait).platform, KEEP_ARMED) != 0:
        arm_requests(ring)
    p.staged, p.next, p.answers = ready, 0, ready
    count(p.counts, BATCHES, 1)
    return ready


@compiled
def _take_granted(e, p, ring, ready, limit):
    """Stage requests, with one hypercall for all their copies."""
    e.op_count = 0
    for k in range(ready):
        gref, offset = _open_request(e, p, next_request_slot(ring), k)
        if gref >= 0:
            s = staged_of(p, k)
            s.status = e.op_count
            into = s.gpa & (PAGE_BYTES - 1)
            add_copy(e, gref, p.domid, offset, s.gpa >> 12, DOMID_SELF, into, min(s.length, limit), COPY_SOURCE_GREF)
    if e.op_count > 0:
        run_copies(e)
    for k in range(ready):
        s = staged_of(p, k)
        _settle_request(e, p, s, limit, s.buffer >= 0 and _copied(e, s.status))


@compiled
def _take_pinned(e, p, ring, ready, limit):
    """Stage requests, each copied from its pinned page."""
    for k in range(ready):
        gref, offset = _open_request(e, p, next_request_slot(ring), k)
        s = staged_of(p, k)
        page = pinned_page(e, p, p.tx_pages, gref, 0)
        if page > 0:
            memcpy(s.addr, page + offset, min(s.length, limit))
        _settle_request(e, p, s, limit, page > 0)


@compiled
def _open_request(e, p, slot, k):
    """Copy the request once, check the copy, give it a buffer. ``(gref, offset)`` of the frame; gref −1: it is refused."""
    gref, word1, word2 = load32_once(slot), load32_once(slot + 4), load32_once(slot + 8)
    offset, flags = word1 & 0xFFFF, word1 >> 16
    s = staged_of(p, k)
    s.id, length = word2 & 0xFFFF, word2 >> 16
    s.length, s.posted, s.buffer, s.status = length, 0, -1, RSP_ERROR
    if flags != 0 or length < MIN_FRAME or length > MAX_LONE_FRAME or offset + length > PAGE_BYTES:
        count(p.counts, FAULTS_DESCRIPTOR, 1)
        return -1, 0
    s.buffer = take_buffer(e)
    into = colour(s.buffer, length)
    s.gpa = e.pool + s.buffer * PAGE_BYTES + into
    s.addr = e.ram + s.gpa
    return gref, offset


@compiled
def _settle_request(e, p, s, limit, copied):
    """After the copy of at most `limit` bytes: count what came in, and give up what could not be copied."""
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, s.length)
    if s.buffer < 0:
        count(p.counts, DROP_BAD_FRAME, 1)
    elif copied:
        s.status = RSP_OKAY
        count(p.counts, COPIES, 1 if s.length <= limit else 0)  # a part is none: an ablation has left the copy out
        count(p.counts, COPIED_BYTES, min(s.length, limit))
    else:
        s.status = RSP_ERROR
        count(p.counts, FAULTS_GRANT, 1)
        count(p.counts, DROP_BAD_ADDRESS, 1)
        give_buffer(e, s.buffer)
        s.buffer = -1


@compiled
def answer_requests(e, p):
    """Answer the staged requests that have been passed on (all before `next`), and free their buffers."""
    first = p.staged - p.answers
    if first == p.next:
        return
    ring = ring_at(p.tx_ring)
    for k in range(first, p.next):
        s = staged_of(p, k)
        slot = next_response_slot(ring)
        store32(slot, s.id | ((s.status & 0xFFFF) << 16))
        if s.buffer >= 0 and s.posted == 0:
            give_buffer(e, s.buffer)
    p.answers = p.staged - p.next
    owe_event(p, push_responses(ring))


@compiled
def owe_event(p, due):
    """Note whether the guest asked for the event of what was published. `tell_guests` (dom0/engine.py) sends it."""
    p.dirty = 1
    if due:
        p.owed = 1
    else:
        count(p.counts, SUPPRESSED, 1)


@compiled
def tell_guest(e, p):
    """Send the event that is owed."""
    p.owed, p.waits = 0, 0
    notify(p.event_fd)
    charge(wait_at(e.wait).platform, EVENT_SEND_PRICE, p.counts, EVENTS, 1)
    count(p.counts, NOTIFICATIONS, 1)
    p.dirty = 1


# --- to the guest -----------------------------------------------------------------------------------------------------


@compiled
def has_room(e, p):
    """True if the guest has posted a receive request."""
    ready = unconsumed_requests(ring_at(p.rx_ring))
    if ready == PROTOCOL_FAULT:
        fail_port(e, p, FAULTS_PROTOCOL)
        return False
    if ready > 0:
        p.stalled, p.waited_for = 0, 0
    return ready > 0


@compiled
def queue_copy(e, p, gpa, length):
    """Plan the copy of a frame in Dom0's RAM into the guest's next receive page, or make it if that page can stay pinned.

    The caller has checked `has_room`.
    """
    word = load64_once(next_request_slot(ring_at(p.rx_ring)))  # u16 id, u16 pad, u32 gref
    gref = (word >> 32) & 0xFFFFFFFF
    if p.refs != 0:
        _copy_pinned(e, p, word & 0xFFFF, gref, gpa, length)
        return
    pending = pending_at(e.pending + e.op_count * PENDING_BYTES)
    offset = colour(e.op_count, length)
    pending.port, pending.id, pending.length, pending.offset = p.number, word & 0xFFFF, length, offset
    add_copy(e, gpa >> 12, DOMID_SELF, gpa & (PAGE_BYTES - 1), gref, p.domid, offset, length, COPY_DEST_GREF)
    p.copies += 1


@compiled
def _copy_pinned(e, p, number, gref, gpa, length):
    """Copy a frame into a page that stays pinned and write its response, which `flush_copies` publishes."""
    offset = colour(p.copies, length)
    page = pinned_page(e, p, p.rx_pages, gref, 1)
    copied = page > 0 and offset + length <= PAGE_BYTES
    if copied:
        memcpy(page + offset, e.ram + gpa, length)
    _respond(p, number, offset, length, copied)
    if p.copies == 0:
        p.next_written = e.written
        e.written = p.number
    p.copies += 1


@compiled
def _respond(p, number, offset, length, copied):
    """Write the response to receive request `number`, and count."""
    slot = next_response_slot(ring_at(p.rx_ring))
    if copied:
        store64(slot, number | (offset << 16) | (length << 48))
        count(p.counts, RX_FRAMES, 1)
        count(p.counts, RX_BYTES, length)
        count(p.counts, COPIES, 1)
        count(p.counts, COPIED_BYTES, length)
    else:
        store64(slot, number | ((RSP_ERROR & 0xFFFF) << 48))
        count(p.counts, FAULTS_GRANT, 1)
        count(p.counts, DROP_BAD_ADDRESS, 1)


@compiled
def _publish_responses(p):
    p.copies = 0
    owe_event(p, push_responses(ring_at(p.rx_ring)))


@compiled
def flush_is_full(e):
    """True if no further copy fits into the batch."""
    return e.op_count >= FLUSH


@compiled
def flush_copies(e):
    """Make the planned copies (one hypercall), answer the guests' receive requests, send events."""
    while e.written != 0:
        p = port_of(e, e.written)
        e.written = p.next_written
        _publish_responses(p)
    if e.op_count == 0:
        return
    run_copies(e)
    for k in range(e.op_count):
        pending = pending_at(e.pending + k * PENDING_BYTES)
        _respond(port_of(e, pending.port), pending.id, pending.offset, pending.length, _copied(e, k))
    for k in range(e.op_count):
        p = port_of(e, pending_at(e.pending + k * PENDING_BYTES).port)
        if p.copies > 0:
            _publish_responses(p)
    e.op_count = 0
