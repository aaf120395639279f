"""A viewer's side of a trace ring: its memory, and reading what a loop has told since the last time.

The loop may be a guest's, which can write anything into its ring: nothing is followed that would lead out of what was copied, and
what makes no sense is skipped up to the next block, and counted.
"""

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hyp.abi.trace import (
    ALIGN,
    BLOCK,
    CAPACITY_AT,
    COMMITTED_AT,
    DATA_AT,
    DEFAULT_CAPACITY,
    MAGIC,
    MAGIC_AT,
    RECORD,
    RECORD_BYTES,
    RECORDS_AT,
    RESERVED_AT,
    Moment,
)

Heads = np.ndarray[Any, np.dtype[np.void]]
_SIZES: Final = struct.Struct("<II")
_MOMENT_AT: Final = RECORD.fields["moment"][1]  # type: ignore[index]
_U64: Final = (1 << 64) - 1


@dataclass(slots=True)
class Told:
    """What a loop told, oldest first: `heads` of RECORD, and where each one's frame begins in `data`."""

    heads: Heads
    frames: list[int]
    data: bytes
    missed: int
    """Records, and bytes that made no sense, that were told and not read."""

    def frame(self, k: int) -> bytes:
        """The bytes of record `k`'s frame, as many as were told."""
        return self.data[self.frames[k] : self.frames[k] + int(self.heads[k]["captured"])]


@dataclass(slots=True)
class Copied:
    """What lay in a ring, not looked at yet.

    Data from free-running index `begin` on; of all records that there ever were at least `records` are in front of its end.
    """

    data: bytes
    begin: int
    records: int


class TraceRing:
    """One loop's ring, made here; `fd` is for the loop."""

    def __init__(self, name: str, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 2 * BLOCK or capacity & (capacity - 1):
            raise ValueError(f"a trace ring of {capacity} bytes: a power of two, of at least {2 * BLOCK}")
        self.capacity, self._next, self._accounted = capacity, 0, 0
        self.fd = os.memfd_create(f"xbl.trace.{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, DATA_AT + capacity)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.fd, DATA_AT + capacity)
        for at, value in ((MAGIC_AT, MAGIC), (CAPACITY_AT, capacity)):
            self._map[at : at + 8] = value.to_bytes(8, "little")

    def __enter__(self) -> "TraceRing":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; the loop keeps its own mapping."""
        self._map.close()
        os.close(self.fd)

    def _word(self, at: int) -> int:
        return int.from_bytes(self._map[at : at + 8], "little")

    def read(self) -> Told:
        """What was told since the last call, as far as it is still there."""
        return self.take_apart(self.copy())

    def copy(self) -> Copied:
        """The same, for `take_apart` when there is time: to copy costs next to nothing."""
        records = self._word(RECORDS_AT)  # before what it counts
        committed = self._word(COMMITTED_AT)
        begin = self._next
        if (committed - begin) & _U64 > self.capacity:  # written over, or nonsense
            begin = max(committed - self.capacity + BLOCK - 1, 0) & -BLOCK
        data = self._copy(begin, committed) if begin < committed else b""
        oldest = self._word(RESERVED_AT) - self.capacity
        if data and oldest > begin:  # part of it was written over while it was copied
            keep = min((oldest + BLOCK - 1) & -BLOCK, committed)
            data, begin = data[keep - begin :], keep
        self._next = committed
        return Copied(data, begin, records)

    def take_apart(self, copied: Copied) -> Told:
        """Copies have to come in their order: what neither was in one nor is to come has been missed."""
        frames, nonsense = _records(copied.data, copied.begin)
        at = np.array(frames, np.int64)
        heads = np.frombuffer(copied.data, np.uint8)[at[:, None] + np.arange(RECORD_BYTES)].reshape(-1).view(RECORD)
        told = (copied.records - self._accounted) & _U64  # huge if more were found than were counted when it was copied
        missed = max(told - len(frames), 0) if told < 1 << 40 else 0
        self._accounted += len(frames) + missed
        return Told(heads, [begin + RECORD_BYTES for begin in frames], copied.data, missed + nonsense)

    def _copy(self, begin: int, end: int) -> bytes:
        """The data from `begin` to `end`, free-running, which are at most the capacity apart."""
        first, n = begin % self.capacity, end - begin
        until = min(first + n, self.capacity)
        return self._map[DATA_AT + first : DATA_AT + until] + self._map[DATA_AT : DATA_AT + n - (until - first)]


def _records(data: bytes, begin: int) -> tuple[list[int], int]:
    """Where the records are in what was copied from `begin` on; and how many bytes make no sense."""
    found, at, nonsense = [], 0, 0
    while at + RECORD_BYTES <= len(data):
        size, captured = _SIZES.unpack_from(data, at)
        room = min(BLOCK - (begin + at) % BLOCK, len(data) - at)
        if size < RECORD_BYTES or size % ALIGN or size > room or captured > size - RECORD_BYTES:
            nonsense += room
            at += room
            continue
        moment = int.from_bytes(data[at + _MOMENT_AT : at + _MOMENT_AT + 2], "little")
        if Moment.PAD < moment <= max(Moment):
            found.append(at)
        elif moment != Moment.PAD:
            nonsense += size
        at += size
    return found, nonsense
