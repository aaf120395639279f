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
from hyp.abi.nic import MAX_FRAME
from hyp.abi.trace import NOWHERE
from hyp.atomics import full_fence, load64, load64_acquire, load64_once, notify, store64, store64_once, store64_release
from hyp.counters import count
from hyp.events import notify_if, tracer_of
from hyp.fairness.patience import waits_on
from hyp.kernels import compiled
from hyp.offload.frame import frame_at, gather, is_simple, one_piece, piece_addr
from hyp.offload.segments import prepare
from nic.deliver import copy_frame
from nic.link import is_congested, link_at
from nic.queues import buffers_for
from nic.state import DELIVERED, FOR_WIRE, PAUSE, context_of, wire_at
from nic.tracing import trace_crossing

CROSSING_SLOTS = 64
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
def cross(e, consumer, context, generation, f, port):
    """Put a frame into the crossing to engine `consumer`. DELIVERED, or PAUSE if the crossing is full.

    `port`: where it came from, as traces have it; NOWHERE: the way of one that is flooded is told otherwise.
    """
    ring = crossing(e, e.index, consumer)
    prod = load64(ring + PROD)
    if prod - load64_acquire(ring + CONS) >= CROSSING_SLOTS:
        return PAUSE
    slot = slot_of(ring, prod)
    store64(slot + SLOT_CONTEXT, context)
    store64(slot + SLOT_GENERATION, generation)
    store64(slot + SLOT_LENGTH, f.length)
    store64(slot + SLOT_HEAD0, f.head0)
    store64(slot + SLOT_HEAD1, f.head1)
    store64(slot + SLOT_OFFLOAD, f.offload)
    if is_simple(f):
        copy_frame(slot + SLOT_FRAME, piece_addr(f.pieces, 0), f.length, f.head0, f.head1)
    else:
        gather(f, f.length, slot + SLOT_FRAME)
    count(e.counts, COPIES, 1)
    count(e.counts, COPIED_BYTES, f.length)
    tracer = tracer_of(e.wait)
    if tracer != 0 and port != NOWHERE:
        trace_crossing(tracer, port, f)  # before the other engine can tell of it
    store64_release(ring + PROD, prod + 1)
    full_fence()
    asked = load64_once(ring + PROD_EVENT) == prod + 1  # one step passes one index
    notify_if(asked, load64(e.kick_fds + 8 * consumer), e.counts)
    return DELIVERED


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
    result = cross(e, r.engine, r.number, r.generation, f, port)
    return await_crossing(e, sender, r.engine) if result == PAUSE else result


@compiled
def await_crossing(e, sender, consumer):
    """The crossing to engine `consumer` is full: PAUSE until the sender's deadline, then a drop's name."""
    if sender.pause_until == 0:
        sender.pause_until = e.now + e.pause_ns
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
    waits_on(e, r)
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
