"""Checksum and segmentation offload: what a device does to a frame for a receiver, or a wire, that didn't accept it as it is.

A frame with an offload goes out in `parts`: with GSO in segments of `segment` bytes of TCP payload, each with its own lengths,
identification, sequence number, flags and checksums, as hardware does it (TSO); without, whole. Checksums are always made afresh,
from the headers, whatever their fields held, over the copy that the receiver gets.
"""

from typing import Any

from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.fragment import CSUM_BLANK, GSO, GSO_TCPV4, GSO_TCPV6, MIN_SEGMENT, SEGMENT_SHIFT
from hyp.atomics import load8, memcpy, store8, store16
from hyp.kernels import compiled, outlined
from hyp.offload.checksum import folded, sum_bytes, sum_pieces, swap16
from hyp.offload.frame import HEADER_ROOM, copy_pieces, scatter
from hyp.offload.headers import TCP, UDP, net16, read_headers

FIN, PSH, CWR = 0x01, 0x08, 0x80
TCP_SEQUENCE, TCP_FLAGS, TCP_CHECKSUM, UDP_CHECKSUM = 4, 13, 16, 6


@compiled
def segment_of(offload: int) -> int:
    """The segment size in an offload word."""
    return (offload >> SEGMENT_SHIFT) & 0xFFFF


@compiled
def needed_features(offload: int) -> int:
    """The features that a frame with this offload word takes, to be sent or received as it is."""
    word = CSUM if offload & CSUM_BLANK else 0
    if offload & GSO_TCPV4:
        word |= TSO4 | SG
    if offload & GSO_TCPV6:
        word |= TSO6 | SG
    return word


@outlined
def prepare(f: Any) -> Any:
    """Read and judge the headers of a frame with an offload; sets `segment` and `parts`. False: the offload can't be done."""
    f.parts = 1
    if not read_headers(f):
        return False
    payload = f.length - f.header_bytes
    gso = f.offload & GSO
    if gso == 0:
        f.segment = payload
        return segment_of(f.offload) == 0
    f.segment = segment_of(f.offload)
    wanted = GSO_TCPV4 if f.version == 4 else GSO_TCPV6
    if gso != wanted or f.protocol != TCP or f.end != f.length or payload == 0 or f.segment < MIN_SEGMENT:
        return False
    f.parts = (payload + f.segment - 1) // f.segment
    return f.offload & CSUM_BLANK != 0


@compiled
def longest_part(f: Any) -> Any:
    """Bytes of the longest frame that a prepared frame becomes."""
    return min(f.length, f.header_bytes + f.segment)


@compiled
def part_length(f: Any, part: int) -> Any:
    """Bytes of one part of a prepared frame."""
    return f.header_bytes + min(f.segment, f.length - f.header_bytes - part * f.segment)


@outlined
def write_part(f: Any, part: int, to: int, fill: int) -> None:
    """Write one part of a prepared frame into a table of pieces that has room: checksum and all, or, without `fill`, blank."""
    own, skipped = f.header_bytes, part * f.segment
    n = min(f.segment, f.length - own - skipped)
    copy_pieces(f.pieces, own + skipped, n, to, own)
    h = f.headers + HEADER_ROOM
    memcpy(h, f.headers, own)
    end = f.end
    if f.offload & GSO:
        end = own + n
        _number_segment(f, h, part, end)
    _sum_up(f, h, to, end, fill)
    scatter(h, own, to)


@compiled
def _number_segment(f: Any, h: int, part: int, end: int) -> None:
    """The headers at `h`, a copy of the frame's, become those of a segment that ends at `end`."""
    ip, tcp = h + f.network, h + f.transport
    if f.version == 4:
        store16(ip + 2, swap16(end - f.network))
        store16(ip + 4, swap16((net16(ip + 4) + part) & 0xFFFF))
        store16(ip + 10, 0)
        store16(ip + 10, folded(sum_bytes(ip, f.transport - f.network)) ^ 0xFFFF)
    else:
        store16(ip + 4, swap16(end - f.network - 40))
    sequence = ((net16(tcp + TCP_SEQUENCE) << 16) | net16(tcp + TCP_SEQUENCE + 2)) + part * f.segment
    store16(tcp + TCP_SEQUENCE, swap16((sequence >> 16) & 0xFFFF))
    store16(tcp + TCP_SEQUENCE + 2, swap16(sequence & 0xFFFF))
    flags = load8(tcp + TCP_FLAGS)
    if part < f.parts - 1:
        flags &= ~(FIN | PSH)
    if part > 0:
        flags &= ~CWR
    store8(tcp + TCP_FLAGS, flags)


@compiled
def pseudo_header(f: Any, h: int, length: int) -> Any:
    """Sum over the pseudo-header of a packet with `length` bytes from its TCP or UDP header on."""
    ip = h + f.network
    addresses = sum_bytes(ip + 12, 8) if f.version == 4 else sum_bytes(ip + 8, 32)
    return addresses + (f.protocol << 8) + swap16(length & 0xFFFF)


@compiled
def _sum_up(f: Any, h: int, to: int, end: int, fill: int) -> None:
    """The checksum of a packet that ends at `end`, whose headers are at `h` and whose payload is in `to`."""
    field = h + f.transport + (TCP_CHECKSUM if f.protocol == TCP else UDP_CHECKSUM)
    pseudo = pseudo_header(f, h, end - f.transport)
    if fill == 0:
        store16(field, folded(pseudo))
        return
    store16(field, 0)
    total = pseudo + sum_bytes(h + f.transport, f.header_bytes - f.transport)
    value = folded(total + sum_pieces(to, f.header_bytes, end - f.header_bytes)) ^ 0xFFFF
    store16(field, 0xFFFF if value == 0 and f.protocol == UDP else value)
