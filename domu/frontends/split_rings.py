"""The split front end's data path: the operations of its device (domu/device.py) on both rings. Compiled.

Most frames are one request, or one response, without flags, and those are what the loops here are for; all others are taken out of
them, to domu/frontends/split_chains.py.
"""

from domu.device import (
    ALL,
    BURST,
    FAILED,
    RX,
    TX,
    Operations,
    completions_to_wait_for,
    device_at,
    frame_addr,
    frame_word,
    set_frame,
)
from domu.frontends.split_chains import send_frame, take_frame
from domu.frontends.split_state import (
    RX_SLOTS,
    TX_SLOTS,
    fail,
    keep_polled,
    netfront_at,
    polled,
    post_receive,
    put_free,
    send_page,
    take_back,
    tell,
)
from hyp.abi.counters import FAULTS_GRANT, RX_BYTES, RX_FRAMES, TX_BYTES, TX_FRAMES
from hyp.abi.fragment import LENGTH_MASK, MORE
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import RSP_NULL
from hyp.abi.sizes import COLOUR_BYTES, COLOURS, SHORT_FRAME
from hyp.atomics import load32_once, load64, load64_once, prefetch
from hyp.counters import commit, count
from hyp.grants import end_access
from hyp.kernels import compiled, i64, operation
from hyp.ring import (
    PROTOCOL_FAULT,
    arm_responses,
    free_requests,
    next_response,
    push_requests,
    ring_at,
    signed16,
    slot_address,
    unconsumed_responses,
)

# --- to send ----------------------------------------------------------------------------------------------------------


@compiled
def _colour(slot: int) -> int:
    return (slot % COLOURS) * COLOUR_BYTES


@compiled
def reap(d, f):
    """Take all transmit responses: revoke their grants, free their ids. 0, or FAILED."""
    ring, revoke = ring_at(f.tx_ring), f.persistent == 0
    ready = unconsumed_responses(ring)
    while ready > 0:
        for _ in range(ready):
            word = load32_once(next_response(ring))
            number, status = word & 0xFFFF, word >> 16
            if status == RSP_NULL and f.extras > 0:  # answers an extra info
                f.extras -= 1
                continue
            if number >= TX_SLOTS or load64(f.busy + 8 * number) == 0:
                return fail(d, f)
            if revoke and end_access(f.table, f.tx_ref + number) == 0:
                count(d.counts, FAULTS_GRANT, 1)  # answered and still in use: the page is lost to us until it is not
                return fail(d, f)
            put_free(f, number)
        ready = unconsumed_responses(ring)
    return fail(d, f) if ready == PROTOCOL_FAULT else 0


@compiled
def _room(f):
    return min(free_requests(ring_at(f.tx_ring)), f.free_tail - f.free_head)


@operation(i64(i64, i64))
def tx_reserve(device: int, want: int) -> int:
    d = device_at(device)
    f = netfront_at(d.front)
    if f.failed != 0 or (_room(f) < want and reap(d, f) < 0):
        return FAILED
    n = min(_room(f), want)
    for k in range(n):
        number = load64(f.free + 8 * ((f.free_head + k) & (TX_SLOTS - 1)))
        set_frame(d.tx, k, f.ram + f.tx_pool + number * PAGE_BYTES + _colour(number), 0)
    return n


@operation(i64(i64, i64))
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    f = netfront_at(d.front)
    if f.failed != 0:
        return FAILED
    ring, grant = ring_at(f.tx_ring), f.persistent == 0
    total, frames, k = 0, 0, 0
    while k < n:
        word = frame_word(d.tx, k)
        if word & ~LENGTH_MASK == 0:
            send_page(f, ring, grant, frame_addr(d.tx, k), word, 0)
            total += word
            k += 1
        else:
            k += send_frame(d, f, k, n)
        frames += 1
    count(d.counts, TX_FRAMES, frames)
    count(d.counts, TX_BYTES, total)
    tell(d, f.tx_event_fd, push_requests(ring))
    commit(d.counts, d.counts_shared)
    return n


@operation(i64(i64, i64))
def tx_pending(device: int, _: int) -> int:
    d = device_at(device)
    f = netfront_at(d.front)
    if f.failed != 0 or reap(d, f) < 0:
        return FAILED
    return TX_SLOTS - (f.free_tail - f.free_head)


# --- received ---------------------------------------------------------------------------------------------------------


@compiled
def take_response(d, f, ring):
    """Take the next response, and all others of its frame. 1; 0: the frame isn't there as a whole yet; or FAILED."""
    index = ring.rsp_cons
    word = load64_once(slot_address(ring, index))  # u16 id, offset, flags; s16 status
    if (word >> 32) & 0xFFFF != 0:
        return take_frame(d, f)
    number, offset, status = word & 0xFFFF, (word >> 16) & 0xFFFF, signed16(word >> 48)
    if number != index & (RX_SLOTS - 1) or (status > 0 and offset + status > PAGE_BYTES):
        return fail(d, f)
    next_response(ring)
    if take_back(d, f, index) < 0:
        return FAILED
    keep_polled(f, index, offset, max(status, 0), 1)
    return 1


@operation(i64(i64, i64))
def rx_poll(device: int, want: int) -> int:
    d = device_at(device)
    f = netfront_at(d.front)
    if f.failed != 0:
        return FAILED
    ring = ring_at(f.rx_ring)
    missing = want - (f.polled_tail - f.polled_head)
    if missing > 0:
        ready = unconsumed_responses(ring)
        if ready == PROTOCOL_FAULT:
            return fail(d, f)
        end = f.polled_tail + min(ready, missing)
        taken = 1
        while f.polled_tail < end and taken > 0 and unconsumed_responses(ring) > 0:
            taken = take_response(d, f, ring)
        if taken < 0:
            return FAILED
    n, whole = min(want, f.polled_tail - f.polled_head), 0
    for k in range(n):
        entry = polled(f, f.polled_head + k)
        if entry.word & LENGTH_MASK <= SHORT_FRAME:
            prefetch(entry.addr)  # netback has written it last
        set_frame(d.rx, k, entry.addr, entry.word)
        if entry.word & MORE == 0:
            whole = k + 1
    return whole


@operation(i64(i64, i64))
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    f = netfront_at(d.front)
    if f.failed != 0:
        return FAILED
    ring = ring_at(f.rx_ring)
    for _ in range(n):
        entry = polled(f, f.polled_head)
        f.polled_head += 1
        octets = entry.word & LENGTH_MASK
        if octets > 0:
            count(d.counts, RX_FRAMES, 0 if entry.word & MORE else 1)
            count(d.counts, RX_BYTES, octets)
        for _ in range(entry.slots):
            post_receive(f, ring)
    tell(d, f.rx_event_fd, push_requests(ring))
    commit(d.counts, d.counts_shared)
    return n


@operation(i64(i64, i64))
def arm(device: int, what: int) -> int:
    d = device_at(device)
    f = netfront_at(d.front)
    ready = 0
    if what & RX and arm_responses(ring_at(f.rx_ring), f.awaited):
        ready = 1
    if what & (TX | ALL):
        if reap(d, f) < 0:
            return FAILED
        pending = TX_SLOTS - (f.free_tail - f.free_head)
        if (what & ALL and pending == 0) or (what & TX and _room(f) >= BURST):
            return 1
        if arm_responses(ring_at(f.tx_ring), completions_to_wait_for(what, pending + f.extras)):
            ready = 1
    return ready


OPERATIONS = Operations(tx_reserve, tx_commit, tx_pending, rx_poll, rx_release, arm)
