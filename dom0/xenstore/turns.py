"""Whose turn it is: who has work waits in line, and the one that has had least of xenstored's time goes first.

A turn ends after SLICE_NS, or with the work. Then the loop looks at its sockets, and so at who is new. A worker that comes back
after a rest begins where those are who work all the time, so it goes before all of them and has saved up nothing (start-time fair
queueing, Goyal, Vin and Cheng, 1996; weights are equal). A bystander thus waits for one slice, however many others have work.

A worker's piece of work is not interrupted; it must be small by itself.
"""

import asyncio
import heapq
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

SLICE_NS = 200_000


class Worker(ABC):
    """Somebody who may have work to do."""

    had_ns = 0
    """Of xenstored's time, and what was passed by in rests."""
    waiting = False
    """In line."""

    @abstractmethod
    def work(self) -> bool:
        """Do a small piece. False if nothing can be done now."""


class Turns:
    """The line. `after` is called after each turn; `clock` says ns."""

    def __init__(self, after: Callable[[], None], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.taken = 0
        """Turns so far."""
        self._loop, self._after, self._clock = asyncio.get_running_loop(), after, clock
        self._line: list[tuple[int, int, Worker]] = []
        self._numbers = itertools.count()
        self._at_ns = 0  # where who has a turn, or had the last one, began it
        self._in_turn = self._due = False

    def ready(self, worker: Worker) -> None:
        """It has work. The turn may be taken before this returns."""
        if not worker.waiting:
            self._enter(worker)
        if not self._in_turn and not self._due:
            self._turn()

    def _enter(self, worker: Worker) -> None:
        worker.waiting = True
        worker.had_ns = max(worker.had_ns, self._at_ns)
        heapq.heappush(self._line, (worker.had_ns, next(self._numbers), worker))

    def _turn(self) -> None:
        self._due, self._in_turn = False, True
        self.taken += 1
        self._at_ns, _, worker = heapq.heappop(self._line)
        start, more = self._clock(), False
        try:
            while (more := worker.work()) and self._clock() - start < SLICE_NS:
                pass
        finally:
            worker.waiting = False
            worker.had_ns += self._clock() - start
            if more:
                self._enter(worker)
            try:
                self._after()
            finally:  # whatever fails, who waits has his turn
                self._in_turn = False
                if self._line:
                    self._due = True
                    self._loop.call_soon(self._turn)
