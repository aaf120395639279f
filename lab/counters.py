"""Reading the counters of all processes of a topology."""

import os
import weakref

from hyp.abi.counters import COUNTERS_BYTES, read_rows
from hyp.control import close_all


class CounterReader:
    """Reads the counters of all processes; they stay readable when their writers are stopped or dead.

    They are read, not mapped: a guest can cut its own short, which is nobody else's end that way. What it has cut off is 0.
    """

    def __init__(self, files: dict[str, int]) -> None:
        self._files = files
        self._closed = weakref.finalize(self, close_all, list(files.values()))

    @classmethod
    def adopt(cls, keys: list[str], fds: list[int]) -> "CounterReader":
        """A reader of what the keeper's operation `held` gave for ".counters". The descriptors are its own from here on."""
        return cls(dict(zip((key.removesuffix(".counters") for key in keys), fds, strict=True)))

    def raw(self) -> list[bytes]:
        """All that is counted, as it lies in memory: equal to what it was before if nothing was counted in between."""
        return [self._read(fd) for fd in self._files.values()]

    def read(self) -> dict[str, dict[str, int]]:
        """``{"process/row": {column: count}}``."""
        return {
            f"{process}/{row}": counts for process, fd in self._files.items() for row, counts in read_rows(self._read(fd)).items()
        }

    @staticmethod
    def _read(fd: int) -> bytes:
        return os.pread(fd, COUNTERS_BYTES, 0).ljust(COUNTERS_BYTES, b"\0")
