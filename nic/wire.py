"""The wire: what is beyond the NIC's port. A sink that verifies test frames, a reflector, a generator.

Frames that leave the machine are copied (the device's DMA) into a ring of wire buffers. `reflect` sends each one back with its
MAC addresses swapped. The generator is a sending queue like a guest's: a full receiver pauses it, then frames drop.
"""

from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DROP_NO_ROUTE,
    DROP_QUEUE_FULL,
    RX_BYTES,
    RX_FRAMES,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.nic import GROUP_BIT, MAC_MASK, NO_CONTEXT
from hyp.atomics import load64
from hyp.counters import count
from hyp.frames import ETHERTYPE_WIRE, verify, write_test_frame
from hyp.kernels import compiled
from nic.crossing import cross, cross_or_pause, is_paused
from nic.deliver import copy_frame, put_broadcast, put_or_pause
from nic.state import DELIVERED, PAUSE, context_of, wire_at
from nic.switch import lookup

SINK, REFLECT = 0, 1
WIRE_BUFFERS = 256
WIRE_STRIDE = 4096 + 64
WIRE_ORIGIN = -1
BATCH = 64


@compiled
def head_words(destination: int, source: int, rest: int) -> tuple[int, int]:
    """A header's first 14 bytes as two words; `rest` is the second word of another header, for its EtherType and beyond."""
    return destination | ((source & 0xFFFF) << 48), (source >> 16) | (rest & ~0xFFFF_FFFF)


@compiled
def inbound(e, w, target, source, length, head0, head1):
    """A frame from the wire for MAC `target`: to who has it, else to the physical function. DELIVERED, PAUSE, or a drop's name."""
    number = lookup(e.table, target)
    if number == NO_CONTEXT:
        number = 0
    r = context_of(e, number)
    if r.active == 0:
        return DROP_NO_ROUTE
    if r.mine == 0:
        return cross_or_pause(e, w, r.engine, number, WIRE_ORIGIN, source, length, head0, head1)
    return put_or_pause(e, w, r, source, length, head0, head1)


@compiled
def outbound(e, source, length, head0, head1):
    """A frame leaves on the wire. Always taken: the copy into a wire buffer is the device's DMA."""
    w = wire_at(e.wire)
    w.dirty = 1
    buffer = w.buffers + (w.next & (WIRE_BUFFERS - 1)) * WIRE_STRIDE
    w.next += 1
    copy_frame(buffer, source, length, head0, head1)
    count(w.counts, RX_FRAMES, 1)
    count(w.counts, RX_BYTES, length)
    count(w.counts, COPIES, 1)
    count(w.counts, COPIED_BYTES, length)
    if w.mode == SINK:
        verify(e.trackers, w.counts, buffer, length, e.now)
    else:
        _reflect(e, w, buffer, length, head0, head1)


@compiled
def _reflect(e, w, buffer, length, head0, head1):
    source = ((head0 >> 48) & 0xFFFF) | ((head1 & 0xFFFFFFFF) << 16)
    target = head0 & MAC_MASK
    if target & GROUP_BIT:
        target = w.mac
    back0, back1 = head_words(source, target, head1)
    count(w.counts, TX_FRAMES, 1)
    count(w.counts, TX_BYTES, length)
    number = lookup(e.table, source)
    r = context_of(e, 0 if number == NO_CONTEXT else number)
    result = DROP_NO_ROUTE
    if r.active != 0:
        # A reflected frame belongs to nobody's sending queue, so it does not pause anybody.
        if r.mine == 0:
            result = cross(e, r.engine, r.number, WIRE_ORIGIN, buffer, length, back0, back1)
            if result == PAUSE:
                result = DROP_QUEUE_FULL
        else:
            result = put_broadcast(e, r, buffer, length, back0, back1)
    if result != DELIVERED:
        count(w.counts, result, 1)


@compiled
def generate(e):
    """Send what is due of the generator's frames, at most BATCH. Returns how many."""
    w = wire_at(e.wire)
    sent = 0
    while w.left > 0 and sent < BATCH:
        if (w.until_ns != 0 and e.now >= w.until_ns) or w.due_ns > e.now or is_paused(e, w):
            break
        buffer = w.buffers + (w.next & (WIRE_BUFFERS - 1)) * WIRE_STRIDE
        head0, head1 = head_words(w.target, w.mac, ETHERTYPE_WIRE << 32)
        # Written afresh after a pause: meanwhile other frames may have left through this buffer.
        stamp = e.now if w.pause_until == 0 else w.pause_until - e.pause_ns
        write_test_frame(buffer, w.length, head0, head1, w.stream, w.sequence, stamp if w.interval_ns > 0 else 0)
        result = inbound(e, w, w.target, buffer, w.length, head0, load64(buffer + 8))
        if result == PAUSE:
            break
        w.pause_until = 0
        w.next += 1
        w.left -= 1
        w.sequence += 1
        w.due_ns += w.interval_ns
        count(w.counts, TX_FRAMES, 1)
        count(w.counts, TX_BYTES, w.length)
        if result != DELIVERED:
            count(w.counts, result, 1)
        sent += 1
    if w.left > 0 and w.until_ns != 0 and e.now >= w.until_ns:
        w.left = 0
    if sent > 0:
        w.last_ns = e.now
        w.dirty = 1
    return sent
