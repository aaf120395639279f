"""A context's queues as the engine sees them: descriptors in, completions out, every address through the IOMMU table."""

from hyp.abi.counters import FAULTS_ADDRESS, FAULTS_PROTOCOL
from hyp.abi.fragment import MORE
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, RQ_PROD, SQ_PROD
from hyp.atomics import load32_acquire, load64, load64_once, u32_add, u32_sub
from hyp.counters import commit, count
from hyp.fairness.patience import end_wait, note_posted
from hyp.frames import write_completion, write_fragment_completion
from hyp.iommu import NO_TRANSLATION, READ, WRITE, translate
from hyp.kernels import compiled
from hyp.offload.frame import piece_length
from nic.state import touch


@compiled
def _extent(c, iova, rights):
    """Address of `iova`, and the number of bytes from there on that this look-up is good for; (NO_TRANSLATION, 0): none.

    The one place where the device translates. Pass-through checks no more than that there is such a place: to leave RAM would be a
    machine check, not a fault to survive.
    """
    if c.passthrough != 0:
        left = (c.ram_pages << 12) - iova
        return (c.ram + iova, left) if iova >= 0 and left > 0 else (NO_TRANSLATION, 0)
    return translate(c.iommu, c.iommu_pages, c.ram, c.ram_pages, iova, rights)


@compiled
def reach(c, iova, length, rights):
    """Address of [iova, iova + length) if the context may use all of it with `rights`; else NO_TRANSLATION.

    The hypervisor maps a domain's RAM page by page to consecutive frames; a range whose frames are not consecutive is
    refused, so that one copy serves any range.
    """
    start, there = _extent(c, iova, rights)
    if start == NO_TRANSLATION or length <= 0:
        return NO_TRANSLATION
    while there < length:
        further, more = _extent(c, iova + there, rights)
        if further != start + there:
            return NO_TRANSLATION
        there += more
    return start


NO_WINDOW = (0, -1, NO_TRANSLATION)


@compiled
def seek(c, iova, length, rights, first, span, base):
    """`reach` by a *window*: what was looked up last, `span` bytes from IOVA `first` on, which are at `base` (NO_WINDOW: nothing).

    Returns (address or NO_TRANSLATION, first, span, base): the window for the next call, which must be of the same batch
    (hyp/iommu.py) and want the same rights. So one look-up does for many frames.
    """
    within = iova - first
    if within < 0 or within > span - length:
        base, span = _extent(c, iova, rights)
        first, within = iova, 0
    return base + within if length <= span else NO_TRANSLATION, first, span, base


@compiled
def fail(c, column):
    """Take a context out of service: its driver broke the protocol. Its counters say how; nobody else notices."""
    count(c.counts, column, 1)
    end_wait(c, load64(c.clock))
    c.failed = 1
    c.active = 0
    commit(c.counts, c.counts_shared)


@compiled
def posted_sends(c):
    """Number of descriptors posted and not yet taken. A producer index that ran ahead fails the context."""
    ahead = u32_sub(c.sq_prod, c.sq_cons)
    if ahead == 0:
        c.sq_prod = load32_acquire(c.doorbell + SQ_PROD)
        ahead = u32_sub(c.sq_prod, c.sq_cons)
        if ahead > c.sq_size:
            fail(c, FAULTS_PROTOCOL)
            return 0
    return ahead


@compiled
def has_posted_more(c, n):
    """True if more than the `n` descriptors are posted that were seen before, by a fresh look at the doorbell.

    A producer index that went back behind these fails the context, as one that ran ahead: `sq_cons` is to come to them.
    """
    c.sq_prod = load32_acquire(c.doorbell + SQ_PROD)
    ahead = u32_sub(c.sq_prod, c.sq_cons)
    if ahead > c.sq_size or ahead < n:
        fail(c, FAULTS_PROTOCOL)
        return False
    return ahead > n


@compiled
def posted_buffers(c):
    """Number of receive buffers posted and not yet filled. A producer index that ran ahead fails the context."""
    return buffers_for(c, 1)


@compiled
def buffers_for(c, wanted):
    """`posted_buffers`, by a fresh look at the doorbell if fewer than `wanted` are known of."""
    ahead = u32_sub(c.rq_prod, c.rq_cons)
    if ahead < wanted:
        before = ahead
        c.rq_prod = load32_acquire(c.doorbell + RQ_PROD)
        ahead = u32_sub(c.rq_prod, c.rq_cons)
        if ahead > c.rq_size:
            fail(c, FAULTS_PROTOCOL)
            return 0
        if ahead > before:
            note_posted(c, load64(c.clock), ahead >= wanted)
    return ahead


@compiled
def _descriptor(c, iova):
    slot = reach(c, iova, DESC_BYTES, READ)
    if slot == NO_TRANSLATION:
        fail(c, FAULTS_ADDRESS)
        return -1, -1
    return load64_once(slot), load64_once(slot + 8)


@compiled
def send_descriptor(c, ahead):
    """Copy of the send descriptor `ahead` of the next as two words, or (−1, −1) after failing the context: it is out of reach."""
    return _descriptor(c, c.sq + (u32_add(c.sq_cons, ahead) & (c.sq_size - 1)) * DESC_BYTES)


@compiled
def receive_descriptor(c, ahead):
    """Copy of the receive descriptor `ahead` of the next as two words, or (−1, −1) after failing the context."""
    return _descriptor(c, c.rq + (u32_add(c.rq_cons, ahead) & (c.rq_size - 1)) * DESC_BYTES)


@compiled
def _complete(c, queue, size, prod, index, length, status):
    slot = reach(c, queue + (prod & (size - 1)) * CQE_BYTES, CQE_BYTES, WRITE)
    if slot == NO_TRANSLATION:
        fail(c, FAULTS_ADDRESS)
    else:
        write_completion(slot, size, prod, index, length, status)


@compiled
def complete_send(e, c, status):
    """Write the completion of the descriptor at `sq_cons`."""
    _complete(c, c.scq, c.sq_size, c.scq_prod, c.sq_cons, 0, status)
    c.scq_prod = u32_add(c.scq_prod, 1)
    touch(e, c)


@compiled
def complete_receive(e, c, length, status):
    """Write the completion of the buffer at `rq_cons` and use it up."""
    _complete(c, c.rcq, c.rq_size, c.rcq_prod, c.rq_cons, length, status)
    c.rcq_prod = u32_add(c.rcq_prod, 1)
    c.rq_cons = u32_add(c.rq_cons, 1)
    touch(e, c)


@compiled
def complete_fragments(e, c, pieces, n, offload):
    """Complete the next `n` buffers, filled with a frame as `pieces` says. Last to first: who sees one sees those that follow."""
    for k in range(n - 1, -1, -1):
        prod = u32_add(c.rcq_prod, k)
        slot = reach(c, c.rcq + (prod & (c.rq_size - 1)) * CQE_BYTES, CQE_BYTES, WRITE)
        if slot == NO_TRANSLATION:
            fail(c, FAULTS_ADDRESS)
            return
        word = piece_length(pieces, k) | (MORE if k < n - 1 else 0) | (offload if k == 0 else 0)
        write_fragment_completion(slot, c.rq_size, prod, u32_add(c.rq_cons, k), word)
    c.rcq_prod = u32_add(c.rcq_prod, n)
    c.rq_cons = u32_add(c.rq_cons, n)
    touch(e, c)
