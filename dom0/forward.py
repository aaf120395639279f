"""The bridge passes a frame on: source checked and learnt, destination looked up, delivered to a port or flooded.

A vif's frames have the address that the toolstack gave its guest as their source; others drop as `spoofed`. A *trunk*, the uplink
or a vif with ``trunk = true``, may have other stations behind it, whose addresses are learnt; no guest's is among those. A frame
for an address that nobody is known to have goes to trunks only.
"""

from dom0.bridge import NO_PORT, learn, whereabouts
from dom0.frames import DELIVERED, PAUSE, await_receiver, put_copy, put_frame
from dom0.multicast import hears
from dom0.netback_rx import flush_copies, flush_is_full, had_room, has_room, queue_copy
from dom0.state import UPLINK, member_of, port_of
from dom0.uplink import post_frame, uplink_has_room
from hyp.abi.counters import DROP_DOWN, DROP_NO_ROUTE, DROP_QUEUE_FULL, DROP_SAME_PORT, DROP_SPOOFED, DROP_STORM, REPLICATED
from hyp.abi.nic import GROUP_BIT
from hyp.atomics import load64
from hyp.counters import count
from hyp.fairness.storm import may_flood
from hyp.frames import destination_of, source_of
from hyp.kernels import compiled, outlined
from hyp.offload.flow import queue_of
from hyp.offload.frame import frame_at, one_piece
from hyp.offload.toeplitz import hashing_at, steer


@compiled
def _put(e, s, t):
    """Pass a plain frame on to port `t`. DELIVERED, PAUSE (no room), or a drop's name."""
    e.wanted = 1
    if t.active == 0:
        return DROP_DOWN
    if t.number == UPLINK:
        if not uplink_has_room(e, 1):
            return PAUSE
        had_room(e, t)
        post_frame(e, t, s.buffer, s.gpa, s.length)
        s.posted = 1
        return DELIVERED
    if flush_is_full(e):
        flush_copies(e)
    if not has_room(e, t, 1):
        return PAUSE if t.active != 0 else DROP_DOWN
    queue_copy(e, t, s.gpa, s.length)
    return DELIVERED


@outlined
def _queue_for(e, first, s):
    """The one of a vif's queues, whose first is `first`, that a frame goes to.

    If it has asked for hashes, and there is one, that is its `hash_info`; and a plain frame is none any more: it is e.frame.
    """
    if first.active == 0:  # it is being made or taken away: nothing of it is looked at, and it gets nothing
        first.hash_info = 0
        return first
    there, head0, head1 = s.length if s.slots == 0 else s.bytes, load64(s.addr), load64(s.addr + 8)
    if first.hashing == 0:
        t = member_of(e, first, queue_of(head0, head1, s.addr, there, first.queues))
        t.hash_info = 0
        return t
    queue, info = steer(hashing_at(first.hashing), head1, s.addr, there, first.queues)
    t = member_of(e, first, queue)
    t.hash_info = info
    if info != 0 and s.slots == 0:
        one_piece(frame_at(e.frame), s.addr, s.length, 0, head0, head1)
    return t


@compiled
def _flood(e, p, s):
    """Pass the frame on to every port but its own; if it is for one station, to trunks. A flooded copy never pauses anybody."""
    copies, destination = 0, destination_of(load64(s.addr))
    group = destination & GROUP_BIT
    for number in range(e.port_count):
        t = port_of(e, number)
        if number != t.vif or number == p.vif or t.active == 0 or (group == 0 and t.trunk == 0):
            continue
        if t.filters == 0 or hears(t, destination):
            copies += 1
            if t.queues > 1:
                t = _queue_for(e, t, s)
            result = _put(e, s, t) if s.slots == 0 and t.hash_info == 0 else put_copy(e, p, p.next, t)
            if result != DELIVERED:
                count(t.counts, DROP_QUEUE_FULL if result == PAUSE else result, 1)
                t.dirty = 1
    if copies == 0:
        return DROP_NO_ROUTE
    count(e.counts, REPLICATED, copies - 1)
    e.flooded += copies
    return DELIVERED


@outlined
def _put_special(e, p, s, t):
    """Pass a frame on that is no plain one, or that is for a vif of several queues. DELIVERED, PAUSE, or a drop's name."""
    if t.queues > 1:
        t = _queue_for(e, t, s)
    if s.slots != 0 or t.hash_info != 0:
        return put_frame(e, p, p.next, t)
    result = _put(e, s, t)
    return await_receiver(e, p, t) if result == PAUSE else result


@compiled
def pass_on(e, p, s):
    """Check, learn, look up, deliver one frame. DELIVERED, PAUSE, or a drop's name."""
    head0, head1 = load64(s.addr), load64(s.addr + 8)
    destination, source = destination_of(head0), source_of(head0, head1)
    if source != p.mac and (p.trunk == 0 or (not learn(e.fdb, source, p.vif, e.now) and p.number != UPLINK)):
        return DROP_SPOOFED
    if destination & GROUP_BIT:
        frames = frame_at(e.frame).parts if s.slots > 0 else 1
        return _flood(e, p, s) if p.number == UPLINK or may_flood(e, p, frames) else DROP_STORM
    number = whereabouts(e.fdb, destination, e.now, e.ageing_ns)
    if number == NO_PORT:
        return _flood(e, p, s)
    if number == p.vif:
        return DROP_SAME_PORT
    t = port_of(e, number)
    p.towards = number
    if s.slots != 0 or t.queues > 1:
        return _put_special(e, p, s, t)
    result = _put(e, s, t)
    return await_receiver(e, p, t) if result == PAUSE else result
