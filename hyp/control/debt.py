"""What waking a peer costs a control plane, and what follows: as hyp/events.py has it for compiled loops.

Who sends to a socket, or makes an upcall ready, pays for every place at which the peer polls it. CPU time beyond `FAIR_NS` is the
peer's debt, paid off by `DEARNESS` times as much time. While it owes more than `CREDIT_NS` of that, nothing is sent to it: what is
to be sent stays with its sender, who goes on after `wait_s`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hyp.abi.evtchn import CREDIT_NS, DEARNESS

FAIR_NS = 100_000
"""Of Python and a system call: more than a compiled loop's."""


class Debt:
    """A peer's."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, used: Callable[[], int] = time.thread_time_ns) -> None:
        self._clock, self._used, self._until = clock, used, 0

    def wait_s(self) -> float:
        """For how long nothing is to be sent to it; 0: it may be."""
        return max(self._until - CREDIT_NS - self._clock(), 0) / 1e9

    def owe(self, beyond_ns: int) -> None:
        """It has cost so much more than is fair."""
        if beyond_ns > 0:
            self._until = max(self._until, self._clock()) + DEARNESS * beyond_ns

    @contextmanager
    def pays(self) -> Iterator[None]:
        """What is done here wakes it."""
        before = self._used()
        try:
            yield
        finally:
            self.owe(self._used() - before - FAIR_NS)


NO_DEBT = Debt(used=lambda: 0)
"""Of whom is trusted."""
