"""netback, to the guest: frames are copied into the pages of its receive requests, and these answered. Compiled.

A plain frame (`queue_copy`) takes one request, and its response has no flags. Any other (`queue_frame`) takes a request for each
page that it fills, as Linux's xenvif_rx_skb lays it out, and after the first one more for each extra info, which takes the place of
that one's response: of segmentation if the guest is to do it, then of the frame's hash if it has asked for that. All of a frame's
responses are published together. If one of its copies fails, each of its responses says RSP_ERROR and keeps its flags, so that the
front end knows which belong together.
"""

from dom0.mapped_pages import let_pass, pinned_page
from dom0.netback import add_copy, fail_port, owe_event, run_copies, was_copied
from dom0.state import FLUSH, OWES_RX, PENDING_BYTES, colour, pending_at, port_of
from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DROP_BAD_ADDRESS,
    FAULTS_GRANT,
    FAULTS_PROTOCOL,
    RX_BYTES,
    RX_FRAMES,
)
from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO, GSO_TCPV4
from hyp.abi.grant import COPY_DEST_GREF, DOMID_SELF, PAGE_BYTES
from hyp.abi.netif import (
    EXTRA_FLAG_MORE,
    EXTRA_TYPE_GSO,
    GSO_TYPE_TCPV4,
    GSO_TYPE_TCPV6,
    RSP_ERROR,
    RXF_CSUM_BLANK,
    RXF_DATA_VALIDATED,
    RXF_EXTRA_INFO,
    RXF_MORE_DATA,
)
from hyp.atomics import load64, load64_once, memcpy, store64
from hyp.counters import count
from hyp.fairness.patience import note_posted
from hyp.kernels import compiled, outlined
from hyp.offload.frame import piece_addr, piece_length, set_piece, write_whole
from hyp.offload.segments import segment_of, write_part
from hyp.ring import (
    PROTOCOL_FAULT,
    next_request_slot,
    next_response_slot,
    push_responses,
    ring_at,
    unconsumed_requests,
)


@compiled
def has_room(e, p, n):
    """True if the guest has posted `n` receive requests."""
    ready = unconsumed_requests(ring_at(p.rx_ring), n)
    if ready == PROTOCOL_FAULT:
        fail_port(e, p, FAULTS_PROTOCOL)
        return False
    if ready >= n:
        had_room(e, p)
    return ready >= n


@compiled
def had_room(e, p):
    """Port `p` takes the frame that is for it: nobody waits for it."""
    p.waited_for = 0
    note_posted(p, e.now, True)


@compiled
def queue_copy(e, p, gpa, length):
    """Plan the copy of a frame in Dom0's RAM into the guest's next receive page, or make it if that page can stay pinned.

    The caller has checked `has_room`.
    """
    number, gref = _next_page(p)
    if p.rx_refs != 0:
        _copy_pinned(e, p, number, gref, gpa, length)
        return
    pending = pending_at(e.pending + e.op_count * PENDING_BYTES)
    offset = colour(e.op_count, length)
    pending.port, pending.id, pending.length, pending.offset, pending.ops = p.number, number, length, offset, 0
    add_copy(e, gpa >> 12, DOMID_SELF, gpa & (PAGE_BYTES - 1), gref, p.domid, offset, length, COPY_DEST_GREF)
    p.copies += 1


@compiled
def _next_page(p):
    """The next receive request: (id, grant reference)."""
    word = load64_once(next_request_slot(ring_at(p.rx_ring)))  # u16 id, u16 pad, u32 gref
    return word & 0xFFFF, (word >> 32) & 0xFFFFFFFF


@compiled
def _copy_pinned(e, p, number, gref, gpa, length):
    """Copy a frame into a page that stays pinned and write its response, which `flush_copies` publishes."""
    offset = colour(p.copies, length)
    page = pinned_page(e, p, p.rx_pages, p.rx_refs, gref, 1)
    copied = page > 0 and offset + length <= PAGE_BYTES
    if copied:
        memcpy(page + offset, e.ram + gpa, length)
    _respond(p, number, offset, length, copied)
    _note_written(e, p)


@compiled
def _note_written(e, p):
    """A response was written for a port with mapped pages; `flush_copies` publishes it."""
    if p.copies == 0:
        p.next_written = e.written
        e.written = p.number
    p.copies += 1


@compiled
def _respond(p, number, offset, length, copied):
    """Write the response to receive request `number`, and count."""
    _write_response(p, number, offset, 0, length, copied)
    _count_received(p, length, copied)


@compiled
def _write_response(p, number, offset, flags, length, copied):
    status = length if copied else RSP_ERROR & 0xFFFF
    store64(next_response_slot(ring_at(p.rx_ring)), number | (offset << 16 if copied else 0) | (flags << 32) | (status << 48))


@compiled
def _count_received(p, length, copied):
    if copied:
        count(p.counts, RX_FRAMES, 1)
        count(p.counts, RX_BYTES, length)
        count(p.counts, COPIES, 1)
        count(p.counts, COPIED_BYTES, length)
    else:
        count(p.counts, FAULTS_GRANT, 1)
        count(p.counts, DROP_BAD_ADDRESS, 1)


# --- frames of fragments, or with an offload --------------------------------------------------------------------------


@compiled
def pages_for(length):
    """Receive requests that a frame takes, but for extra infos."""
    return (length + PAGE_BYTES - 1) // PAGE_BYTES


@compiled
def _first_flags(p, offload):
    """Flags of a frame's first response (as Linux has them), but for MORE_DATA."""
    flags = RXF_CSUM_BLANK | RXF_DATA_VALIDATED if offload & CSUM_BLANK else 0
    flags |= RXF_DATA_VALIDATED if offload & CSUM_VALID else 0
    return flags | (RXF_EXTRA_INFO if offload & GSO or p.hash_info != 0 else 0)


@compiled
def _gso_info(p, offload):
    """The extra info of segmentation of a frame with this offload word; 0: none."""
    if offload & GSO == 0:
        return 0
    kind = GSO_TYPE_TCPV4 if offload & GSO_TCPV4 else GSO_TYPE_TCPV6
    more = EXTRA_FLAG_MORE if p.hash_info != 0 else 0
    return EXTRA_TYPE_GSO | (more << 8) | (segment_of(offload) << 16) | (kind << 32)


@compiled
def _slot_flags(p, offload, at, length):
    """Flags of the response for the page that begins with byte `at` of a frame."""
    return (_first_flags(p, offload) if at == 0 else 0) | (RXF_MORE_DATA if at + PAGE_BYTES < length else 0)


@compiled
def _put_away_extras(p, offload, at):
    """After the request for byte `at`: use up those whose responses' places extra infos take, if there are any."""
    if at == 0 and offload & GSO != 0:
        next_request_slot(ring_at(p.rx_ring))
    if at == 0 and p.hash_info != 0:
        next_request_slot(ring_at(p.rx_ring))


@compiled
def _write_extras(p, gso_info, hash_info):
    """Behind a frame's first response."""
    if gso_info != 0:
        store64(next_response_slot(ring_at(p.rx_ring)), gso_info)
    if hash_info != 0:
        store64(next_response_slot(ring_at(p.rx_ring)), hash_info)


@outlined
def queue_frame(e, p, f, part, length, offload):
    """`queue_copy` of a prepared frame, whole (`part` −1) or one part of it: `length` bytes, delivered with offload word `offload`.

    The caller has checked `has_room` for `pages_for(length)` fragments, and one more for each extra info.
    """
    if p.rx_refs != 0:
        _write_pinned(e, p, f, part, length, offload)
    elif part < 0:
        _queue_pieces(e, p, f.pieces, length, offload)
    else:
        for k in range(pages_for(length)):
            into = colour(e.op_count, length) if length <= PAGE_BYTES else 0
            page = e.ram + e.scratch + (e.op_count + k) * PAGE_BYTES
            set_piece(e.to, k, page + into, min(PAGE_BYTES, length - k * PAGE_BYTES))
        write_part(f, part, e.to, 0 if offload & CSUM_BLANK else 1)
        count(p.counts, COPIES, 1)
        count(p.counts, COPIED_BYTES, length)
        _queue_pieces(e, p, e.to, length, offload)


@compiled
def _queue_pieces(e, p, pieces, length, offload):
    """Plan the copies of a table of pieces, each within a page of Dom0's RAM."""
    first, at, k, skipped = e.op_count, 0, 0, 0
    while at < length:
        number, gref = _next_page(p)
        size = min(PAGE_BYTES, length - at)
        begin = colour(first, length) if length <= PAGE_BYTES else 0
        filled = 0
        while filled < size:
            n = min(piece_length(pieces, k) - skipped, size - filled)
            gpa = piece_addr(pieces, k) + skipped - e.ram
            pending = pending_at(e.pending + e.op_count * PENDING_BYTES)
            pending.port, pending.id, pending.length, pending.offset = p.number, number, n, begin
            pending.ends = 1 if filled + n == size else 0
            pending.flags = _slot_flags(p, offload, at, length)
            add_copy(
                e, gpa >> 12, DOMID_SELF, gpa & (PAGE_BYTES - 1), gref, p.domid, begin + filled, n, COPY_DEST_GREF
            )  # fmt: skip
            filled += n
            skipped += n
            if skipped == piece_length(pieces, k):
                k, skipped = k + 1, 0
        _put_away_extras(p, offload, at)
        at += size
    pending = pending_at(e.pending + first * PENDING_BYTES)
    pending.ops, pending.extra = e.op_count - first, _gso_info(p, offload)
    store64(e.hash_infos + 8 * first, p.hash_info)
    p.copies += 1


@outlined
def _respond_frame(e, first):
    """Answer the requests of the frame whose copies begin with operation `first`. Returns the number of its operations."""
    head = pending_at(e.pending + first * PENDING_BYTES)
    p, n, copied = port_of(e, head.port), head.ops, True
    for k in range(first, first + n):
        copied = copied and was_copied(e, k)
    gso_info, hash_info, size, total = head.extra, load64(e.hash_infos + 8 * first), 0, 0
    for k in range(first, first + n):
        pending = pending_at(e.pending + k * PENDING_BYTES)
        size += pending.length
        if pending.ends != 0:
            _write_response(p, pending.id, pending.offset, pending.flags, size, copied)
            _write_extras(p, gso_info, hash_info)
            total += size
            gso_info, hash_info, size = 0, 0, 0
    _count_received(p, total, copied)
    return n


@compiled
def _write_pinned(e, p, f, part, length, offload):
    """`queue_frame` into pages that stay pinned. Their responses are written at once; `flush_copies` publishes them."""
    copied, pages = True, pages_for(length)
    begin = colour(p.copies, length) if pages == 1 else 0
    for k in range(pages):
        number, gref = _next_page(p)
        store64(e.ids + 8 * k, number)
        page = pinned_page(e, p, p.rx_pages, p.rx_refs, gref, 1)
        copied = copied and page > 0
        set_piece(e.to, k, page + begin, min(PAGE_BYTES, length - k * PAGE_BYTES))
        _put_away_extras(p, offload, k)
    if copied and part < 0:
        write_whole(f, e.to)
    elif copied:
        write_part(f, part, e.to, 0 if offload & CSUM_BLANK else 1)
    for k in range(pages):
        flags = _slot_flags(p, offload, k * PAGE_BYTES, length)
        _write_response(p, load64(e.ids + 8 * k), begin, flags, piece_length(e.to, k), copied)
        if k == 0:
            _write_extras(p, _gso_info(p, offload), p.hash_info)
    _count_received(p, length, copied)
    _note_written(e, p)


# --- the batch --------------------------------------------------------------------------------------------------------


@compiled
def _publish_responses(p):
    p.copies = 0
    owe_event(p, push_responses(ring_at(p.rx_ring)), OWES_RX)


@compiled
def flush_is_full(e):
    """True if no further frame fits into the batch."""
    return e.op_count >= FLUSH


@compiled
def flush_copies(e):
    """Make the planned copies (one hypercall), answer the guests' receive requests, send events."""
    while e.written != 0:
        p = port_of(e, e.written)
        e.written = p.next_written
        if p.passing_count != 0:
            let_pass(e, p)
        _publish_responses(p)
    if e.op_count == 0:
        return
    run_copies(e)
    k = 0
    while k < e.op_count:
        pending = pending_at(e.pending + k * PENDING_BYTES)
        if pending.ops == 0:
            _respond(port_of(e, pending.port), pending.id, pending.offset, pending.length, was_copied(e, k))
            k += 1
        else:
            k += _respond_frame(e, k)
    for k in range(e.op_count):
        p = port_of(e, pending_at(e.pending + k * PENDING_BYTES).port)
        if p.copies > 0:
            _publish_responses(p)
    e.op_count = 0
