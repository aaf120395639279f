"""What a fair notification takes on this machine: by how long it takes to wake a thread that sleeps, on another CPU if it can.

Virtualization, the CPU and whether it idles make it anything between 2 and 25 µs. A constant that no honest waiter is beyond on the
slowest machine is several wake-ups on a fast one, and who makes each of its notifications take just as long has that from whoever
notifies it (hyp/events.py). So it is measured: when a topology starts, and anew by a loop's process while notifications are dear
there, since a virtual machine's CPUs are moved about by its host (`KeptFair`).
"""

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

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
    """What is fair where waking takes this (ns)."""
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
        self._notifier[0]["fair"] = fair_of(waking_takes(self._cpus, WAKE_UPS_ANEW))


def waking_takes(cpus: Sequence[int], times: int = WAKE_UPS) -> list[int]:
    """CPU time (ns) of notifications from the first of these CPUs to an upcall that a thread on the last one sleeps at."""
    taken: list[int] = []
    eventfd, upcall = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), select.epoll()
    upcall.register(eventfd, select.EPOLLIN | select.EPOLLET)
    over, begun = threading.Event(), threading.Event()
    woken = status = 0

    def wait() -> None:
        nonlocal woken, status
        _move_to(cpus[-1])
        status = os.open("/proc/thread-self/stat", os.O_RDONLY | os.O_CLOEXEC)  # in whatever namespace
        begun.set()
        while not over.is_set():
            upcall.poll()
            woken += 1

    def wake() -> None:
        _move_to(cpus[0])
        try:
            begun.wait()
            while len(taken) < times:
                time.sleep(REST_S)
                if woken < len(taken) or not _sleeps(status):  # it has not come to run, or not back to sleep
                    continue
                before = time.thread_time_ns()
                os.eventfd_write(eventfd, 1)
                taken.append(time.thread_time_ns() - before)
        finally:
            over.set()
            os.eventfd_write(eventfd, 1)

    waiter, waker = (threading.Thread(target=what, name="waking", daemon=True) for what in (wait, wake))
    for thread in (waiter, waker):
        thread.start()
    for thread in (waiter, waker):
        thread.join()
    upcall.close()
    os.close(eventfd)
    os.close(status)
    return taken


def _sleeps(status: int) -> bool:
    """Whether a thread does, by its stat (proc(5))."""
    return os.pread(status, 200, 0).rpartition(b")")[2].split()[0] == b"S"


def _move_to(cpu: int) -> None:
    """This thread alone. Where that may not be, it stays where it is."""
    try:
        os.sched_setaffinity(0, [cpu])
    except OSError:
        return
