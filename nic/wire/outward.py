"""What leaves by the wire: to a sink that verifies test frames, a reflector (nic/wire/reflect.py), or the host (nic/wire/tap.py).

A frame that leaves is copied (the device's DMA) into a ring of wire buffers. On a wire that has neither a bit rate nor a delay it
arrives in the batch that sent it; else it is launched on a link (nic/wire/linked.py).
"""

from hyp.abi.counters import COPIED_BYTES, COPIES, RX_BYTES, RX_FRAMES
from hyp.abi.sizes import JUMBO_BUFFER, LARGEST_FRAME_BUFFER
from hyp.atomics import clock_ns, load64, store64
from hyp.capture.ring import record_frame, tell_recorder
from hyp.counters import count
from hyp.fairness.cutting import is_cut
from hyp.fairness.turns import LOOK, PIECES
from hyp.kernels import compiled, outlined
from hyp.load.frames import NO_TEST_FRAME, is_test_frame, look_at
from hyp.load.tcp import verify_frame
from hyp.offload.frame import is_simple, piece_addr, set_piece, write_whole
from hyp.offload.segments import part_length, write_part
from nic.deliver import copy_frame, count_part, is_turn_over
from nic.state import DELIVERED, PAUSE, SINK, TAP, WIRE_BUFFERS, context_of, wire_at
from nic.wire.link import SENT, launch, link_at, room_for_frame
from nic.wire.linked import await_wire, is_wire_full
from nic.wire.reflect import reflect
from nic.wire.tap import put_on_tap


@compiled
def outbound(e, sender, f):
    """A frame leaves on the wire, which takes it (`is_wire_full`). The copy into a wire buffer is the device's DMA.

    One with an offload leaves in parts, finished, but to the host as it is. DELIVERED, or PAUSE: the wire is full, and
    `sender.part` says how far it is.
    """
    w = wire_at(e.wire)
    if w.mode == TAP:
        return _outbound_to_host(e, sender, w, f)
    if not is_simple(f):
        return _outbound_parts(e, sender, f)
    frame, length = piece_addr(f.pieces, 0), f.length
    if w.linked != 0:
        k = link_at(w.out)
        copy_frame(room_for_frame(k), frame, length, f.head0, f.head1)
        e.now = clock_ns()  # the frame may be younger than the batch
        launch(k, e.now, length, SENT)
    else:
        slot = w.next & (WIRE_BUFFERS - 1)
        buffer = buffer_for(w, slot, length)
        copy_frame(buffer, frame, length, f.head0, f.head1)
        store64(w.lengths + 8 * slot, length if length <= LARGEST_FRAME_BUFFER else -length)
        w.next += 1
        if w.mode != SINK:
            reflect(e, w, buffer, length, f.head0, f.head1)
    w.fresh += 1
    w.fresh_bytes += length
    return DELIVERED


@compiled
def _outbound_to_host(e, sender, w, f):
    """One system call, after which the clock is looked at. The host's kernel may cut the frame in it, at its sender's expense.

    Whose the physical function's is, is known to Dom0, who has them wait.
    """
    if sender.shared == 0:
        is_cut(context_of(e, sender.first), f.parts, e.now, 1)
    e.wanted = LOOK * PIECES
    return put_on_tap(w, f)


@outlined
def _outbound_parts(e, sender, f):
    w = wire_at(e.wire)
    while sender.part < f.parts:  # its sender may have made it shorter since the last time
        if is_turn_over(e):
            return PAUSE
        if is_wire_full(e):
            await_wire(e, sender)
            return PAUSE
        if w.fresh >= WIRE_BUFFERS:
            end_outbound(e)
        length = f.length if f.offload == 0 else part_length(f, sender.part)
        slot = w.next & (WIRE_BUFFERS - 1)
        place = room_for_frame(link_at(w.out)) if w.linked != 0 else buffer_for(w, slot, length)
        set_piece(e.to, 0, place, length)
        if f.offload == 0:
            write_whole(f, e.to)
        else:
            write_part(f, sender.part, e.to, 1)
        if w.linked != 0:
            e.now = clock_ns()
            launch(link_at(w.out), e.now, length, SENT)
        else:
            store64(w.lengths + 8 * slot, length if length <= LARGEST_FRAME_BUFFER else -length)
            w.next += 1
            if w.mode != SINK:
                reflect(e, w, place, length, f.head0, f.head1)
        w.fresh += 1
        w.fresh_bytes += length
        count_part(e, f.parts, sender.part, DELIVERED)
        e.parts += 1 if f.parts > 1 else 0
        sender.part += 1
    sender.part = 0
    return DELIVERED


@compiled
def has_open_sink(w):
    """True if frames that leave need only be copied (`put_on_wire`, then `sent_to_sink`)."""
    return w.linked == 0 and w.mode == SINK


@compiled
def buffer_for(w, slot, length):
    """The wire buffer of a slot for a frame of so many bytes: jumbo frames lie apart, so that small ones lie close."""
    return w.buffers + slot * LARGEST_FRAME_BUFFER if length <= LARGEST_FRAME_BUFFER else w.jumbos + slot * JUMBO_BUFFER


@compiled
def put_on_wire(buffers, lengths, index, frame, length, head0, head1):
    """Copy a frame that is no jumbo into the wire buffer of `index`."""
    slot = index & (WIRE_BUFFERS - 1)
    copy_frame(buffers + slot * LARGEST_FRAME_BUFFER, frame, length, head0, head1)
    store64(lengths + 8 * slot, length)


@compiled
def sent_to_sink(w, frames, total):
    """So many frames, `total` bytes in all, have been put on the wire from `w.next` on."""
    w.next += frames
    w.fresh += frames
    w.fresh_bytes += total


@compiled
def end_outbound(e):
    """End of a turn, in which at most WIRE_BUFFERS frames have left: count them, let the sink look at them.

    At all of them at a time: to read what was written just now means to wait until the writes are done.
    """
    w = wire_at(e.wire)
    frames, total = w.fresh, w.fresh_bytes
    if frames == 0:
        return
    w.fresh, w.fresh_bytes, w.dirty = 0, 0, 1
    count(w.counts, COPIES, frames)
    count(w.counts, COPIED_BYTES, total)
    if w.linked != 0:
        return  # nothing has arrived yet
    count(w.counts, RX_FRAMES, frames)
    count(w.counts, RX_BYTES, total)
    if w.recorder != 0:
        _record_last(e, w, frames)
    if w.mode == SINK:
        trackers, counts, buffers, lengths, now = e.trackers, w.counts, w.buffers, w.lengths, e.now  # in registers
        end, others = w.next, 0
        for k in range(end - frames, end):
            slot = k & (WIRE_BUFFERS - 1)
            buffer, length = buffers + slot * LARGEST_FRAME_BUFFER, load64(lengths + 8 * slot)
            if look_at(trackers, counts, buffer, length, now) == NO_TEST_FRAME:
                others += 1
        if others > 0:
            _look_at_others(e, w, frames)


@outlined
def _record_last(e, w, frames):
    """Record the last `frames` that have left."""
    for k in range(w.next - frames, w.next):
        slot = k & (WIRE_BUFFERS - 1)
        length = load64(w.lengths + 8 * slot)
        record_frame(w.recorder, buffer_for(w, slot, abs(length)), abs(length), e.now)
    tell_recorder(w.recorder)


@outlined
def _look_at_others(e, w, frames):
    """The sink's second look, at those of the last `frames` that are no simple test frames: the loop above has no call in it."""
    for k in range(w.next - frames, w.next):
        slot = k & (WIRE_BUFFERS - 1)
        length = load64(w.lengths + 8 * slot)
        buffer = buffer_for(w, slot, abs(length))
        if not is_test_frame(buffer, length):
            verify_frame(e.trackers, w.counts, buffer, abs(length), 0, e.now)
