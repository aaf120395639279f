"""The Toeplitz hash of a frame, by which a front end with hash control has what it receives spread over its queues.

Sources: Xen's io/netif.h (hash types, extra info), Microsoft's "RSS Hashing Types"; Linux's xen-netback (hash.c) where they leave
something open. What is hashed, in network order, is the longest of these of which the packet has all and the front end wants one:

======================  =================================================
CTRL_HASH_TYPE_IPV4     both addresses, source first
..._IPV4_TCP            the same, and both ports; of a fragment never
CTRL_HASH_TYPE_IPV6     both addresses
..._IPV6_TCP            the same, and both ports; the TCP header follows the fixed one
======================  =================================================

All others have the hash 0 and no type. As for the flow hash (hyp/offload/flow.py) headers are read in the first fragment only, and
what they say decides on a queue and on nothing else.

The hash is linear: that of some bytes is the XOR of each half byte's. So a key is a table (`key_table`), and a frame takes two
looks at it for each byte.
"""

from typing import Any

import numpy as np

from hyp.abi.netif import (
    CTRL_HASH_ALGORITHM_TOEPLITZ,
    CTRL_HASH_TYPE_IPV4,
    CTRL_HASH_TYPE_IPV4_TCP,
    CTRL_HASH_TYPE_IPV6,
    CTRL_HASH_TYPE_IPV6_TCP,
    EXTRA_TYPE_HASH,
)
from hyp.atomics import load8, load16, load32, record_view
from hyp.kernels import compiled, outlined
from hyp.offload.checksum import swap16
from hyp.offload.flow import FRAGMENT_BITS, IP
from hyp.offload.headers import IPV4, IPV6, TCP

KEY_BYTES = 40
"""Of the longest key: 32 bits, and one for each bit but the first of the longest input."""
INPUT_BYTES = 36
NO_TYPE = -1

HASHING = np.dtype(
    [
        ("types", "i8"),  # CTRL_HASH_TYPE_* that are wanted
        ("key", "i8"),  # address of a `key_table`
        ("size", "i8"),  # entries of the mapping; 0: the hash modulo the number of queues
        ("mapping", "i8"),  # address of that: the queue (u32) for each remainder of the hash
    ]
)
"""How a front end wants to be hashed for. Never changed: who wants another makes another."""
hashing_at = record_view(HASHING)


def key_table(key: bytes) -> "np.ndarray[tuple[int, int], np.dtype[np.uint32]]":
    """What each half byte of the input adds to the hash: [2 INPUT_BYTES, 16]. The key is followed by zeros."""
    bits = int.from_bytes(key[:KEY_BYTES].ljust(KEY_BYTES, b"\0"), "big")
    windows = np.array([bits >> (8 * KEY_BYTES - 32 - k) & 0xFFFF_FFFF for k in range(8 * INPUT_BYTES)], np.uint32)
    values = np.arange(16)
    table = np.zeros((2 * INPUT_BYTES, 16), np.uint32)
    for k in range(4):
        table ^= np.where(values & (8 >> k), windows[k::4, np.newaxis], np.uint32(0))
    return table


@compiled
def _hash_of(key: int, addr: int, n: int, at: int) -> int:
    """What `n` bytes that are the input from byte `at` on add to the hash."""
    value = 0
    for k in range(n):
        byte, row = load8(addr + k), key + 128 * (at + k)
        value ^= load32(row + 4 * (byte >> 4)) ^ load32(row + 64 + 4 * (byte & 15))
    return value


@outlined
def toeplitz_hash(h: Any, kind: int, addr: int, length: int) -> Any:
    """(hash: 32 bits, number of its type or NO_TYPE) of a frame.

    `h`: a HASHING. `kind`: EtherType. `addr`, `length`: the frame's first fragment, of which no byte more is read.
    """
    if kind == IPV4 and length >= IP + 20 and load8(addr + IP) >> 4 == 4 and load8(addr + IP) & 15 >= 5:
        ports = IP + 4 * (load8(addr + IP) & 15)
        whole = load16(addr + IP + 6) & FRAGMENT_BITS == 0
        if h.types & CTRL_HASH_TYPE_IPV4_TCP and load8(addr + IP + 9) == TCP and whole and ports + 4 <= length:
            return _hash_of(h.key, addr + IP + 12, 8, 0) ^ _hash_of(h.key, addr + ports, 4, 8), 1
        if h.types & CTRL_HASH_TYPE_IPV4:
            return _hash_of(h.key, addr + IP + 12, 8, 0), 0
    if kind == IPV6 and length >= IP + 40 and load8(addr + IP) >> 4 == 6:
        if h.types & CTRL_HASH_TYPE_IPV6_TCP and load8(addr + IP + 6) == TCP and length >= IP + 44:
            return _hash_of(h.key, addr + IP + 8, INPUT_BYTES, 0), 3
        if h.types & CTRL_HASH_TYPE_IPV6:
            return _hash_of(h.key, addr + IP + 8, 32, 0), 2
    return 0, NO_TYPE


@compiled
def steer(h: Any, head1: int, addr: int, length: int, queues: int) -> Any:
    """(queue of so many, extra info that tells of the hash or 0 if there is none), for arguments as of `flow_hash`."""
    value, type_ = toeplitz_hash(h, swap16((head1 >> 32) & 0xFFFF), addr, length)
    queue = value % queues if h.size == 0 else load32(h.mapping + 4 * (value % h.size))
    return queue, 0 if type_ == NO_TYPE else _extra_info(value, type_)


@compiled
def _extra_info(value: int, type_: int) -> int:
    return EXTRA_TYPE_HASH | (type_ << 16) | (CTRL_HASH_ALGORITHM_TOEPLITZ << 24) | (value << 32)
