"""A context that a dead NIC has served goes on: how far its queues are, from what everybody could see of it (docs/faults.md).

The dead engine's indices were its own. What is left of them:

    checkpoint page   as of the end of its last whole batch, the completions of which had been written before
    completions       written since then: an owner bit says of each place whether this pass has reached it
    doorbell page     what the driver has posted: no receive buffer before it saw the completion of the one that had its slot

*Receives.* With `posted` on the doorbell page, so many buffers less a ring are done, and no more than `posted` can be: the first
place without a completion from there on is where to go on. A frame of several buffers is completed last to first, so that a dead
engine may have left completions behind a gap, which no driver has looked at; they are unwritten, or a frame for the first of them
would make the driver see them all.

*Sends.* A turn takes no more than a ring of descriptors, and each batch has one turn, so no more completions than that can have
been written since the checkpoint, if what is found here is stored as one before the first batch; each has the index of the
descriptor that it is for. Descriptors after the last completion are sent again: what had been delivered of them is there twice,
at most what the dead engine did in one batch, and what the driver had posted without asking for completions.

A driver that wrote into its own queues or its doorbell page gets what it has made of them: wrong indices, and its context fails as
that of any other driver that breaks the protocol.
"""

from hyp.abi.nic import CQE_BYTES, RQ_PROD
from hyp.abi.platform import CHECKPOINT_BYTES, CHECKPOINTS
from hyp.atomics import load32_acquire, load32_once, load64_acquire, load64_once, store32_once, store64_release, u32_add, u32_sub
from hyp.frames import owner_bit
from hyp.iommu import NO_TRANSLATION, READ, WRITE
from hyp.kernels import compiled, outlined
from nic.queues import reach


@compiled
def _is_written(slot, prod, size):
    """True if the completion in `slot` has the owner bit that it has once it is written as the `prod`-th."""
    return (load64_acquire(slot + 8) >> 32) & 1 == owner_bit(prod, size)


@compiled
def _find_sends(c):
    """From the checkpoint on: what has a completion is done."""
    checked = c.sq_cons
    for _ in range(c.sq_size):
        slot = reach(c, c.scq + (c.scq_prod & (c.sq_size - 1)) * CQE_BYTES, CQE_BYTES, READ)
        if slot == NO_TRANSLATION or not _is_written(slot, c.scq_prod, c.sq_size):
            break
        done = u32_add(load64_once(slot) & 0xFFFF_FFFF, 1)
        if u32_sub(done, checked) <= c.sq_size and u32_sub(done, checked) > u32_sub(c.sq_cons, checked):
            c.sq_cons = done
        c.scq_prod = u32_add(c.scq_prod, 1)


@compiled
def _find_receives(c):
    """The first place without a completion."""
    posted = load32_acquire(c.doorbell + RQ_PROD)
    if u32_sub(posted, c.rcq_prod) > c.rq_size:
        c.rcq_prod = u32_sub(posted, c.rq_size)
    for _ in range(c.rq_size):
        slot = reach(c, c.rcq + (c.rcq_prod & (c.rq_size - 1)) * CQE_BYTES, CQE_BYTES, READ)
        if slot == NO_TRANSLATION or not _is_written(slot, c.rcq_prod, c.rq_size):
            break
        c.rcq_prod = u32_add(c.rcq_prod, 1)
    c.rq_cons = c.rcq_prod  # every buffer has one completion


@compiled
def _unwrite_beyond(c):
    """What a dead engine has completed behind the first place without a completion, nobody is to see."""
    for k in range(c.rq_size):
        prod = u32_add(c.rcq_prod, k)
        slot = reach(c, c.rcq + (prod & (c.rq_size - 1)) * CQE_BYTES, CQE_BYTES, WRITE)
        if slot == NO_TRANSLATION:
            break
        if _is_written(slot, prod, c.rq_size):
            store64_release(slot + 8, (owner_bit(prod, c.rq_size) ^ 1) << 32)


@compiled
def checkpoint(e, c):
    """What a restarted engine needs, after the completions it speaks of."""
    at = e.page + CHECKPOINTS + c.number * CHECKPOINT_BYTES
    store32_once(at, c.sq_cons)
    store32_once(at + 4, c.rq_cons)
    store32_once(at + 8, c.scq_prod)
    store32_once(at + 12, c.rcq_prod)


@outlined
def resume(e, c):
    """Find where the context's queues are; before it is served, and within a batch."""
    at = e.page + CHECKPOINTS + c.number * CHECKPOINT_BYTES
    c.sq_cons, c.scq_prod, c.rcq_prod = load32_once(at), load32_once(at + 8), load32_once(at + 12)
    _find_sends(c)
    _find_receives(c)
    _unwrite_beyond(c)
    c.sq_prod, c.rq_prod = c.sq_cons, c.rq_cons
    c.scq_told, c.rcq_told = c.scq_prod, c.rcq_prod
    c.sq_armed = -1  # whatever the dead engine wrote last
    checkpoint(e, c)  # should this engine die, too, before its first batch ends: between checkpoints is no more than a batch
