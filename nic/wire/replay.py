"""Replay on the wire: frames of a capture file (hyp/load/replay.py) from beyond the NIC's port, when they are due.

As the generator's, they are a sending queue: a full receiver pauses it, then frames drop. They go to who has their address, else to
the physical function; broadcasts and multicasts to all, as from the host (nic/wire/tap_input.py), but on a linked wire to the
physical function only. A frame that the MTU does not allow is dropped, as `oversize`. The first engine sends all of them, so that
they keep their order.
"""

from hyp.abi.counters import DROP_OVERSIZE, PAUSES, REPLICATED, TX_BYTES, TX_FRAMES
from hyp.abi.nic import GROUP_BIT
from hyp.atomics import clock_ns, load64
from hyp.counters import count
from hyp.fairness.turns import PIECES, begin_turn, is_turn_spent
from hyp.frames import destination_of
from hyp.kernels import compiled, outlined
from hyp.load.replay import begin_replay, go_on, next_entry, replay_at
from hyp.load.schedule import begin_schedule, note_lag, schedule_at
from hyp.offload.frame import frame_at, one_piece
from nic.crossing import is_paused
from nic.deliver import copy_frame, end_frame
from nic.send import flood
from nic.state import DELIVERED, PAUSE, WIRE_BATCH, WIRE_ORIGIN, wire_at
from nic.wire.inward import inbound
from nic.wire.link import GENERATED, launch, link_at, room_for_frame, takes


@outlined
def begin_replaying(e, entries, number, round_ns, frames, nanoseconds, stream, timed, shared):
    """Replace what the generator does: `frames` of the `number` at `entries`, round after round. `shared`: they are for several."""
    w, now = wire_at(e.wire), clock_ns()
    begin_replay(replay_at(w.replay), entries, number, round_ns, now)
    w.left, w.stream, w.sequence, w.replays, w.shared = frames, stream, 0, 1, shared
    w.until_ns = now + nanoseconds if nanoseconds > 0 else 0
    w.last_ns = now
    begin_schedule(schedule_at(w.schedule), timed, now)  # which says when the next frame is due, and how late they are


@outlined
def replay(e):
    """Send what is due, at most WIRE_BATCH frames. Returns how many."""
    w = wire_at(e.wire)
    r, s = replay_at(w.replay), schedule_at(w.schedule)
    done, work, octets, e.wanted = 0, 0, 0, 1
    begin_turn(e)
    while w.left > 0:
        entry = next_entry(r)
        s.due_ns = r.begun_ns + entry.due_ns
        if s.due_ns > e.now or done >= WIRE_BATCH:
            break
        if entry.frame == 0:
            count(w.counts, DROP_OVERSIZE, 1)
        elif w.linked != 0:
            if not _onto_link(e, w, entry):
                break
        elif is_paused(e, w) or not _pass_on(e, w, entry):
            break
        count(w.counts, TX_FRAMES, 1)
        count(w.counts, TX_BYTES, entry.length)
        if s.pps != 0:
            note_lag(s, e.now)
        go_on(r)
        w.left -= 1
        w.sequence += 1
        done += 1 + e.flooded
        e.flooded = 0
        work, octets = work + 1 + e.wanted // PIECES, octets + entry.length
        if is_turn_spent(e, work, octets):
            break
    if done > 0:
        w.last_ns = e.now
        w.dirty = 1
    return done


@compiled
def _pass_on(e, w, entry):
    """Hand a frame to its receiver. False if it has to wait."""
    f, result = frame_at(e.frame), DELIVERED
    one_piece(f, entry.frame, entry.length, 0, load64(entry.frame), load64(entry.frame + 8))
    destination = destination_of(f.head0)
    if destination & GROUP_BIT:
        flood(e, WIRE_ORIGIN, f)
        count(e.counts, REPLICATED, -1)  # the first of the copies is the frame itself
    else:
        result = inbound(e, w, destination, f)
    if result == PAUSE:
        return False
    end_frame(e, w)
    if result != DELIVERED:
        count(w.counts, result, 1)
    return True


@compiled
def _onto_link(e, w, entry):
    """Launch a frame. False if it has to wait for the link."""
    k = link_at(w.back)
    if not takes(k, e.now):
        if w.held == 0:
            count(e.counts, PAUSES, 1)
        w.held = 1
        return False
    w.held = 0
    copy_frame(room_for_frame(k), entry.frame, entry.length, load64(entry.frame), load64(entry.frame + 8))
    launch(k, e.now, entry.length, GENERATED)
    return True
