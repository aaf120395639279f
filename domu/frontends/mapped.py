"""The bypass front end of a guest that maps its buffers for DMA a burst at a time: ``iommu = "strict"`` and ``"deferred"``.

Queues, buffers and slots are those of the bypass driver. What differs: a buffer is mapped (hyp/monitor/dma.py) before it is posted,
and unmapped before the program gets it back: a sent one when its completion is taken, a received one when it is first shown. So
each operation is the bypass driver's with a hypercall in it, and the bypass driver itself has nothing of this in its loops.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from domu.device import (
    ALL,
    FAILED,
    TX,
    Device,
    Operations,
    device_at,
    frame_word,
    new_device,
    set_frame,
)
from domu.frontends.bypass import BYPASS, KNOWN, arm_queues, buffer_of, count_received, count_sent, hand_over
from hyp.abi.fragment import LENGTH_MASK, MORE, SIGNALED
from hyp.abi.nic import DESC_BYTES, PAGE, STATUS_OK, mac_to_int
from hyp.abi.platform import ENGINE_BYTES
from hyp.abi.sizes import FRAME_BUFFER
from hyp.atomics import load64, record_view, store64, u32_add, u32_sub
from hyp.control import close_all
from hyp.counters import commit
from hyp.iommu import READ, WRITE
from hyp.kernels import compiled, entry, i64, operation, void
from hyp.memory import Mapping
from hyp.monitor.dma import DEFERRED_PAGES, DMA, REQUEST_BYTES, dma_at, dma_map, dma_unmap, holds_bytes
from hyp.ram import open_queue_pair, start_queue_pair
from hyp.verbs import (
    advance_sends,
    consume_receives,
    peek_fragment,
    poll_sends,
    post_receive,
    qp_at,
    ring_receives,
    send_room,
    tell_sends,
    write_send,
)

if TYPE_CHECKING:
    from domu.guest import Guest

MAPPED = np.dtype(
    [
        *BYPASS.descr,
        ("dma", "i8"),  # a DMA record: the hypervisor's
        ("requests", "i8"),  # room for a queue full of them
        ("unmapped", "i8"),  # every send before it has been unmapped
        ("shown", "i8"),  # receive completions that wait, and whose buffers have been unmapped
        ("failed", "i8"),
    ]
)
_front_at = record_view(MAPPED)


@compiled
def _request(f: Any, k: int, addr: int, length: int) -> None:
    store64(f.requests + k * REQUEST_BYTES, addr)
    store64(f.requests + k * REQUEST_BYTES + 8, length)


@compiled
def _fail(d: Any, f: Any) -> int:
    """A hypercall was refused, or the engine has stopped: the device is of no more use."""
    f.failed = 1
    c = dma_at(f.dma)
    commit(c.counts, c.counts_shared)
    commit(d.counts, d.counts_shared)
    return FAILED


@compiled
def _reap(d: Any, f: Any, q: Any) -> int:
    """Take all send completions and unmap their buffers. 0, or FAILED."""
    poll_sends(q)
    n = u32_sub(q.sq_done, f.unmapped)
    if n == 0:
        return 0
    for k in range(n):
        slot = q.sq + (u32_add(f.unmapped, k) & (q.sq_size - 1)) * DESC_BYTES
        _request(f, k, load64(slot), load64(slot + 8) & LENGTH_MASK)
    f.unmapped = q.sq_done
    if dma_unmap(dma_at(f.dma), f.requests, n) < 0:
        return _fail(d, f)
    commit(dma_at(f.dma).counts, dma_at(f.dma).counts_shared)
    return 0


@operation(i64(i64, i64))
def tx_reserve(device: int, want: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    # `arm` looks for completions once more after it has unmapped: a slot is not free before that has been done for it, too
    if f.failed != 0 or ((send_room(q) < want or f.unmapped != q.sq_done) and _reap(d, f, q) < 0):
        return FAILED
    n = min(send_room(q), want)
    for k in range(n):
        set_frame(d.tx, k, f.ram + buffer_of(f.tx_pool, q.sq_prod + k, q.sq_size), 0)
    return n


@operation(i64(i64, i64))
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    c = dma_at(f.dma)
    if f.failed != 0:
        return FAILED
    if n > 0:
        total = 0  # bytes, and, from bit 33 on, how many fragments are followed by more
        for k in range(n):
            addr, word = buffer_of(f.tx_pool, q.sq_prod + k, q.sq_size), frame_word(d.tx, k)
            _request(f, k, addr, word & LENGTH_MASK)
            slot = q.sq + ((q.sq_prod + k) & (q.sq_size - 1)) * DESC_BYTES
            write_send(slot, addr, word | SIGNALED if k == n - 1 else word)
            total += word & (LENGTH_MASK | MORE)
        if dma_map(c, f.requests, n, READ) != n:
            return _fail(d, f)
        advance_sends(q, n, 1)
        count_sent(d, n, total)
        commit(c.counts, c.counts_shared)
    hand_over(d, q)
    return n


@operation(i64(i64, i64))
def tx_pending(device: int, _: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    tell_sends(q)
    if f.failed != 0 or _reap(d, f, q) < 0:
        return FAILED
    return u32_sub(q.sq_prod, q.sq_done)


@operation(i64(i64, i64))
def rx_poll(device: int, want: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    if f.failed != 0:
        return FAILED
    n, whole, fresh = 0, 0, 0
    while n < want:
        index, word, status = peek_fragment(q, n)
        if index < 0:
            break
        buffer = buffer_of(f.rx_pool, index, q.rq_size)
        if n >= f.shown:
            _request(f, fresh, buffer, FRAME_BUFFER)
            fresh += 1
        set_frame(d.rx, n, f.ram + buffer, word if status == STATUS_OK else 0)
        n += 1
        if word & MORE == 0:
            whole = n
    if fresh > 0:
        f.shown += fresh
        if dma_unmap(dma_at(f.dma), f.requests, fresh) < 0:
            return _fail(d, f)
        commit(dma_at(f.dma).counts, dma_at(f.dma).counts_shared)
    return whole


@operation(i64(i64, i64))
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    if f.failed != 0:
        return FAILED
    for k in range(n):
        _, word, status = peek_fragment(q, k)
        count_received(d, word, status)
    consume_receives(q, n)
    f.shown -= n
    if _post_receives(f, q, n) < 0:
        return _fail(d, f)
    commit(d.counts, d.counts_shared)
    return n


@compiled
def _post_receives(f: Any, q: Any, n: int) -> int:
    """Map the next `n` receive buffers and give them to the NIC. `n`, or FAILED."""
    if n > 0:
        for k in range(n):
            _request(f, k, buffer_of(f.rx_pool, q.rq_prod + k, q.rq_size), FRAME_BUFFER)
        if dma_map(dma_at(f.dma), f.requests, n, WRITE) != n:
            return FAILED
        for _ in range(n):
            post_receive(q, buffer_of(f.rx_pool, q.rq_prod, q.rq_size), FRAME_BUFFER)
        ring_receives(q)
        commit(dma_at(f.dma).counts, dma_at(f.dma).counts_shared)
    return n


@operation(i64(i64, i64))
def arm(device: int, what: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    if what & (TX | ALL) and (f.failed != 0 or _reap(d, f, q) < 0):
        return FAILED
    return arm_queues(q, what)


@entry(void(i64))
def post_all_buffers(device: int) -> None:
    """Give the whole receive pool to the NIC."""
    f = _front_at(device_at(device).front)
    q = qp_at(f.qp)
    if _post_receives(f, q, q.rq_size) < 0:
        f.failed = 1


OPERATIONS = Operations(tx_reserve, tx_commit, tx_pending, rx_poll, rx_release, arm)


async def connect(guest: "Guest") -> list[Device]:
    """Open a context, register its queues only, map and post all receive buffers, start."""
    entries = int(guest.config["queue"])
    counts = guest.counters.row("device")
    pair = await open_queue_pair(guest.hyp, guest.upcall, entries, counts[0])
    features = await start_queue_pair(guest.hyp, guest.ram, pair, KNOWN & int(guest.config["features"]))
    attached = await guest.hyp.call("dma_attach", context=pair.context)
    table_fd, holds_fd, engine_fd = attached.fds
    table, holds = Mapping(table_fd, guest.ram.size // PAGE * 8), Mapping(holds_fd, holds_bytes(guest.ram.size))
    engine = Mapping(engine_fd, ENGINE_BYTES, writable=False)
    close_all(attached.fds)
    front, dma = np.zeros(1, MAPPED), np.zeros(1, DMA)
    call = dma[0]
    call["table"], call["holds"], call["engine"] = table.address, holds.address, engine.address
    call["ram_bytes"], call["platform"] = guest.ram.size, guest.platform.address
    call["flush_at"] = DEFERRED_PAGES if guest.config["iommu"] == "deferred" else 1
    call["counts"], call["counts_shared"] = guest.counters.row("dma")
    record = front[0]
    record["qp"], record["ram"], record["dma"] = pair.address, guest.ram.address, dma.ctypes.data
    for name in ("tx_pool", "rx_pool"):
        guest.ram.allocate(PAGE)  # nobody's: so that no run of registered pages ends where a pool begins
        record[name] = guest.ram.allocate(entries * FRAME_BUFFER)
    requests = np.zeros(entries * REQUEST_BYTES, np.uint8)
    record["requests"] = requests.ctypes.data
    device = new_device(
        OPERATIONS, int(front.ctypes.data), pair.mac, mac_to_int(pair.mac), FRAME_BUFFER, counts, guest.wait, features
    )
    device.keep += [pair, front, dma, table, holds, engine, requests]
    device.record[0]["interrupts"] = pair.address
    post_all_buffers(device.address)
    if record["failed"]:
        raise RuntimeError("the hypervisor refused receive buffers")
    return [device]
