"""Histograms of times: log-linear buckets with a bounded relative error, as HdrHistogram's.

Times from 0 to 2 × `SUB` − 1 ns have a bucket each; from there on every power of two has `SUB` buckets of equal width. A bucket
stands for the longest time that falls into it, which is at most 1/SUB more than any other. Times of 2^TOP ns (18 minutes) and
more count as the longest that there is. A histogram is `BUCKETS` counts, i8 each; histograms are merged by addition.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from hyp.atomics import leading_zeros, load64, store64
from hyp.kernels import compiled

SUB_BITS = 5
SUB = 1 << SUB_BITS
TOP = 40
BUCKETS = (TOP - SUB_BITS + 1) * SUB
LONGEST = (1 << TOP) - 1
HISTOGRAM_BYTES = 8 * BUCKETS

Counts = np.ndarray[Any, np.dtype[np.int64]]


@compiled
def bucket_of(ns: int) -> int:
    """The bucket that a time falls into."""
    ns = min(max(ns, 0), LONGEST)
    shift: int = max(64 - leading_zeros(ns) - (SUB_BITS + 1), 0)
    return shift * SUB + (ns >> shift)


@compiled
def record(histogram: int, ns: int) -> None:
    """Count one time in the histogram at address `histogram`."""
    at = histogram + 8 * bucket_of(ns)
    store64(at, load64(at) + 1)


def histogram_of(times: Counts) -> Counts:
    """The histogram of an array of times in ns."""
    times = np.clip(times, 0, LONGEST)
    shift = np.maximum(np.frexp(times.astype(np.float64))[1].astype(np.int64) - (SUB_BITS + 1), 0)
    return np.bincount(shift * SUB + (times >> shift), minlength=BUCKETS).astype(np.int64)


def bounds() -> tuple[Counts, Counts]:
    """The shortest and the longest time of each bucket, in ns."""
    bucket = np.arange(BUCKETS, dtype=np.int64)
    shift = np.maximum(bucket // SUB - 1, 0)
    low = (bucket - shift * SUB) << shift
    return low, low + (1 << shift) - 1


def percentile(counts: Counts, q: float) -> int:
    """The time in ns that `q` per cent of those counted do not exceed, as the longest of its bucket; 0 if none was counted."""
    total = int(counts.sum())
    if total == 0:
        return 0
    rank = min(max(int(np.ceil(total * (q / 100))), 1), total)
    return int(bounds()[1][np.searchsorted(np.cumsum(counts), rank)])


def sparse(counts: Counts) -> list[list[int]]:
    """``[[longest ns of the bucket, count], …]`` of the buckets that are not empty, shortest first."""
    longest = bounds()[1]
    return [[int(longest[bucket]), int(counts[bucket])] for bucket in np.flatnonzero(counts)]


def dense(pairs: Iterable[Iterable[int]]) -> Counts:
    """The inverse of `sparse`; pairs of several histograms, one after the other, give their sum."""
    counts = np.zeros(BUCKETS, np.int64)
    for ns, n in pairs:
        counts += n * histogram_of(np.array([ns]))
    return counts


def summary(counts: Counts, longest_ns: int) -> dict[str, Any]:
    """A histogram for a report: p50, p90, p99, p999, max (`longest_ns`, exact), in ns, and ``counts`` as `sparse` gives them."""
    ranks = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
    found: dict[str, Any] = {name: min(percentile(counts, q), longest_ns) for name, q in ranks.items()}
    return {**found, "max": longest_ns, "counts": sparse(counts)}
