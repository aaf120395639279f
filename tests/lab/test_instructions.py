"""Counting by perf_event_open. Whether the machine has hardware counters or not, it has the kernel's clock of a task."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import instructions
from lab.accounting import usage
from lab.fingerprint import fingerprint
from lab.instructions import TASK_CLOCK, Counting, Event, why_not
from tests.support.labs import wait_until

BUSY = """import threading
for _ in range(2):
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()
input()
"""
WAITS = [sys.executable, "-c", "print(flush=True); input()"]


@pytest.mark.needs("perf-events")
def test_all_threads_of_a_process_are_counted_while_it_lasts() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) as process:
        try:
            wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 3, "its threads")
            before = usage(process.pid).cpu_ns
            with Counting([process.pid], TASK_CLOCK) as counting:
                wait_until(lambda: counting.total() > 100_000_000, "0.1 s of its CPU time")
                counted = counting.total()
            spent = usage(process.pid).cpu_ns - before
            assert 100_000_000 < counted < 3 * spent
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.mark.needs("perf-events")
def test_nothing_is_counted_of_a_process_that_does_nothing() -> None:
    with subprocess.Popen(WAITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S", "its sleep")
        with Counting([process.pid], TASK_CLOCK) as counting:
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                pass
            assert counting.total() < 10_000_000
        process.kill()


@pytest.mark.needs("perf-events")
def test_what_cannot_be_counted_is_an_error_that_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such file"), Counting([os.getpid()], Event(1, 9999)):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_machine_without_counters_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fingerprint()["hardware_counters"]
    assert found == (why_not() or "instructions can be counted")
    monkeypatch.setattr(instructions, "SYSCALL", None)
    assert "not known" in (why_not() or "")
