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
    """What lay in a ring, not looked at yet: data from free-running index `begin` on, and how many records were told since."""

    data: bytes
    begin: int
    told: int


class TraceRing:
    """One loop's ring, made here; `fd` is for the loop."""

    def __init__(self, name: str, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 2 * BLOCK or capacity & (capacity - 1):
            raise ValueError(f"a trace ring of {capacity} bytes: a power of two, of at least {2 * BLOCK}")
        self.capacity, self._next, self._seen = capacity, 0, 0
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
        return records_in(self.copy())

    def copy(self) -> Copied:
        """The same, for `records_in` to take apart when there is time: to copy costs next to nothing."""
        committed, records = self._word(COMMITTED_AT), self._word(RECORDS_AT)
        begin = self._next
        if (committed - begin) & _U64 > self.capacity:  # written over, or nonsense
            begin = max(committed - self.capacity + BLOCK - 1, 0) & -BLOCK
        data = self._copy(begin, committed) if begin < committed else b""
        oldest = self._word(RESERVED_AT) - self.capacity
        if data and oldest > begin:  # part of it was written over while it was copied
            keep = min((oldest + BLOCK - 1) & -BLOCK, committed)
            data, begin = data[keep - begin :], keep
        self._next = committed
        told = (records - self._seen) & _U64
        self._seen = records
        return Copied(data, begin, told)

    def _copy(self, begin: int, end: int) -> bytes:
        """The data from `begin` to `end`, free-running, which are at most the capacity apart."""
        first, n = begin % self.capacity, end - begin
        until = min(first + n, self.capacity)
        return self._map[DATA_AT + first : DATA_AT + until] + self._map[DATA_AT : DATA_AT + n - (until - first)]


def records_in(copied: Copied) -> Told:
    """Take apart what was copied."""
    frames, nonsense = _records(copied.data, copied.begin)
    at = np.array(frames, np.int64)
    heads = np.frombuffer(copied.data, np.uint8)[at[:, None] + np.arange(RECORD_BYTES)].reshape(-1).view(RECORD)
    missed = max(copied.told - len(frames), 0) if copied.told < 1 << 40 else 0
    return Told(heads, [begin + RECORD_BYTES for begin in frames], copied.data, missed + nonsense)


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
