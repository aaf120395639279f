"""How long a test waits for what must happen: seconds as two quiet cores need them at most, scaled by what this machine gives.

A limit in a test only says when to give up, so it is never what a test is about: `patient(seconds)` in place of a number,
everywhere. The scale is measured once in a run: how long a fixed piece of work takes here, how much of the CPUs processes get that
ask for all of them, how many there are; and the load average of the moment counts as well. A plugin of pytest, which
tests/conftest.py loads: it scales each test's own limit, and says in the run's header what it found.
"""

import functools
import os
import signal
import time
from collections.abc import Callable

import pytest

REFERENCE_NS = 25_000_000
"""CPU time of `_work` on the machine for which the tests' seconds are meant (a 2-core virtual machine, AMD EPYC)."""
LEAST, MOST = 2.0, 20.0
"""Waiting costs nothing where it isn't needed, so never less than double; and what hangs has to end."""
TEST_S = 120.0
SHARE_S, EFFORT_S = 0.2, 40.0


def _work() -> int:
    """CPU time, in ns, of a fixed piece of work in Python."""
    start = time.thread_time_ns()
    total = 0
    for number in range(400_000):
        total += number & 7
    return time.thread_time_ns() - start


def _spin(until: float) -> None:
    """A child that asks for a CPU until then, and has what it got of it in its exit status: 0 to 100 per cent."""
    start, cpu = time.monotonic(), time.process_time()
    while time.monotonic() < until:
        pass
    wall = max(time.monotonic() - start, 1e-9)
    os._exit(min(100, int(100 * (time.process_time() - cpu) / wall)))


def _share() -> float:
    """What processes get of this machine's CPUs that ask for all of them, one each: 1.0 on a quiet machine."""
    until = time.monotonic() + SHARE_S
    children = []
    for _ in os.sched_getaffinity(0):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            _spin(until)
        children.append(child)
    got = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return max(0.05, sum(got) / len(got) / 100)


def scale_of(work_ns: float, share: float, cpus: int) -> float:
    """How many times longer things may take, from the three measurements; 1 for the reference."""
    return max(1.0, work_ns / REFERENCE_NS) / share * max(1.0, 2 / cpus)


@functools.cache
def _measured() -> float:
    return scale_of(min(_work() for _ in range(3)), _share(), len(os.sched_getaffinity(0)))


def scale() -> float:
    """How many times longer than on two quiet cores a test waits, now."""
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return min(MOST, LEAST * max(_measured(), load))


def patient(seconds: float) -> float:
    """A limit for a wait that takes at most `seconds` on two quiet cores."""
    return seconds * scale()


def effort(seconds: float) -> Callable[[bool], bool]:
    """``while goes_on(seen): …``: true for `seconds` at least, and then until it is told that all has been seen that was to be.

    For attacks and races, of which nobody knows how many rounds they take. Patience has an end: assert afterwards that it was seen.
    """
    start = time.monotonic()

    def goes_on(seen: bool) -> bool:
        spent = time.monotonic() - start
        return spent < seconds or (not seen and spent < patient(EFFORT_S))

    return goes_on


def pytest_report_header() -> str:
    """What the limits of this run are."""
    return f"patience: limits × {scale():.1f} (this machine × {_measured():.1f}, load average {os.getloadavg()[0]:.1f})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test's own limit: its `timeout` marker's, or TEST_S. What hangs is ended by it and shows where it hung."""
    factor = scale()
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = float(marker.args[0]) if marker is not None else TEST_S
        item.add_marker(pytest.mark.timeout(seconds * factor), append=False)
