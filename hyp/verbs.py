"""The driver's half of the NIC's queues (hyp/abi/nic.py), named as people who do kernel bypass name it: post, poll, arm.

Used by the guest's bypass and trapped front ends, by Dom0's native driver and by the hypervisor's device model alike. All
state in the QP record is private; what the device may read is written to RAM and to the doorbell page, an index once a
batch. Where the device is emulated (`trap` is set) there is no doorbell page: each write to a register traps.
"""

from typing import Any

import numpy as np

from hyp.abi.nic import CQE_BYTES, DESC_BYTES, DESC_SIGNALED, RCQ_EVENT, RQ_EVENT, RQ_PROD, SCQ_EVENT, SQ_EVENT, SQ_PROD
from hyp.atomics import (
    full_fence,
    load32_once,
    load64,
    load64_acquire,
    load64_once,
    prefetch_for_write,
    record_view,
    store32_once,
    store32_release,
    store64,
    u32_add,
    u32_sub,
)
from hyp.events import notify_if, passed
from hyp.frames import completed_fragment, owner_bit
from hyp.kernels import compiled
from hyp.trap import write_register

QP = np.dtype(
    [
        ("doorbell", "i8"),  # address of the doorbell page
        ("doorbell_fd", "i8"),
        ("sq", "i8"),  # addresses of the queues
        ("scq", "i8"),
        ("rq", "i8"),
        ("rcq", "i8"),
        ("sq_size", "i8"),
        ("rq_size", "i8"),
        ("sq_prod", "i8"),  # posted
        ("sq_rung", "i8"),  # published
        ("sq_told", "i8"),  # published when the device was last considered for a notification
        ("sq_done", "i8"),  # completed: everything before it
        ("signaled", "i8"),  # sends posted that have a completion of their own
        ("scq_cons", "i8"),
        ("rq_prod", "i8"),
        ("rq_rung", "i8"),
        ("rcq_cons", "i8"),
        ("counts", "i8"),  # private counters row
        ("trap", "i8"),  # a VCPU record (hyp/trap.py) if the device is emulated; 0: it is real
        ("scq_armed", "i8"),  # emulated device: last value written to the register, so that it is not written twice
        ("rcq_armed", "i8"),
    ]
)
"""A queue pair with its completion queues. Sizes are powers of two; indices run free modulo 2^32."""
QP_BYTES = QP.itemsize

qp_at = record_view(QP)


# --- send queue -------------------------------------------------------------------------------------------------------


@compiled
def send_room(q: Any) -> int:
    """Number of descriptors that can be posted."""
    return q.sq_size - u32_sub(q.sq_prod, q.sq_done)


@compiled
def post_send(q: Any, iova: int, length: int, flags: int) -> None:
    """Write the next send descriptor; the device sees it after `ring_sends`. The caller has checked `send_room`.

    `flags`: the upper half of a fragment word (hyp/abi/fragment.py), such as DESC_SIGNALED.
    """
    write_send(q.sq + (q.sq_prod & (q.sq_size - 1)) * DESC_BYTES, iova, length | (flags << 32))
    advance_sends(q, 1, flags & DESC_SIGNALED)


@compiled
def write_send(slot: int, iova: int, word: int) -> None:
    """Write a send descriptor; `word`: a fragment word. With `advance_sends` after a whole batch, this is `post_send` for many."""
    store64(slot, iova)
    store64(slot + 8, word)


@compiled
def advance_sends(q: Any, n: int, signaled: int) -> None:
    """`n` descriptors have been written, `signaled` of them with DESC_SIGNALED."""
    q.sq_prod = u32_add(q.sq_prod, n)
    q.signaled = u32_add(q.signaled, signaled)


@compiled
def prefetch_sends(q: Any, n: int) -> None:
    """Have the lines of the next `n` descriptors ready to be written."""
    for k in range(0, n, 64 // DESC_BYTES):
        prefetch_for_write(q.sq + ((q.sq_prod + k) & (q.sq_size - 1)) * DESC_BYTES)


@compiled
def _publish(q: Any, prod_offset: int, new: int) -> None:
    """Let the device see a producer index; a register write, which traps, if the device is emulated."""
    if q.trap != 0:
        write_register(q.trap, prod_offset, new)
    else:
        store32_release(q.doorbell + prod_offset, new)


@compiled
def _tell(q: Any, event_offset: int, old: int, new: int) -> None:
    """Notify the device if the producer index that was published passed what it waits for on its way from old to new (hold-off)."""
    if q.trap != 0:
        return  # the trap has told the device model
    full_fence()
    notify_if(passed(load32_once(q.doorbell + event_offset), old, new), q.doorbell_fd, q.counts)


@compiled
def publish_sends(q: Any) -> None:
    """Let the device see everything posted without waking it: several batches may share a wake-up. `tell_sends` must follow."""
    if q.sq_prod != q.sq_rung:
        _publish(q, SQ_PROD, q.sq_prod)
        q.sq_rung = q.sq_prod


@compiled
def sends_untold(q: Any) -> int:
    """Number of descriptors published since the device was last considered for a notification."""
    return u32_sub(q.sq_rung, q.sq_told)


@compiled
def has_half_untold(q: Any) -> bool:
    """True if half of the queue has been published since then: longer than that nobody lets the device sleep."""
    return 2 * sends_untold(q) >= q.sq_size


@compiled
def tell_sends(q: Any) -> None:
    """Wake the device for what was published, if it asked for that."""
    if q.sq_rung != q.sq_told:
        _tell(q, SQ_EVENT, q.sq_told, q.sq_rung)
        q.sq_told = q.sq_rung


@compiled
def ring_sends(q: Any) -> None:
    """Make everything posted visible to the device and wake it if it asked for that."""
    publish_sends(q)
    tell_sends(q)


@compiled
def _completed(queue: int, size: int, cons: int) -> int:
    """Second word of the completion at `cons`, without owner and segment, if the device has written it, else −1."""
    word = load64_acquire(queue + (cons & (size - 1)) * CQE_BYTES + 8)
    return word & 0xFFFFFFFF if (word >> 32) & 1 == owner_bit(cons, size) else -1


@compiled
def poll_sends(q: Any) -> int:
    """Take all send completions that are there. Returns the number of descriptors now done."""
    before = q.sq_done
    for _ in range(q.sq_size):
        if _completed(q.scq, q.sq_size, q.scq_cons) < 0:
            break
        index = load64_once(q.scq + (q.scq_cons & (q.sq_size - 1)) * CQE_BYTES) & 0xFFFFFFFF
        if (load64(q.sq + (index & (q.sq_size - 1)) * DESC_BYTES + 8) >> 32) & DESC_SIGNALED == 0:
            q.signaled = u32_add(q.signaled, 1)  # a failed send has a completion unasked
        done = u32_add(index, 1)
        if u32_sub(done, q.sq_done) <= u32_sub(q.sq_prod, q.sq_done):
            q.sq_done = done
        q.scq_cons = u32_add(q.scq_cons, 1)
    return u32_sub(q.sq_done, before)


@compiled
def completions_due(q: Any) -> int:
    """Number of send completions that the device still owes."""
    return u32_sub(q.signaled, q.scq_cons)


@compiled
def arm_sends(q: Any, ahead: int = 1) -> None:
    """Ask for a notification of the `ahead`-th send completion from now; the caller fences and looks again."""
    event = u32_add(q.scq_cons, ahead)
    if q.trap == 0:
        store32_once(q.doorbell + SCQ_EVENT, event)
    elif event != q.scq_armed:
        q.scq_armed = event
        write_register(q.trap, SCQ_EVENT, event)


@compiled
def sends_completed(q: Any, ahead: int = 1) -> bool:
    """True if that many send completions wait to be polled."""
    return _completed(q.scq, q.sq_size, u32_add(q.scq_cons, ahead - 1)) >= 0


# --- receive queue ----------------------------------------------------------------------------------------------------


@compiled
def post_receive(q: Any, iova: int, length: int) -> None:
    """Give the next receive buffer to the device; it sees it after `ring_receives`."""
    slot = q.rq + (q.rq_prod & (q.rq_size - 1)) * DESC_BYTES
    store64(slot, iova)
    store64(slot + 8, length)
    q.rq_prod = u32_add(q.rq_prod, 1)


@compiled
def ring_receives(q: Any) -> None:
    """Make the buffers posted visible to the device."""
    if q.rq_prod != q.rq_rung:
        _publish(q, RQ_PROD, q.rq_prod)
        _tell(q, RQ_EVENT, q.rq_rung, q.rq_prod)
        q.rq_rung = q.rq_prod


@compiled
def peek_receive(q: Any, ahead: int) -> tuple[int, int, int]:
    """The completion `ahead` places after the next one: (buffer index, length, status), or (−1, 0, 0) if it is not there yet."""
    at = u32_add(q.rcq_cons, ahead)
    word = _completed(q.rcq, q.rq_size, at)
    if word < 0:
        return -1, 0, 0
    first = load64_once(q.rcq + (at & (q.rq_size - 1)) * CQE_BYTES)
    return first & 0xFFFFFFFF, (first >> 32) & 0xFFFFFFFF, word & 0xFFFF


@compiled
def peek_fragment(q: Any, ahead: int) -> tuple[int, int, int]:
    """`peek_receive` with a fragment word in place of the length. A frame is there as a whole once its first fragment is."""
    at = u32_add(q.rcq_cons, ahead)
    slot = q.rcq + (at & (q.rq_size - 1)) * CQE_BYTES
    second = load64_acquire(slot + 8)
    if (second >> 32) & 1 != owner_bit(at, q.rq_size):
        return -1, 0, 0
    first = load64_once(slot)
    return first & 0xFFFFFFFF, completed_fragment(first, second), second & 0xFFFF


@compiled
def consume_receives(q: Any, n: int) -> None:
    """Be done with `n` receive completions."""
    q.rcq_cons = u32_add(q.rcq_cons, n)


@compiled
def arm_receives(q: Any) -> None:
    """Ask for a notification of the next receive completion; the caller fences and looks again."""
    event = u32_add(q.rcq_cons, 1)
    if q.trap == 0:
        store32_once(q.doorbell + RCQ_EVENT, event)
    elif event != q.rcq_armed:
        q.rcq_armed = event
        write_register(q.trap, RCQ_EVENT, event)


@compiled
def receives_completed(q: Any) -> bool:
    """True if a receive completion waits."""
    return _completed(q.rcq, q.rq_size, q.rcq_cons) >= 0
