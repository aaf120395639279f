"""netback, from the guest: transmit requests are taken in, copied, and answered. Compiled.

Most frames are one request without flags: those are all that stands in the loops here. A request that is not goes, as the copy that
was made of it, to dom0/netback_chains.py.

A turn takes in STAGE slots; after one in which something had to be refused, WARY: what is refused takes longer than what is sound,
and that is nobody's fault but its sender's. So it is with who has taken longer than others (hyp/fairness/timing.py).
"""

from dom0.credit import slots_within_credit
from dom0.mapped_pages import let_pass, pinned_page
from dom0.netback import add_copy, fail_port, owe_event, run_copies, was_copied
from dom0.netback_chains import settle_chain, take_chain
from dom0.state import OWES_TX, STAGE, colour, give_buffer, staged_of, take_buffer
from hyp.abi.counters import (
    BATCHES,
    COPIED_BYTES,
    COPIES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_OVERSIZE,
    FAULTS_DESCRIPTOR,
    FAULTS_GRANT,
    FAULTS_PROTOCOL,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.grant import COPY_SOURCE_GREF, DOMID_SELF, PAGE_BYTES
from hyp.abi.netif import NR_SLOTS_MIN, RSP_ERROR, RSP_OKAY, TXF_DATA_VALIDATED
from hyp.abi.nic import MIN_FRAME
from hyp.abi.platform import COPY_LIMIT, KEEP_ARMED
from hyp.atomics import load32_once, memcpy, store32
from hyp.counters import count
from hyp.events import wait_at
from hyp.fairness.standing import standing_of
from hyp.fairness.timing import SHORT, is_short, timing_at
from hyp.kernels import compiled, outlined
from hyp.model.ablation import ablated
from hyp.ring import (
    PROTOCOL_FAULT,
    arm_requests,
    next_request_slot,
    next_response_slot,
    push_responses,
    ring_at,
    unconsumed_requests,
)

WARY = STAGE // 8
WHOLE_TURN = STAGE * 60
"""Of work (hyp/fairness/timing.py): of a turn of short frames to guests."""
PLAIN = TXF_DATA_VALIDATED
"""Flags of a request that is a whole frame with nothing to be done to it. What a sender says of a checksum is nobody's proof."""


@compiled
def take_requests(e, p):
    """Take in the slots of a turn from the transmit ring, the last one's frame to its end, and stage their frames."""
    ring = ring_at(p.tx_ring)
    ready = unconsumed_requests(ring)
    if ready == PROTOCOL_FAULT:
        fail_port(e, p, FAULTS_PROTOCOL)
        return
    if ready == 0:
        return
    most, p.wary = min(ready, STAGE if p.wary == 0 else WARY), 0
    if is_short(timing_at(e.timing), standing_of(p), WHOLE_TURN):
        most = min(most, STAGE // SHORT)
    if p.credit_bytes != 0:
        most = slots_within_credit(e, p, most)
        if most == 0:
            return
    limit = ablated(wait_at(e.wait).platform, COPY_LIMIT)
    limit = PAGE_BYTES if limit == 0 else limit
    if p.tx_refs != 0:
        taken, fault = _take_pinned(e, p, ring, most, limit)
    else:
        taken, fault = _take_granted(e, p, ring, most, limit)
    if ablated(wait_at(e.wait).platform, KEEP_ARMED) != 0:
        arm_requests(ring)
    if p.passing_count != 0:
        let_pass(e, p)
    p.staged, p.next, p.answers = taken, 0, taken
    if fault != 0:
        fail_port(e, p, fault)
    elif taken > 0:
        count(p.counts, BATCHES, 1)


@compiled
def _take_granted(e, p, ring, most, limit):
    """Stage requests, with one hypercall for all their copies. Returns (slots, 0 or the fault for which the vif has to go)."""
    e.op_count = 0
    n, fault = 0, 0
    while n < most and e.free_count >= NR_SLOTS_MIN:
        gref, word1, word2 = _copy_of(next_request_slot(ring))
        if (word1 >> 16) & ~PLAIN != 0:
            taken = take_chain(e, p, n, gref, word1, word2, limit)
            if taken < 0:
                fault = -taken
                break
            n += taken
        else:
            if _open_request(e, p, n, word1 & 0xFFFF, word2):
                s = staged_of(p, n)
                s.status = e.op_count
                offset, into = word1 & 0xFFFF, s.gpa & (PAGE_BYTES - 1)
                add_copy(e, gref, p.domid, offset, s.gpa >> 12, DOMID_SELF, into, min(s.length, limit), COPY_SOURCE_GREF)
            n += 1
    if e.op_count > 0:
        run_copies(e)
    k = 0
    while k < n:
        s = staged_of(p, k)
        if s.slots == 0:
            if s.buffer >= 0:
                _settle_request(e, p, s, limit, was_copied(e, s.status))
            k += 1
        else:
            settle_chain(e, p, k, limit)
            k += s.slots
    return n, fault


@compiled
def _take_pinned(e, p, ring, most, limit):
    """Stage requests, each copied from its pinned page. Returns as `_take_granted` does."""
    n, fault = 0, 0
    while n < most and e.free_count >= NR_SLOTS_MIN:
        gref, word1, word2 = _copy_of(next_request_slot(ring))
        if (word1 >> 16) & ~PLAIN != 0:
            taken = take_chain(e, p, n, gref, word1, word2, limit)
            if taken < 0:
                fault = -taken
                break
            settle_chain(e, p, n, limit)
            n += taken
        else:
            if _open_request(e, p, n, word1 & 0xFFFF, word2):
                s = staged_of(p, n)
                page = pinned_page(e, p, p.tx_pages, p.tx_refs, gref, 0)
                if page > 0:
                    memcpy(s.addr, page + (word1 & 0xFFFF), min(s.length, limit))
                _settle_request(e, p, s, limit, page > 0)
            n += 1
    return n, fault


@compiled
def _copy_of(slot):
    """The one copy that is made of a request: (gref, offset and flags, id and size)."""
    return load32_once(slot), load32_once(slot + 4), load32_once(slot + 8)


@compiled
def _open_request(e, p, k, offset, word2):
    """Check a request that is a whole frame, give it a buffer. False: it is refused."""
    length = word2 >> 16
    s = staged_of(p, k)
    s.id, s.length, s.posted, s.slots = word2 & 0xFFFF, length, 0, 0
    if length < MIN_FRAME or length > e.max_frame or offset + length > PAGE_BYTES:
        _refuse_request(p, s, offset + length > PAGE_BYTES or length < MIN_FRAME)
        return False
    s.buffer = take_buffer(e)
    s.gpa = e.pool + s.buffer * PAGE_BYTES + colour(s.buffer, length)
    s.addr = e.ram + s.gpa
    return True


@outlined
def _refuse_request(p, s, malformed):
    """A request that is no frame, or one that is too long."""
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, s.length)
    count(p.counts, FAULTS_DESCRIPTOR, 1 if malformed else 0)
    count(p.counts, DROP_BAD_FRAME if malformed else DROP_OVERSIZE, 1)
    s.length, s.buffer, s.status = 0, -1, RSP_ERROR
    p.wary = 1


@compiled
def _settle_request(e, p, s, limit, copied):
    """After the copy of at most `limit` bytes: count what came in, and give up what could not be copied."""
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, s.length)
    if copied:
        s.status = RSP_OKAY
        count(p.counts, COPIES, 1 if s.length <= limit else 0)  # a part is none: an ablation has left the copy out
        count(p.counts, COPIED_BYTES, min(s.length, limit))
    else:
        count(p.counts, FAULTS_GRANT, 1)
        count(p.counts, DROP_BAD_ADDRESS, 1)
        give_buffer(e, s.buffer)
        s.length, s.buffer, s.status = 0, -1, RSP_ERROR
        p.wary = 1


@compiled
def answer_requests(e, p):
    """Answer the staged slots that have been passed on (all before `next`), and free their buffers."""
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
    owe_event(p, push_responses(ring), OWES_TX)
