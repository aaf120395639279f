"""What a fair notification takes on this machine: by how long it takes to wake a thread that sleeps, on another CPU if it can.

Virtualization, the CPU and whether it idles make it anything between 2 and 25 µs. A constant that no honest waiter is beyond on the
slowest machine is several wake-ups on a fast one, and who makes each of its notifications take just as long has that from whoever
notifies it (hyp/events.py). So it is measured, once a process.
"""

import os
import select
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Final

FAIR_LEAST_NS: Final = 8000
FAIR_MOST_NS: Final = 25_000
"""What is fair is in between, whatever was measured: it may have been in a bad moment, or in a good one."""
MORE: Final = 1.5
"""By how much one that is fair may be longer than most that were measured."""
WAKE_UPS, REST_S = 40, 0.0001


@cache
def fair_notification_ns() -> int:
    """CPU time that a notification may take (ns)."""
    return fair_of(waking_takes(sorted(os.sched_getaffinity(0))))


def fair_of(taken: Sequence[int]) -> int:
    """What is fair where waking takes this (ns)."""
    return min(max(int(MORE * sorted(taken)[len(taken) * 3 // 4]), FAIR_LEAST_NS), FAIR_MOST_NS)


def waking_takes(cpus: Sequence[int], times: int = WAKE_UPS) -> list[int]:
    """CPU time (ns) of notifications from the first of these CPUs to an upcall that a thread on the last one sleeps at.

    That thread may still be on its way to sleep: a few of these woke nobody.
    """
    taken: list[int] = []
    eventfd, upcall = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), select.epoll()
    upcall.register(eventfd, select.EPOLLIN | select.EPOLLET)
    over = threading.Event()

    def wait() -> None:
        _move_to(cpus[-1])
        while not over.is_set():
            upcall.poll()

    def wake() -> None:
        _move_to(cpus[0])
        try:
            for _ in range(times):
                time.sleep(REST_S)
                before = time.thread_time_ns()
                os.eventfd_write(eventfd, 1)
                taken.append(time.thread_time_ns() - before)
        finally:
            over.set()
            os.eventfd_write(eventfd, 1)

    threads = [threading.Thread(target=what, name="waking", daemon=True) for what in (wait, wake)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    upcall.close()
    os.close(eventfd)
    return taken


def _move_to(cpu: int) -> None:
    """This thread alone. Where that may not be, it stays where it is."""
    try:
        os.sched_setaffinity(0, [cpu])
    except OSError:
        return
