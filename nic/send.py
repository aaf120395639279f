"""Serving a context's send queue: copy the descriptor, check it, read the header once, switch the frame.

Frames come in *runs*: one after the other has the same addresses, a good descriptor, and goes where the one before went. A run to
the wire's sink or to a receiver of this engine is taken in one tight loop (`_take_run`), in which nothing can go wrong: whatever is
in doubt ends it and is left for `_send_one`, which copies the descriptor and the header afresh, and knows what each fault does.
"""

from hyp.abi.counters import (
    BATCHES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_OVERSIZE,
    DROP_QUEUE_FULL,
    DROP_SAME_PORT,
    DROP_SPOOFED,
    DROP_STORM,
    FAULTS_ADDRESS,
    FAULTS_CHAIN,
    FAULTS_DESCRIPTOR,
    FAULTS_OFFLOAD,
    REPLICATED,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.features import SG
from hyp.abi.fragment import LENGTH_MASK, MORE, OFFLOAD_MASK, SIGNALED
from hyp.abi.nic import (
    DEFAULT_MTU,
    DESC_BYTES,
    DESC_SIGNALED,
    GROUP_BIT,
    LINK_HEADER,
    MAX_FRAME,
    MIN_FRAME,
    NO_CONTEXT,
    SQ_EVENT,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_CHAIN,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from hyp.abi.platform import KEEP_ARMED
from hyp.abi.sizes import SHORT_FRAME
from hyp.abi.trace import NOWHERE
from hyp.atomics import load8, load64, load64_once, prefetch, store32_once, store64, u32_add, u32_sub
from hyp.counters import count
from hyp.events import tracer_of
from hyp.fairness.cutting import cuts_again_at
from hyp.fairness.standing import standing_of
from hyp.fairness.storm import may_flood
from hyp.fairness.timing import SHORT, begin_timing, end_timing, is_short, timing_at
from hyp.fairness.turns import LOOK, PIECES, begin_turn, is_turn_spent
from hyp.frames import SOURCE_MASK, destination_of, source_of
from hyp.iommu import NO_TRANSLATION, READ
from hyp.kernels import compiled, outlined
from hyp.model.ablation import ablated
from hyp.offload.fragments import LONGEST_CHAIN, fragment_fault, offload_fault
from hyp.offload.frame import add_piece, begin_frame, frame_at, piece_addr, piece_length
from hyp.offload.segments import longest_part, prepare
from nic.crossing import FLOOD, cross, cross_or_pause, is_paused
from nic.deliver import end_frame, is_turn_over, put_broadcast, put_or_pause, put_run
from nic.queues import (
    NO_WINDOW,
    complete_send,
    has_posted_more,
    posted_buffers,
    posted_sends,
    reach,
    seek,
    send_descriptor,
)
from nic.state import (
    BUDGET_BYTES,
    BUDGET_FRAMES,
    DELIVERED,
    FOR_WIRE,
    MOST_REFUSED,
    PAUSE,
    STAGE,
    context_of,
    receiver_of,
    stage,
    touch,
    wire_at,
)
from nic.switch import lookup
from nic.tracing import trace_run, trace_run_to_sink, trace_sent
from nic.wire.linked import await_wire, is_wire_full
from nic.wire.outward import end_outbound, has_open_sink, outbound, put_on_wire, sent_to_sink

RUN_FRAME = DEFAULT_MTU + LINK_HEADER
"""The longest frame that goes in a run: no NIC's MTU is less."""
WHOLE_HEADER = 16
"""A frame of so many bytes has a header that can be read as two words."""
FRAME_NS, BYTES_A_NS = 5, 56
WHOLE_TURN = BUDGET_FRAMES * 9
"""Of work (hyp/fairness/timing.py), of a plain frame and of its bytes; of a turn of 200 B frames."""
FLOODED, SPOOFED = -2, -3
"""Routes that are neither a context nor the wire."""
AHEAD_BYTES = 256
"""How far ahead descriptors' lines are fetched."""
AHEAD_FRAMES = 16
"""How far ahead short frames are fetched, if all lie as far apart as the last two: farther than a processor looks by itself."""


@compiled
def _flood_here(e, origin, f):
    """Deliver to the contexts of this engine, but not to those of the guest whose first has generation `origin`. Returns how many.

    Of a guest with several contexts it is the one that the frame belongs to, of whichever engine that is: there it is delivered.
    """
    tried = 0
    for k in range(e.active):
        r = context_of(e, load64(e.order + 8 * k))
        if context_of(e, r.first).generation != origin and r.active != 0 and receiver_of(e, r.first, f).number == r.number:
            tried += 1
            result = put_broadcast(e, r, f)
            if result != DELIVERED:
                count(r.counts, result, 1)
                touch(e, r)
    e.flooded += tried
    return tried


@outlined
def flood(e, origin, f):
    """A broadcast or multicast frame of the guest whose first context has generation `origin` to all others. Never pauses."""
    count(e.counts, REPLICATED, _flood_here(e, origin, f))
    for consumer in range(e.engines):
        if consumer == e.index:
            continue
        e.flooded += 1
        if cross(e, consumer, FLOOD, origin, f, NOWHERE) == PAUSE:
            count(e.counts, REPLICATED, 1)
            count(e.counts, DROP_QUEUE_FULL, 1)


@compiled
def flood_crossed(e, origin, f):
    """The part of a flood that concerns this engine's contexts; it arrived by a crossing."""
    count(e.counts, REPLICATED, _flood_here(e, origin, f))


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
def _switch(e, c, f):
    """Pass a frame of context `c` on. DELIVERED, PAUSE, or a drop's name."""
    route = _route(e, c, f.head0, f.head1)
    if route == SPOOFED:
        return DROP_SPOOFED
    if route < 0:
        if is_wire_full(e):
            await_wire(e, c)
            return PAUSE
        if route == FLOODED and c.flooded == 0:  # once, however many turns it takes on the wire
            if c.number != 0 and not may_flood(e, c, f.parts):  # the physical function's are others', and were counted there
                return DROP_STORM
            flood(e, context_of(e, c.first).generation, f)
            c.flooded = 1
        return outbound(e, c, f)
    if route == c.first:
        return DROP_SAME_PORT
    r = receiver_of(e, route, f)
    if r.mine == 0 and r.active != 0:
        return cross_or_pause(e, c, r, f, c.number)
    return put_or_pause(e, c, r, f)


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


@outlined
def _take_chain(e, c, f):
    """Copy the next frame's descriptors, each once, and check the copies. Returns (descriptors, STATUS_*, SIGNALED or 0).

    All of the chain is taken, whatever is wrong with it, or LONGEST_CHAIN of it. 0 descriptors: the context has failed.
    """
    n, total, status, word = 0, 0, STATUS_OK, MORE
    begin_frame(f, 0, 0, 0, 0)
    while word & MORE != 0 and n < LONGEST_CHAIN:
        if n > 0 and u32_sub(c.sq_prod, c.sq_cons) <= n and not has_posted_more(c, n):
            if c.active == 0:
                return 0, STATUS_OK, 0
            status = STATUS_BAD_CHAIN if status == STATUS_OK else status
            break  # it has no end
        addr, word = send_descriptor(c, n)
        if c.active == 0:
            return 0, STATUS_OK, 0
        if n == 0 and c.features & SG == 0 and word & MORE != 0:
            return 1, STATUS_BAD_FLAGS, 0
        if status == STATUS_OK:
            status = fragment_fault(c.features, word, n)
        if status == STATUS_OK and n == 0:
            f.offload = word & OFFLOAD_MASK
            if f.offload != 0:
                status = offload_fault(c.features, word)
        if status == STATUS_OK:
            length = word & LENGTH_MASK
            place = reach(c, addr, length, READ)
            if place == NO_TRANSLATION:
                status = STATUS_BAD_ADDRESS
            else:
                add_piece(f, place, length)
        total += word & LENGTH_MASK
        n += 1
    f.length = total
    return n, status, word & SIGNALED


@compiled
def _judge(e, c, f, status):
    """Read and check the header of a frame whose chain is sound. Returns (STATUS_*, DELIVERED or the drop's name)."""
    if status == STATUS_OK and (f.length < MIN_FRAME or f.length > MAX_FRAME):
        status = STATUS_BAD_LENGTH
    if status == STATUS_OK:
        f.head0, f.head1 = _header(piece_addr(f.pieces, 0), min(f.length, piece_length(f.pieces, 0)))
        store64(f.headers, f.head0)
        store64(f.headers + 8, f.head1)
        if f.offload == 0:
            if f.length <= e.max_frame:
                return STATUS_OK, DELIVERED
            status = STATUS_BAD_LENGTH
        elif prepare(f) and longest_part(f) <= e.max_frame:
            return STATUS_OK, DELIVERED
        else:
            status = STATUS_BAD_OFFLOAD
    if status == STATUS_BAD_ADDRESS:
        count(c.counts, FAULTS_ADDRESS, 1)
        return status, DROP_BAD_ADDRESS
    if status == STATUS_BAD_CHAIN:
        count(c.counts, FAULTS_CHAIN, 1)
    elif status == STATUS_BAD_OFFLOAD:
        count(c.counts, FAULTS_OFFLOAD, 1)
    else:
        count(c.counts, FAULTS_DESCRIPTOR, 1)
    too_long = status == STATUS_BAD_LENGTH and f.length > e.max_frame
    return status, DROP_OVERSIZE if too_long else DROP_BAD_FRAME


@outlined
def _send_one(e, c):
    """Send the next frame, whatever it is. Returns (descriptors, bytes, STATUS_*).

    0 descriptors: it has to wait, or the context failed.
    """
    f = frame_at(e.frame)
    n, status, signaled = _take_chain(e, c, f)
    if n == 0:
        return 0, 0, STATUS_OK
    status, result = _judge(e, c, f, status)
    if result == DELIVERED:
        result = _switch(e, c, f)
        if result == PAUSE:
            return 0, 0, STATUS_OK
        if result != DELIVERED:
            status = STATUS_SPOOFED if result == DROP_SPOOFED else STATUS_DROPPED
    end_frame(e, c)
    c.flooded = 0
    if result != DELIVERED:
        count(c.counts, result, 1)
    tracer = tracer_of(e.wait)
    if tracer != 0:
        trace_sent(tracer, e, c, f, result)
    c.sq_cons = u32_add(c.sq_cons, n - 1)
    if status != STATUS_OK or signaled != 0:
        complete_send(e, c, status)
    c.sq_cons = u32_add(c.sq_cons, 1)
    return n, f.length & 0xFFFF, status


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
    done, total, flags, before = 0, 0, 0, 0
    while done < n and total < room and flags == 0:
        # 1. Our copy of the descriptor: no fault (`send_fault`), and a whole header; and the next ones' lines under way.
        at = queue + ((cons + done) & mask) * DESC_BYTES
        slot, q_first, q_span, q_base = seek(c, at, DESC_BYTES, READ, q_first, q_span, q_base)
        if slot == NO_TRANSLATION:
            break
        prefetch(slot + AHEAD_BYTES)
        addr, word = load64_once(slot), load64_once(slot + 8)
        length, more = word & 0xFFFFFFFF, word >> 32
        if length < WHOLE_HEADER or length > RUN_FRAME or more & ~DESC_SIGNALED != 0:
            break
        # 2. Where the frame is.
        frame, start, span, base = seek(c, addr, length, READ, start, span, base)
        if frame == NO_TRANSLATION:
            break
        if length <= SHORT_FRAME:
            prefetch(frame + AHEAD_FRAMES * (frame - before))
        before = frame
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
        first = w.next
        done, total, flags = _take_run(e, c, n, room, True)
        sent_to_sink(w, done, total)
        tracer = tracer_of(e.wait)
        if tracer != 0:
            trace_run_to_sink(tracer, c, w, first, done)
    elif route >= 0 and route != c.first:
        r = context_of(e, route)
        if r.mine == 0 or r.active == 0 or r.queues > 1:  # of several queues each frame has its own
            return 0, 0
        taken, _, flags = _take_run(e, c, min(n, STAGE, posted_buffers(r)), room, False)
        done, total = put_run(e, r, taken, c.head0)
        if done < taken:
            flags = 0
        tracer = tracer_of(e.wait)
        if tracer != 0:
            trace_run(tracer, e, c.number, r, done)
    else:
        return 0, 0
    if done > 0:
        if c.pause_until != 0:
            c.pause_until = 0
        c.sq_cons = u32_add(c.sq_cons, done - 1)
        if flags != 0:
            complete_send(e, c, STATUS_OK)
        c.sq_cons = u32_add(c.sq_cons, 1)
    return done, total


@compiled
def sends_again_at(e, c):
    """When the guest may send again for which the host has cut frames (ns). 0 or less: none have been."""
    return cuts_again_at(context_of(e, c.first))


@compiled
def _work(frames, octets):
    """Of plain frames, for `end_timing`."""
    return FRAME_NS * frames + octets // BYTES_A_NS


@compiled
def serve_sends(e, c):
    """One turn of a context's send queue. Returns the number of descriptors done.

    After MOST_REFUSED frames that had to be refused it ends: they take longer than sound ones, which is nobody's fault but theirs
    who sent them. Of frames that go one by one it ends by the clock, too (hyp/fairness/turns.py). Who has taken longer than others
    for as many plain ones has a short one (hyp/fairness/timing.py), but not the physical function: others wait behind its frames.
    """
    waiting = posted_sends(c)
    if waiting == 0 or is_paused(e, c) or sends_again_at(e, c) > e.now:
        return 0
    if c.pause_for == FOR_WIRE:
        c.pause_until, c.pause_for = 0, 0  # that deadline is none: a receiver may be waited for from the beginning
    limit, room = min(waiting, BUDGET_FRAMES), BUDGET_BYTES
    t, owner = timing_at(e.timing), standing_of(c)
    if is_short(t, owner, WHOLE_TURN):
        limit, room = min(limit, BUDGET_FRAMES // SHORT), BUDGET_BYTES // SHORT
    began = begin_timing(t) if c.privileged == 0 else 0
    done, sent, total, lost, most, slow, bad, e.parts, e.wanted = 0, 0, 0, 0, limit, 0, 0, 0, 1
    begin_turn(e)
    while done < limit and total < room and c.active != 0:
        frames, octets = 0, 0
        if c.part == 0:
            frames, octets = _send_run(e, c, min(limit - done, most), room - total)
        most = 2 * frames + 1  # so that a receiver whose buffers end each run has no more than that staged in vain
        if frames > 0:
            done += frames
            if slow > 0:
                slow += LOOK
                if is_turn_spent(e, slow, total + octets - lost):
                    limit = done
        else:
            if began != 0 and slow == 0:
                end_timing(t, owner, began, _work(sent, total), WHOLE_TURN, 0)
            taken, octets, status = _send_one(e, c)
            if e.flooded > 0:  # its copies are its sender's turn, too
                limit, room, e.flooded = limit - e.flooded, room - e.flooded * octets, 0
            if taken == 0:
                break
            if e.parts > 0:
                end_outbound(e)
                if is_turn_over(e):
                    limit = done
            done += taken
            frames = 1
            slow += 1 + (taken + e.wanted) // PIECES
            if status != STATUS_OK:
                bad += status != STATUS_DROPPED
                lost += octets
            if bad == MOST_REFUSED or is_turn_spent(e, slow, total + octets - lost) or sends_again_at(e, c) > e.now:
                limit = done
        sent += frames
        total += octets
    if began != 0 and slow == 0:
        end_timing(t, owner, began, _work(sent, total), WHOLE_TURN, 1)
    end_outbound(e)
    if done > 0:
        if ablated(e.platform, KEEP_ARMED) != 0:
            store32_once(c.doorbell + SQ_EVENT, u32_add(c.sq_cons, 1))
        count(c.counts, TX_FRAMES, sent)
        count(c.counts, TX_BYTES, total)
        count(c.counts, BATCHES, 1)
        touch(e, c)
    return sent + e.parts  # of a frame, perhaps, that is not done
