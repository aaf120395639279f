"""How fast this machine copies memory, against the size of what is copied."""

import statistics

import numpy as np

from hyp.atomics import clock_ns, memcpy
from hyp.kernels import entry, i64

SLICE_NS = 8_000_000
SLICES = 5
ALIGNMENT = 4096


@entry(i64(i64, i64, i64, i64))
def copy_times(destination, source, length, times):
    """Copy `length` bytes `times` times; returns the time taken in ns."""
    start = clock_ns()
    for _ in range(times):
        memcpy(destination, source, length)
    return clock_ns() - start


def copy_bandwidth(working_set: int) -> float:
    """GB/s (bytes copied, counted once) with source and destination together `working_set` bytes; the median of five slices."""
    half = working_set // 2
    memory = np.ones(working_set + ALIGNMENT, np.uint8)  # written, so that every page is there
    source = -(-int(memory.ctypes.data) // ALIGNMENT) * ALIGNMENT
    copy_times(source + half, source, half, 1)
    once = max(copy_times(source + half, source, half, 4) / 4, 1.0)
    times = max(1, round(SLICE_NS / once))
    return statistics.median(half * times / copy_times(source + half, source, half, times) for _ in range(SLICES))
