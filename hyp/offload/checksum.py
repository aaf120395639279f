"""The Internet checksum (RFC 1071), over one place or over pieces. Sums are of 16-bit words in the machine's byte order.

The one's complement sum doesn't care about byte order: what is summed and stored as the machine has it, is right on the wire.
"""

from hyp.atomics import load8, load16, load32
from hyp.kernels import compiled
from hyp.offload.frame import piece_addr, piece_length


@compiled
def swap16(value: int) -> int:
    """A 16-bit number in the other byte order."""
    return ((value & 0xFF) << 8) | ((value >> 8) & 0xFF)


@compiled
def sum_bytes(addr: int, n: int) -> int:
    """Sum over `n` bytes; an odd one at the end is followed by zero. No more than 2^16 words: it can't overflow."""
    total, words = 0, n >> 2
    for k in range(words):
        total += load32(addr + 4 * k)
    if n & 2:
        total += load16(addr + 4 * words)
    if n & 1:
        total += load8(addr + n - 1)
    return total


@compiled
def folded(total: int) -> int:
    """A sum as 16 bits."""
    total = (total & 0xFFFF_FFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@compiled
def sum_pieces(pieces: int, offset: int, n: int) -> int:
    """Sum over `n` bytes from `offset` on of a table of pieces; of a piece that begins within a word the bytes change places."""
    k, total, odd = 0, 0, 0
    while n > 0 and offset >= piece_length(pieces, k):
        offset -= piece_length(pieces, k)
        k += 1
    while n > 0:
        m = min(n, piece_length(pieces, k) - offset)
        part = folded(sum_bytes(piece_addr(pieces, k) + offset, m))
        total += swap16(part) if odd else part
        odd ^= m & 1
        n -= m
        offset = 0
        k += 1
    return total
