"""A linked wire: frames go by one link out and one back (nic/wire/link.py), and what happens to them at its end happens at arrival.

The engine that has the wire calls `serve_wire` for what has arrived, and sleeps until `wire_due` at most.
"""

from hyp.abi.counters import COPIED_BYTES, COPIES, DROP_NO_ROUTE, DROP_QUEUE_FULL, PAUSES, RX_BYTES, RX_FRAMES, TX_BYTES, TX_FRAMES
from hyp.abi.nic import NO_CONTEXT
from hyp.abi.trace import WIRE
from hyp.atomics import load64
from hyp.capture.ring import record_frame, tell_recorder
from hyp.counters import count
from hyp.fairness.turns import PIECES, begin_turn, is_turn_spent
from hyp.frames import destination_of
from hyp.kernels import compiled, outlined
from hyp.load.schedule import schedule_at
from hyp.load.tcp import verify_frame
from hyp.offload.frame import frame_at, one_piece
from nic.crossing import await_crossing, cross, is_paused
from nic.deliver import await_receiver, copy_frame, put
from nic.state import DELIVERED, FOR_WIRE, PAUSE, SINK, WIRE_BATCH, receiver_of, wire_at
from nic.switch import lookup
from nic.wire.inward import trace_arrival
from nic.wire.link import (
    ENTRY_ARRIVAL,
    ENTRY_FRAME,
    ENTRY_KIND,
    ENTRY_LENGTH,
    REFLECTED,
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
from nic.wire.reflect import turned


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
    """Do what has to be done with the frames that have arrived, at most WIRE_BATCH each way. Returns how many."""
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
    while done < WIRE_BATCH:
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
    back0, back1, _ = turned(w, load64(frame), load64(frame + 8))
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
    done, work, octets, e.wanted = 0, 0, 0, 1
    begin_turn(e)
    while done < WIRE_BATCH and not is_paused(e, w):
        entry = oldest(k)
        if entry == 0 or load64(entry + ENTRY_ARRIVAL) > e.now:
            break
        length = load64(entry + ENTRY_LENGTH)
        result = _land(e, w, entry + ENTRY_FRAME, length, load64(entry + ENTRY_KIND))
        if result == PAUSE:
            break
        w.pause_until = 0
        if result != DELIVERED:
            count(w.counts, result, 1)
        retire(k)
        done += 1
        work, octets = work + 1 + e.wanted // PIECES, octets + length
        if is_turn_spent(e, work, octets):
            break
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
    trace_arrival(e, r, f, result)
    return result


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
