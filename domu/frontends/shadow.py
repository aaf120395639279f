"""The bypass front end of a guest that copies for DMA: ``iommu = "copy"``.

The NIC reaches a *shadow pool* alone, which stays registered; the program's buffers are memory that no device can reach. A frame is
copied into the pool when it is sent, and out of it when it is first shown: a copy more, and no mapping at all (as Markuze et al.,
ASPLOS 2016, do for what is not large). The queues, their slots and their polling are the bypass driver's.
"""

from typing import TYPE_CHECKING

import numpy as np

from domu.device import Device, Operations, device_at, frame_addr, frame_word, set_frame, set_operations
from domu.frontends import bypass
from domu.frontends.bypass import BYPASS, arm, buffer_of, count_received, count_sent, hand_over, tx_pending
from hyp.abi.counters import COPIED_BYTES, COPIES
from hyp.abi.fragment import LENGTH_MASK, MORE, SIGNALED
from hyp.abi.nic import DESC_BYTES, STATUS_OK
from hyp.abi.sizes import FRAME_BUFFER
from hyp.atomics import memcpy, record_view
from hyp.counters import commit, count
from hyp.kernels import i64, operation
from hyp.verbs import (
    advance_sends,
    consume_receives,
    peek_fragment,
    poll_sends,
    post_receive,
    qp_at,
    ring_receives,
    send_room,
    write_send,
)

if TYPE_CHECKING:
    from domu.guest import Guest

SHADOW = np.dtype(
    [
        *BYPASS.descr,  # its pools are the shadow pools
        ("own_tx", "i8"),  # addresses of the program's buffers, one for each slot
        ("own_rx", "i8"),
        ("shown", "i8"),  # receive completions that wait, and whose frames have been copied
    ]
)
_front_at = record_view(SHADOW)


@operation(i64(i64, i64))
def tx_reserve(device: int, want: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    if send_room(q) < want:
        poll_sends(q)
    n = min(send_room(q), want)
    for k in range(n):
        set_frame(d.tx, k, buffer_of(f.own_tx, q.sq_prod + k, q.sq_size), 0)
    return n


@operation(i64(i64, i64))
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    total = 0  # bytes, and, from bit 33 on, how many fragments are followed by more
    for k in range(n):
        word, shadow = frame_word(d.tx, k), buffer_of(f.tx_pool, q.sq_prod + k, q.sq_size)
        memcpy(f.ram + shadow, frame_addr(d.tx, k), word & LENGTH_MASK)
        slot = q.sq + ((q.sq_prod + k) & (q.sq_size - 1)) * DESC_BYTES
        write_send(slot, shadow, word | SIGNALED if k == n - 1 else word)
        total += word & (LENGTH_MASK | MORE)
    advance_sends(q, n, 1 if n > 0 else 0)
    count_sent(d, n, total)
    count(d.counts, COPIES, n)
    count(d.counts, COPIED_BYTES, total & LENGTH_MASK)
    hand_over(d, q)
    return n


@operation(i64(i64, i64))
def rx_poll(device: int, want: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    n, whole = 0, 0
    while n < want:
        index, word, status = peek_fragment(q, n)
        if index < 0:
            break
        own = buffer_of(f.own_rx, index, q.rq_size)
        shown = word if status == STATUS_OK else 0
        if n >= f.shown:
            length = shown & LENGTH_MASK
            memcpy(own, f.ram + buffer_of(f.rx_pool, index, q.rq_size), length)
            count(d.counts, COPIES, 1 if length > 0 else 0)
            count(d.counts, COPIED_BYTES, length)
            f.shown += 1
        set_frame(d.rx, n, own, shown)
        n += 1
        if word & MORE == 0:
            whole = n
    return whole


@operation(i64(i64, i64))
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    for _ in range(n):
        _, word, status = peek_fragment(q, 0)
        count_received(d, word, status)
        post_receive(q, buffer_of(f.rx_pool, q.rq_prod, q.rq_size), FRAME_BUFFER)
        consume_receives(q, 1)
    f.shown -= n
    ring_receives(q)
    commit(d.counts, d.counts_shared)
    return n


OPERATIONS = Operations(tx_reserve, tx_commit, tx_pending, rx_poll, rx_release, arm)


async def connect(guest: "Guest") -> list[Device]:
    """The bypass driver's device, with the program's buffers apart from its registered pools."""
    device = await bypass.connect_context(guest, guest.queues[0], native=False)
    entries = int(guest.config["queue"])
    registered = device.record[0]
    front, own = np.zeros(1, SHADOW), np.zeros((2, entries * FRAME_BUFFER), np.uint8)
    of_bypass = next(kept for kept in device.keep if getattr(kept, "dtype", None) == BYPASS)
    for name in BYPASS.names or ():
        front[0][name] = of_bypass[0][name]
    front[0]["own_tx"], front[0]["own_rx"] = own[0].ctypes.data, own[1].ctypes.data
    set_operations(registered, OPERATIONS)
    registered["front"] = front.ctypes.data
    device.keep += [front, own]
    return [device]
