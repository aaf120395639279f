"""What a notification costs, a waiter decides: who makes it dear is notified seldom, others as before (hyp/events.py)."""

import asyncio
import errno
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bench.isolation.pollers import polled_many_times
from hyp.abi.counters import COLUMNS, NOTIFICATIONS, NOTIFY_NS
from hyp.abi.debts import CREDIT_NS, DEARNESS, MOST_NS
from hyp.abi.platform import FAIR_NOTIFY_NS, PLATFORM_BYTES
from hyp.atomics import clock_ns, cpu_relax, load64, store64, thread_cpu_ns
from hyp.events import (
    DEBT,
    NOTIFIER,
    SPOILT_NS,
    _owe,
    debt_at,
    may_notify,
    new_eventfd,
    new_notifier,
    notifier_at,
    notify_at,
    notify_guest,
)
from hyp.fairness import waking
from hyp.fairness.waking import FAIR_LEAST_NS, FAIR_MOST_NS, fair_notification_ns, fair_of, waking_takes
from hyp.kernels import entry, i64
from hyp.memory import Mapping
from hyp.monitor.event_channels import Upcall
from lab.plan import plan
from lab.topology import parse
from tests.support.patience import effort

SECONDS = 1.0
FAIR_NS = FAIR_MOST_NS


@entry(i64(i64, i64, i64, i64, i64, i64))
def notify_for(notifier: int, debt: int, eventfd: int, counts: int, spent: int, ns: int) -> int:
    """Notify whenever that may be, for so long. How often it might not; the CPU time of all notifications goes to `spent`."""
    put_off, start = 0, clock_ns()
    while clock_ns() - start < ns:
        if may_notify(debt, clock_ns()):
            before = thread_cpu_ns()
            notify_guest(notifier, debt, eventfd, counts)
            store64(spent, load64(spent) + thread_cpu_ns() - before)
            for _ in range(100):
                cpu_relax()
        else:
            put_off += 1
    return put_off


@entry(i64(i64, i64, i64, i64, i64))
def blame(notifier: int, debt: int, start: int, end: int, counts: int) -> int:
    """A notification has taken from `start` to `end`; until when its waiter owes."""
    _owe(notifier_at(notifier), debt_at(debt), start, end, counts)
    return int(notify_at(debt))


class Sender:
    """A notifier, a waiter's upcall, and what came of it."""

    def __init__(self) -> None:
        self.upcall, self.eventfd = Upcall(), new_eventfd()
        self.upcall.deliver(self.eventfd, 1)
        self._notifier, self._debt = np.zeros(1, NOTIFIER), np.zeros(1, DEBT)
        self._notifier["fair"] = FAIR_NS
        self._counts, self._spent = np.zeros(2 * COLUMNS, np.int64), np.zeros(1, np.int64)
        self.put_off, self.ns = 0, 0

    def go_on(self, seconds: float) -> None:
        ns = int(seconds * 1e9)
        addresses = [int(array.ctypes.data) for array in (self._notifier, self._debt, self._counts, self._spent)]
        self.put_off += notify_for(addresses[0], addresses[1], self.eventfd, *addresses[2:], ns)
        self.ns += ns

    @property
    def sent(self) -> int:
        return int(self._counts[NOTIFICATIONS])

    @property
    def beyond_fair(self) -> int:
        return int(self._counts[NOTIFY_NS])

    @property
    def spent(self) -> int:
        return int(self._spent[0])


@pytest.fixture
def sender() -> Iterator[Sender]:
    one = Sender()
    yield one
    os.close(one.eventfd)
    one.upcall.close()


def test_a_waiter_that_makes_notifications_dear_gets_a_small_share_of_who_notifies_it(sender: Sender) -> None:
    goes_on = effort(SECONDS)
    with polled_many_times(sender.upcall.epoll.fileno()):
        while goes_on(sender.put_off > 0):
            sender.go_on(SECONDS)
        sender.go_on(SECONDS)
    assert sender.put_off > 0, f"{sender.sent} notifications were never dear"
    # Each may cost what is fair; and the last one of a credit what it likes
    allowed = (sender.ns + CREDIT_NS) / DEARNESS + sender.sent * FAIR_NS
    assert sender.beyond_fair < allowed + 100_000_000
    assert sender.spent < 2 * allowed + 100_000_000, f"{sender.spent} ns in {sender.ns} ns for {sender.sent} notifications"


@pytest.mark.parametrize(("took_ns", "owed_ns"), [(1_000_000, 1_000_000), (MOST_NS, MOST_NS), (52_000_000_000, MOST_NS)])
def test_a_machine_that_stood_still_costs_a_waiter_no_more_than_one_that_was_slow(took_ns: int, owed_ns: int) -> None:
    notifier, debt, counts = np.zeros(1, NOTIFIER), np.zeros(1, DEBT), np.zeros(2 * COLUMNS, np.int64)
    end = time.monotonic_ns()
    notifier[0]["fair"] = FAIR_NS
    notifier[0]["cpu"], notifier[0]["at"] = time.thread_time_ns() - took_ns, end - took_ns
    until = blame(*(int(array.ctypes.data) for array in (notifier, debt)), end - took_ns, end, int(counts.ctypes.data))
    assert until == end + DEARNESS * owed_ns - CREDIT_NS
    assert counts[NOTIFY_NS] == took_ns - FAIR_NS


@pytest.mark.parametrize(("says", "fair"), [(9_000, 9_000), (0, FAIR_MOST_NS)])
def test_what_is_fair_is_what_the_platform_page_says(says: int, fair: int) -> None:
    fd = os.memfd_create("platform")
    os.ftruncate(fd, PLATFORM_BYTES)
    page = Mapping.adopt(fd, PLATFORM_BYTES, populate=False)
    page.words("<u8", FAIR_NOTIFY_NS, 1)[0] = says
    notifier, debt, counts = new_notifier(page), np.zeros(1, DEBT), np.zeros(2 * COLUMNS, np.int64)
    for took_ns, dear in ((fair, 0), (fair + 700, 1)):
        end = time.monotonic_ns()
        notifier[0]["cpu"], notifier[0]["at"] = time.thread_time_ns() - took_ns, end - took_ns
        until = blame(*(int(array.ctypes.data) for array in (notifier, debt)), end - took_ns, end, int(counts.ctypes.data))
        assert counts[NOTIFY_NS] == 700 * dear
        assert until == (end + DEARNESS * took_ns) * dear - CREDIT_NS, "all of what is dear is owed"
        assert notifier[0]["dear"] == dear


def test_who_is_dear_by_habit_owes_for_what_that_spoils() -> None:
    """Who is dear one time in nine or more often: not the first times, and not who is it now and then."""
    notifier, debt, counts = np.zeros(1, NOTIFIER), np.zeros(1, DEBT), np.zeros(2 * COLUMNS, np.int64)
    notifier[0]["fair"] = FAIR_NS

    def owed(took_ns: int) -> int:
        debt[0]["until"] = 0
        end = time.monotonic_ns()
        notifier[0]["cpu"], notifier[0]["at"] = time.thread_time_ns() - took_ns, end - took_ns
        until = blame(*(int(array.ctypes.data) for array in (notifier, debt)), end - took_ns, end, int(counts.ctypes.data))
        return (until + CREDIT_NS - end) // DEARNESS

    assert [owed(2 * FAIR_NS) for _ in range(4)] == [2 * FAIR_NS] * 2 + [2 * FAIR_NS + SPOILT_NS] * 2
    debt[0]["habit"] = 0
    for _ in range(10):
        assert owed(2 * FAIR_NS) == 2 * FAIR_NS
        debt[0]["habit"] -= min(int(debt[0]["habit"]), 9)  # so many that are fair in between


def test_what_is_fair_is_measured_anew_while_notifications_are_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has become slower, or faster, is noticed; nothing is measured while nothing is dear."""
    measured: list[int] = []

    def takes(cpus: list[int], times: int) -> list[int]:
        measured.append(12_000)
        return measured[-1:] * times

    monkeypatch.setattr(waking, "waking_takes", takes)
    monkeypatch.setattr(waking, "LOOK_S", 0.01)
    notifier = np.zeros(1, NOTIFIER)
    notifier[0]["fair"] = 9_000

    async def main() -> None:
        waking.KeptFair(notifier)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() < begun + 5 * waking.LOOK_S:
            await asyncio.sleep(0)
        assert measured == []
        notifier[0]["dear"] += waking.MANY_DEAR + 1
        while notifier[0]["fair"] != 14_400:
            await asyncio.sleep(0)
        assert measured == [12_000]

    asyncio.run(main())


def test_what_is_fair_is_measured_and_within_bounds() -> None:
    taken = waking_takes(sorted(os.sched_getaffinity(0)), 8)
    assert len(taken) == 8
    assert min(taken) > 0
    assert FAIR_LEAST_NS <= fair_notification_ns() <= FAIR_MOST_NS
    assert fair_of([]) == FAIR_MOST_NS
    for typical, fair in ((1000, FAIR_LEAST_NS), (10_000, 12_000), (10**6, FAIR_MOST_NS)):
        assert fair_of([300, typical, typical, typical, 10**7]) == fair


def test_where_no_thread_and_no_descriptor_is_to_be_had_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left of the attempt."""
    cpus, descriptors, before = sorted(os.sched_getaffinity(0)), len(os.listdir("/proc/self/fd")), os.sched_getaffinity(0)

    def refuse(*arguments: object, **named: object) -> Any:
        raise OSError(errno.EMFILE, "no descriptors")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no thread")))
        assert waking_takes(cpus, 3) == []
    for owner, name in ((os, "eventfd"), (select, "epoll")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            assert waking_takes(cpus, 3) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert os.sched_getaffinity(0) == before


def test_the_hypervisor_is_told_what_is_fair_here() -> None:
    plain = {"name": "fair", "guest": [{"name": "anna", "path": "bypass"}]}
    planned = next(process for process in plan(parse(plain).plain()) if process["role"] == "hyp")
    assert planned["config"]["fair_notify_ns"] == fair_notification_ns()


@contextmanager
def busy_neighbours(cpu: int) -> Iterator[None]:
    """Two processes that compute on a CPU."""
    code = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    neighbours = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


@pytest.mark.long
def test_nobody_is_blamed_for_a_notifier_that_loses_its_cpu(sender: Sender) -> None:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(cpus)])
    try:
        with busy_neighbours(min(cpus)), polled_many_times(sender.upcall.epoll.fileno(), places=1, threads=1):
            sender.go_on(2 * SECONDS)
    finally:
        os.sched_setaffinity(0, cpus)
    assert sender.sent > 100
    assert sender.put_off == 0, f"put off after {sender.sent}: {sender.beyond_fair} ns"
