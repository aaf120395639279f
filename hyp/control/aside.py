"""Calls that may wait as long as a guest likes, made by a thread of the guest's that nobody else waits for.

Some system calls on what a guest holds, too, take a lock that it may have: epoll_ctl(2) that of an epoll from which the guest
takes events, and close(2) that of each epoll which it has put the descriptor into. It has it while the kernel copies to its memory,
which takes as long as its page faults do. An eventfd's it has while all who poll it are told of a write, and who waits for that
one spins. So such calls are made aside: for each guest by a thread of its own, one after the other, which is there as long as there
is something to do, and LINGER_S longer: to start one takes more than most calls do.

What a call takes is told to `takes`, so that the guest pays for it: its CPU time and, while `call` waits for an answer, the time
for which the thread is blocked, by whatever was asked before, too. `call` does not wait long: LIMIT_S, not counting what the thread
waits for a CPU, and MOST_S in all. Who has not answered by then is *stuck*: what is asked of it then fails at once, until all that
it was asked before has been done; what was waited for in vain is told, too. `later` waits for nothing. In the end a stuck thread
goes when its guest does. Where there are no more threads, nothing is called in the thread that asks: what is asked for is stuck,
and done when the next is asked, for whichever guest: this one's last may have been asked already.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LIMIT_S: Final = 0.25
"""Of time in which its thread does not wait for a CPU."""
MOST_S: Final = 1.0
LINGER_S: Final = 0.02


_WAITING: "Final[set[Aside]]" = set()
"""Those whose jobs wait for a thread."""


class Stuck(OSError):
    """What was asked aside is not answered."""


class _Job:
    __slots__ = ("answered", "arguments", "error", "function", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.answered = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Aside:
    """One guest's. `takes`: called with the time (ns) that each call has taken, by the thread itself."""

    def __init__(self, takes: Callable[[int], None]) -> None:
        self._takes = takes
        self._jobs: deque[_Job] = deque()
        self._lock = threading.Condition()  # told of each job
        self._at_work = self._stuck = self._calls = False
        self._awaited_since = 0  # `call` waits since then (ns); 0: it does not
        self._thread = 0  # the kernel's number of the one that is at work

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, or raises. Stuck if there is no answer; it is called all the same, some time."""
        if self._stuck:
            raise Stuck("what it was asked before is not answered")
        self._awaited_since = time.monotonic_ns()
        worker, delayed = self._thread, _delayed(self._thread)
        job = _Job(function, arguments)
        answered = self._begin(job) and self._is_answered(job)
        waited, self._awaited_since = time.monotonic_ns() - self._awaited_since, 0
        if not answered:
            self._takes(waited - (_delayed(self._thread) - (delayed if worker == self._thread else 0)))
            with self._lock:
                self._stuck = self._at_work and bool(self._jobs or self._calls)
            raise Stuck(f"there is no answer after {waited / 1e9:.2f} s")
        if job.error is not None:
            raise job.error
        return job.result

    def later(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have it called, after what was asked before."""
        self._begin(_Job(function, arguments))

    @property
    def is_done(self) -> bool:
        """Whether all that it was asked is done."""
        with self._lock:
            return not self._jobs and not self._calls

    @property
    def is_stuck(self) -> bool:
        """Whether what would be asked now fails at once."""
        return self._stuck

    def _is_answered(self, job: _Job) -> bool:
        end, wait, delayed = time.monotonic() + MOST_S, LIMIT_S, _delayed(self._thread)
        while wait > 0 and not job.answered.wait(wait):
            before, delayed = delayed, _delayed(self._thread)
            wait = min((delayed - before) / 1e9, end - time.monotonic())
        return job.answered.is_set()

    def _begin(self, job: _Job) -> bool:
        """Enter a job. False if nobody is at work, as there are no more threads: it waits until there is one again."""
        with self._lock:
            self._jobs.append(job)
            self._lock.notify()
        if not self._set_to_work():
            return False
        for other in tuple(_WAITING):
            other._set_to_work()
        return True

    def _set_to_work(self) -> bool:
        """Have a thread do what there is to do. False if there is none, and nobody is at work."""
        _WAITING.discard(self)
        with self._lock:
            if self._at_work or not self._jobs:
                return True
            self._at_work = True
        try:
            threading.Thread(target=self._work, name="aside", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._at_work = False
            _WAITING.add(self)
            return False
        return True

    def _work(self) -> None:
        self._thread = threading.get_native_id()
        while True:
            with self._lock:
                if not self._jobs:
                    self._stuck = False
                    self._lock.wait(LINGER_S)
                if not self._jobs:
                    self._at_work = self._stuck = False
                    return
                job, self._calls = self._jobs.popleft(), True
            began, used, delayed = time.monotonic_ns(), time.thread_time_ns(), _delayed(self._thread)
            try:
                job.result = job.function(*job.arguments)
            except BaseException as error:
                job.error = error
            since, takes = self._awaited_since, time.thread_time_ns() - used
            if since > 0:  # else it may be blocked by the interpreter's lock, which who waits leaves to it
                blocked = time.monotonic_ns() - max(began, since) - max(_delayed(self._thread) - delayed, 0)
                takes = max(takes, blocked)
            self._takes(takes)
            self._calls = False
            job.answered.set()


def _delayed(thread: int) -> int:
    """For how long (ns) a thread of this process has waited for a CPU; 0 if there is no such thread, or no descriptor left."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
    except OSError:
        return 0
