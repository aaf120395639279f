"""What the host sends by a wire that leads to it (nic/wire/tap.py): frames from the TAP, into the machine.

One engine reads, a frame at a time, and passes each on as one from the wire: to who has its address, else to the physical function;
to all, if it is a broadcast. A frame for a full receiver waits, and those behind it in the TAP's queue, of which the kernel drops
what is too much.
"""

from hyp.abi.counters import DROP_BAD_FRAME, DROP_OVERSIZE, REPLICATED, TX_BYTES, TX_FRAMES
from hyp.abi.nic import GROUP_BIT, MAX_FRAME, MIN_FRAME
from hyp.abi.vnet import VNET_BYTES
from hyp.atomics import load64, sys_readv
from hyp.counters import count
from hyp.fairness.turns import PIECES, begin_turn, is_turn_spent
from hyp.frames import destination_of
from hyp.kernels import compiled, outlined
from hyp.offload.frame import frame_at, one_piece
from hyp.offload.segments import prepare
from hyp.offload.vnet import TOO_LONG, has_offload, set_iovec, word_of
from nic.crossing import is_paused
from nic.deliver import end_frame, is_turn_over
from nic.send import flood
from nic.state import DELIVERED, PAUSE, WIRE_BATCH, WIRE_ORIGIN, wire_at
from nic.wire.inward import inbound

LOOK_NS = 5_000
"""How long after it was empty the TAP is looked at again while there is other work; after a sleep it is at once."""


@outlined
def serve_tap(e):
    """Pass on what the host has sent, at most WIRE_BATCH frames. Returns how many."""
    w = wire_at(e.wire)
    if w.tap_got == 0 and w.tap_readable == 0 and e.now - w.tap_looked < LOOK_NS:
        return 0
    w.tap_looked, moved, work, octets, e.parts, e.wanted = e.now, 0, 0, 0, 0, 1
    begin_turn(e)
    while moved < WIRE_BATCH and not is_turn_over(e):
        if w.tap_got == 0 and not _read(e, w):
            break
        length = w.tap_got
        if length > 0 and (is_paused(e, w) or not _pass_on(e, w)):
            break
        moved += 1 + e.flooded
        e.flooded = 0
        work, octets = work + 1 + e.wanted // PIECES, octets + length
        if is_turn_spent(e, work, octets):
            break
    return moved + e.parts


@compiled
def _read(e, w):
    """Read a frame, and judge it: one that is dropped is not kept (`tap_got`). False if there is none."""
    set_iovec(w.tap_iov, 0, w.tap_in, VNET_BYTES + MAX_FRAME + 1)
    got = sys_readv(w.tap_fd, w.tap_iov, 1)
    w.tap_readable = 1 if got > 0 else 0
    if got <= 0:
        return False
    length = got - VNET_BYTES
    count(w.counts, TX_FRAMES, 1)
    count(w.counts, TX_BYTES, max(length, 0))
    w.dirty = 1
    drop = _judge(e, w, length)
    if drop == 0:
        w.tap_got = length
    else:
        count(w.counts, drop, 1)
    return True


@compiled
def _frame(e, w, length, word):
    """The FRAME record of what was read."""
    f, frame = frame_at(e.frame), w.tap_in + VNET_BYTES
    one_piece(f, frame, length, word, load64(frame), load64(frame + 8))
    return f


@compiled
def _judge(e, w, length):
    """Find what is left to be done to a frame (`tap_word`). 0, or the drop's name."""
    w.tap_word = 0
    if length < MIN_FRAME:
        return DROP_BAD_FRAME
    if has_offload(w.tap_in):
        word = word_of(_frame(e, w, length, 0), w.tap_in, e.max_frame)
        if word < 0:
            return DROP_OVERSIZE if word == TOO_LONG else DROP_BAD_FRAME
        w.tap_word = word
    longest = MAX_FRAME if w.tap_word != 0 else e.max_frame
    return DROP_OVERSIZE if length > longest else 0


@compiled
def _pass_on(e, w):
    """Hand the frame that was read to its receiver. False if it has to wait."""
    f = _frame(e, w, w.tap_got, w.tap_word)
    if w.tap_word != 0:
        prepare(f)
    destination, result = destination_of(f.head0), DELIVERED
    if destination & GROUP_BIT:
        flood(e, WIRE_ORIGIN, f)
        count(e.counts, REPLICATED, -1)  # the first of the copies, of which a guest's goes to the wire, is no further one
    else:
        result = inbound(e, w, destination, f)
    if result == PAUSE:
        return False
    end_frame(e, w)
    w.tap_got = 0
    if result != DELIVERED:
        count(w.counts, result, 1)
    return True
