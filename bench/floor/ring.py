"""The floor's ring: one producer, one consumer, the lab's payload work, and nothing else: no descriptors, no checks, no third.

What any path of the lab is held against: whoever moves the same frames between two processes and touches the same bytes can
hardly be faster. What is left out on purpose is what paths differ in: translation, grants, switching, completions. What is kept is
what they have in common: every frame is written whole, copied once into a wire buffer and verified there; a burst is copied before
it is verified, and indices are published a burst at a time; an idle side spins for a while that adapts, then asks for a
notification and sleeps (hold-off as in Xen's ring).

Region, shared by the two processes (each word 64 B apart, free-running 64-bit indices)::

       0 PROD         producer → consumer   frames published, release; FINISHED is set with the last of them
      64 PROD_EVENT   consumer → producer   notify me when PROD comes to this
     128 CONS         consumer → producer   frames used up, release
     192 CONS_EVENT   producer → consumer   notify me when CONS comes to this
    4096 the platform page (hyp.abi.platform), for its spin limit
    8192 the buffers, FRAME_BUFFER apart as a guest's on the bypass path: the same pool, the same cache sets

The two ends trust each other: R3 is one of the costs that the floor does not have.
"""

from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.abi.nic import PAGE
from hyp.abi.sizes import FRAME_BUFFER, LARGEST_FRAME_BUFFER
from hyp.atomics import clock_ns, cpu_relax, full_fence, load64_acquire, load64_once, memcpy, notify, store64_once, store64_release
from hyp.events import may_spin, passed64, sleep, wait_at
from hyp.frames import head_words
from hyp.kernels import compiled, entry, i64
from hyp.load.frames import verify, write_test_frame
from nic.state import WIRE_BUFFERS

PROD, PROD_EVENT, CONS, CONS_EVENT = 0, 64, 128, 192
PLATFORM, BUFFERS = PAGE, 2 * PAGE
BURST = 64
FINISHED = 1 << 62
STALLED = -1
STALL_NS = 10_000_000_000
SPINS_PER_CLOCK = 16
DESTINATION, SOURCE = 0x0200_0000_0002, 0x0200_0000_0001


@compiled
def _await_index(index, event, target, w, counts):
    """Wait until the shared index has come to `target`; returns what it is then, or STALLED if nothing came for STALL_NS."""
    seen = load64_acquire(index)
    if seen >= target:
        return seen
    until = clock_ns() + may_spin(w)
    while clock_ns() < until:
        for _ in range(SPINS_PER_CLOCK):
            seen = load64_acquire(index)
            if seen >= target:
                return seen
            cpu_relax()
    while True:
        store64_once(event, target)
        full_fence()  # the other side sees the event index before its index is read; pairs with publish_index
        seen = load64_acquire(index)
        if seen >= target:
            return seen
        if sleep(w, STALL_NS, counts) == 0:
            return STALLED


@compiled
def publish_index(index, event, old, new, notifier):
    """Publish an index that grew from `old` to `new`; notify if the other side asked for one in between."""
    store64_release(index, new)
    full_fence()  # pairs with _await_index
    if passed64(load64_once(event), old, new):
        notify(notifier)


@entry(i64(i64, i64, i64, i64, i64, i64, i64, i64, i64))
def produce(ring, entries, frame, stream, frames, nanoseconds, wait, notifier, counts):
    """Send `frames` frames of `frame` bytes, or as many as fit into `nanoseconds`. Returns how many, or STALLED.

    `entries` is a power of two, at least 2 × BURST. A full ring is left alone until half of it is free; three quarters if the
    producer sleeps meanwhile, since then each hand-over costs a switch of processes (as the lab's front ends do).
    """
    w = wait_at(wait)
    left = entries // 2 if may_spin(w) > 0 else entries // 4
    head0, head1 = head_words(DESTINATION, SOURCE, ETHERTYPE_WIRE << 32)
    prod, cons = 0, 0
    until = clock_ns() + nanoseconds
    while prod < frames and clock_ns() < until:
        burst = min(BURST, frames - prod)
        if entries - (prod - cons) < burst:
            cons = load64_acquire(ring + CONS)
            if entries - (prod - cons) < burst:
                cons = _await_index(ring + CONS, ring + CONS_EVENT, prod - left, w, counts)
                if cons < 0:
                    return STALLED
        for sequence in range(prod, prod + burst):
            buffer = ring + BUFFERS + (sequence & (entries - 1)) * FRAME_BUFFER
            write_test_frame(buffer, frame, head0, head1, stream, sequence, 0)
        publish_index(ring + PROD, ring + PROD_EVENT, prod, prod + burst, notifier)
        prod += burst
    store64_release(ring + PROD, prod | FINISHED)
    notify(notifier)
    return prod


@entry(i64(i64, i64, i64, i64, i64, i64, i64, i64))
def consume(ring, entries, frame, wire, trackers, wait, notifier, counts):
    """Copy every frame into one of the wire buffers at `wire` and verify it there, to the last one. Frames taken, or STALLED."""
    w = wait_at(wait)
    prod, cons, finished = 0, 0, False
    while prod != cons or not finished:
        if prod == cons:
            seen = _await_index(ring + PROD, ring + PROD_EVENT, cons + 1, w, counts)
            if seen < 0:
                return STALLED
            prod, finished = seen & (FINISHED - 1), seen >= FINISHED
            continue
        burst = min(prod - cons, BURST)
        now = clock_ns()
        for sequence in range(cons, cons + burst):
            buffer = wire + (sequence & (WIRE_BUFFERS - 1)) * LARGEST_FRAME_BUFFER
            memcpy(buffer, ring + BUFFERS + (sequence & (entries - 1)) * FRAME_BUFFER, frame)
        for sequence in range(cons, cons + burst):
            buffer = wire + (sequence & (WIRE_BUFFERS - 1)) * LARGEST_FRAME_BUFFER
            verify(trackers, counts, buffer, frame, now)
        publish_index(ring + CONS, ring + CONS_EVENT, cons, cons + burst, notifier)
        cons += burst
    return cons
