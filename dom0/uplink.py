"""Dom0's native driver on the NIC's physical function, as a port of the bridge (port UPLINK). Compiled.

Frames to send stay in the buffers they were copied into until the NIC has sent them; received frames stay in the
receive buffers until the bridge has passed them on. A frame of several fragments is a chain of descriptors, and arrives in several
receive buffers; what is left to be done to it goes along (hyp/abi/nic.py).
"""

from dom0.state import STAGE, STAGE_SLOTS, colour, give_buffer, staged_of
from hyp.abi.counters import RX_BYTES, RX_FRAMES, TX_BYTES, TX_FRAMES
from hyp.abi.fragment import CSUM_VALID, LENGTH_MASK, MORE, OFFLOAD_MASK
from hyp.abi.nic import DESC_MORE, DESC_SIGNALED, PAGE, STATUS_OK
from hyp.abi.sizes import FRAME_BUFFER
from hyp.atomics import load64, store64
from hyp.counters import count
from hyp.events import most_of
from hyp.kernels import compiled, outlined
from hyp.verbs import (
    completions_due,
    consume_receives,
    has_half_untold,
    peek_fragment,
    poll_sends,
    post_receive,
    post_send,
    publish_sends,
    qp_at,
    ring_receives,
    send_room,
    tell_sends,
)

SIGNAL_EVERY = 32


@compiled
def receive_buffer(e, index):
    """Guest-physical address of the buffer of receive slot `index`: in a page of its own, as a grant copy does not cross pages."""
    slot = index & (qp_at(e.qp).rq_size - 1)
    return e.rx_pool + slot * PAGE + colour(slot, FRAME_BUFFER)


@compiled
def reclaim(e):
    """Free the buffers of completed sends. Returns how many."""
    done = poll_sends(qp_at(e.qp))
    for _ in range(done):
        give_buffer(e, load64(e.posted + 8 * (e.posted_head % qp_at(e.qp).sq_size)))
        e.posted_head += 1
    return done


@compiled
def uplink_has_room(e, n):
    """True if the NIC's send queue takes a frame of `n` fragments."""
    if send_room(qp_at(e.qp)) >= n:
        return True
    reclaim(e)
    return send_room(qp_at(e.qp)) >= n


@compiled
def completions_to_wait_for(e):
    """How many send completions make a wake-up worth it: three quarters of those that the NIC owes, so that a batch fits in."""
    return max(most_of(completions_due(qp_at(e.qp))), 1)


@compiled
def post_frame(e, p, buffer, gpa, length):
    """Post a frame on the NIC's send queue; the buffer is the NIC's until it is reclaimed."""
    _keep_until_sent(e, buffer)
    post_send(qp_at(e.qp), gpa, length, DESC_SIGNALED if e.posted_tail % SIGNAL_EVERY == 0 else 0)
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, length)
    p.dirty = 1


@compiled
def _keep_until_sent(e, buffer):
    store64(e.posted + 8 * (e.posted_tail % qp_at(e.qp).sq_size), buffer)
    e.posted_tail += 1


@outlined
def post_chain(e, p, sender, k):
    """`post_frame` of a frame of several fragments, or with an offload: of `sender`'s staged entries from `k` on."""
    first, last = staged_of(sender, k), k
    for j in range(k, k + first.slots):
        if staged_of(sender, j).bytes > 0:
            last = j
    flags, before = ((first.offload & ~CSUM_VALID) >> 32) & LENGTH_MASK, e.posted_tail
    for j in range(k, last + 1):
        s = staged_of(sender, j)
        if s.bytes > 0:
            _keep_until_sent(e, s.buffer)
            s.posted = 1
            if j < last:
                flags |= DESC_MORE
            elif before // SIGNAL_EVERY != e.posted_tail // SIGNAL_EVERY:  # what the chain has of those that would be signalled
                flags |= DESC_SIGNALED
            post_send(qp_at(e.qp), s.gpa, s.bytes, flags)
            flags = 0
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, first.length)
    p.dirty = 1


@compiled
def publish_uplink(e):
    """Let the NIC see what was posted; it is woken when half a queue has come together, or when nothing more comes."""
    q = qp_at(e.qp)
    publish_sends(q)
    if has_half_untold(q):
        tell_sends(q)


@compiled
def tell_uplink(e):
    """Wake the NIC for what it has not been told of. Before every sleep, and whenever a round found nothing to do."""
    tell_sends(qp_at(e.qp))


@compiled
def take_received(e, p):
    """Stage received frames: up to STAGE buffers, the last one's frame to its end. Returns how many buffers."""
    q = qp_at(e.qp)
    n = 0
    while n < STAGE:
        index, word, status = peek_fragment(q, n)
        if index < 0:
            break
        s = _stage_buffer(e, p, n, index)
        s.length = word & LENGTH_MASK if status == STATUS_OK else 0
        if s.length > 0:
            count(p.counts, RX_FRAMES, 1)
            count(p.counts, RX_BYTES, s.length)
        n += 1
        if s.length > 0 and word & ~LENGTH_MASK != 0:
            n = _take_fragments(e, p, n - 1, word)
    p.staged, p.next, p.answers = n, 0, n
    p.dirty = 1
    return n


@compiled
def _stage_buffer(e, p, n, index):
    """Entry `n` of the stage is the receive buffer of slot `index`."""
    s = staged_of(p, n)
    s.gpa = receive_buffer(e, index)
    s.addr, s.buffer, s.posted, s.slots = e.ram + s.gpa, -1, 0, 0
    return s


@outlined
def _take_fragments(e, p, first, word):
    """Stage the rest of a frame of several buffers, or with an offload, whose entries begin at `first`. Returns where they end."""
    q, n = qp_at(e.qp), first + 1
    head = staged_of(p, first)
    head.bytes, head.offload = word & LENGTH_MASK, word & OFFLOAD_MASK
    while word & MORE != 0 and n < STAGE_SLOTS:
        index, word, _ = peek_fragment(q, n)
        s = _stage_buffer(e, p, n, index)
        s.length, s.bytes = 0, word & LENGTH_MASK
        head.length += s.bytes
        n += 1
    head.slots = n - first
    count(p.counts, RX_BYTES, head.length - head.bytes)
    return n


@compiled
def repost_received(e, p):
    """Give the receive buffers of the frames passed on (all before `next`) back to the NIC."""
    q = qp_at(e.qp)
    first = p.staged - p.answers
    for _ in range(first, p.next):
        post_receive(q, receive_buffer(e, q.rq_prod), FRAME_BUFFER)
    consume_receives(q, p.next - first)
    p.answers = p.staged - p.next
    ring_receives(q)
