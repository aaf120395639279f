"""Frames between engines: a single-producer ring for each ordered pair, in the device's own memory.

A context's queues belong to one engine, so a frame for another engine's context is copied into a crossing (an extra copy inside
the device, counted), and that engine delivers it. Producer engine writes slots, then `prod` (release); consumer engine writes
`cons` (release) after use. A consumer that is about to sleep sets `prod_event` to the producer index it waits for; a producer
that finds the ring full sets `wanted`, and the consumer wakes it when it has made room. A full fence and a re-check follow::

       0 prod, 64 cons, 128 prod_event (consumer's), 192 wanted (set by the producer, cleared by the consumer), then slots

    slot: 0 context that it is for, or FLOOD, 8 generation, 16 length, 24 head0, 32 head1, 40 offload word, 64.. the frame, in one
          piece

A context may be closed while frames for it wait, and its number be somebody else's when they are taken out. So a slot has the
context's generation, and what that context isn't there for any more drops (DROP_DOWN). Of a FLOOD it is that of the first of its
sender's contexts, which gets no copy.
"""

from hyp.abi.counters import COPIED_BYTES, COPIES, DROP_NO_BUFFER, NOTIFICATIONS, PAUSES
from hyp.abi.features import CSUM
from hyp.abi.fragment import CSUM_VALID, GSO
from hyp.abi.nic import MAX_FRAME
from hyp.abi.trace import NOWHERE
from hyp.atomics import full_fence, load64, load64_acquire, load64_once, notify, store64, store64_once, store64_release
from hyp.counters import count
from hyp.events import notify_if, tracer_of
from hyp.fairness.patience import platform_wait_ends, waits_on
from hyp.kernels import compiled, outlined
from hyp.offload.frame import frame_at, gather, is_simple, one_piece, piece_addr, set_piece
from hyp.offload.segments import part_length, prepare, write_part
from nic.deliver import copy_frame, count_part, is_turn_over, parts_for
from nic.queues import buffers_for
from nic.state import DELIVERED, FOR_WIRE, PAUSE, context_of, wire_at
from nic.tracing import trace_crossing
from nic.wire.link import is_congested, link_at

CROSSING_SLOTS = 256
PROD, CONS, PROD_EVENT, WANTED, FIRST_SLOT = 0, 64, 128, 192, 256
SLOT_CONTEXT, SLOT_GENERATION, SLOT_LENGTH, SLOT_HEAD0, SLOT_HEAD1, SLOT_OFFLOAD, SLOT_FRAME = 0, 8, 16, 24, 32, 40, 64
SLOT_BYTES = SLOT_FRAME + MAX_FRAME + 1 + 64  # 64 more than a multiple of the page and the line that is its head: so that slots
# spread over the cache sets. What no frame has reached takes no memory
CROSSING_BYTES = FIRST_SLOT + CROSSING_SLOTS * SLOT_BYTES
FLOOD = -1


@compiled
def crossing(e, producer, consumer):
    """Address of the ring from engine `producer` to engine `consumer`."""
    return e.crossings + (producer * e.engines + consumer) * CROSSING_BYTES


@compiled
def slot_of(ring: int, index: int) -> int:
    """Address of slot `index`."""
    return ring + FIRST_SLOT + (index & (CROSSING_SLOTS - 1)) * SLOT_BYTES


@compiled
def _free_slot(e, consumer):
    """Address of the next slot of the crossing to engine `consumer`; 0: it is full."""
    ring = crossing(e, e.index, consumer)
    prod = load64(ring + PROD)
    return slot_of(ring, prod) if prod - load64_acquire(ring + CONS) < CROSSING_SLOTS else 0


@compiled
def _hand_over(e, consumer, slot, context, generation, f, length, offload, port):
    """The next slot of the crossing to engine `consumer` has the frame `f`, or a part of it, of so many bytes.

    `port`: where it came from, as traces have it; NOWHERE: nothing is told of it.
    """
    store64(slot + SLOT_CONTEXT, context)
    store64(slot + SLOT_GENERATION, generation)
    store64(slot + SLOT_LENGTH, length)
    store64(slot + SLOT_HEAD0, f.head0)
    store64(slot + SLOT_HEAD1, f.head1)
    store64(slot + SLOT_OFFLOAD, offload)
    count(e.counts, COPIES, 1)
    count(e.counts, COPIED_BYTES, length)
    tracer = tracer_of(e.wait)
    if tracer != 0 and port != NOWHERE:
        trace_crossing(tracer, port, f)  # before the other engine can tell of it
    ring = crossing(e, e.index, consumer)
    prod = load64(ring + PROD)
    store64_release(ring + PROD, prod + 1)
    full_fence()
    asked = load64_once(ring + PROD_EVENT) == prod + 1  # one step passes one index
    notify_if(asked, load64(e.kick_fds + 8 * consumer), e.counts)


@compiled
def cross(e, consumer, context, generation, f, port):
    """Put a frame into the crossing to engine `consumer`. DELIVERED, or PAUSE if the crossing is full.

    `port`: where it came from, as traces have it; NOWHERE: the way of one that is flooded is told otherwise.
    """
    slot = _free_slot(e, consumer)
    if slot == 0:
        return PAUSE
    if is_simple(f):
        copy_frame(slot + SLOT_FRAME, piece_addr(f.pieces, 0), f.length, f.head0, f.head1)
    else:
        gather(f, f.length, slot + SLOT_FRAME)
    _hand_over(e, consumer, slot, context, generation, f, f.length, f.offload, port)
    return DELIVERED


@outlined
def _cross_parts(e, sender, r, f, port):
    """`cross_or_pause` of a frame that becomes several for `r`: it is cut here, at its sender's expense, a part in a slot.

    Whole it would be one slot as anybody's, and hold up all behind it for as long as what it becomes.
    """
    result = DELIVERED
    while sender.part < f.parts and result == DELIVERED:  # its sender may have made it shorter since the last time
        if is_turn_over(e):
            return PAUSE
        slot = _free_slot(e, r.engine)
        if slot == 0:
            result = await_crossing(e, sender, r.engine)
            if result == PAUSE:
                return PAUSE
        else:
            length = part_length(f, sender.part)
            set_piece(e.to, 0, slot + SLOT_FRAME, length)
            write_part(f, sender.part, e.to, 1)
            offload = CSUM_VALID if r.features & CSUM else 0
            port = port if sender.part == 0 else NOWHERE
            _hand_over(e, r.engine, slot, r.number, r.generation, f, length, offload, port)
        count_part(e, f.parts, sender.part, result)
        e.parts += 1
        sender.part += 1
        sender.pause_until = 0
    sender.part = 0
    return result


@compiled
def crossed_frame(e, slot):
    """The FRAME record of the frame in a slot, which is the device's own memory. What the producer has judged holds."""
    f = frame_at(e.frame)
    offload = load64(slot + SLOT_OFFLOAD)
    one_piece(f, slot + SLOT_FRAME, load64(slot + SLOT_LENGTH), offload, load64(slot + SLOT_HEAD0), load64(slot + SLOT_HEAD1))
    if offload != 0:
        prepare(f)
    return f


@compiled
def cross_or_pause(e, sender, r, f, port):
    """`cross` to context `r`, with a full crossing turned into a pause of `sender`, then into a drop."""
    if f.offload & GSO != 0 and (sender.part > 0 or parts_for(r, f) > 1):
        return _cross_parts(e, sender, r, f, port)
    result = cross(e, r.engine, r.number, r.generation, f, port)
    return await_crossing(e, sender, r.engine) if result == PAUSE else result


@compiled
def await_crossing(e, sender, consumer):
    """The crossing to engine `consumer` is full: PAUSE until the sender's deadline, then a drop's name.

    It is platform, as the physical function: several receivers may hold it up one after the other, each for as long as it may.
    """
    if sender.pause_until == 0:
        sender.pause_until = platform_wait_ends(e)
        sender.pause_for = -1 - consumer
        count(e.counts, PAUSES, 1)
        return PAUSE
    return PAUSE if e.now < sender.pause_until else DROP_NO_BUFFER


@compiled
def is_paused(e, sender):
    """True while `sender` need not be tried: its deadline lies ahead and the receiver, crossing or wire it waits for is full."""
    if sender.pause_until == 0:
        return False
    if sender.pause_for < 0:
        if e.now >= sender.pause_until:
            return False
        if sender.pause_for == FOR_WIRE:
            return is_congested(link_at(wire_at(e.wire).out), e.now)
        ring = crossing(e, e.index, -1 - sender.pause_for)
        return load64(ring + PROD) - load64_acquire(ring + CONS) >= CROSSING_SLOTS
    r = context_of(e, sender.pause_for)
    wanted = max(sender.pause_need, 1)
    if r.active == 0 or buffers_for(r, wanted) >= wanted:
        return False
    waits_on(e, r, sender.shared)
    return e.now < sender.pause_until


@compiled
def crossed(ring: int) -> int:
    """Number of frames waiting in a crossing."""
    return load64_acquire(ring + PROD) - load64(ring + CONS)


@compiled
def want_room(e, consumer):
    """Ask engine `consumer` to wake us when it has made room in the crossing to it; the caller fences and looks again."""
    store64_once(crossing(e, e.index, consumer) + WANTED, 1)


@compiled
def made_room(e, ring, producer):
    """After `cons` was published: wake engine `producer` if it waits for room."""
    full_fence()
    if load64_once(ring + WANTED) != 0:
        store64_once(ring + WANTED, 0)
        notify(load64(e.kick_fds + 8 * producer))
        count(e.counts, NOTIFICATIONS, 1)


@compiled
def arm_crossing(ring: int) -> None:
    """Ask to be woken for the next frame; the caller fences and checks `crossed` again."""
    store64(ring + PROD_EVENT, load64(ring + CONS) + 1)
