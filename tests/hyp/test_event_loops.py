"""Loops that wait for events: none is lost, sleep and spin, what they learn."""

import mmap
import os
import time

import numpy as np
import pytest

from hyp.abi.platform import SPIN_LIMIT_NS
from hyp.atomics import clock_ns, cpu_relax, full_fence, load64_acquire, load64_once, notify, store64_once, store64_release
from hyp.counters import PRIVATE_ROW_BYTES
from hyp.events import WAIT, may_spin, new_eventfd, raise_event, sleep, wait_at
from hyp.kernels import entry, i64
from hyp.monitor.event_channels import EventChannels, Upcall
from tests.hyp.test_events import ONE, OTHER, bind

STALL_NS = 60_000_000_000
LOST = -1
INDEX, EVENT, STRIDE = 0, 64, 128  # of a side: what it has published, and the index it wants to be woken for


@entry(i64(i64, i64, i64, i64, i64, i64))
def rally(place: int, side: int, rounds: int, notifier: int, wait_address: int, counts: int) -> int:
    """Play ping-pong over two index words with hold-off. `rounds`, or LOST. counts: a private counters row."""
    wait = wait_at(wait_address)
    mine, theirs = place + side * STRIDE, place + (1 - side) * STRIDE
    for turn in range(1, rounds + 1):
        if side == 0:
            store64_release(mine + INDEX, turn)
            full_fence()
            if load64_once(theirs + EVENT) == turn:
                notify(notifier)
        since = clock_ns()
        while load64_acquire(theirs + INDEX) < turn:
            if clock_ns() - since < may_spin(wait):
                cpu_relax()
                continue
            store64_once(mine + EVENT, turn)
            full_fence()
            due = load64_acquire(theirs + INDEX) < turn
            if due and sleep(wait, STALL_NS, counts) == 0 and load64_acquire(theirs + INDEX) < turn:
                return LOST
            since = clock_ns()
        if side == 1:
            store64_release(mine + INDEX, turn)
            full_fence()
            if load64_once(theirs + EVENT) == turn:
                notify(notifier)
    return rounds


def play(place: int, side: int, rounds: int, notifier: int, upcall: Upcall, platform: int) -> tuple[int, int, int]:
    """(rounds, wake-ups, spin limit learnt) of one side."""
    counts = np.zeros(PRIVATE_ROW_BYTES // 8, np.int64)
    wait = np.zeros(1, WAIT)
    wait[0]["epoll"], wait[0]["platform"] = upcall.epoll.fileno(), platform
    played = rally(place, side, rounds, notifier, int(wait.ctypes.data), int(counts.ctypes.data))
    return int(played), int(counts[8]), int(wait[0]["spin_ns"])


@pytest.mark.parametrize("spin_us", [0, 30])
def test_two_processes_play_ping_pong_without_a_lost_wake_up(table: EventChannels, upcalls: list[Upcall], spin_us: int) -> None:
    rounds = 25_000 if spin_us else 50_000
    port, remote = bind(table, upcalls)
    memory = mmap.mmap(-1, 4096)
    words = np.frombuffer(memory, np.int64)
    place = int(words.ctypes.data)
    platform = place + 2048
    words[(2048 + SPIN_LIMIT_NS) // 8] = spin_us * 1000
    rally.load()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            played, _, _ = play(place, 1, rounds, table.notifier(OTHER, remote), upcalls[1], platform)
            status = 0 if played == rounds else 2
        finally:
            os._exit(status)
    played, wakeups, spin_ns = play(place, 0, rounds, table.notifier(ONE, port), upcalls[0], platform)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert played == rounds
    assert words[INDEX // 8] == words[(STRIDE + INDEX) // 8] == rounds
    assert spin_ns <= spin_us * 1000
    if spin_us == 0:
        assert wakeups > 0


def test_a_loop_learns_to_spin_where_it_pays_and_to_stop(upcalls: list[Upcall]) -> None:
    """KVM's halt-polling: sleeps that end within the limit let it spin longer, long ones shorter; the limit always holds."""
    eventfd = new_eventfd()
    upcalls[0].deliver(eventfd, 1)
    page = np.zeros(512, np.int64)
    wait, counts = np.zeros(1, WAIT), np.zeros(64, np.int64)
    wait[0]["epoll"], wait[0]["platform"] = upcalls[0].epoll.fileno(), page.ctypes.data
    page[SPIN_LIMIT_NS // 8] = limit = 1_000_000_000
    grown = []
    for _ in range(30):
        raise_event(eventfd)
        assert doze(int(wait.ctypes.data), 5_000_000_000, int(counts.ctypes.data)) == 1
        grown.append(int(wait[0]["spin_ns"]))
    assert grown[0] > 0
    assert grown == sorted(grown)
    assert grown[-1] == limit
    page[SPIN_LIMIT_NS // 8] = 1000
    assert doze(int(wait.ctypes.data), -2, int(counts.ctypes.data)) == 1000, "the limit holds at once"
    assert doze(int(wait.ctypes.data), 1_000_000, int(counts.ctypes.data)) == 0
    assert int(wait[0]["spin_ns"]) == limit // 2
    assert int(counts[8]) == 30
    page[SPIN_LIMIT_NS // 8] = 0
    assert doze(int(wait.ctypes.data), -2, int(counts.ctypes.data)) == 0
    os.close(eventfd)


@entry(i64(i64, i64, i64))
def doze(wait_address: int, timeout_ns: int, counts: int) -> int:
    """`sleep`, or with −2 `may_spin`."""
    wait = wait_at(wait_address)
    return may_spin(wait) if timeout_ns == -2 else sleep(wait, timeout_ns, counts)


def test_sleep_ends_at_its_timeout_and_counts_no_wake_up(upcalls: list[Upcall]) -> None:
    page, wait, counts = np.zeros(512, np.int64), np.zeros(1, WAIT), np.zeros(64, np.int64)
    wait[0]["epoll"], wait[0]["platform"] = upcalls[0].epoll.fileno(), page.ctypes.data
    start = time.monotonic_ns()
    assert doze(int(wait.ctypes.data), 2_000_000, int(counts.ctypes.data)) == 0
    assert time.monotonic_ns() - start >= 2_000_000
    assert int(counts[8]) == 0
