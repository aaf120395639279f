"""The end of a batch: what others may see of it. Compiled.

Contexts that a batch has touched are on a list of the engine's (`e.dirty`): their drivers are told, if they have asked for that,
now or a few batches later; their checkpoints and counters are published. One whose driver is too dear to notify just now stays on
the list. A context that goes leaves it at once.
"""

from hyp.abi.counters import DMA_BYTES, RX_BYTES, SUPPRESSED, TX_BYTES
from hyp.abi.nic import RCQ_EVENT, SCQ_EVENT
from hyp.abi.platform import DMA_BYTE_PRICE
from hyp.atomics import full_fence, load32_once, load64, notify, store64
from hyp.counters import commit, count
from hyp.events import may_notify, notify_guest, passed
from hyp.kernels import compiled
from hyp.model.price import charge_bytes
from nic.queues import posted_sends
from nic.resume import checkpoint
from nic.state import HELD, TOUCHED, context_of, wire_at

PATIENCE = 3
"""Batches that a notification may be held back while there is work (interrupt moderation). Nothing to do: none."""


@compiled
def dma_of(c):
    """Bytes that were read and written for a context since it was last asked."""
    before, c.moved = c.moved, load64(c.counts + 8 * TX_BYTES) + load64(c.counts + 8 * RX_BYTES)
    return c.moved - before


@compiled
def _is_asked(c, event_offset, told, prod):
    """True if the index that the driver waits for lies between what it was told of and `prod`. The batch's fence has been made."""
    return passed(load32_once(c.doorbell + event_offset), told, prod)


@compiled
def _tell_driver(e, c, idle):
    """Notify the driver if a completion passed its event index.

    True if that is held back, since more is about to come or its guest's notifications are too dear.
    """
    if c.scq_prod == c.scq_told and c.rcq_prod == c.rcq_told:
        return False
    if c.dirty == HELD and not may_notify(c.debt, e.now):
        return True
    due = _is_asked(c, SCQ_EVENT, c.scq_told, c.scq_prod) or _is_asked(c, RCQ_EVENT, c.rcq_told, c.rcq_prod)
    if due:
        c.waits += 1
        if (not idle and c.waits < PATIENCE) or not may_notify(c.debt, e.now):
            return True
        notify_guest(e.notifier, c.debt, c.completion_fd, c.counts)
    else:
        count(c.counts, SUPPRESSED, 1)
    c.waits, c.scq_told, c.rcq_told = 0, c.scq_prod, c.rcq_prod
    return False


@compiled
def publish_last(e, c):
    """A context goes: its driver is told of what it has not been, unless that is too dear just now, and it leaves `e.dirty`.

    Not in `publish`: what others of its guest are told before it there may make that too dear, and its doorbell page is gone then.
    """
    full_fence()
    _tell_driver(e, c, True)
    left = 0
    for k in range(e.dirty_count):
        number = load64(e.dirty + 8 * k)
        if number != c.number:
            store64(e.dirty + 8 * left, number)
            left += 1
    e.dirty_count, c.dirty = left, 0
    charge_bytes(e.platform, DMA_BYTE_PRICE, e.counts, DMA_BYTES, dma_of(c))
    commit(c.counts, c.counts_shared)


@compiled
def publish(e, idle):
    """End of a batch: everything that others may see of it."""
    if e.dirty_count > 0:
        full_fence()
    held, octets = 0, 0
    for k in range(e.dirty_count):
        c = context_of(e, load64(e.dirty + 8 * k))
        touched = c.dirty == TOUCHED
        if _tell_driver(e, c, idle):
            store64(e.dirty + 8 * held, c.number)
            held += 1
            c.dirty = HELD
        else:
            c.dirty = 0
        if c.draining != 0 and posted_sends(c) == 0:
            c.draining = 0
            notify(e.drained_fd)
        if touched or c.dirty == 0:  # who may be told of nothing for a while is published once
            octets += dma_of(c)
            checkpoint(e, c)
            commit(c.counts, c.counts_shared)
    e.dirty_count = held
    charge_bytes(e.platform, DMA_BYTE_PRICE, e.counts, DMA_BYTES, octets)
    w = wire_at(e.wire)
    if w.dirty != 0:
        w.dirty = 0
        commit(w.counts, w.counts_shared)
    commit(e.counts, e.counts_shared)
