"""The loops' side of a trace ring. Compiled.

A loop that nobody looks at loads one word of its own where it has done something with frames, and that is all (`tracer_of`). Where
somebody does, it tells of each frame, or of those that are sampled: by their *key*, so that a frame is told of at every hop or at
none. A test frame's key is its stream and its number; another one's is a hash of its first bytes, which stays as long as these do:
not across segmentation, which makes other frames of it. Checksums are left out, as an offload fills them in on the way.
"""

from typing import Any

import numpy as np

from hyp.abi.fragment import LENGTH_MASK, MORE, OFFLOAD_MASK
from hyp.abi.frame import SEQUENCE, STREAM
from hyp.abi.trace import (
    ALIGN,
    BLOCK,
    COMMITTED_AT,
    DATA_AT,
    NOWHERE,
    RECORD,
    RECORD_BYTES,
    RECORDS_AT,
    RESERVED_AT,
    Moment,
)
from hyp.atomics import (
    clock_ns,
    load8,
    load16,
    load64,
    memcpy,
    memzero,
    prefetch_frame_for_write,
    record_view,
    release_fence,
    store32,
    store64_once,
    store64_release,
)
from hyp.events import wait_at
from hyp.kernels import compiled, outlined
from hyp.load.frames import is_test_frame

TRACER = np.dtype([
    ("ring", "i8"),  # address of the trace ring
    ("mask", "i8"),  # its capacity less 1
    ("head", "i8"),  # data in front of it is written
    ("reserved", "i8"),  # data up to here may have been overwritten: more than is written, when a frame was not sampled after all
    ("records", "i8"),
    ("every", "i8"),  # frames whose key has none of these bits are told of: 0 all, 2^k − 1 one in 2^k
    ("snap", "i8"),  # bytes of a frame that are told, at least LOOKED_AT
    ("wait", "i8"),  # the loop's WAIT record
])  # fmt: skip
"""A loop's private state of its telling."""
tracer_at = record_view(TRACER)

LOOKED_AT = 64
"""Bytes that the key of a frame depends on."""
PAD, POSTED, TAKEN, PASSED, DROPPED, RECEIVED = (int(moment) for moment in Moment)
PIECE_BYTES = 16  # address, and a word whose lower part is the length: of a burst (domu/device.py), of a frame's pieces

_SIZE, _CAPTURED, _TIME, _KEY, _LENGTH, _MOMENT, _DROP, _PORT, _OTHER, _OFFLOAD, _NUMBER, _WOKEN = (
    RECORD.fields[name][1]  # type: ignore[index]
    for name in RECORD.names or ()
    if name != "spare"
)
_NUMBERED = (1 << 47) - 1
_HASHED = -(1 << 63)
_IPV4, _IPV6, _TCP, _UDP = 0x0008, 0xDD86, 6, 17  # EtherTypes as a little-endian load sees them


@compiled
def _word(addr: int, at: int, there: int) -> int:
    """Eight bytes of a frame from `at` on; zero beyond its end."""
    if at + 8 <= there:
        return load64(addr + at)
    word = 0
    for k in range(at, there):
        word |= load8(addr + k) << (8 * (k - at))
    return word


@compiled
def _without_checksums(word: int, at: int, kind: int, protocol: int) -> int:
    """The word at `at` without the bytes of a checksum of IP, TCP or UDP, if it has some."""
    if kind == _IPV4:
        if at == 24 or (at == 40 and protocol == _UDP):  # the header's own; UDP's
            return word & ~0xFFFF
        if at == 48 and protocol == _TCP:
            return word & ~0xFFFF_0000
    elif kind == _IPV6 and at == 56 and protocol == _UDP:
        return word & ~0xFFFF_0000_0000
    return word


@compiled
def key_of(addr: int, there: int) -> int:
    """The key of a frame of which `there` bytes are at `addr`."""
    if is_test_frame(addr, there):
        return (load16(addr + STREAM) << 47) | (load64(addr + SEQUENCE) & _NUMBERED)
    there = min(there, LOOKED_AT)
    kind = load16(addr + 12) if there >= 14 else 0
    protocol = 0
    if there >= 24:
        protocol = load8(addr + 23) if kind == _IPV4 else load8(addr + 20)
    mixed = kind + 1
    for at in range(16, LOOKED_AT, 8):
        if at < there:
            mixed = (mixed ^ _without_checksums(_word(addr, at, there), at, kind, protocol)) * 0x2545F4914F6CDD1D
            mixed ^= (mixed >> 29) & 0x7_FFFF_FFFF
    return mixed | _HASHED


@compiled
def is_passed_over(tracer: int, addr: int, there: int) -> bool:
    """It is a test frame, and not among those that are sampled: two loads, where a key would take many."""
    return is_test_frame(addr, there) and load64(addr + SEQUENCE) & tracer_at(tracer).every != 0


@compiled
def sampled_of_run(tracer: int, n: int, first: int, first_bytes: int, last: int, last_bytes: int) -> tuple[int, int]:
    """Of a run of `n` frames, by the first and the last of it: (the first to be looked at, how far it is to the next).

    If these are test frames of one stream, n − 1 numbers apart, so are those in between, and it is known which of them are
    sampled. Otherwise each has to be looked at. A sender of frames that only look so misses records of its own.
    """
    every = tracer_at(tracer).every
    if every > 0 and n > 1 and is_test_frame(first, first_bytes) and is_test_frame(last, last_bytes):
        sequence = load64(first + SEQUENCE)
        if load64(last + SEQUENCE) - sequence == n - 1 and load16(first + STREAM) == load16(last + STREAM):
            return -sequence & every, every + 1
    return 0, 1


@compiled
def _begin(t: Any, captured: int) -> int:
    """Address of the next record, with room for so many bytes of the frame."""
    size = (RECORD_BYTES + captured + ALIGN - 1) & -ALIGN
    left = BLOCK - (t.head & (BLOCK - 1))
    skipped = left if size > left else 0
    t.reserved = max(t.reserved, t.head + skipped + size)
    store64_once(t.ring + RESERVED_AT, t.reserved)
    release_fence()  # whoever sees anything of the record sees that
    if skipped > 0:
        pad = t.ring + DATA_AT + (t.head & t.mask)
        store32(pad + _SIZE, skipped)
        store32(pad + _CAPTURED, 0)
        store32(pad + _MOMENT, PAD)
        t.head += skipped
    at: int = t.ring + DATA_AT + (t.head & t.mask)
    store32(at + _SIZE, size)
    store32(at + _CAPTURED, captured)
    return at


@compiled
def _end(
    t: Any, at: int, captured: int, key: int, moment: int, port: int, other: int, drop: int, length: int, offload: int
) -> None:
    """Fill in the record that `_begin` gave, and commit it."""
    store64_once(at + _TIME, clock_ns())
    store64_once(at + _KEY, key)
    store32(at + _LENGTH, length)
    store32(at + _MOMENT, moment | (drop << 16))
    store32(at + _PORT, port)
    store32(at + _OTHER, other)
    store32(at + _OFFLOAD, offload)
    store32(at + _NUMBER, t.records)
    store64_once(at + _WOKEN, wait_at(t.wait).woken_ns)
    t.head += (RECORD_BYTES + captured + ALIGN - 1) & -ALIGN
    t.records += 1
    store64_release(t.ring + COMMITTED_AT, t.head)
    store64_once(t.ring + RECORDS_AT, t.records)
    prefetch_frame_for_write(t.ring + DATA_AT + (t.head & t.mask), RECORD_BYTES + LOOKED_AT)  # a viewer has the next one's lines


@outlined
def trace_frame(
    tracer: int, moment: int, port: int, other: int, drop: int, addr: int, there: int, length: int, offload: int
) -> None:
    """Tell of a frame of `length` bytes, of which the first `there` lie in one place."""
    if is_passed_over(tracer, addr, there):
        return
    t = tracer_at(tracer)
    key = key_of(addr, there)
    if key & t.every == 0:
        captured = min(there, t.snap)
        at = _begin(t, captured)
        memcpy(at + RECORD_BYTES, addr, captured)
        _end(t, at, captured, key, moment, port, other, drop, length, offload)


@outlined
def trace_pieces(
    tracer: int, moment: int, port: int, other: int, drop: int, pieces: int, count: int, length: int, offload: int
) -> None:
    """Tell of a frame that lies in `count` pieces: a table of addresses and lengths, whose sum is `length` or less."""
    if count > 0 and is_passed_over(tracer, load64(pieces), load64(pieces + 8) & LENGTH_MASK):
        return
    t = tracer_at(tracer)
    most, captured = min(length, t.snap), 0
    at = _begin(t, most)
    for k in range(count):
        n = min(load64(pieces + k * PIECE_BYTES + 8) & LENGTH_MASK, most - captured)
        memcpy(at + RECORD_BYTES + captured, load64(pieces + k * PIECE_BYTES), n)
        captured += n
    key = key_of(at + RECORD_BYTES, captured)
    if key & t.every == 0:
        memzero(at + RECORD_BYTES + captured, most - captured)
        _end(t, at, most, key, moment, port, other, drop, length, offload)


@outlined
def trace_burst(tracer: int, moment: int, queue: int, burst: int, n: int) -> None:
    """Tell of the frames of a device's burst of `n` fragments (domu/device.py)."""
    if n == 0:
        return
    end = burst + (n - 1) * PIECE_BYTES
    k, step = sampled_of_run(tracer, n, load64(burst), load64(burst + 8) & LENGTH_MASK, load64(end), load64(end + 8) & LENGTH_MASK)
    while k < n:
        word = load64(burst + k * PIECE_BYTES + 8)
        offload, length, last = (word & OFFLOAD_MASK) >> 32, word & LENGTH_MASK, k
        while word & MORE != 0 and last + 1 < n:
            last += 1
            word = load64(burst + last * PIECE_BYTES + 8)
            length += word & LENGTH_MASK
        if length > 0:  # else it is a buffer without a frame
            if last == k:
                trace_frame(tracer, moment, queue, NOWHERE, 0, load64(burst + k * PIECE_BYTES), length, length, offload)
            else:
                trace_pieces(tracer, moment, queue, NOWHERE, 0, burst + k * PIECE_BYTES, last - k + 1, length, offload)
        k = last + step
