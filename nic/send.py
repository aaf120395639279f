"""Serving a context's send queue: copy the descriptor, check it, read the header once, switch the frame.

Frames come in *runs*: one after the other has the same addresses, a good descriptor, and goes where the one before went. A run to
the wire's sink or to a receiver of this engine is taken in one tight loop (`_take_run`), in which nothing can go wrong: whatever is
in doubt ends it and is left for `_send_one`, which copies the descriptor and the header afresh, and knows what each fault does.
"""

from hyp.abi.counters import (
    BATCHES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_QUEUE_FULL,
    DROP_SAME_PORT,
    DROP_SPOOFED,
    FAULTS_ADDRESS,
    FAULTS_DESCRIPTOR,
    REPLICATED,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.nic import (
    DESC_BYTES,
    DESC_SIGNALED,
    GROUP_BIT,
    MAX_FRAME,
    NO_CONTEXT,
    SQ_EVENT,
    STATUS_BAD_ADDRESS,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from hyp.abi.platform import KEEP_ARMED
from hyp.atomics import load8, load64, load64_once, prefetch, store32_once, u32_add
from hyp.counters import count
from hyp.frames import SOURCE_MASK, destination_of, send_fault, source_of
from hyp.iommu import NO_TRANSLATION, READ
from hyp.kernels import compiled, outlined
from hyp.model.ablation import ablated
from nic.crossing import FLOOD, cross, cross_or_pause, is_paused
from nic.deliver import put_broadcast, put_or_pause, put_run
from nic.queues import NO_WINDOW, complete_send, posted_buffers, posted_sends, reach, seek, send_descriptor
from nic.state import BUDGET_BYTES, BUDGET_FRAMES, DELIVERED, FOR_WIRE, PAUSE, STAGE, context_of, stage, touch, wire_at
from nic.switch import lookup
from nic.wire import await_wire, end_outbound, has_open_sink, is_wire_full, outbound, put_on_wire, sent_to_sink

WHOLE_HEADER = 16
"""A frame of so many bytes has a header that can be read as two words."""
FLOODED, SPOOFED = -2, -3
"""Routes that are neither a context nor the wire."""
AHEAD_BYTES = 256
"""How far ahead descriptors' lines are fetched."""


@compiled
def _flood_here(e, origin, frame, length, head0, head1):
    """Deliver to every context of this engine but `origin`. Returns the number of deliveries tried."""
    tried = 0
    for k in range(e.active):
        r = context_of(e, load64(e.order + 8 * k))
        if r.number != origin and r.active != 0:
            tried += 1
            result = put_broadcast(e, r, frame, length, head0, head1)
            if result != DELIVERED:
                count(r.counts, result, 1)
                touch(e, r)
    return tried


@compiled
def flood(e, origin, frame, length, head0, head1):
    """A broadcast or multicast frame of context `origin` to all others. Never pauses."""
    count(e.counts, REPLICATED, _flood_here(e, origin, frame, length, head0, head1))
    for consumer in range(e.engines):
        if consumer != e.index and cross(e, consumer, FLOOD, origin, frame, length, head0, head1) == PAUSE:
            count(e.counts, REPLICATED, 1)
            count(e.counts, DROP_QUEUE_FULL, 1)


@compiled
def flood_crossed(e, origin, frame, length, head0, head1):
    """The part of a flood that concerns this engine's contexts; it arrived by a crossing."""
    count(e.counts, REPLICATED, _flood_here(e, origin, frame, length, head0, head1))


# --- one frame -------------------------------------------------------------------------------------------------------


@compiled
def _route(e, c, head0, head1):
    """Where a frame with this header goes: a context, NO_CONTEXT (the wire), FLOODED or SPOOFED.

    Frames in a row have the same addresses more often than not: the answer is kept until they change, or the filters do.
    """
    if not _is_alike(head0, head1, c.head0, c.head1):
        c.head0, c.head1 = head0, head1 & SOURCE_MASK
        destination = destination_of(head0)
        if source_of(head0, head1) != c.mac and c.privileged == 0:
            c.route = SPOOFED
        else:
            c.route = FLOODED if destination & GROUP_BIT else lookup(e.table, destination)
    return c.route


@compiled
def _is_alike(head0, head1, before0, before1):
    """True if a frame has the addresses of one before it."""
    return head0 == before0 and head1 & SOURCE_MASK == before1


@compiled
def _switch(e, c, frame, length, head0, head1):
    """Pass a frame of context `c` on. DELIVERED, PAUSE, or a drop's name."""
    route = _route(e, c, head0, head1)
    if route == SPOOFED:
        return DROP_SPOOFED
    if route < 0:
        if is_wire_full(e):
            await_wire(e, c)
            return PAUSE
        if route == FLOODED:
            flood(e, c.number, frame, length, head0, head1)
        outbound(e, frame, length, head0, head1)
        return DELIVERED
    if route == c.number:
        return DROP_SAME_PORT
    r = context_of(e, route)
    if r.mine == 0 and r.active != 0:
        return cross_or_pause(e, c, r.engine, route, c.number, frame, length, head0, head1)
    return put_or_pause(e, c, r, frame, length, head0, head1)


@compiled
def _header(frame, length):
    """The first 14 bytes, each read once, as two words (zero beyond the frame)."""
    head0 = load64_once(frame)
    if length >= 16:
        return head0, load64_once(frame + 8)
    head1 = 0
    for k in range(8, length):
        head1 |= load8(frame + k) << (8 * (k - 8))
    return head0, head1


@compiled
def _try(e, c, addr, word):
    """Check a descriptor (our copy of it) and send its frame. Returns (STATUS_*, DELIVERED, PAUSE or the drop's name)."""
    status, length = send_fault(word), word & 0xFFFFFFFF
    if status != STATUS_OK:
        count(c.counts, FAULTS_DESCRIPTOR, 1)
        return status, DROP_BAD_FRAME
    frame = reach(c, addr, length, READ)
    if frame == NO_TRANSLATION:
        count(c.counts, FAULTS_ADDRESS, 1)
        return STATUS_BAD_ADDRESS, DROP_BAD_ADDRESS
    head0, head1 = _header(frame, length)
    result = _switch(e, c, frame, length, head0, head1)
    if result == DELIVERED:
        return STATUS_OK, DELIVERED
    return STATUS_SPOOFED if result == DROP_SPOOFED else STATUS_DROPPED, result


@outlined
def _send_one(e, c):
    """Send the next frame, whatever it is. Returns its length, or −1: it has to wait, or the context has failed."""
    addr, word = send_descriptor(c)
    if c.active == 0:
        return -1
    status, result = _try(e, c, addr, word)
    if result == PAUSE:
        return -1
    c.pause_until = 0
    if result != DELIVERED:
        count(c.counts, result, 1)
    if status != STATUS_OK or (word >> 32) & DESC_SIGNALED != 0:
        complete_send(e, c, status)
    c.sq_cons = u32_add(c.sq_cons, 1)
    return word & 0xFFFF


# --- many frames -----------------------------------------------------------------------------------------------------


@compiled
def _take_run(e, c, n, room, to_sink):
    """Take frames, at most `n`, as long as each has the addresses of the one before and nothing about it is in doubt.

    To the wire's sink at once, or into the stage for a receiver. No more than `room` bytes and a frame, and none after one that is
    signalled. Returns (frames, bytes, DESC_SIGNALED if the last one is signalled).
    """
    w = wire_at(e.wire)
    head0, half = c.head0, c.head1  # in registers, and so is the rest: a store to a buffer might alias
    buffers, lengths, first = w.buffers, w.lengths, w.next
    queue, mask, cons = c.sq, c.sq_size - 1, c.sq_cons
    (q_first, q_span, q_base), (start, span, base) = NO_WINDOW, NO_WINDOW
    done, total, flags = 0, 0, 0
    while done < n and total < room and flags == 0:
        # 1. Our copy of the descriptor: no fault (`send_fault`), and a whole header; and the next ones' lines under way.
        at = queue + ((cons + done) & mask) * DESC_BYTES
        slot, q_first, q_span, q_base = seek(c, at, DESC_BYTES, READ, q_first, q_span, q_base)
        if slot == NO_TRANSLATION:
            break
        prefetch(slot + AHEAD_BYTES)
        addr, word = load64_once(slot), load64_once(slot + 8)
        length, more = word & 0xFFFFFFFF, word >> 32
        if length < WHOLE_HEADER or length > MAX_FRAME or more & ~DESC_SIGNALED != 0:
            break
        # 2. Where the frame is.
        frame, start, span, base = seek(c, addr, length, READ, start, span, base)
        if frame == NO_TRANSLATION:
            break
        # 3. Its header, read once.
        next0, next1 = load64_once(frame), load64_once(frame + 8)
        if not _is_alike(next0, next1, head0, half):
            break
        # 4. On it goes.
        if to_sink:
            put_on_wire(buffers, lengths, first + done, frame, length, next0, next1)
        else:
            stage(e, done, frame, length, next1)
        flags = more
        total += length
        done += 1
    return done, total, flags


@compiled
def _send_run(e, c, n, room):
    """Send frames that go where the one before went. Returns (frames, bytes); (0, 0): the next one is for `_send_one`."""
    w, route = wire_at(e.wire), c.route
    if c.head1 < 0:
        return 0, 0
    if route == NO_CONTEXT and has_open_sink(w):
        done, total, flags = _take_run(e, c, n, room, True)
        sent_to_sink(w, done, total)
    elif route >= 0 and route != c.number:
        r = context_of(e, route)
        if r.mine == 0 or r.active == 0:
            return 0, 0
        taken, _, flags = _take_run(e, c, min(n, STAGE, posted_buffers(r)), room, False)
        done, total = put_run(e, r, taken, c.head0)
        if done < taken:
            flags = 0
    else:
        return 0, 0
    if done > 0:
        c.pause_until = 0
        c.sq_cons = u32_add(c.sq_cons, done - 1)
        if flags != 0:
            complete_send(e, c, STATUS_OK)
        c.sq_cons = u32_add(c.sq_cons, 1)
    return done, total


@compiled
def serve_sends(e, c):
    """One turn of a context's send queue. Returns the number of descriptors done."""
    waiting = posted_sends(c)
    if waiting == 0 or is_paused(e, c):
        return 0
    if c.pause_for == FOR_WIRE:
        c.pause_until, c.pause_for = 0, 0  # that deadline is none: a receiver may be waited for from the beginning
    limit = min(waiting, BUDGET_FRAMES)
    done, total, most = 0, 0, limit
    while done < limit and total < BUDGET_BYTES and c.active != 0:
        frames, octets = _send_run(e, c, min(limit - done, most), BUDGET_BYTES - total)
        most = 2 * frames + 1  # so that a receiver whose buffers end each run has no more than that staged in vain
        if frames == 0:
            octets = _send_one(e, c)
            if octets < 0:
                break
            frames = 1
        done += frames
        total += octets
    end_outbound(e)
    if done > 0:
        if ablated(e.platform, KEEP_ARMED) != 0:
            store32_once(c.doorbell + SQ_EVENT, u32_add(c.sq_cons, 1))
        count(c.counts, TX_FRAMES, done)
        count(c.counts, TX_BYTES, total)
        count(c.counts, BATCHES, 1)
        touch(e, c)
    return done
