"""The submitter's side of a ring, compiled: fill in a batch, enter the kernel once, and read what each request came to."""

from typing import Any

import numpy as np

from hyp.abi.io_uring import CQE_BYTES, ENTER_GETEVENTS, FIXED_FILE, NOWAIT, SQE_BYTES, SYS_ENTER
from hyp.atomics import load32, load32_acquire, load64, record_view, store32_release, store64, sys_syscall, u32_add, u32_sub
from hyp.kernels import compiled
from hyp.uring.ring import Ring

URING = np.dtype(
    [
        ("fd", "i8"),  # −1: there is none, or it failed
        ("entries", "i8"),
        ("sqes", "i8"),
        ("sq_tail", "i8"),  # address of the index that we publish, and its value
        ("tail", "i8"),
        ("sq_mask", "i8"),
        ("cqes", "i8"),
        ("cq_head", "i8"),
        ("head", "i8"),
        ("cq_tail", "i8"),
        ("cq_mask", "i8"),
        ("results", "i8"),  # address of `entries` i64: of each request of the last batch
    ]
)
uring_at = record_view(URING)
NOT_DONE = -(1 << 31)
"""The result of a request that the kernel did not take."""


class Batches:
    """A ring's record for compiled code, at `address`. `ring`: None, and the record says that there is none.

    `outcomes` has what `outcome` tells, of the last batch.
    """

    def __init__(self, ring: Ring | None) -> None:
        self._ring = ring
        self._record = np.zeros(1, URING)
        self.address = int(self._record.ctypes.data)
        row = self._record[0]
        row["fd"] = -1
        if ring is None:
            return
        row["entries"] = ring.sq_mask + 1
        self.outcomes = np.zeros(ring.sq_mask + 1, np.int64)
        row["results"] = self.outcomes.ctypes.data
        for name in ("fd", "sqes", "sq_tail", "sq_mask", "cqes", "cq_head", "cq_tail", "cq_mask"):
            row[name] = getattr(ring, name)

    @property
    def broken(self) -> bool:
        """True if the kernel has failed to take a batch."""
        return self._ring is not None and bool(self._record[0]["fd"] < 0)


@compiled
def set_request(u: Any, k: int, operation: int, iovecs: int, count: int) -> None:
    """Let request `k` of the next batch be a readv or writev of `count` iovecs that does not wait: EAGAIN where it would.

    The rest of an entry is zero for good.
    """
    entry = u.sqes + (u32_add(u.tail, k) & u.sq_mask) * SQE_BYTES
    store64(entry, operation | (FIXED_FILE << 8))  # opcode, flags; file 0
    store64(entry + 8, -1)  # no position
    store64(entry + 16, iovecs)
    store64(entry + 24, count | (NOWAIT << 32))  # length, rw_flags
    store64(entry + 32, k)  # user_data


@compiled
def run_batch(u: Any, n: int) -> None:
    """Have requests 0 to n − 1 carried out, in that order; `outcome` tells of each.

    If the kernel fails to take one, those from it on are NOT_DONE and the ring is not used again: `u.fd` is −1.
    """
    for k in range(n):
        store64(u.results + 8 * k, NOT_DONE)
    u.tail = u32_add(u.tail, n)
    store32_release(u.sq_tail, u.tail)
    submitted, completed = 0, 0
    while completed < n:
        entered = sys_syscall(SYS_ENTER, u.fd, n - submitted, n - completed, ENTER_GETEVENTS, 0, 0)
        submitted += max(entered, 0)
        reaped = _reap(u)
        completed += reaped
        if entered <= 0 and reaped == 0:
            u.fd = -1
            break


@compiled
def _reap(u: Any) -> Any:
    """Take the completions that are there. Returns how many."""
    first, tail = u.head, load32_acquire(u.cq_tail)
    while u.head != tail:
        completion = u.cqes + (u.head & u.cq_mask) * CQE_BYTES
        result = load32(completion + 8)
        store64(u.results + 8 * load64(completion), result - ((result & 0x80000000) << 1))
        u.head = u32_add(u.head, 1)
    store32_release(u.cq_head, u.head)
    return u32_sub(u.head, first)


@compiled
def outcome(u: Any, k: int) -> Any:
    """What request `k` of the last batch came to: bytes, −errno or NOT_DONE."""
    return load64(u.results + 8 * k)
