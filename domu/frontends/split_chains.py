"""The split front end's frames of more than one slot, or with an offload: between the bursts of the device interface and the slots
of both rings (hyp/abi/netif.py), as Linux's netfront lays them out. Compiled, outside of the loops for plain frames.

To send: the first request has the size of the whole frame, then comes the extra info of one that is to be segmented, then a request
for each further fragment. Received: a response for each page, after the first one the extra infos; a page whose response's place an
extra info took goes back to the pool with the fragment before it. A frame with a response that is an error, or with an extra info
that this driver doesn't know, is none: its buffers are shown to the program as empty ones.
"""

from domu.device import FAILED, frame_addr, frame_word
from domu.frontends.split_state import BEHIND, RX_SLOTS, fail, keep_polled, next_free, polled, send_page, take_back
from hyp.abi.counters import TX_BYTES
from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO, GSO_TCPV4, GSO_TCPV6, LENGTH_MASK, MORE, SEGMENT_SHIFT
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import (
    EXTRA_FLAG_MORE,
    EXTRA_TYPE_GSO,
    GSO_TYPE_TCPV4,
    GSO_TYPE_TCPV6,
    NR_SLOTS_MIN,
    RXF_CSUM_BLANK,
    RXF_DATA_VALIDATED,
    RXF_EXTRA_INFO,
    RXF_MORE_DATA,
    TXF_CSUM_BLANK,
    TXF_DATA_VALIDATED,
    TXF_EXTRA_INFO,
    TXF_MORE_DATA,
)
from hyp.atomics import load64, load64_once, store32, store64, u32_add
from hyp.counters import count
from hyp.kernels import compiled, outlined
from hyp.offload.segments import segment_of
from hyp.ring import PROTOCOL_FAULT, next_request, ring_at, signed16, slot_address, unconsumed_responses

MOST_SLOTS = 2 * NR_SLOTS_MIN
"""Of a received frame, extra infos included. Longer than any that a back end has a reason to send."""

# --- to send ----------------------------------------------------------------------------------------------------------


@outlined
def send_frame(d, f, k, n):
    """Write the requests of the frame that begins with fragment `k` of `n` in the burst. Returns the number of its fragments."""
    ring, grant = ring_at(f.tx_ring), f.persistent == 0
    length, count_of = 0, 0
    more = 1
    while more != 0 and k + count_of < n:
        word = frame_word(d.tx, k + count_of)
        length += word & LENGTH_MASK
        count_of += 1
        more = word & MORE
    first, number = frame_word(d.tx, k), next_free(f)
    send_page(f, ring, grant, frame_addr(d.tx, k), length, _send_flags(first, count_of))
    if first & GSO:
        kind = GSO_TYPE_TCPV4 if first & GSO_TCPV4 else GSO_TYPE_TCPV6
        send_info(f, ring, number, EXTRA_TYPE_GSO | (segment_of(first) << 16) | (kind << 32))
    for j in range(k + 1, k + count_of):
        flags, number = TXF_MORE_DATA if j < k + count_of - 1 else 0, next_free(f)
        send_page(f, ring, grant, frame_addr(d.tx, j), frame_word(d.tx, j) & LENGTH_MASK, flags)
        store64(f.busy + 8 * number, load64(f.busy + 8 * number) | BEHIND)
    count(d.counts, TX_BYTES, length)
    return count_of


@compiled
def send_info(f, ring, number, info):
    """Write the extra info behind request `number`, and remember it."""
    slot = next_request(ring)
    store64(slot, info)
    store32(slot + 8, 0)
    store64(f.infos + 8 * number, info)
    f.extras += 1


@compiled
def _send_flags(word, fragments):
    flags = TXF_CSUM_BLANK | TXF_DATA_VALIDATED if word & CSUM_BLANK else 0
    flags |= TXF_EXTRA_INFO if word & GSO else 0
    return flags | (TXF_MORE_DATA if fragments > 1 else 0)


# --- received ---------------------------------------------------------------------------------------------------------


@outlined
def take_frame(d, f):
    """Take the frame whose first response is the next one. 1; 0 if it is not there as a whole yet; or FAILED.

    Nothing is taken of one that is not whole: it is looked at afresh when it is.
    """
    ring = ring_at(f.rx_ring)
    at, tail, sound = 0, f.polled_tail, True
    more, offload = 1, 0
    while more != 0:
        at, word = _next_response(f, ring, at)
        if at <= 0:
            return _put_back(d, f, tail, at)
        index = u32_add(ring.rsp_cons, at - 1)
        number, flags, status = word & 0xFFFF, (word >> 32) & 0xFFFF, signed16(word >> 48)
        offset = (word >> 16) & 0xFFFF
        if number != index & (RX_SLOTS - 1) or (status > 0 and offset + status > PAGE_BYTES):
            return fail(d, f)
        sound = sound and status > 0
        slots, first = 1, f.polled_tail == tail
        if first and flags & RXF_EXTRA_INFO:
            before = at
            at, offload = _take_extras(f, ring, at)
            if at <= 0:
                return _put_back(d, f, tail, at)
            slots += at - before
            sound = sound and offload != 0
        if first:
            offload |= CSUM_BLANK if flags & RXF_CSUM_BLANK else (CSUM_VALID if flags & RXF_DATA_VALIDATED else 0)
        more = flags & RXF_MORE_DATA
        keep_polled(f, index, offset, max(status, 0) | (MORE if more else 0), slots)
    for k in range(at):
        if take_back(d, f, u32_add(ring.rsp_cons, k)) < 0:
            return FAILED
    ring.rsp_cons = u32_add(ring.rsp_cons, at)
    f.awaited = 1
    if sound:
        polled(f, tail).word |= offload
    else:
        for k in range(tail, f.polled_tail):
            polled(f, k).word = 0
    return 1


@compiled
def _put_back(d, f, tail, at):
    """A frame is not whole (`at` −n: n responses must be there), or will never be (0)."""
    f.polled_tail = tail
    if at == 0:
        return fail(d, f)
    f.awaited = -at
    return 0


@compiled
def _next_response(f, ring, at):
    """Our copy of the response `at` after the next one: (at + 1, word); (−n, 0): n must be there; (0, 0): there can be no such."""
    ready = unconsumed_responses(ring, at + 1)
    if ready == PROTOCOL_FAULT or at >= MOST_SLOTS:
        return 0, 0
    if ready <= at:
        return -(at + 1), 0
    return at + 1, load64_once(slot_address(ring, u32_add(ring.rsp_cons, at)))


@compiled
def _take_extras(f, ring, at):
    """The extra infos from response `at` on: (where they end, the GSO bits of an offload word or 0), or as `_next_response`."""
    offload, more = 0, 1
    while more != 0:
        at, word = _next_response(f, ring, at)
        if at <= 0:
            return at, 0
        segment, kind = (word >> 16) & 0xFFFF, (word >> 32) & 0xFF
        offload = 0
        if word & 0xFF == EXTRA_TYPE_GSO and segment != 0:
            bits = GSO_TCPV4 if kind == GSO_TYPE_TCPV4 else (GSO_TCPV6 if kind == GSO_TYPE_TCPV6 else 0)
            offload = bits | CSUM_BLANK | (segment << SEGMENT_SHIFT) if bits else 0
        more = (word >> 8) & EXTRA_FLAG_MORE
    return at, offload
