"""The generator: test frames from beyond the NIC's port, as many and as fast as it is told.

It is a sending queue like a guest's: a full receiver pauses it, then frames drop; and while a receiver's buffers take long to write
to, its turns are short. On a linked wire (`nic/wire/link.py`) its frames go onto the link back instead, and what happens to them
there is the wire's.
"""

from hyp.abi.counters import PAUSES, TX_BYTES, TX_FRAMES
from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.abi.nic import NO_CONTEXT
from hyp.abi.trace import WIRE
from hyp.atomics import clock_ns, load64
from hyp.counters import count
from hyp.events import tracer_of
from hyp.fairness.timing import SHORT, begin_timing, end_timing, is_short, timing_at
from hyp.fairness.turns import PIECES, begin_turn, is_turn_spent
from hyp.frames import head_words
from hyp.kernels import compiled, outlined
from hyp.load.frames import write_test_frame
from hyp.load.schedule import begin_schedule, frame_sent, frames_due, note_lag, schedule_at, stamp
from hyp.offload.frame import frame_at, one_piece
from nic.crossing import is_paused
from nic.deliver import put_run
from nic.queues import posted_buffers
from nic.state import DELIVERED, PAUSE, WIRE_BATCH, WIRE_BUFFERS, context_of, stage, wire_at
from nic.switch import lookup
from nic.tracing import trace_run
from nic.wire.inward import inbound
from nic.wire.link import GENERATED, launch, link_at, room_for_frame, takes
from nic.wire.outward import buffer_for
from nic.wire.replay import replay

FRAME_NS, BYTES_A_NS = 10, 20
"""Of work (hyp/fairness/timing.py), of a frame that is written, and copied to its receiver."""
WHOLE_TURN = WIRE_BATCH * FRAME_NS


@outlined
def begin_generating(e, destination, length, frames, nanoseconds, pps, stream, sizes):
    """Replace what the generator does. `sizes`: lengths of frames, of which there are `length`; 0: all are `length` bytes long."""
    w, now = wire_at(e.wire), clock_ns()
    w.destination, w.length, w.left, w.stream, w.sequence, w.replays = destination, length, frames, stream, 0, 0
    w.shared, w.sizes, w.size_count, w.size_at = w.tap_reads, sizes, length, 0
    w.until_ns = now + nanoseconds if nanoseconds > 0 else 0
    w.last_ns, w.owed = now, 0  # what was owed was for another receiver's buffers
    begin_schedule(schedule_at(w.schedule), pps, now)


@compiled
def generate(e):
    """Send what is due of the generator's frames, at most WIRE_BATCH. Returns how many."""
    w = wire_at(e.wire)
    if w.left <= 0:
        return 0
    s = schedule_at(w.schedule)
    sent, slow, e.wanted = 0, 0, 1
    begin_turn(e)
    if w.until_ns != 0 and e.now >= w.until_ns:
        w.left = 0
        if w.linked == 0:
            w.pause_until = 0  # the frame that waited is not sent any more
        if s.pps != 0:
            note_lag(s, e.now)
    if w.replays != 0:
        return replay(e)
    most = WIRE_BATCH
    if w.linked == 0 and s.pps == 0:
        t = timing_at(e.timing)
        if is_short(t, w, WHOLE_TURN):
            most = WIRE_BATCH // SHORT
        began = begin_timing(t)
        sent, total = _generate_run(e, w, most) if w.sizes == 0 else _generate_mixed_run(e, w, most)
        if began != 0:  # the others' turns say what is plain: this one's is none of theirs
            end_timing(t, w, began, FRAME_NS * sent + total // BYTES_A_NS, WHOLE_TURN, 0)
    while w.left > 0 and sent < most and frames_due(s, e.now, 1) > 0:
        if w.sizes != 0:
            w.length = load64(w.sizes + 8 * w.size_at)
        if not (_generate_onto_link(e, w, s) if w.linked != 0 else _generate_one(e, w, s)):
            break
        w.left -= 1
        w.sequence += 1
        _pass_sizes(w, 1)
        frame_sent(s, e.now)
        count(w.counts, TX_FRAMES, 1)
        count(w.counts, TX_BYTES, w.length)
        sent += 1
        slow += 1 + e.wanted // PIECES
        if is_turn_spent(e, slow, sent * w.length):
            break
    if sent > 0:
        w.last_ns = e.now
        w.dirty = 1
    return sent


@compiled
def _generate_run(e, w, most):
    """Send at most so many frames for which the receiver has buffers; the next is for `_generate_one`. Returns (frames, bytes)."""
    number = lookup(e.table, w.destination)
    r = context_of(e, number)
    if number == NO_CONTEXT or r.mine == 0 or r.active == 0 or r.queues > 1:
        return 0, 0
    n, first, length, stream, sequence = min(w.left, most, posted_buffers(r)), w.next, w.length, w.stream, w.sequence
    head0, head1 = head_words(w.destination, w.mac, ETHERTYPE_WIRE << 32)
    for k in range(n):
        buffer = buffer_for(w, (first + k) & (WIRE_BUFFERS - 1), length)
        write_test_frame(buffer, length, head0, head1, stream, sequence + k, 0)
        stage(e, k, buffer, length, head1 | (stream << 48))
    sent, total = put_run(e, r, n, head0)
    if sent > 0:
        tracer = tracer_of(e.wait)
        if tracer != 0:
            trace_run(tracer, e, WIRE, r, sent)
        w.pause_until = 0
        w.next, w.left, w.sequence = first + sent, w.left - sent, sequence + sent
        count(w.counts, TX_FRAMES, sent)
        count(w.counts, TX_BYTES, total)
    return sent, total


@outlined
def _generate_mixed_run(e, w, most):
    """`_generate_run` of frames of several sizes."""
    number = lookup(e.table, w.destination)
    r = context_of(e, number)
    if number == NO_CONTEXT or r.mine == 0 or r.active == 0 or r.queues > 1:
        return 0, 0
    n, first, stream, sequence = min(w.left, most, posted_buffers(r)), w.next, w.stream, w.sequence
    head0, head1 = head_words(w.destination, w.mac, ETHERTYPE_WIRE << 32)
    sizes, size_count, at = w.sizes, w.size_count, w.size_at
    for k in range(n):
        length = load64(sizes + 8 * at)
        at = at + 1 if at + 1 < size_count else 0
        buffer = buffer_for(w, (first + k) & (WIRE_BUFFERS - 1), length)
        write_test_frame(buffer, length, head0, head1, stream, sequence + k, 0)
        stage(e, k, buffer, length, head1 | (stream << 48))
    sent, total = put_run(e, r, n, head0)
    if sent > 0:
        tracer = tracer_of(e.wait)
        if tracer != 0:
            trace_run(tracer, e, WIRE, r, sent)
        w.pause_until = 0
        w.next, w.left, w.sequence = first + sent, w.left - sent, sequence + sent
        _pass_sizes(w, sent)
        count(w.counts, TX_FRAMES, sent)
        count(w.counts, TX_BYTES, total)
    return sent, total


@compiled
def _pass_sizes(w, frames):
    """So many frames have been sent."""
    if w.sizes != 0:
        w.size_at = (w.size_at + frames) % w.size_count


@compiled
def _generate_one(e, w, s):
    """Hand the next frame to its receiver. False if it has to wait; it is written afresh then."""
    if is_paused(e, w):
        return False
    buffer = buffer_for(w, w.next & (WIRE_BUFFERS - 1), w.length)
    head0, head1 = head_words(w.destination, w.mac, ETHERTYPE_WIRE << 32)
    write_test_frame(buffer, w.length, head0, head1, w.stream, w.sequence, stamp(s))
    f = frame_at(e.frame)
    one_piece(f, buffer, w.length, 0, head0, load64(buffer + 8))
    result = inbound(e, w, w.destination, f)
    if result == PAUSE:
        return False
    w.pause_until = 0
    w.next += 1
    if result != DELIVERED:
        count(w.counts, result, 1)
    return True


@compiled
def _generate_onto_link(e, w, s):
    """Launch the next frame. False if it has to wait for the link."""
    k = link_at(w.back)
    if not takes(k, e.now):
        if w.held == 0:
            count(e.counts, PAUSES, 1)
        w.held = 1
        return False
    w.held = 0
    head0, head1 = head_words(w.destination, w.mac, ETHERTYPE_WIRE << 32)
    write_test_frame(room_for_frame(k), w.length, head0, head1, w.stream, w.sequence, stamp(s))
    launch(k, e.now, w.length, GENERATED)
    return True
