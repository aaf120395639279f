"""The cdna front end: the guest has a NIC context, but the hypervisor writes its descriptors (hyp/monitor/cdna.py).

The queues, the buffers and their polling are those of the bypass driver. What differs: a commit and a release hand their requests
to the hypervisor by a hypercall, and only then does the guest ring its own doorbell.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from domu.device import Device, Operations, device_at, frame_word, new_device
from domu.frontends.bypass import (
    BYPASS,
    KNOWN,
    arm,
    buffer_of,
    count_received,
    count_sent,
    hand_over,
    rx_poll,
    tx_pending,
    tx_reserve,
)
from hyp.abi.fragment import LENGTH_MASK, MORE
from hyp.abi.nic import mac_to_int
from hyp.abi.sizes import FRAME_BUFFER
from hyp.atomics import record_view, store64, u32_add
from hyp.control import close_all
from hyp.counters import commit
from hyp.kernels import compiled, entry, i64, operation, void
from hyp.memory import Mapping
from hyp.monitor.cdna import CDNA, REQUEST_BYTES, cdna_at, enqueue_receives, enqueue_sends, table_bytes
from hyp.offload.frame import PIECES_BYTES
from hyp.ram import open_queue_pair, start_queue_pair
from hyp.verbs import (
    QP,
    advance_sends,
    consume_receives,
    peek_fragment,
    qp_at,
    ring_receives,
)

if TYPE_CHECKING:
    from domu.guest import Guest

CDNA_FRONT = np.dtype(
    [
        *BYPASS.descr,  # first, so that the bypass driver's operations find what they need
        ("hypercalls", "i8"),  # a CDNA record: the hypervisor's
        ("requests", "i8"),  # room for a queue full of them
        ("sends", "i8"),  # sequence number of the next send, and of the next receive buffer
        ("receives", "i8"),
        ("failed", "i8"),
    ]
)
_front_at = record_view(CDNA_FRONT)


@operation(i64(i64, i64))
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    c = cdna_at(f.hypercalls)
    if f.failed != 0:
        return -1
    if n > 0:
        total = 0  # bytes, and, from bit 33 on, how many fragments are followed by more
        for k in range(n):
            word = frame_word(d.tx, k)
            _request(f, k, buffer_of(f.tx_pool, q.sq_prod + k, q.sq_size), word)
            total += word & (LENGTH_MASK | MORE)
        if enqueue_sends(c, f.requests, f.sends, n) != n:
            return _fail(d, f, c)
        f.sends += n
        advance_sends(q, n, 1)
        count_sent(d, n, total)
        commit(c.counts, c.counts_shared)
    hand_over(d, q)
    return n


@operation(i64(i64, i64))
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    f = _front_at(d.front)
    q = qp_at(f.qp)
    if f.failed != 0:
        return -1
    for k in range(n):
        _, word, status = peek_fragment(q, k)
        count_received(d, word, status)
    consume_receives(q, n)
    if _post_receives(f, q, n) < 0:
        return _fail(d, f, cdna_at(f.hypercalls))
    commit(d.counts, d.counts_shared)
    return n


@compiled
def _request(f: Any, k: int, addr: int, word: int) -> None:
    store64(f.requests + k * REQUEST_BYTES, addr)
    store64(f.requests + k * REQUEST_BYTES + 8, word)


@compiled
def _post_receives(f: Any, q: Any, n: int) -> int:
    """Have the next `n` receive buffers enqueued, then ring. Returns `n`, or −1 if the hypervisor refused one."""
    c = cdna_at(f.hypercalls)
    if n > 0:
        for k in range(n):
            _request(f, k, buffer_of(f.rx_pool, q.rq_prod + k, q.rq_size), FRAME_BUFFER)
        if enqueue_receives(c, f.requests, f.receives, n) != n:
            return -1
        f.receives += n
        q.rq_prod = u32_add(q.rq_prod, n)
        ring_receives(q)
        commit(c.counts, c.counts_shared)
    return n


@compiled
def _fail(d: Any, f: Any, c: Any) -> int:
    """The hypervisor refused a request, or what it counts is not what we count: the device is of no more use."""
    f.failed = 1
    commit(c.counts, c.counts_shared)
    commit(d.counts, d.counts_shared)
    return -1


@entry(void(i64))
def post_all_buffers(device: int) -> None:
    """Give the whole receive pool to the NIC."""
    f = _front_at(device_at(device).front)
    q = qp_at(f.qp)
    if _post_receives(f, q, q.rq_size) < 0:
        f.failed = 1


OPERATIONS = Operations(tx_reserve, tx_commit, tx_pending, rx_poll, rx_release, arm)


async def connect(guest: "Guest") -> list[Device]:
    """Open a context, let the hypervisor attach its pin table, start, have all receive buffers enqueued."""
    entries = int(guest.config["queue"])
    counts = guest.counters.row("device")
    pair = await open_queue_pair(guest.hyp, guest.upcall, entries, counts[0])
    table = await guest.hyp.call("cdna_attach", context=pair.context)
    pins = Mapping(table.fds[0], table_bytes(guest.ram.size))
    close_all(table.fds)
    known = KNOWN & int(guest.config["features"])
    features = await start_queue_pair(guest.hyp, guest.ram, pair, known, registers=False)
    front, hypervisors, hypervisors_qp = np.zeros(1, CDNA_FRONT), np.zeros(1, CDNA), np.zeros(1, QP)
    for name in ("sq", "scq", "rq", "rcq", "sq_size", "rq_size"):
        hypervisors_qp[0][name] = pair.record[0][name]
    call = hypervisors[0]
    call["table"], call["qp"], call["ram_bytes"] = pins.address, hypervisors_qp.ctypes.data, guest.ram.size
    chain = np.zeros(PIECES_BYTES // 8, np.int64)
    call["chain"], call["platform"] = chain.ctypes.data, guest.platform.address
    call["counts"], call["counts_shared"] = guest.counters.row("enqueue")
    hypervisors_qp[0]["counts"] = call["counts"]
    record = front[0]
    record["qp"], record["ram"], record["hypercalls"] = pair.address, guest.ram.address, hypervisors.ctypes.data
    for name in ("tx_pool", "rx_pool"):
        record[name] = guest.ram.allocate(entries * FRAME_BUFFER)
    requests = np.zeros(entries * REQUEST_BYTES, np.uint8)
    record["requests"] = requests.ctypes.data
    device = new_device(
        OPERATIONS, int(front.ctypes.data), pair.mac, mac_to_int(pair.mac), FRAME_BUFFER, counts, guest.wait, features
    )
    device.keep += [pair, front, hypervisors, hypervisors_qp, pins, chain, requests]
    device.record[0]["interrupts"] = pair.address  # Xen delivers them as events
    post_all_buffers(device.address)
    if record["failed"]:
        raise RuntimeError("the hypervisor refused receive buffers")
    return [device]
