"""What a peer costs a control plane, and what follows: as hyp/events.py has it for compiled loops.

Who sends to a socket, receives from one, or makes an upcall ready, pays for every place at which the peer polls it; and some of
what a peer asks for takes the longer the more memory it has. CPU time beyond what is fair, `FAIR_NS` to wake it or to receive and
`FAIR_TURN_NS` to serve it, is the peer's debt, paid off by `DEARNESS` times as much time. While it owes more than `CREDIT_NS` of
that, nothing is sent to it, and nothing that it sends is read: what is to be sent stays with its sender, who goes on after
`wait_s`.

Each of the control planes has debts of its own, but a guest is served by one of them at a time (served.py).

Where a peer's request has one control plane ask another one, that one's time is the peer's, too: the question asks for a *bill*,
the answer brings it, and all of it is owed, as no fair part of it is known. So who has the NIC or the toolstack work without end
has them work for a `DEARNESS`-th of the time, or less. What is done only once while a guest lives is `unpaid`.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hyp.abi.debts import CREDIT_NS, DEARNESS, MOST_NS
from hyp.control.served import ServedGuest

FAIR_NS = 60_000
"""Of Python and a system call: more than a compiled loop's."""
FAIR_TURN_NS = 500_000
"""Of what is done for a request without anybody else's turn in between."""
BILLED = 2
"""How often what is on a bill is owed: to clear up after it is on none."""
ASKED_NS = 60_000
"""What a question costs beside its bill: a packet each way, and at either end a wake-up for it."""


class Debt:
    """A peer's, paid off by DEARNESS times as much time. `served`: of a guest, by all control planes."""

    last_ns = 0
    """What it paid for last has taken, of CPU time."""

    def __init__(
        self,
        clock: Callable[[], int] = time.monotonic_ns,
        used: Callable[[], int] = time.thread_time_ns,
        served: ServedGuest | None = None,
    ) -> None:
        self._clock, self._used, self._until, self._served = clock, used, 0, served
        self._in_turn = False
        self._lock = threading.Lock()  # what is done aside is owed by another thread

    def wait_s(self) -> float:
        """For how long nothing is to be sent to it; 0: it may be."""
        now = self._clock()
        elsewhere = 0 if self._served is None else self._served.wait_ns(now)
        return max(self._until - CREDIT_NS - now, elsewhere) / 1e9

    def owe(self, beyond_ns: int) -> None:
        """It has cost so much more than is fair."""
        if beyond_ns > 0:
            with self._lock:
                self._until = max(self._until, self._clock()) + DEARNESS * beyond_ns

    @contextmanager
    def pays(self, fair_ns: int = FAIR_NS) -> Iterator[None]:
        """What is done here is done for it, and may take `fair_ns`; by default, it is woken, or received from."""
        within, self._in_turn, start, before = self._in_turn, True, self._clock(), self._used()
        try:
            yield
        finally:
            self.last_ns = self._used() - before
            self.owe(min(self.last_ns, MOST_NS) - fair_ns)
            self._in_turn = within
            if self._served is not None and not within:
                self._served.add(start, self._clock())

    def charged(self, awaitable: Awaitable[Any], fair_ns: int = FAIR_TURN_NS) -> "Charged":
        """The same to wait for, with every step of it as a turn that it pays, beyond `fair_ns`."""
        return Charged(self, awaitable, fair_ns)


class Charged(Awaitable[Any]):
    """An awaitable whose steps somebody pays."""

    def __init__(self, debt: Debt, awaitable: Awaitable[Any], fair_ns: int) -> None:
        self._debt, self._awaitable, self._fair_ns = debt, awaitable, fair_ns

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaitable.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                with self._debt.pays(self._fair_ns):
                    awaited = next(steps) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value
            thrown = None
            try:
                yield awaited
            except BaseException as error:  # who waits is cancelled
                thrown = error


class Bill(Debt):
    """What a request costs that somebody else is to pay."""

    ns = 0

    def owe(self, beyond_ns: int) -> None:
        """See `Debt.owe`."""
        self.ns += max(beyond_ns, 0)

    @contextmanager
    def pays(self, fair_ns: int = 0) -> Iterator[None]:
        """See `Debt.pays`. Nothing of it is fair."""
        with super().pays(0):
            yield


PAYER: ContextVar[Debt | None] = ContextVar("PAYER", default=None)
"""Who pays for what is done in this context: that whose request is served."""


@contextmanager
def unpaid() -> Iterator[None]:
    """What is asked of others in here nobody pays."""
    token = PAYER.set(None)
    try:
        yield
    finally:
        PAYER.reset(token)


NO_DEBT = Debt(used=lambda: 0)
"""Of whom is trusted."""
