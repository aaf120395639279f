"""For how long guests have been served, by all control planes together: each guest by one of them at a time, and not all the time.

A guest with one virtual CPU makes one hypercall at a time, and has its own time in between. But hypervisor, keeper and xenstored
are processes of their own: who asks all of them at once would have a share of a CPU from each, and who sends requests without
waiting for answers would keep one busy all the time. So they write down in common until when a guest would have been served if all
its turns had come one after the other, each with twice as much time of its own behind it (`TURNS`). Of one that waits for answers,
and does something with them, that is hardly later than now; where it is by more than LEEWAY_NS, the guest waits
(hyp/control/debt.py).

The pages, a word of 64 bits a domain by its number (ns of the monotonic clock), belong to those three alone. Each adds to it
without a lock, and a turn that is lost by that was none too many. Who dies in a turn has added nothing.
"""

import mmap
import os
from typing import Final, Self

from hyp.abi.domids import DOMID_FIRST_RESERVED

SERVED_BYTES: Final = 8 * DOMID_FIRST_RESERVED
"""Of which those are made that are used."""
LEEWAY_NS: Final = 20_000_000
"""A guest that begins may ask several at once, and one whose turn the scheduler has interrupted has done nothing wrong."""
LONGEST_NS: Final = 10_000_000
"""Of one turn that counts."""
TURNS: Final = 3
"""How often a turn counts: for itself, and twice for the guest's own time."""


def new_pages() -> int:
    """Pages for a topology, as a descriptor: the keeper's."""
    fd = os.memfd_create("served", os.MFD_CLOEXEC)
    os.ftruncate(fd, SERVED_BYTES)
    return fd


class Served:
    """The pages, of all guests. Without a descriptor, of a control plane that knows of no others."""

    def __init__(self, fd: int = -1) -> None:
        self._words = memoryview(mmap.mmap(fd, SERVED_BYTES)).cast("q")

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """The pages that a process was born with; the descriptor is closed."""
        try:
            return cls(fd)
        finally:
            os.close(fd)

    def of(self, domid: int) -> "ServedGuest":
        """One guest's."""
        return ServedGuest(self._words, domid)


class ServedGuest:
    """Until when one guest has been served."""

    __slots__ = ("_domid", "_words")

    def __init__(self, words: "memoryview[int]", domid: int) -> None:
        self._words, self._domid = words, domid

    def add(self, start_ns: int, end_ns: int) -> None:
        """It has had a turn."""
        self._words[self._domid] = max(self._words[self._domid], start_ns) + TURNS * min(end_ns - start_ns, LONGEST_NS)

    def wait_ns(self, now_ns: int) -> int:
        """For how long others serve it still, beyond the leeway."""
        return max(self._words[self._domid] - LEEWAY_NS - now_ns, 0)
