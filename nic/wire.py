"""The wire: what is beyond the NIC's port: a sink that verifies test frames, a reflector, the host (nic/tap.py).

The generator of test frames is in nic/generator.py.

Frames that leave the machine are copied (the device's DMA) into a ring of wire buffers. `reflect` sends each one back with its
MAC addresses swapped.

On a wire that has neither a bit rate nor a delay a frame arrives in the batch that sent it. Else it is *linked*: frames go by one
link out and one back (`nic/link.py`), and what happens to them at the end of it happens when they arrive (`serve_wire`).
"""

from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DROP_NO_ROUTE,
    DROP_QUEUE_FULL,
    PAUSES,
    RX_BYTES,
    RX_FRAMES,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.nic import GROUP_BIT, NO_CONTEXT
from hyp.abi.sizes import JUMBO_BUFFER, LARGEST_FRAME_BUFFER
from hyp.abi.trace import NOWHERE, WIRE
from hyp.atomics import clock_ns, load64, store64
from hyp.capture.ring import record_frame, tell_recorder
from hyp.counters import count
from hyp.events import tracer_of
from hyp.fairness.cutting import is_cut
from hyp.fairness.turns import LOOK, PIECES
from hyp.frames import destination_of, head_words, source_of
from hyp.kernels import compiled, outlined
from hyp.load.frames import NO_TEST_FRAME, is_test_frame, look_at
from hyp.load.schedule import schedule_at
from hyp.load.tcp import verify_frame
from hyp.offload.frame import frame_at, is_simple, one_piece, piece_addr, set_piece, write_whole
from hyp.offload.segments import part_length, write_part
from nic.crossing import await_crossing, cross, cross_or_pause, is_paused
from nic.deliver import await_receiver, copy_frame, count_part, is_turn_over, put, put_broadcast, put_or_pause
from nic.link import (
    ENTRY_ARRIVAL,
    ENTRY_FRAME,
    ENTRY_KIND,
    ENTRY_LENGTH,
    is_congested,
    is_direct,
    launch,
    link_at,
    oldest,
    retire,
    room_at,
    room_for_frame,
    set_link,
    takes,
)
from nic.state import DELIVERED, FOR_WIRE, PAUSE, WIRE_BUFFERS, context_of, receiver_of, wire_at
from nic.switch import lookup
from nic.tap import put_on_tap
from nic.tracing import trace_inbound

SINK, REFLECT, TAP = 0, 1, 2
SENT, GENERATED, REFLECTED = 0, 1, 2  # kinds of frames on a link
WIRE_ORIGIN = -1
BATCH = 64


@compiled
def inbound(e, w, destination, f):
    """A frame from the wire for an address: to who has it, else to the physical function. DELIVERED, PAUSE, or a drop's name."""
    number = lookup(e.table, destination)
    if number == NO_CONTEXT:
        number = 0
    r = receiver_of(e, number, f)
    if r.active == 0:
        result = DROP_NO_ROUTE
    elif r.mine == 0:
        result = cross_or_pause(e, w, r, f, WIRE)
    else:
        result = put_or_pause(e, w, r, f)
    _trace_inbound(e, r, f, result)
    return result


@compiled
def _trace_inbound(e, r, f, result):
    tracer = tracer_of(e.wait)
    if tracer != 0 and result != PAUSE:
        trace_inbound(tracer, r, f, result)


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
            _reflect(e, w, buffer, length, f.head0, f.head1)
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
                _reflect(e, w, place, length, f.head0, f.head1)
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


@compiled
def _turned(w, head0, head1):
    """The header of a reflected frame, and the MAC address that it goes to."""
    source, destination = source_of(head0, head1), destination_of(head0)
    if destination & GROUP_BIT:
        destination = w.mac
    back0, back1 = head_words(source, destination, head1)
    return back0, back1, source


@compiled
def _reflect(e, w, buffer, length, head0, head1):
    back0, back1, source = _turned(w, head0, head1)
    count(w.counts, TX_FRAMES, 1)
    count(w.counts, TX_BYTES, length)
    number = lookup(e.table, source)
    f = frame_at(e.turned)
    one_piece(f, buffer, length, 0, back0, back1)
    r = receiver_of(e, 0 if number == NO_CONTEXT else number, f)
    result = DROP_NO_ROUTE
    if r.active != 0:  # a reflected frame belongs to nobody's sending queue, so it does not pause anybody
        if r.mine == 0:
            result = cross(e, r.engine, r.number, r.generation, f, NOWHERE)  # of its going out nobody has told yet
            if result == PAUSE:
                result = DROP_QUEUE_FULL
        else:
            result = put_broadcast(e, r, f)
    if result != DELIVERED:
        count(w.counts, result, 1)


# --- a linked wire ---------------------------------------------------------------------------------------------------


@outlined
def link_wire(e, mode, fs_per_byte, delay_ns):
    """Set what the wire does, its rate and its delay, each way."""
    w = wire_at(e.wire)
    w.mode = mode
    set_link(link_at(w.out), fs_per_byte, delay_ns)
    set_link(link_at(w.back), fs_per_byte, delay_ns)
    if w.linked == 0 and not is_direct(link_at(w.out)):
        w.linked, w.pause_until = 1, 0  # a frame that the generator waited with is written afresh


@compiled
def is_wire_full(e):
    """True if a frame has to wait before it may leave."""
    w = wire_at(e.wire)
    if w.linked == 0:
        return False
    k = link_at(w.out)
    if w.crowded != 0 and is_congested(k, e.now):
        return True
    w.crowded = 0
    return not takes(k, e.now)


@outlined
def await_wire(e, sender):
    """`sender` waits for the wire, which is full: until half of what waits for the link has left. No frame ever drops for it."""
    w = wire_at(e.wire)
    sender.pause_until = max(room_at(link_at(w.out), _out_due(e, w)), e.now + 1)
    sender.pause_for = FOR_WIRE
    w.crowded = 1
    count(e.counts, PAUSES, 1)


@outlined
def serve_wire(e):
    """Do what has to be done with the frames that have arrived, at most BATCH each way. Returns how many."""
    w = wire_at(e.wire)
    moved = _arrive_back(e, w) + _arrive_out(e, w)
    if moved > 0:
        w.dirty = 1
        if w.recorder != 0:
            tell_recorder(w.recorder)
    if is_direct(link_at(w.out)) and is_direct(link_at(w.back)):
        w.linked, w.held, w.crowded = 0, 0, 0
    return moved


@compiled
def _arrive_out(e, w):
    """At the far side: the sink verifies, the reflector launches. A frame that the way back does not take stays where it is."""
    k = link_at(w.out)
    done = 0
    while done < BATCH:
        entry = oldest(k)
        if entry == 0 or load64(entry + ENTRY_ARRIVAL) > e.now or (w.mode != SINK and not takes(link_at(w.back), e.now)):
            break
        length = load64(entry + ENTRY_LENGTH)
        count(w.counts, RX_FRAMES, 1)
        count(w.counts, RX_BYTES, length)
        if w.recorder != 0:
            record_frame(w.recorder, entry + ENTRY_FRAME, length, load64(entry + ENTRY_ARRIVAL))
        if w.mode == SINK:
            verify_frame(e.trackers, w.counts, entry + ENTRY_FRAME, length, 0, load64(entry + ENTRY_ARRIVAL))
        else:
            _launch_back(e, w, entry + ENTRY_FRAME, length)
        retire(k)
        done += 1
    return done


@compiled
def _launch_back(e, w, frame, length):
    k = link_at(w.back)
    back0, back1, _ = _turned(w, load64(frame), load64(frame + 8))
    copy_frame(room_for_frame(k), frame, length, back0, back1)
    launch(k, e.now, length, REFLECTED)
    count(w.counts, COPIES, 1)
    count(w.counts, COPIED_BYTES, length)
    count(w.counts, TX_FRAMES, 1)
    count(w.counts, TX_BYTES, length)


@compiled
def _arrive_back(e, w):
    """At the machine: to the receiver. One that is full holds up a generated frame, and those behind it."""
    k = link_at(w.back)
    done = 0
    while done < BATCH and not is_paused(e, w):
        entry = oldest(k)
        if entry == 0 or load64(entry + ENTRY_ARRIVAL) > e.now:
            break
        result = _land(e, w, entry + ENTRY_FRAME, load64(entry + ENTRY_LENGTH), load64(entry + ENTRY_KIND))
        if result == PAUSE:
            break
        w.pause_until = 0
        if result != DELIVERED:
            count(w.counts, result, 1)
        retire(k)
        done += 1
    return done


@compiled
def _land(e, w, frame, length, kind):
    """DELIVERED, PAUSE, or a drop's name."""
    head0, head1 = load64(frame), load64(frame + 8)
    number = lookup(e.table, destination_of(head0))
    f = frame_at(e.frame)
    one_piece(f, frame, length, 0, head0, head1)
    r = receiver_of(e, 0 if number == NO_CONTEXT else number, f)
    if r.active == 0:
        result = DROP_NO_ROUTE
    elif r.mine == 0:
        result = cross(e, r.engine, r.number, r.generation, f, WIRE)
    else:
        result = put(e, r, f, 0)
    if result == PAUSE:
        if kind == REFLECTED:
            result = DROP_QUEUE_FULL
        else:
            result = await_crossing(e, w, r.engine) if r.mine == 0 else await_receiver(e, w, r)
    _trace_inbound(e, r, f, result)
    return result


# --- when there is something to do -----------------------------------------------------------------------------------


@outlined
def wire_due(e):
    """When the wire has something to do (ns; it may have passed), or −1."""
    w = wire_at(e.wire)
    due = _earlier(_out_due(e, w), _back_due(e, w)) if w.linked != 0 else -1
    if w.tap_got > 0:
        return w.pause_until if is_paused(e, w) else e.now
    if w.left <= 0:
        return due
    next_frame = schedule_at(w.schedule).due_ns
    if w.linked == 0 and is_paused(e, w):
        next_frame = w.pause_until
    elif w.linked != 0 and not takes(link_at(w.back), e.now):
        next_frame = max(next_frame, room_at(link_at(w.back), _back_due(e, w)))
    return _earlier(due, next_frame if w.until_ns == 0 else min(next_frame, w.until_ns))


@compiled
def _earlier(one: int, other: int) -> int:
    """The earlier of two times, of which each may be −1: never."""
    return max(one, other) if min(one, other) < 0 else min(one, other)


@compiled
def _back_due(e, w):
    entry = oldest(link_at(w.back))
    if entry == 0:
        return -1
    return w.pause_until if is_paused(e, w) else load64(entry + ENTRY_ARRIVAL)


@compiled
def _out_due(e, w):
    entry = oldest(link_at(w.out))
    if entry == 0:
        return -1
    arrival = load64(entry + ENTRY_ARRIVAL)
    if w.mode == SINK or takes(link_at(w.back), e.now):
        return arrival
    return max(arrival, room_at(link_at(w.back), _back_due(e, w)))
