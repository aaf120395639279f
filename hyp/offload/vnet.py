"""Offloads on their way between a TAP's virtio_net_hdr (hyp/abi/vnet.py) and a fragment word (hyp/abi/fragment.py). Compiled.

The header says where a checksum goes, the word leaves that to the frame's own headers. So a frame is looked at here, and a checksum
that the word can't tell of (not TCP's or UDP's, or an inner packet's) is filled in.
"""

from typing import Any

from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO, GSO_TCPV4, GSO_TCPV6, SEGMENT_SHIFT
from hyp.abi.vnet import (
    DATA_VALID,
    NEEDS_CSUM,
    TYPE_ECN,
    TYPE_NONE,
    TYPE_TCPV4,
    TYPE_TCPV6,
    VNET_CSUM_OFFSET,
    VNET_CSUM_START,
    VNET_FLAGS,
    VNET_GSO_SIZE,
    VNET_GSO_TYPE,
    VNET_HDR_LEN,
)
from hyp.atomics import load8, load16, store8, store16, store64
from hyp.kernels import compiled, outlined
from hyp.offload.checksum import folded, sum_pieces
from hyp.offload.frame import piece_addr, piece_length
from hyp.offload.headers import TCP
from hyp.offload.segments import TCP_CHECKSUM, UDP_CHECKSUM, longest_part, prepare, segment_of

BAD, TOO_LONG = -1, -2
IOVEC_BYTES = 16


@compiled
def has_offload(header: int) -> Any:
    """True if a virtio_net_hdr asks for something."""
    return load16(header + VNET_FLAGS) & (NEEDS_CSUM | 0xFF00) != 0  # flags and type


@compiled
def _checksum_field(f: Any) -> Any:
    """Where in its TCP or UDP header a prepared frame has its checksum."""
    return TCP_CHECKSUM if f.protocol == TCP else UDP_CHECKSUM


@compiled
def set_iovec(iov: int, k: int, addr: int, length: int) -> None:
    """Enter `length` bytes as number `k` of an array of struct iovec."""
    store64(iov + k * IOVEC_BYTES, addr)
    store64(iov + k * IOVEC_BYTES + 8, length)


@outlined
def word_of(f: Any, header: int, longest: int) -> Any:
    """The offload word for a frame whose virtio_net_hdr asks for something; it becomes the frame's.

    BAD if it can't be done; TOO_LONG if a segment would have more than `longest` bytes. The frame lies in the caller's own memory.
    """
    kind = load8(header + VNET_GSO_TYPE) & ~TYPE_ECN
    gso = GSO_TCPV4 if kind == TYPE_TCPV4 else GSO_TCPV6 if kind == TYPE_TCPV6 else 0
    start, offset = load16(header + VNET_CSUM_START), load16(header + VNET_CSUM_OFFSET)
    blank = load8(header + VNET_FLAGS) & NEEDS_CSUM != 0
    if not blank or (gso == 0 and kind != TYPE_NONE) or start + offset + 2 > f.length:
        return BAD
    word = CSUM_BLANK | gso
    if gso != 0:
        word |= load16(header + VNET_GSO_SIZE) << SEGMENT_SHIFT
    f.offload = word
    if prepare(f) and f.transport == start and _checksum_field(f) == offset:
        return TOO_LONG if longest_part(f) > longest else word
    if gso != 0:
        return BAD
    _fill_in(f, start, start + offset)
    f.offload, f.parts = 0, 1
    return 0


@compiled
def _fill_in(f: Any, start: int, field: int) -> None:
    """Sum up a frame from `start` to its end; the sum goes to `field`."""
    total = folded(sum_pieces(f.pieces, start, f.length - start)) ^ 0xFFFF
    total = 0xFFFF if total == 0 else total  # as Linux's skb_checksum_help has it, for UDP's sake
    _store_byte(f, field, total & 0xFF)
    _store_byte(f, field + 1, total >> 8)


@compiled
def _store_byte(f: Any, at: int, value: int) -> None:
    k = 0
    while at >= piece_length(f.pieces, k):
        at -= piece_length(f.pieces, k)
        k += 1
    store8(piece_addr(f.pieces, k) + at, value)


@compiled
def clear_header(header: int) -> None:
    """A virtio_net_hdr that says nothing."""
    store64(header, 0)
    store16(header + VNET_CSUM_OFFSET, 0)


@outlined
def header_of(f: Any, header: int) -> Any:
    """Write the virtio_net_hdr of a received frame that has an offload. False if the frame is not what its word says."""
    word = f.offload
    if word & CSUM_BLANK == 0:
        clear_header(header)
        store8(header + VNET_FLAGS, DATA_VALID if word & CSUM_VALID else 0)
        return word & GSO == 0
    f.offload = word & (CSUM_BLANK | GSO | (0xFFFF << SEGMENT_SHIFT))
    if not prepare(f):
        return False
    describe(f, header)
    return True


@compiled
def describe(f: Any, header: int) -> None:
    """Write the virtio_net_hdr of a prepared frame."""
    clear_header(header)
    store8(header + VNET_FLAGS, NEEDS_CSUM)
    store16(header + VNET_CSUM_START, f.transport)
    store16(header + VNET_CSUM_OFFSET, _checksum_field(f))
    if f.offload & GSO:
        store8(header + VNET_GSO_TYPE, TYPE_TCPV4 if f.offload & GSO_TCPV4 else TYPE_TCPV6)
        store16(header + VNET_GSO_SIZE, segment_of(f.offload))
        store16(header + VNET_HDR_LEN, f.header_bytes)
