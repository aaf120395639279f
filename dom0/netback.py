"""netback: the back end of a guest's vif, on Xen's rings (hyp/abi/netif.py). Compiled. Here is what both directions use.

Transmit, from the guest (dom0/netback_tx.py): take requests from the ring (each copied once, then checked), have the hypervisor
copy their frames into Dom0's buffers in one batch, stage them for the bridge. A request is answered only when its frame is
somewhere that survives Dom0. Frames of more than one slot: dom0/netback_chains.py.
Receive, to the guest (dom0/netback_rx.py): a frame for the guest takes the guest's next receive requests; the copies of a batch are
one hypercall; then the responses.
A vif whose pages are mapped (dom0/mapped_pages.py) differs in the copy only: it is made here, through pages that are pinned.
"""

from dom0.mapped_pages import release_pages
from dom0.state import OWES_RX, OWES_TX, give_buffer, member_of, port_of, staged_of
from hyp.abi.counters import (
    DROP_DOWN,
    EVENTS,
    GRANT_COPIED_BYTES,
    GRANT_COPIES,
    HYPERCALLS,
    SEGMENTED,
    SUPPRESSED,
)
from hyp.abi.domids import DOM0
from hyp.abi.grant import (
    COPY_BYTES,
    COPY_DEST,
    COPY_DEST_DOMID,
    COPY_DEST_OFFSET,
    COPY_FLAGS,
    COPY_LEN,
    COPY_SOURCE,
    COPY_SOURCE_DOMID,
    COPY_SOURCE_OFFSET,
    COPY_STATUS,
)
from hyp.abi.platform import EVENT_SEND_PRICE, GRANT_COPY_BYTE_PRICE, GRANT_COPY_PRICE, HYPERCALL_PRICE
from hyp.atomics import load16, store16, store64
from hyp.counters import count
from hyp.events import notify_guest, wait_at
from hyp.fairness.patience import end_wait
from hyp.grants import copy_counts_at, grant_copy_at
from hyp.kernels import compiled, outlined
from hyp.model.price import charge, charge_bytes


@compiled
def end_frame(p):
    """What becomes of a port's next frame is known. If its way has changed when a part of it had been passed on, that part is what
    the port's one frame covers, and the rest, which was dropped or went another way, is one more."""
    count(p.counts, SEGMENTED, 1 if p.part > 0 else 0)
    p.pause_until, p.part = 0, 0


@outlined
def drop_staged(e, p):
    """Drop what a vif's port has taken in and not passed on, and take its buffers back, but for those that the NIC has."""
    frames, k = 0, p.next
    while k < p.staged:
        s = staged_of(p, k)
        frames += s.length > 0
        k += max(s.slots, 1)
    count(p.counts, DROP_DOWN, frames)
    end_frame(p)
    for k in range(p.staged - p.answers, p.staged):
        s = staged_of(p, k)
        if s.buffer >= 0 and s.posted == 0:
            give_buffer(e, s.buffer)
    p.staged, p.next, p.answers = 0, 0, 0


@outlined
def fail_port(e, p, column):
    """The guest broke the protocol: its vif, all queues of it, is out of service, and holds neither Dom0's buffers nor its pages.

    Nobody else notices. As Linux's xenvif_fatal_tx_err, which takes the whole interface down.
    """
    count(p.counts, column, 1)
    first = port_of(e, p.vif)
    for k in range(first.queues):
        q = member_of(e, first, k)
        drop_staged(e, q)
        end_wait(q, e.now)
        q.failed = 1
        q.active = 0
        q.dirty = 1
        if q.tx_refs != 0:
            release_pages(e, q)


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
def was_copied(e, k):
    """True if operation `k` of the batch was carried out."""
    return load16(e.ops + k * COPY_BYTES + COPY_STATUS) == 0


@compiled
def owe_event(p, due, which):
    """Note whether the guest asked for the event of what was published, OWES_TX or OWES_RX. dom0/engine.py sends it."""
    p.dirty = 1
    if due:
        p.owed |= which
    else:
        count(p.counts, SUPPRESSED, 1)


@compiled
def tell_guest(e, p):
    """Send the events that are owed: one, where one channel is for both. The guest may be notified."""
    owed = p.owed
    p.owed, p.waits = 0, 0
    if owed & OWES_TX != 0:
        _send_event(e, p, p.tx_event_fd)
    if owed & OWES_RX != 0 and (owed & OWES_TX == 0 or p.rx_event_fd != p.tx_event_fd):
        _send_event(e, p, p.rx_event_fd)
    p.dirty = 1


@compiled
def _send_event(e, p, event_fd):
    notify_guest(e.notifier, p.debt, event_fd, p.counts)
    charge(wait_at(e.wait).platform, EVENT_SEND_PRICE, p.counts, EVENTS, 1)
