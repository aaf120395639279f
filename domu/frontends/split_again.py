"""The split front end's rings after its back end was made anew: nothing that the program has sent is lost, and what had arrived
for it is there. Compiled, once for each reconnect, on the control plane's thread: the device is detached (domu/exchange.py), and
the dead back end, or the living one that is to serve us anew, has let go of both rings (InitWait).

1. `settle`: what was answered is taken as by the loop: send buffers are free again, received frames are in the list of those that
   the program has yet to poll or to release.
2. `begin_again`: both shared pages begin anew. Indices go on, for a back end takes the rings up at `rsp_prod`: receive slot and
   receive page stay bound to each other, whichever pages the program still has, and the sequence of requests never begins anew.
   The receive requests without an answer are there again.
3. `resend`: the transmit requests without an answer are written again, in their order, whole frames with their extra infos, from
   what we remember of them ourselves (split_state.py): the shared page may hold anything.

A request that was not answered may have been carried out: its frame is there twice then. So at most one ring of frames is. No
grant changes: the pages of all these requests, and the rings', are granted to Dom0, whoever runs it. What the dead one had pinned
of them the hypervisor has given back before the next one was started.

A back end that answered only a part of a frame's requests has been paid for the frame: the rest is not sent, which would be none.
"""

import numpy as np

from domu.device import FAILED, device_at
from domu.frontends.split_chains import send_info
from domu.frontends.split_rings import reap, take_response
from domu.frontends.split_state import (
    BEHIND,
    FLAGS_MASK,
    FLAGS_SHIFT,
    PAGE_MASK,
    RX_SLOTS,
    SEQUENCE_MASK,
    SEQUENCE_SHIFT,
    SIZE_SHIFT,
    TX_SLOTS,
    ask_for_frame,
    fail,
    netfront_at,
    put_free,
    write_request,
)
from hyp.abi.counters import DROP_DOWN, FAULTS_GRANT, RESENT
from hyp.abi.netif import RX_SLOT_BYTES, TX_SLOT_BYTES, TXF_EXTRA_INFO, TXF_MORE_DATA
from hyp.atomics import load64, u32_sub
from hyp.counters import commit, count
from hyp.grants import end_access
from hyp.kernels import compiled, entry, i64, void
from hyp.ring import PROTOCOL_FAULT, attach_front, push_requests, ring_at, sring_init, unconsumed_responses


@entry(i64(i64))
def settle(device: int) -> int:
    """Take everything that was answered. 0, or FAILED."""
    d = device_at(device)
    f = netfront_at(d.front)
    ring = ring_at(f.rx_ring)
    if f.failed != 0 or reap(d, f) < 0:
        return FAILED
    taken, ready = 1, unconsumed_responses(ring)
    while taken > 0 and ready > 0:
        taken = take_response(d, f, ring)
        ready = unconsumed_responses(ring)
    if ready == PROTOCOL_FAULT:
        return fail(d, f)
    return min(taken, 0)


@entry(void(i64))
def begin_again(device: int) -> None:
    """New rings in the same pages, with the receive requests that had no answer."""
    f = netfront_at(device_at(device).front)
    tx, rx = ring_at(f.tx_ring), ring_at(f.rx_ring)
    start = tx.req_prod_pvt
    sring_init(tx.sring, start)
    attach_front(tx, tx.sring, TX_SLOTS, TX_SLOT_BYTES, start)
    start = rx.rsp_cons
    asked = u32_sub(rx.req_prod_pvt, start)
    sring_init(rx.sring, start)
    attach_front(rx, rx.sring, RX_SLOTS, RX_SLOT_BYTES, start)
    f.awaited, f.extras = 1, 0
    for _ in range(asked):
        ask_for_frame(f, rx)
    push_requests(rx)


def unanswered(busy: "np.ndarray[tuple[int], np.dtype[np.int64]]", sequence: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The ids of the requests without an answer, the oldest first. `sequence`: of the request that will be written next."""
    ids = np.nonzero(busy)[0]
    ages = (sequence - (busy[ids] >> SEQUENCE_SHIFT)) & SEQUENCE_MASK
    return ids[np.argsort(-ages, kind="stable")].astype(np.int64)


@entry(i64(i64, i64, i64))
def resend(device: int, ids: int, n: int) -> int:
    """Write the requests `ids`, `n` of them in their order, again. The number of frames, or FAILED."""
    d = device_at(device)
    f = netfront_at(d.front)
    ring = ring_at(f.tx_ring)
    frames, k = 0, 0
    while k < n:
        requests = _whole_frame(f, ids, k, n)
        if requests == 0:
            if _give_up(d, f, load64(ids + 8 * k)) < 0:
                return FAILED
            k += 1
            continue
        for _ in range(requests):
            _write_again(f, ring, load64(ids + 8 * k))
            k += 1
        frames += 1
    push_requests(ring)
    count(d.counts, RESENT, frames)
    commit(d.counts, d.counts_shared)
    return frames


@compiled
def _remembered(f, ids, k):
    return load64(f.busy + 8 * load64(ids + 8 * k))


@compiled
def _flags(word):
    return (word >> FLAGS_SHIFT) & FLAGS_MASK


@compiled
def _whole_frame(f, ids, k, n):
    """The number of requests of the frame that begins with the `k`-th; 0: it is none that begins there, or a part is missing."""
    word = _remembered(f, ids, k)
    if word & BEHIND:
        return 0
    due, requests = (word >> SEQUENCE_SHIFT) + 1, 1
    while _flags(word) & TXF_MORE_DATA:
        if k + requests == n:
            return 0
        word = _remembered(f, ids, k + requests)
        if word & BEHIND == 0 or ((word >> SEQUENCE_SHIFT) ^ due) & SEQUENCE_MASK != 0:
            return 0
        due += 1
        requests += 1
    return requests


@compiled
def _write_again(f, ring, number):
    word = load64(f.busy + 8 * number)
    offset, flags, octets = word & PAGE_MASK, _flags(word), (word >> SIZE_SHIFT) & 0xFFFF
    write_request(f, ring, number, offset, octets, flags)
    if flags & TXF_EXTRA_INFO:
        send_info(f, ring, number, load64(f.infos + 8 * number))


@compiled
def _give_up(d, f, number):
    """Take a request back whose frame is none any more. 0, or FAILED: its page is still in use."""
    count(d.counts, DROP_DOWN, 0 if load64(f.busy + 8 * number) & BEHIND else 1)
    if f.persistent == 0 and end_access(f.table, f.tx_ref + number) == 0:
        count(d.counts, FAULTS_GRANT, 1)
        return fail(d, f)
    put_free(f, number)
    return 0
