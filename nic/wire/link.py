"""One direction of the wire: a link with a bit rate and a delay. Private to its engine.

A frame goes onto the link when those before it have left; it takes the time of (length + `OVERHEAD`) bytes, and arrives
`delay_ns` after its last bit left. From launch to arrival it lies in the *line*, a ring of bytes in order of launch::

    entry: 0 arrival (ns), 8 length (−1: nothing, go on at the ring's start), 16 kind, 32.. the frame; a multiple of 64 bytes

Frames that wait for the link to be free are its FIFO: at most `FIFO_BYTES` and one frame. Whoever finds the FIFO or the line
full waits; nothing is dropped. Time is kept in ns and fs, so that the rate is exact whatever the length of a frame.
"""

import numpy as np

from hyp.abi.nic import LINK_HEADER, MAX_MTU
from hyp.atomics import load64, record_view, store64
from hyp.kernels import compiled

OVERHEAD = 24  # bytes: preamble 8, frame check sequence 4, gap 12
FIFO_BYTES = 256 * 1024  # as much as NICs have; at 10 Gbit/s 210 µs, of which half is there to sleep in
LINE_BYTES = 1 << 20
ENTRY_ARRIVAL, ENTRY_LENGTH, ENTRY_KIND, ENTRY_FRAME = 0, 8, 16, 32
SENT, GENERATED, REFLECTED = 0, 1, 2  # kinds of frames on a link
FS = 1_000_000  # in a ns
MAX_ENTRY = (ENTRY_FRAME + MAX_MTU + LINK_HEADER + 63) & ~63

LINK = np.dtype(
    [
        ("line", "i8"),  # LINE_BYTES
        ("head", "i8"),  # free-running offsets: of the oldest entry, and where the next one goes
        ("tail", "i8"),
        ("fs_per_byte", "i8"),  # 0: no limit
        ("delay_ns", "i8"),
        ("fifo_ns", "i8"),  # how long a full FIFO takes to leave
        ("free_ns", "i8"),  # when the last bit of all that was launched has left, and fs after that
        ("free_fs", "i8"),
        ("last_ns", "i8"),  # when the last frame launched arrives
    ]
)
LINK_BYTES = LINK.itemsize
link_at = record_view(LINK)


@compiled
def set_link(k, fs_per_byte, delay_ns) -> None:
    """Change rate and delay. What was launched before arrives as it would have, and in front of what is launched now."""
    k.fs_per_byte, k.delay_ns = fs_per_byte, delay_ns
    k.fifo_ns = fs_per_byte * FIFO_BYTES // FS


@compiled
def is_direct(k) -> bool:
    """True if the link neither holds nor delays anything."""
    return k.fs_per_byte == 0 and k.delay_ns == 0 and k.head == k.tail


@compiled
def _has_storage(k) -> bool:
    """For a frame of any length, and a skip to the line's start in front of it."""
    return LINE_BYTES - (k.tail - k.head) >= 2 * MAX_ENTRY


@compiled
def takes(k, now) -> bool:
    """True if a frame may be launched."""
    return k.free_ns - now <= k.fifo_ns and _has_storage(k)


@compiled
def is_congested(k, now) -> bool:
    """True while who found the link full should go on waiting: until half of its FIFO has left."""
    return 2 * (k.free_ns - now) > k.fifo_ns or not _has_storage(k)


@compiled
def room_at(k, drained_at):
    """When the link has stopped being congested (ns; may have passed). `drained_at`: when its oldest frame leaves the line."""
    at = k.free_ns - (k.fifo_ns >> 1)
    return at if _has_storage(k) else max(at, drained_at)


@compiled
def room_for_frame(k):
    """Where the next frame is to be written, which `launch` must follow. The link takes it: the caller has asked."""
    within = k.tail & (LINE_BYTES - 1)
    if within + MAX_ENTRY > LINE_BYTES:
        store64(k.line + within + ENTRY_LENGTH, -1)
        k.tail += LINE_BYTES - within
        within = 0
    return k.line + within + ENTRY_FRAME


@compiled
def launch(k, now, length, kind) -> None:
    """Send off the frame of `length` bytes that was written to `room_for_frame`."""
    if k.free_ns < now:
        k.free_ns, k.free_fs = now, 0
    fs = k.free_fs + (length + OVERHEAD) * k.fs_per_byte
    k.free_ns += fs // FS
    k.free_fs = fs % FS
    k.last_ns = max(k.last_ns, k.free_ns + k.delay_ns)
    entry = k.line + (k.tail & (LINE_BYTES - 1))
    store64(entry + ENTRY_ARRIVAL, k.last_ns)
    store64(entry + ENTRY_LENGTH, length)
    store64(entry + ENTRY_KIND, kind)
    k.tail += _entry_bytes(length)


@compiled
def _entry_bytes(length: int) -> int:
    return (ENTRY_FRAME + length + 63) & ~63


@compiled
def oldest(k):
    """Address of the oldest entry on the line, or 0."""
    if k.head == k.tail:
        return 0
    within = k.head & (LINE_BYTES - 1)
    if load64(k.line + within + ENTRY_LENGTH) < 0:
        k.head += LINE_BYTES - within
        within = 0
    return k.line + within


@compiled
def retire(k) -> None:
    """Take the oldest entry off the line."""
    k.head += _entry_bytes(load64(k.line + (k.head & (LINE_BYTES - 1)) + ENTRY_LENGTH))
