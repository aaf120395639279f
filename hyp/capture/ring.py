"""A ring between a compiled loop, which records frames, and a thread that writes them to a file (recorder.py).

The loop puts whole Enhanced Packet Blocks of pcapng into it, byte after byte, so that the thread has nothing to do for a frame
but to write its bytes. It never waits: a frame for which there is no room is *missed*, and counted.

    loop     writes a block, then `prod` (release); at the end of its batch, if the thread has asked, it notifies
    thread   writes to the file what is between `cons` and `prod`, then stores `cons`; with nothing to do it asks (`asked`), looks
             once more, and sleeps on the eventfd

`prod` and `cons` are counts of bytes that never wrap. A block that the ring's end cuts is put together in `scratch` first.
"""

from typing import Any

import numpy as np

from hyp.atomics import full_fence, load64, load64_acquire, memcpy, notify, record_view, store32_once, store64, store64_release
from hyp.capture.format import ENHANCED_PACKET
from hyp.kernels import compiled, outlined

RING = np.dtype(
    [
        ("prod", "i8"),
        ("cons", "i8"),
        ("asked", "i8"),  # 1: the thread sleeps, or is about to
        ("open", "i8"),  # 0: nobody records; frames are missed
        ("frames", "i8"),  # recorded
        ("missed", "i8"),
        ("lead", "i8"),  # bytes of the file before the first block that was recorded
        # of the process that has it
        ("buffer", "i8"),
        ("bytes", "i8"),  # a power of two
        ("scratch", "i8"),  # LONGEST
        ("fd", "i8"),  # the thread's eventfd
        ("interface", "i8"),  # number in the file
        ("since_1970", "i8"),  # ns from CLOCK_MONOTONIC to the time in the file
    ]
)
PROD, CONS, ASKED = (int(RING.fields[name][1]) for name in ("prod", "cons", "asked"))  # type: ignore[index]
HEAD, TAIL = 28, 4
LONGEST = 1 << 17
NS = 1_000_000_000
ring_at = record_view(RING)


@compiled
def _write_block(at: int, interface: int, ns: int, frame: int, length: int, size: int) -> None:
    store32_once(at, ENHANCED_PACKET)
    store32_once(at + 4, size)
    store32_once(at + 8, interface)
    store32_once(at + 12, (ns >> 32) & 0xFFFF_FFFF)
    store32_once(at + 16, ns & 0xFFFF_FFFF)
    store32_once(at + 20, length)
    store32_once(at + 24, length)
    store32_once(at + size - 8, 0)  # what pads the frame
    memcpy(at + HEAD, frame, length)
    store32_once(at + size - 4, size)


@outlined
def record_frame(ring: int, frame: int, length: int, now_ns: int) -> None:
    """Record a frame that lies in one place, as of `now_ns` of CLOCK_MONOTONIC."""
    k = ring_at(ring)
    size = HEAD + ((length + 3) & ~3) + TAIL
    if k.open == 0 or k.prod - load64_acquire(ring + CONS) + size > k.bytes:
        k.missed += 1
        return
    at = k.prod & (k.bytes - 1)
    if at + size <= k.bytes:
        _write_block(k.buffer + at, k.interface, now_ns + k.since_1970, frame, length, size)
    else:
        _write_block(k.scratch, k.interface, now_ns + k.since_1970, frame, length, size)
        first = k.bytes - at
        memcpy(k.buffer + at, k.scratch, first)
        memcpy(k.buffer, k.scratch + first, size - first)
    k.frames += 1
    store64_release(ring + PROD, k.prod + size)


@outlined
def tell_recorder(ring: int) -> None:
    """End of a batch: wake the thread, if it sleeps."""
    full_fence()
    if load64(ring + ASKED) != 0:
        store64(ring + ASKED, 0)
        notify(ring_at(ring).fd)


def attach_ring(record: Any, buffer: Any, scratch: Any) -> None:
    """Enter a process's own addresses into a RING record."""
    record["buffer"], record["bytes"], record["scratch"] = buffer.ctypes.data, len(buffer), scratch.ctypes.data
