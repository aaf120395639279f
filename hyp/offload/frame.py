"""The FRAME record: one frame on its way, wherever its bytes lie. It travels as one thing through a device.

A frame is 1 to `MAX_FRAGMENTS` *pieces* of memory, most often somebody else's, who may write to it at any time. What a device has
judged of it is therefore a copy of ours, and is what goes on (R3): the first `header_bytes` bytes come from `headers` whenever the
frame is copied, only what follows them from the pieces. At first these are the 14 bytes of the Ethernet header; of a frame with an
offload they are all headers up to its payload (hyp/offload/headers.py).

Where a frame is copied *to* is a table of pieces too: a receiver's buffers, a slot, a place on the wire.
"""

from typing import Any

import numpy as np

from hyp.abi.nic import MAX_FRAGMENTS
from hyp.atomics import load64, memcpy, record_view, store64
from hyp.kernels import compiled, outlined

ETHERNET_HEADER = 14
HEADER_ROOM = 256
"""Bytes of headers that are looked at: Ethernet with two tags, IPv6 with some extension headers, TCP with all options."""

FRAME = np.dtype(
    [
        ("length", "i8"),
        ("offload", "i8"),  # the offload word (hyp/abi/fragment.py); 0: none
        ("head0", "i8"),  # the first 16 bytes (zero beyond the frame) as two words
        ("head1", "i8"),
        ("pieces", "i8"),  # PIECES_BYTES: (address, length) of each
        ("count", "i8"),
        ("headers", "i8"),  # HEADER_ROOM bytes of our own, and as many to work in
        ("header_bytes", "i8"),
        # of a frame with an offload (hyp/offload/segments.py)
        ("network", "i8"),  # where its IP header is, and its TCP or UDP header
        ("transport", "i8"),
        ("version", "i8"),  # of IP
        ("protocol", "i8"),
        ("end", "i8"),  # of the IP packet
        ("segment", "i8"),  # payload bytes of each part but the last
        ("parts", "i8"),  # frames that it becomes for who accepts no segmentation offload; 1 without GSO
    ]
)
FRAME_BYTES = FRAME.itemsize
PIECE_BYTES = 16
PIECES_BYTES = MAX_FRAGMENTS * PIECE_BYTES

frame_at = record_view(FRAME)


class FrameMemory:
    """A FRAME record with its tables: `address` is its address."""

    def __init__(self) -> None:
        self._record = np.zeros(1, FRAME)
        self._tables = np.zeros((PIECES_BYTES + 2 * HEADER_ROOM) // 8, np.int64)
        self.address = int(self._record.ctypes.data)
        at = int(self._tables.ctypes.data)
        self._record[0]["pieces"], self._record[0]["headers"] = at, at + PIECES_BYTES


@compiled
def begin_frame(f: Any, length: int, offload: int, head0: int, head1: int) -> None:
    """A frame without pieces yet, whose first 16 bytes have been read once."""
    f.length, f.offload, f.head0, f.head1 = length, offload, head0, head1
    f.count, f.header_bytes, f.parts = 0, ETHERNET_HEADER, 1
    store64(f.headers, head0)
    store64(f.headers + 8, head1)


@compiled
def add_piece(f: Any, addr: int, length: int) -> None:
    """The next of its pieces; the caller keeps to MAX_FRAGMENTS."""
    set_piece(f.pieces, f.count, addr, length)
    f.count += 1


@compiled
def one_piece(f: Any, addr: int, length: int, offload: int, head0: int, head1: int) -> None:
    """A frame that lies in one place."""
    begin_frame(f, length, offload, head0, head1)
    add_piece(f, addr, length)


@compiled
def set_piece(pieces: int, k: int, addr: int, length: int) -> None:
    """Enter piece `k` into a table."""
    store64(pieces + k * PIECE_BYTES, addr)
    store64(pieces + k * PIECE_BYTES + 8, length)


@compiled
def piece_addr(pieces: int, k: int) -> Any:
    """Address of piece `k`."""
    return load64(pieces + k * PIECE_BYTES)


@compiled
def piece_length(pieces: int, k: int) -> Any:
    """Bytes of piece `k`."""
    return load64(pieces + k * PIECE_BYTES + 8)


@compiled
def is_simple(f: Any) -> Any:
    """True if the frame lies in one place and nothing is left to do to it, as most do."""
    return f.count == 1 and f.offload == 0


@compiled
def copy_pieces(source: int, offset: int, n: int, to: int, at: int) -> None:
    """Copy `n` bytes from `offset` of one table of pieces to `at` of another. Both have room for them."""
    s, t = 0, 0
    while n > 0 and offset >= piece_length(source, s):
        offset -= piece_length(source, s)
        s += 1
    while n > 0 and at >= piece_length(to, t):
        at -= piece_length(to, t)
        t += 1
    while n > 0:
        m = min(n, min(piece_length(source, s) - offset, piece_length(to, t) - at))
        memcpy(piece_addr(to, t) + at, piece_addr(source, s) + offset, m)
        n -= m
        offset += m
        at += m
        if offset == piece_length(source, s):
            s, offset = s + 1, 0
        if at == piece_length(to, t):
            t, at = t + 1, 0


@compiled
def scatter(addr: int, n: int, to: int) -> None:
    """Copy `n` bytes from one place to the beginning of a table of pieces."""
    t = 0
    while n > 0:
        m = min(n, piece_length(to, t))
        memcpy(piece_addr(to, t), addr, m)
        addr += m
        n -= m
        t += 1


@outlined
def gather(f: Any, n: int, place: int) -> None:
    """Copy the first `n` bytes of the frame to one place, judged headers first."""
    left, at = n, place
    for k in range(f.count):
        m = min(left, piece_length(f.pieces, k))
        memcpy(at, piece_addr(f.pieces, k), m)
        at += m
        left -= m
    memcpy(place, f.headers, min(n, f.header_bytes))


@outlined
def write_whole(f: Any, to: int) -> None:
    """Copy the frame as it is into a table of pieces that has room for it."""
    own = min(f.header_bytes, f.length)
    copy_pieces(f.pieces, own, f.length - own, to, own)
    scatter(f.headers, own, to)
