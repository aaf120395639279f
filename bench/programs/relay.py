"""The loops of the relay: frames from one TAP to another and back through three processes (relay_worker.py).

Two ends, a TAP each, and a middle between them, as guests and device are; between an end and the middle a *lane* each way, a
ring with one producer and one consumer in shared memory::

       0 PROD         producer → consumer   frames published, release
      64 PROD_EVENT   consumer → producer   notify me when PROD comes to this
     128 CONS         consumer → producer   frames used up, release
     192 CONS_EVENT   producer → consumer   notify me when CONS comes to this
    4096 the slots: a length, then the frame with its virtio_net_hdr

What is kept is what no process between two others can do without: a frame is read into shared memory, copied once, and written
from there; indices are published and their reader is woken, if it asked, once a batch; who has nothing to do sleeps. The three
trust each other: no addresses, nothing checked, switched or counted.
"""

from bench.floor.ring import CONS, CONS_EVENT, PROD, PROD_EVENT, publish_index
from bench.programs.pump import BATCH, ROOM
from hyp.abi.nic import PAGE
from hyp.atomics import (
    epoll_sleep,
    full_fence,
    load64,
    load64_acquire,
    memcpy,
    store64,
    store64_once,
    sys_read,
    sys_write,
)
from hyp.kernels import compiled, entry, i64

SLOTS = 64
HALF = SLOTS // 2
FRAME = 16  # where it lies in its slot
SLOT_BYTES = -(-(FRAME + ROOM) // 64) * 64
LANE_BYTES = PAGE + SLOTS * SLOT_BYTES


@compiled
def _slot(lane, index):
    return lane + PAGE + (index & (SLOTS - 1)) * SLOT_BYTES


@compiled
def _to_tap(tap, lane, at, notifier):
    """Write what a lane has from `at` on. What the kernel doesn't take is lost, as on a TAP. Returns how many there were."""
    n = min(load64_acquire(lane + PROD) - at, BATCH)
    for k in range(at, at + n):
        slot = _slot(lane, k)
        sys_write(tap, slot + FRAME, load64(slot))
    if n > 0:
        publish_index(lane + CONS, lane + CONS_EVENT, at, at + n, notifier)
    return n


@compiled
def _from_tap(tap, lane, at, notifier):
    """Read frames into the free slots of a lane from `at` on, until the TAP has no more. Returns how many."""
    n, room = 0, min(SLOTS - (at - load64_acquire(lane + CONS)), BATCH)
    while n < room:
        slot = _slot(lane, at + n)
        length = sys_read(tap, slot + FRAME, ROOM)
        if length <= 0:
            break
        store64(slot, length)
        n += 1
    if n > 0:
        publish_index(lane + PROD, lane + PROD_EVENT, at, at + n, notifier)
    return n


@compiled
def _carry(source, sink, at, back, forth):
    """Copy frames from one lane to the next, where each has the same number. Returns how many."""
    n = min(load64_acquire(source + PROD) - at, SLOTS - (at - load64_acquire(sink + CONS)), BATCH)
    for k in range(at, at + n):
        slot = _slot(source, k)
        memcpy(_slot(sink, k), slot, FRAME + load64(slot))
    if n > 0:
        publish_index(sink + PROD, sink + PROD_EVENT, at, at + n, forth)
        publish_index(source + CONS, source + CONS_EVENT, at, at + n, back)
    return n


@compiled
def _arm_full(lane, at):
    """Ask for a wake-up when half of a lane that is full is free. True if the lane is full."""
    full = at - load64_acquire(lane + CONS) >= SLOTS
    if full:
        store64_once(lane + CONS_EVENT, at - HALF)
    return full


@entry(i64(i64, i64, i64, i64, i64))
def relay_end(tap: int, incoming: int, outgoing: int, epoll: int, notifier: int) -> int:
    """Move frames between a TAP and the lanes from and to the middle, whom `notifier` wakes, until a signal arrives.

    `epoll` has the TAP, edge-triggered, and what the middle wakes this end by. Returns how many were read.
    """
    taken, given = 0, 0
    while True:
        written = _to_tap(tap, incoming, taken, notifier)
        read = _from_tap(tap, outgoing, given, notifier)
        taken += written
        given += read
        if written + read == 0:
            store64_once(incoming + PROD_EVENT, taken + 1)
            full = _arm_full(outgoing, given)
            full_fence()  # the middle sees what is asked for before its indices are read; pairs with publish_index
            room = full and given - load64_acquire(outgoing + CONS) <= HALF
            if not room and load64_acquire(incoming + PROD) == taken and epoll_sleep(epoll, -1, 0) < 0:
                return given


@entry(i64(i64, i64, i64, i64, i64, i64, i64))
def relay_middle(from_one: int, to_other: int, from_other: int, to_one: int, epoll: int, one: int, other: int) -> int:
    """Carry frames between the two ends' lanes until a signal arrives. `one`, `other` wake the ends. Returns how many."""
    forth, back = 0, 0
    while True:
        there = _carry(from_one, to_other, forth, one, other)
        here = _carry(from_other, to_one, back, other, one)
        forth += there
        back += here
        if there + here == 0:
            store64_once(from_one + PROD_EVENT, forth + 1)
            store64_once(from_other + PROD_EVENT, back + 1)
            full_there, full_here = _arm_full(to_other, forth), _arm_full(to_one, back)
            full_fence()  # as in relay_end
            idle_there = _idle(from_one, to_other, forth, full_there)
            idle_here = _idle(from_other, to_one, back, full_here)
            if idle_there and idle_here and epoll_sleep(epoll, -1, 0) < 0:
                return forth + back


@compiled
def _idle(source, sink, at, full):
    """Nothing to carry by these two lanes, which are armed."""
    if full:
        return at - load64_acquire(sink + CONS) > HALF
    return load64_acquire(source + PROD) == at
