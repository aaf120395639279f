"""netback, from the guest: frames that are more than one plain request. Compiled, and outside of the loops for those that aren't.

A frame is a first request, then its extra infos, then a request for each further fragment (hyp/abi/netif.py). It is taken in as a
whole, each slot copied once, and judged as a whole: if anything is wrong with one slot, no slot of it is used, and each is
answered, requests by RSP_ERROR, extra infos by RSP_NULL. One thing costs the guest its vif, since nobody knows where the next frame
begins: a frame that is cut off where the published requests end (Linux's xenvif_count_requests and xenvif_get_extras do the same).

==================================================================  ==============================================================
what is wrong                                                       counted as
==================================================================  ==============================================================
an unknown flag, over a page's end, less than MIN_FRAME bytes       FAULTS_DESCRIPTOR, DROP_BAD_FRAME
more than NR_SLOTS_MIN fragments or MOST_EXTRAS extra infos;        FAULTS_CHAIN, DROP_BAD_FRAME
an empty fragment; extra infos that are not the first one's;
fragments that are longer together than the first request says;
no whole Ethernet header in the first one; fragments, where a
group address is added or taken back
an extra info that is none; one of a group address that is          FAULTS_OFFLOAD, DROP_BAD_FRAME
not alone; a segment size or type that
is none; a frame whose offload can't be done (dom0/frames.py)
longer than the MTU, itself or what it would be segmented into      DROP_OVERSIZE
a page that isn't granted                                           FAULTS_GRANT, DROP_BAD_ADDRESS
cut off                                                             FAULTS_CHAIN, and the vif is out of service
==================================================================  ==============================================================

An extra info of a hash may come with any frame (a back end with hash control is to accept it). What a sender says of its frame's
hash is nobody's proof, and no use to the bridge: it is not looked at.

A request whose extra info adds a group address, or takes one back (dom0/multicast.py), is no frame: what else it says is ignored,
nothing is passed on, RSP_OKAY says that it was done, and RSP_ERROR that the list is full.
"""

from dom0.mapped_pages import pinned_page
from dom0.multicast import change_groups, group_change
from dom0.netback import add_copy, was_copied
from dom0.state import colour, give_buffer, port_of, staged_of, take_buffer
from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_OVERSIZE,
    FAULTS_CHAIN,
    FAULTS_DESCRIPTOR,
    FAULTS_GRANT,
    FAULTS_OFFLOAD,
    FAULTS_PROTOCOL,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.fragment import CSUM_BLANK, GSO_TCPV4, GSO_TCPV6, SEGMENT_SHIFT
from hyp.abi.grant import COPY_SOURCE_GREF, DOMID_SELF, PAGE_BYTES
from hyp.abi.netif import (
    EXTRA_FLAG_MORE,
    EXTRA_TYPE_GSO,
    EXTRA_TYPE_HASH,
    EXTRA_TYPE_MAX,
    GSO_TYPE_TCPV4,
    GSO_TYPE_TCPV6,
    NR_SLOTS_MIN,
    RSP_ERROR,
    RSP_NULL,
    RSP_OKAY,
    TXF_CSUM_BLANK,
    TXF_DATA_VALIDATED,
    TXF_EXTRA_INFO,
    TXF_MORE_DATA,
)
from hyp.abi.nic import MIN_FRAME
from hyp.atomics import load32_once, memcpy
from hyp.counters import count
from hyp.kernels import compiled, outlined
from hyp.ring import PROTOCOL_FAULT, next_request_slot, ring_at, unconsumed_requests

KNOWN_FLAGS = TXF_CSUM_BLANK | TXF_DATA_VALIDATED | TXF_MORE_DATA | TXF_EXTRA_INFO
MOST_EXTRAS = EXTRA_TYPE_MAX - 1
"""One of each type."""


@outlined
def take_chain(e, p, n, gref, word1, word2, limit):
    """Take in the frame whose first request, of which these are the copied words, has just been read; its entries begin at `n`.

    Returns the number of entries, all with a status, or −(a fault's column): it is cut off, and the vif has to go.
    """
    first = staged_of(p, n)
    _open_entry(first, word2 & 0xFFFF, gref, word1 & 0xFFFF, 0, RSP_ERROR)
    flags, total = word1 >> 16, word2 >> 16
    extras, fault, gso, change = _take_extras(p, n + 1, flags)
    if extras < 0:
        return extras
    if flags & ~KNOWN_FLAGS != 0:
        fault = FAULTS_DESCRIPTOR
    entries, fault, rest = _take_fragments(p, n + 1 + extras, flags, fault)
    if entries < 0:
        return entries
    first.slots, first.bytes = 1 + extras + entries, total - rest
    if fault == 0 and change != 0:
        fault = FAULTS_CHAIN if entries > 0 else 0
    elif fault == 0:
        fault = _first_fault(first.offset, first.bytes, total, rest)
    if fault == 0 and change != 0:
        first.status = RSP_OKAY if change_groups(port_of(e, p.vif), change) else RSP_ERROR
    elif fault != 0:
        _refuse(p, first, total, DROP_BAD_FRAME)
        count(p.counts, fault, 1)
    elif gso == 0 and total > e.max_frame:
        _refuse(p, first, total, DROP_OVERSIZE)
    else:
        first.length = total
        first.offload = gso | (CSUM_BLANK if flags & TXF_CSUM_BLANK else 0)
        _fetch(e, p, n, limit)
    return first.slots


@compiled
def _open_entry(s, number, gref, offset, octets, status):
    s.id, s.gref, s.offset, s.bytes, s.status = number, gref, offset, octets, status
    s.length, s.buffer, s.posted, s.slots, s.offload = 0, -1, 0, 1, 0


@compiled
def _next_slot(ring):
    """Address of the next slot that the front end has published, or −(a fault's column) if there is none."""
    ready = unconsumed_requests(ring)
    if ready > 0:
        return next_request_slot(ring)
    return -FAULTS_PROTOCOL if ready == PROTOCOL_FAULT else -FAULTS_CHAIN


@compiled
def _take_extras(p, at, flags):
    """Take in the extra infos. Returns (how many or −fault, fault or 0, the GSO bits of an offload word, a group's change or 0)."""
    ring = ring_at(p.tx_ring)
    n, fault, gso, change, more = 0, 0, 0, 0, flags & TXF_EXTRA_INFO
    while more != 0:
        slot = _next_slot(ring)
        if slot < 0:
            return slot, 0, 0, 0
        low, high = load32_once(slot), load32_once(slot + 4)
        _open_entry(staged_of(p, at + n), 0, 0, 0, 0, RSP_NULL)
        n += 1
        more = (low >> 8) & EXTRA_FLAG_MORE
        if fault == 0 and n > MOST_EXTRAS:
            fault = FAULTS_CHAIN
        elif low & 0xFF != EXTRA_TYPE_HASH:
            gso, change = _gso_bits(low, high), group_change(low, high)
            if fault == 0 and gso == 0 and (change == 0 or n > 1 or more != 0):
                fault = FAULTS_OFFLOAD
    return n, fault, gso, change


@compiled
def _gso_bits(low, high):
    """What an extra info, of which these are the copied words, says of segmentation; 0: nothing that makes sense."""
    segment, kind = low >> 16, high & 0xFF
    if low & 0xFF != EXTRA_TYPE_GSO or segment == 0:
        return 0
    # A frame with GSO has a blank checksum, whether its flags say so or not (Linux's checksum_setup)
    common = CSUM_BLANK | (segment << SEGMENT_SHIFT)
    if kind == GSO_TYPE_TCPV4:
        return common | GSO_TCPV4
    return common | GSO_TCPV6 if kind == GSO_TYPE_TCPV6 else 0


@compiled
def _take_fragments(p, at, flags, fault):
    """Take in all fragments but the first. Returns (how many or −fault, `fault` or what else is wrong, their bytes)."""
    ring = ring_at(p.tx_ring)
    n, rest, more = 0, 0, flags & TXF_MORE_DATA
    while more != 0:
        slot = _next_slot(ring)
        if slot < 0:
            return slot, 0, 0
        gref, word1, word2 = load32_once(slot), load32_once(slot + 4), load32_once(slot + 8)
        offset, octets, its_flags = word1 & 0xFFFF, word2 >> 16, word1 >> 16
        _open_entry(staged_of(p, at + n), word2 & 0xFFFF, gref, offset, octets, RSP_ERROR)
        n += 1
        rest += octets
        if fault == 0 and (its_flags & ~KNOWN_FLAGS != 0 or offset + octets > PAGE_BYTES):
            fault = FAULTS_DESCRIPTOR
        elif fault == 0 and (octets == 0 or n >= NR_SLOTS_MIN or its_flags & TXF_EXTRA_INFO != 0):
            fault = FAULTS_CHAIN
        more = its_flags & TXF_MORE_DATA
    return n, fault, rest


@compiled
def _first_fault(offset, octets, total, rest):
    """What is wrong with the first fragment, the size of the others known; or 0."""
    if rest > 0 and octets < MIN_FRAME:
        return FAULTS_CHAIN
    return FAULTS_DESCRIPTOR if total < MIN_FRAME or offset + octets > PAGE_BYTES else 0


@compiled
def _refuse(p, first, total, drop):
    """No slot of the frame is used."""
    p.wary = 1
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, total)
    count(p.counts, drop, 1)
    first.length = 0


@compiled
def _fetch(e, p, n, limit):
    """Give each fragment a buffer, and copy it there: now, from a pinned page; or with the batch, as the operation `status`."""
    for k in range(n, n + staged_of(p, n).slots):
        s = staged_of(p, k)
        if s.bytes == 0:
            continue
        s.buffer = take_buffer(e)
        s.gpa = e.pool + s.buffer * PAGE_BYTES + colour(s.buffer, s.bytes)
        s.addr = e.ram + s.gpa
        octets = min(s.bytes, limit)
        if p.tx_refs == 0:
            s.status = e.op_count
            into = s.gpa & (PAGE_BYTES - 1)
            add_copy(e, s.gref, p.domid, s.offset, s.gpa >> 12, DOMID_SELF, into, octets, COPY_SOURCE_GREF)
        else:
            page = pinned_page(e, p, p.tx_pages, p.tx_refs, s.gref, 0)
            if page > 0:
                memcpy(s.addr, page + s.offset, octets)
                s.status = RSP_OKAY


@outlined
def settle_chain(e, p, n, limit):
    """After the copy of at most `limit` bytes of each fragment: count what came in, and give up what could not be copied."""
    first = staged_of(p, n)
    if first.length == 0:
        return
    missing, total, cut = 0, 0, 0
    for k in range(n, n + first.slots):
        s = staged_of(p, k)
        if s.bytes == 0:
            continue
        if p.tx_refs == 0:
            s.status = RSP_OKAY if was_copied(e, s.status) else RSP_ERROR
        missing += s.status != RSP_OKAY
        total += min(s.bytes, limit)
        cut += s.bytes > limit
    count(p.counts, TX_FRAMES, 1)
    count(p.counts, TX_BYTES, first.length)
    if missing > 0:
        count(p.counts, FAULTS_GRANT, 1)
        count(p.counts, DROP_BAD_ADDRESS, 1)
        give_up(e, p, n)
    else:
        count(p.counts, COPIES, 1 if cut == 0 else 0)  # a part is none: an ablation has left the copy out
        count(p.counts, COPIED_BYTES, total)


@outlined
def give_up(e, p, n):
    """The frame whose entries begin at `n` goes nowhere: its requests are answered by RSP_ERROR, its buffers are free."""
    first = staged_of(p, n)
    first.length, p.wary = 0, 1
    for k in range(n, n + first.slots):
        s = staged_of(p, k)
        if s.buffer >= 0:
            give_buffer(e, s.buffer)
            s.buffer, s.status = -1, RSP_ERROR
