"""Frames of several fragments, or with an offload left to be done, on their way through the bridge. Compiled, outside of its loops.

Such a frame lies in the buffers of its stage's entries, which are Dom0's own memory. `judge_frame` makes a FRAME record of it
(hyp/offload/frame.py), reading its headers; `put_frame` then passes it on to a port as that accepts it:

======================  ================================================================================================
the port                gets
======================  ================================================================================================
the uplink              the frame as it is: a chain of descriptors with the offloads in the first one
a vif that accepts it   the frame as it is, its bytes in as many of the guest's pages as they fill
CSUM not accepted       the same, its checksum filled in: in Dom0's buffers, and so for everybody who gets it after that
GSO not accepted        segments, each with its own headers, its checksum filled in or left blank (Linux's software GSO)
SG not accepted         what fits into one page, however many fragments it came in; longer frames drop (DROP_SMALL_BUFFER)
======================  ================================================================================================

A vif that has asked for hashes (hyp/offload/toeplitz.py) gets the frame's in an extra info, which each part of it has.

A frame that becomes several counts as one where it was taken in, and in SEGMENTED of `dom0/bridge` for each further one.
"""

from dom0.netback_chains import give_up
from dom0.netback_rx import flush_copies, flush_is_full, had_room, has_room, pages_for, queue_frame
from dom0.state import STAGE, UPLINK, port_of, staged_of
from dom0.uplink import post_chain, uplink_has_room
from hyp.abi.counters import (
    DROP_BAD_FRAME,
    DROP_DOWN,
    DROP_NO_BUFFER,
    DROP_OVERSIZE,
    DROP_QUEUE_FULL,
    DROP_SMALL_BUFFER,
    FAULTS_OFFLOAD,
    PAUSES,
    SEGMENTED,
)
from hyp.abi.features import CSUM, CSUM6, SG
from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO
from hyp.atomics import load64
from hyp.counters import count
from hyp.fairness.cutting import is_cut
from hyp.fairness.patience import lose_patience, platform_wait_ends, wait_ends, waits_on
from hyp.kernels import compiled, outlined
from hyp.offload.frame import add_piece, begin_frame, frame_at
from hyp.offload.segments import blank_in_place, finish_in_place, longest_part, needed_features, part_length, prepare

DELIVERED, PAUSE = 0, -1
WHOLE = -1
"""In place of a part's number."""
PARTS_BUDGET = 3 * STAGE
"""What making frames of longer ones may take of a port's turn: the other ports wait for each of them, and each counts as two. Those
that the NIC makes are not in it, as who has them made waits for as long as the NIC takes (hyp/fairness/cutting.py)."""


@outlined
def judge_frame(e, p, k):
    """Make e.frame of the frame whose entries begin at `k`. DELIVERED, or a drop's name: it can't be done what is to be."""
    f, first = frame_at(e.frame), staged_of(p, k)
    begin_frame(f, first.length, first.offload, load64(first.addr), load64(first.addr + 8))
    for j in range(k, k + first.slots):
        s = staged_of(p, j)
        if s.bytes > 0:
            add_piece(f, s.addr, s.bytes)
    if first.offload & (CSUM_BLANK | GSO) == 0:
        return DELIVERED
    if not prepare(f):
        count(p.counts, FAULTS_OFFLOAD, 1)
        give_up(e, p, k)
        return DROP_BAD_FRAME
    if longest_part(f) > e.max_frame:
        give_up(e, p, k)
        return DROP_OVERSIZE
    if f.offload & GSO:
        blank_in_place(f)
    return DELIVERED


@compiled
def _takes_blank(t, f):
    """True if port `t`, a vif, accepts a blank checksum of this frame."""
    return t.features & (CSUM6 if f.version == 6 else CSUM) != 0


@compiled
def _takes(t, f):
    """True if port `t`, a vif, accepts the frame as it is."""
    needed = needed_features(f.offload) & ~CSUM
    return t.features & needed == needed and (f.offload & CSUM_BLANK == 0 or _takes_blank(t, f))


@compiled
def _parts_for(t, p, k, f):
    """How many frames this one is for port `t`. A checksum that `t` doesn't want to fill in is filled in now."""
    if t.number == UPLINK or _takes(t, f):
        return 1
    if f.offload & GSO != 0:
        return f.parts
    finish_in_place(f)
    f.offload = CSUM_VALID
    staged_of(p, k).offload = CSUM_VALID
    return 1


@compiled
def _put_part(e, p, k, t, f, part):
    """Pass a frame, or one part of it, on to `t`. DELIVERED, PAUSE (`e.wanted` fragments more must have room), or a drop's name."""
    if t.active == 0:
        return DROP_DOWN
    if t.number == UPLINK:
        e.wanted = f.count
        if not uplink_has_room(e, f.count):
            return PAUSE
        had_room(e, t)
        post_chain(e, t, p, k)
        return DELIVERED
    whole = f.offload & GSO == 0 or _takes(t, f)  # one with GSO may be of a single part, and is a part to who does not accept it
    length = f.length if whole else part_length(f, part)
    offload = f.offload if whole else CSUM_BLANK
    if not whole and not _takes_blank(t, f):
        offload = CSUM_VALID
    if t.features & CSUM == 0:
        offload &= ~CSUM_VALID
    pages = pages_for(length)
    if pages > 1 and t.features & SG == 0:
        return DROP_SMALL_BUFFER
    e.wanted = pages + (1 if offload & GSO else 0) + (1 if t.hash_info != 0 else 0)
    if flush_is_full(e):
        flush_copies(e)
    if not has_room(e, t, e.wanted):
        return PAUSE if t.active != 0 else DROP_DOWN
    queue_frame(e, t, f, WHOLE if whole else part, length, offload)
    return DELIVERED


@compiled
def _count_part(e, parts, part, result):
    """A part of a frame, which is `parts` for its receiver, was passed on or dropped: what its sender's one frame doesn't cover."""
    if part > 0:
        count(e.counts, SEGMENTED, 1)
    if result != DELIVERED and part + 1 < parts:  # those that follow drop with it
        count(e.counts, SEGMENTED, parts - part - 1)
        count(e.counts, result, parts - part - 1)


@compiled
def _work_of(parts):
    """What one of the `parts` that a frame is for its receiver takes of PARTS_BUDGET."""
    return 2 if parts > 1 else 0


@compiled
def _made(e, p, t, f, parts, result):
    """One of the `parts` that a frame of `p`'s is for port `t` has been passed on, or dropped: `result`."""
    e.parts += _work_of(parts)
    if t.number == UPLINK and result == DELIVERED:
        is_cut(port_of(e, p.vif), f.parts, e.now, e.to_host)


@outlined
def put_frame(e, p, k, t):
    """Pass the judged frame on to port `t`. DELIVERED, a drop's name, or PAUSE: `p.part` says how much of it has been passed on."""
    f, result = frame_at(e.frame), DELIVERED
    parts = _parts_for(t, p, k, f)
    while p.part < parts and result == DELIVERED:  # the guest may be another one since the last time, and take fewer
        if e.parts > 0 and e.parts + _work_of(parts) > PARTS_BUDGET:  # the turn is over; nobody is waited for
            return PAUSE
        result = _put_part(e, p, k, t, f, p.part)
        if result == PAUSE:
            result = await_receiver(e, p, t)
            if result == PAUSE:
                return PAUSE
        _count_part(e, parts, p.part, result)
        _made(e, p, t, f, parts, result)
        p.part += 1
        p.pause_until = 0
    p.part = 0
    return result


@outlined
def put_copy(e, p, k, t):
    """Pass a copy of the judged frame on to port `t`, which never pauses anybody. DELIVERED, or a drop's name."""
    f, part, result = frame_at(e.frame), 0, DELIVERED
    parts = _parts_for(t, p, k, f)
    while part < parts and result == DELIVERED:
        result = _put_part(e, p, k, t, f, part)
        if result == PAUSE:
            result = DROP_QUEUE_FULL
        _count_part(e, parts, part, result)
        _made(e, p, t, f, parts, result)
        part += 1
    return result


@compiled
def await_receiver(e, p, t):
    """Port `t` has no room for `e.wanted` fragments: PAUSE while it may hold up who waits (hyp/fairness), then a drop's name."""
    if t.stalled != 0:
        return DROP_NO_BUFFER
    if p.pause_until == 0 or p.pause_for != t.number:
        vif = port_of(e, t.vif)
        p.pause_until = platform_wait_ends(e) if t.number == UPLINK else wait_ends(e, t, vif, p.shared)
        p.pause_for = t.number
        if p.pause_until == 0:
            return DROP_NO_BUFFER
        count(p.counts, PAUSES, 1)
        p.dirty = 1
    elif e.now >= p.pause_until:
        lose_patience(e, t, p.shared)
        return DROP_NO_BUFFER
    t.waited_for = e.wanted if t.waited_for == 0 else min(t.waited_for, e.wanted)
    waits_on(e, t, p.shared)
    return PAUSE
