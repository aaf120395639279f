"""What a fair notification takes on this machine: by how long it takes to wake a thread that sleeps, on another CPU if it can.

Virtualization, the CPU and whether it idles make it one thing or several times that. A constant that no honest waiter is beyond on
the slowest machine is several wake-ups on a fast one, and who makes each of its notifications take as long has that from whoever
notifies it (hyp/events.py). So it is measured: when a topology starts, and anew by a loop's process while notifications are dear
there, since a virtual machine's CPUs are moved about by its host (`KeptFair`).
"""

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final, Self

FAIR_LEAST_NS: Final = 8000
FAIR_MOST_NS: Final = 25_000
"""What is fair is in between, whatever was measured: it may have been in a bad moment, or in a good one."""
MORE: Final = 1.2
"""By how much one that is fair may be longer than most that were measured. Those where the other CPU was not idle are shorter."""
WAKE_UPS, REST_S = 40, 0.0001
LOOK_S, WAKE_UPS_ANEW = 1.0, 12
MANY_DEAR: Final = 16


@cache
def fair_notification_ns() -> int:
    """CPU time that a notification may take (ns)."""
    return fair_of(waking_takes(sorted(os.sched_getaffinity(0))))


def fair_of(taken: Sequence[int]) -> int:
    """What is fair where waking takes this (ns). FAIR_MOST_NS where that is not known."""
    if not taken:
        return FAIR_MOST_NS
    return min(max(int(MORE * sorted(taken)[len(taken) * 3 // 4]), FAIR_LEAST_NS), FAIR_MOST_NS)


class KeptFair:
    """Measures anew what is fair for a loop's notifications, once a second at most, and only if several were dear.

    `notifier`: its NOTIFIER (hyp/events.py), an array of one. `cpus`: the lab's, whatever CPUs this process has. It goes on for
    as long as the event loop does.
    """

    def __init__(self, notifier: Any, cpus: Sequence[int] | None = None) -> None:
        self._notifier, self._dear = notifier, 0
        self._cpus = sorted(cpus or os.sched_getaffinity(os.getppid()))  # the keeper has all of them
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        before, self._dear = self._dear, int(self._notifier[0]["dear"])
        if self._dear - before > MANY_DEAR:
            with contextlib.suppress(RuntimeError):  # no thread is to be had
                threading.Thread(target=self._measure, name="waking", daemon=True).start()
        self._loop.call_later(LOOK_S, self._look)

    def _measure(self) -> None:
        if taken := waking_takes(self._cpus, WAKE_UPS_ANEW):
            self._notifier[0]["fair"] = fair_of(taken)


def waking_takes(cpus: Sequence[int], times: int = WAKE_UPS) -> list[int]:
    """CPU time (ns) of notifications from the first of these CPUs to an upcall that a thread on the last one sleeps at.

    Empty where no thread or no descriptor is to be had. The calling thread is moved to the first CPU meanwhile.
    """
    taken, before = list[int](), os.sched_getaffinity(0)
    with contextlib.suppress(OSError, RuntimeError), _Sleeper(cpus[-1]) as sleeper:
        _move_to(cpus[:1])
        while len(taken) < times:
            time.sleep(REST_S)
            if sleeper.woken == len(taken) and sleeper.sleeps():  # it has come to run, and is back to sleep
                begun = time.thread_time_ns()
                sleeper.wake()
                taken.append(time.thread_time_ns() - begun)
    _move_to(before)
    return taken


class _Sleeper:
    """A thread on `cpu` that goes back to sleep at an upcall, `woken` so many times. RuntimeError, OSError if there is none."""

    def __init__(self, cpu: int) -> None:
        self.woken, self._over = 0, False
        self._cpu, self._began = cpu, threading.Event()
        self._thread = threading.Thread(target=self._run, name="waking", daemon=True)
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._status = -1

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._eventfd)
            raise
        self._began.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True
        self.wake()
        self._thread.join()
        os.close(self._eventfd)

    def _run(self) -> None:
        _move_to([self._cpu])
        try:
            with select.epoll() as upcall, open("/proc/thread-self/stat", "rb", 0) as stat:  # its own, in whatever namespace
                upcall.register(self._eventfd, select.EPOLLIN | select.EPOLLET)
                self._status = stat.fileno()
                self._began.set()
                while not self._over:
                    upcall.poll()
                    self.woken += 1
        except OSError:
            self._status = -1
        finally:
            self._began.set()

    def wake(self) -> None:
        os.eventfd_write(self._eventfd, 1)

    def sleeps(self) -> bool:
        """Whether it does, by its stat (proc(5)). OSError if it has found no descriptors."""
        return os.pread(self._status, 200, 0).rpartition(b")")[2].split()[0] == b"S"


def _move_to(cpus: Iterable[int]) -> None:
    """This thread alone. Where that may not be, it stays where it is."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)
