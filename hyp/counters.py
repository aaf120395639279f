"""Counting: private rows that compiled loops add to, committed to the shared counters page once a batch."""

import numpy as np

from hyp.abi.counters import COLUMNS, NAME_BYTES, ROW_BYTES, ROWS
from hyp.atomics import load64, memcpy, store64
from hyp.kernels import compiled
from hyp.memory import Mapping

PRIVATE_ROW_BYTES = COLUMNS * 8


@compiled
def count(row: int, column: int, n: int) -> None:
    """Add `n` to a column of the private row at address `row`."""
    store64(row + 8 * column, load64(row + 8 * column) + n)


@compiled
def commit(row: int, shared: int) -> None:
    """Copy the private row to its place in the shared page."""
    memcpy(shared + NAME_BYTES, row, PRIVATE_ROW_BYTES)


class CounterPage:
    """A process's counters: the shared page and the private rows behind it."""

    def __init__(self, shared: Mapping) -> None:
        self._shared = shared
        self._private = np.zeros((ROWS, COLUMNS), np.int64)
        self._ours: set[int] = set()  # rows that this process counts in

    def row(self, name: str) -> tuple[int, int]:
        """Address of the private and of the shared row `name`. The same name gives the same row.

        ValueError for a name that does not fit: cut, it would be another's, or nobody would find it. LookupError: no row is left.
        """
        encoded = name.encode("ascii")
        if len(encoded) > NAME_BYTES:
            raise ValueError(f"counters row {name!r}: a name has {NAME_BYTES} bytes at most")
        for index in range(ROWS):
            at = index * ROW_BYTES
            there = bytes(self._shared.array[at : at + NAME_BYTES]).rstrip(b"\0")
            if there in (encoded, b""):
                self._shared.array[at : at + len(encoded)] = np.frombuffer(encoded, np.uint8)
                if there and index not in self._ours:  # who had the page before has counted already
                    self._private[index] = self._shared.words("<i8", at + NAME_BYTES, COLUMNS)
                self._ours.add(index)
                return int(self._private[index].ctypes.data), self._shared.address + at
        raise LookupError(f"no counters row is left for {name}")
