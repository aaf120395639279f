"""The bypass front end: the guest drives its own NIC context. Set-up is privileged; no packet is anybody else's business.

Buffers are bound to queue slots: send slot i uses send buffer i, receive slot i buffer i. Sends complete in order, so one signalled
descriptor per commit tells about all before it.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from domu.device import (
    ALL,
    BURST,
    RX,
    TX,
    Device,
    Operations,
    Record,
    completions_to_wait_for,
    device_at,
    frame_addr,
    frame_word,
    new_device,
    set_frame,
)
from hyp.abi.counters import COPIED_BYTES, COPIES, RX_BYTES, RX_FRAMES, TX_BYTES, TX_FRAMES
from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.fragment import LENGTH_MASK, MORE, MORE_BIT, SIGNALED
from hyp.abi.nic import DESC_BYTES, STATUS_OK, mac_to_int
from hyp.abi.platform import BOUNCE
from hyp.abi.sizes import FRAME_BUFFER, SHORT_FRAME
from hyp.atomics import full_fence, memcpy, prefetch, prefetch_for_write, record_view, u32_sub
from hyp.control import Channel
from hyp.counters import commit, count
from hyp.events import spin_limit, wait_at
from hyp.kernels import compiled, entry, i64, operation, void
from hyp.model.ablation import ablated
from hyp.ram import QueuePair, open_queue_pair, register, start_queue_pair
from hyp.verbs import (
    advance_sends,
    arm_receives,
    arm_sends,
    completions_due,
    consume_receives,
    has_half_untold,
    peek_fragment,
    poll_sends,
    post_receive,
    prefetch_sends,
    publish_sends,
    qp_at,
    receives_completed,
    ring_receives,
    send_room,
    sends_completed,
    tell_sends,
    write_send,
)

if TYPE_CHECKING:
    from domu.guest import Guest, GuestQueue

KNOWN = SG | CSUM | TSO4 | TSO6
"""Features that this driver can use."""

BYPASS = np.dtype(
    [
        ("qp", "i8"),
        ("ram", "i8"),  # address of guest-physical 0
        ("tx_pool", "i8"),  # guest-physical addresses
        ("rx_pool", "i8"),
        ("scratch", "i8"),  # as large as the send pool, for the ablation that copies once more
    ]
)
_bypass_at = record_view(BYPASS)


@compiled
def buffer_of(pool: int, index: int, size: int) -> int:
    """Guest-physical address of the buffer of slot `index`."""
    return pool + (index & (size - 1)) * FRAME_BUFFER


@operation(i64(i64, i64))
def tx_reserve(device: int, want: int) -> int:
    d = device_at(device)
    b = _bypass_at(d.front)
    q = qp_at(b.qp)
    room = send_room(q)
    if room < want:
        poll_sends(q)
        room = send_room(q)
    n = min(room, want)
    burst, pool, prod, mask = d.tx, b.ram + b.tx_pool, q.sq_prod, q.sq_size - 1  # in registers, as below
    for k in range(n):
        addr = pool + ((prod + k) & mask) * FRAME_BUFFER
        prefetch_for_write(addr)  # the NIC has read it last
        set_frame(burst, k, addr, 0)
    prefetch_sends(q, n)
    return n


@compiled
def count_sent(d: Any, n: int, total: int) -> None:
    """Count a burst of `n` fragments. `total`: the sum of their lengths, and of MORE: two sums by one addition."""
    count(d.counts, TX_FRAMES, n - (total >> MORE_BIT))
    count(d.counts, TX_BYTES, total & LENGTH_MASK)


@compiled
def count_received(d: Any, word: int, status: int) -> None:
    """Count a received fragment, with its last one a frame."""
    if status == STATUS_OK:
        count(d.counts, RX_FRAMES, 0 if word & MORE else 1)
        count(d.counts, RX_BYTES, word & LENGTH_MASK)


@compiled
def hand_over(d: Any, q: Any) -> None:
    """Let the device see what has been posted, and wake it for that, unless it can wait until half of the queue does."""
    publish_sends(q)
    if spin_limit(wait_at(d.wait)) > 0 or has_half_untold(q):
        tell_sends(q)
    commit(d.counts, d.counts_shared)


@operation(i64(i64, i64))
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    b = _bypass_at(d.front)
    q = qp_at(b.qp)
    wait = wait_at(d.wait)
    bounce = ablated(wait.platform, BOUNCE)
    burst, queue, pool, prod, mask = d.tx, q.sq, b.tx_pool, q.sq_prod, q.sq_size - 1
    total = 0  # bytes, and, from bit 33 on, how many fragments are followed by more
    for k in range(n):
        word, index = frame_word(burst, k), (prod + k) & mask
        total += word & (LENGTH_MASK | MORE)
        if bounce != 0:
            memcpy(b.scratch + index * FRAME_BUFFER, frame_addr(burst, k), word & LENGTH_MASK)
        write_send(queue + index * DESC_BYTES, pool + index * FRAME_BUFFER, word | SIGNALED if k == n - 1 else word)
    advance_sends(q, n, 1 if n > 0 else 0)
    count_sent(d, n, total)
    if bounce != 0:
        count(d.counts, COPIES, n)
        count(d.counts, COPIED_BYTES, total & LENGTH_MASK)
    hand_over(d, q)
    return n


@operation(i64(i64, i64))
def tx_pending(device: int, _: int) -> int:
    q = qp_at(_bypass_at(device_at(device).front).qp)
    tell_sends(q)
    poll_sends(q)
    return u32_sub(q.sq_prod, q.sq_done)


@operation(i64(i64, i64))
def rx_poll(device: int, want: int) -> int:
    d = device_at(device)
    b = _bypass_at(d.front)
    q = qp_at(b.qp)
    n, whole = 0, 0
    while n < want:
        index, word, status = peek_fragment(q, n)
        if index < 0:
            break
        addr = b.ram + buffer_of(b.rx_pool, index, q.rq_size)
        if word & LENGTH_MASK <= SHORT_FRAME:
            prefetch(addr)  # the NIC has written it last
        set_frame(d.rx, n, addr, word if status == STATUS_OK else 0)
        n += 1
        if word & MORE == 0:
            whole = n
    return whole


@operation(i64(i64, i64))
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    b = _bypass_at(d.front)
    q = qp_at(b.qp)
    for _ in range(n):
        _, word, status = peek_fragment(q, 0)
        count_received(d, word, status)
        post_receive(q, buffer_of(b.rx_pool, q.rq_prod, q.rq_size), FRAME_BUFFER)
        consume_receives(q, 1)
    ring_receives(q)
    commit(d.counts, d.counts_shared)
    return n


@operation(i64(i64, i64))
def arm(device: int, what: int) -> int:
    return arm_queues(qp_at(_bypass_at(device_at(device).front).qp), what)


@compiled
def arm_queues(q: Any, what: int) -> int:
    """`arm` of a queue pair."""
    tell_sends(q)
    ahead = 0
    if what & RX:
        arm_receives(q)
    if what & (TX | ALL):
        poll_sends(q)
        if (what & ALL and send_room(q) == q.sq_size) or (what & TX and send_room(q) >= BURST):
            return 1
        ahead = completions_to_wait_for(what, completions_due(q))
        arm_sends(q, ahead)
    full_fence()
    if what & RX and receives_completed(q):
        return 1
    return 1 if ahead > 0 and sends_completed(q, ahead) else 0


@entry(void(i64))
def post_all_buffers(device: int) -> None:
    """Give the whole receive pool to the NIC."""
    b = _bypass_at(device_at(device).front)
    q = qp_at(b.qp)
    for k in range(q.rq_size):
        post_receive(q, buffer_of(b.rx_pool, k, q.rq_size), FRAME_BUFFER)
    ring_receives(q)


OPERATIONS = Operations(tx_reserve, tx_commit, tx_pending, rx_poll, rx_release, arm)


async def connect(guest: "Guest") -> list[Device]:
    """Open a context for each queue, register pools, post all receive buffers, start. What fails leaves nothing behind."""
    devices: list[Device] = []
    try:
        for queue in guest.queues:
            devices.append(await connect_context(guest, queue, native=False))
    except BaseException:
        for device in reversed(devices):
            if device.behind is not None:
                await device.behind.close()
        raise
    return devices


async def connect_context(guest: "Guest", queue: "GuestQueue", *, native: bool) -> Device:
    """`connect` of a queue; a `native` context needs no registration to reach RAM, and no hypervisor delivers its interrupts."""
    entries = int(guest.config["queue"])
    counts = guest.counters.row(queue.row("device"))
    pair = await open_queue_pair(guest.hyp, queue.upcall, entries, counts[0], queue.number)
    try:
        return await _connect_pair(guest, queue, pair, counts, native=native)
    except BaseException:
        await ContextBehind(guest.hyp, pair).close()
        raise


async def _connect_pair(guest: "Guest", queue: "GuestQueue", pair: QueuePair, counts: tuple[int, int], *, native: bool) -> Device:
    entries = int(guest.config["queue"])
    front = np.zeros(1, BYPASS)
    record = front[0]
    record["qp"], record["ram"] = pair.address, guest.ram.address
    for name, writable in (("tx_pool", False), ("rx_pool", True)):
        record[name] = guest.ram.allocate(entries * FRAME_BUFFER)
        if not native:
            pair.keys.append(await register(guest.hyp, int(record[name]), entries * FRAME_BUFFER, writable=writable))
    known = KNOWN & int(guest.config["features"])
    features = await start_queue_pair(guest.hyp, guest.ram, pair, known, registers=not native)
    device = new_device(
        OPERATIONS, int(front.ctypes.data), pair.mac, mac_to_int(pair.mac), FRAME_BUFFER, counts, queue.wait, features
    )
    scratch = np.zeros(entries * FRAME_BUFFER, np.uint8)
    record["scratch"] = scratch.ctypes.data
    device.keep += [pair, front, scratch]
    if native:
        device.record[0]["scheduled"] = 0
    else:  # Xen delivers its interrupts as events
        device.record[0]["interrupts"] = pair.address
        device.behind = ContextBehind(guest.hyp, pair)
    post_all_buffers(device.address)
    return device


class ContextBehind:
    """A context that can be given back (domu/move.py)."""

    def __init__(self, hyp: Channel, pair: QueuePair) -> None:
        self._hyp, self._pair = hyp, pair

    def adopt(self, device: Device, record: Record, counts: tuple[int, int]) -> None:
        """Count in the device's row."""
        self._pair.record[0]["counts"] = counts[0]
        record[0]["counts"], record[0]["counts_shared"] = counts

    async def close(self) -> None:
        """Close the context, then let go of its memory."""
        await self._hyp.call("context_close", context=self._pair.context)
        for key in self._pair.keys:
            await self._hyp.call("mr_deregister", key=key)
        os.close(int(self._pair.record[0]["doorbell_fd"]))
