"""Reading the counters of all processes of a topology."""

import os
import re
import weakref
from collections.abc import Callable, Set

from hyp.abi.counters import COUNTERS_BYTES, place_of, read_rows
from hyp.control import close_all

_ROW = re.compile(r"[A-Za-z0-9_.:-]+")
"""What rows are called; others are no rows. A guest may call its own anything: other processes' names, escape sequences."""

Follower = Callable[[], int]


class CounterReader:
    """Reads the counters of all processes; they stay readable when their writers are stopped or dead.

    They are read as files and not mapped: a guest can cut its counters off, and who touches a mapping of what is not there any more
    is killed (SIGBUS). What is missing counts as zero.
    """

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds
        weakref.finalize(self, close_all, list(fds.values()))

    @classmethod
    def adopt(cls, keys: list[str], fds: list[int]) -> "CounterReader":
        """A reader of what the keeper's operation `held` gave for ".counters"; the descriptors are the reader's."""
        return cls({key.removesuffix(".counters"): fd for key, fd in zip(keys, fds, strict=True)})

    def _pages(self) -> dict[str, bytes]:
        return {name: self._page(name) for name in self._fds}

    def _page(self, process: str) -> bytes:
        return os.pread(self._fds[process], COUNTERS_BYTES, 0).ljust(COUNTERS_BYTES, b"\0")

    def follow(self, process: str, row: str, column: str) -> Follower:
        """A function that reads one count, and nothing else, as often as one likes. LookupError if there is no such row."""
        at, fd = place_of(self._page(process), row, column), self._fds[process]
        return lambda: int.from_bytes(os.pread(fd, 8, at).ljust(8, b"\0"), "little", signed=True)

    def raw(self, without: Set[str]) -> list[bytes]:
        """All that is counted but by these processes, as it lies in memory: equal to what it was if nothing was counted since."""
        return [self._page(name) for name in self._fds if name not in without]

    def read(self) -> dict[str, dict[str, int]]:
        """``{"process/row": {column: count}}``."""
        return {
            f"{process}/{row}": counts
            for process, page in self._pages().items()
            for row, counts in read_rows(page).items()
            if _ROW.fullmatch(row)
        }
