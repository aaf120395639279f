"""Calls made aside: they are answered, or their guest is stuck; nobody else waits, and nothing is lost or done out of order."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyp.control.aside import LIMIT_S, Aside, Stuck
from hyp.control.descriptors import close_shared
from tests.support.labs import wait_until


@pytest.fixture
def taken() -> list[int]:
    return []


@pytest.fixture
def aside(taken: list[int]) -> Iterator[Aside]:
    yield Aside(taken.append)
    wait_until(lambda: not any(thread.name == "aside" for thread in threading.enumerate()), "its thread to end with its work")


@contextmanager
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None can be started in here."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        yield


def test_a_call_returns_or_raises(aside: Aside, taken: list[int]) -> None:
    assert [aside.call(divmod, 7, k) for k in (2, 3)] == [(3, 1), (2, 1)]
    with pytest.raises(ZeroDivisionError):
        aside.call(divmod, 7, 0)
    assert aside.call(threading.get_ident) != threading.get_ident()
    assert len(taken) == 4


def test_who_does_not_answer_is_stuck_until_all_is_done_and_others_are_not(aside: Aside, taken: list[int]) -> None:
    gate, done = threading.Event(), list[str]()
    with pytest.raises(Stuck, match="no answer after"):
        aside.call(gate.wait)
    aside.later(done.append, "first")
    with pytest.raises(Stuck, match="asked before"):
        aside.call(done.append, "never")
    aside.later(done.append, "second")
    assert Aside(taken.append).call(divmod, 9, 4) == (2, 1)
    assert done == []
    gate.set()
    wait_until(lambda: done == ["first", "second"], "what was asked to be done")
    wait_until(lambda: not aside._stuck, "it to be free")
    assert aside.call(divmod, 9, 4) == (2, 1)


HOG = "import os; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True)\nwhile True: pass"


def test_who_waits_for_a_cpu_is_not_stuck(aside: Aside, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    limit_s = 0.02
    monkeypatch.setattr("hyp.control.aside.LIMIT_S", limit_s)
    monkeypatch.setattr("hyp.control.aside.MOST_S", 20.0)
    cpu = min(os.sched_getaffinity(0))

    def work() -> int:
        """For less time than the limit is, of which there is a tenth for it."""
        os.sched_setaffinity(0, {cpu})
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        end = time.thread_time() + limit_s / 2
        while time.thread_time() < end:
            pass
        return cpu

    with subprocess.Popen([sys.executable, "-c", HOG.format(cpu=cpu)], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.read(1)
        began = time.monotonic()
        try:
            assert aside.call(work) == cpu
        finally:
            busy.kill()
    assert time.monotonic() - began > limit_s
    assert sum(taken) < limit_s * 1e9


def test_what_it_was_blocked_for_is_told(aside: Aside, taken: list[int]) -> None:
    aside.call(threading.Event().wait, 0.05)
    assert taken[0] > 40_000_000


def test_what_it_is_waited_for_in_vain_is_told(aside: Aside, taken: list[int]) -> None:
    """Else who lets go just after nobody waits any more holds up everybody, again and again, and pays for nothing."""
    gate = threading.Event()
    with pytest.raises(Stuck):
        aside.call(gate.wait)
    assert sum(taken) > 0.8 * LIMIT_S * 1e9
    gate.set()
    wait_until(lambda: not aside._at_work, "it to be free")


def _spin() -> None:
    """As who waits for a spinlock."""
    until = time.thread_time_ns() + 20_000_000
    while time.thread_time_ns() < until:
        pass


def test_the_time_for_which_it_spins_is_told_whether_it_is_waited_for_or_not(aside: Aside, taken: list[int]) -> None:
    aside.call(_spin)
    aside.later(_spin)
    wait_until(lambda: not aside._at_work, "it to be done")
    assert len(taken) == 2
    assert min(taken) > 19_000_000


def test_what_a_call_waits_for_that_was_asked_before_is_told_too(aside: Aside, taken: list[int]) -> None:
    """Else who has each answer kept for a while holds up everybody, and pays for nothing."""
    gate = threading.Event()
    aside.later(gate.wait)
    threading.Timer(0.05, gate.set).start()
    assert aside.call(divmod, 7, 2) == (3, 1)
    assert sum(taken) > 40_000_000
    aside.later(threading.Event().wait, 0.5)  # for which nobody waits
    wait_until(lambda: not aside._at_work, "it to be done")
    assert taken[-1] < 400_000_000


def test_where_there_are_no_more_threads_nothing_is_called_by_who_asks(aside: Aside, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what may take as long as a guest likes, and a guest of the same user can have all the threads there are."""
    done = list[str]()
    with no_more_threads(monkeypatch):
        aside.later(done.append, "first")
        with pytest.raises(Stuck):
            aside.call(done.append, "second")
        close_shared([gone := os.eventfd(0)])
        assert done == []
        os.fstat(gone)
    assert aside.call(divmod, 7, 2) == (3, 1)
    assert done == ["first", "second"]
    close_shared([])
    wait_until(lambda: not os.path.exists(f"/proc/self/fd/{gone}"), "it to be closed with the next")


def test_what_was_asked_last_for_a_guest_is_done_once_there_is_a_thread_for_any(
    aside: Aside, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who dies asks for nothing more, and what it had is to be closed."""
    done, last = list[str](), Aside(taken.append)
    with no_more_threads(monkeypatch):
        last.later(done.append, "last")
        with pytest.raises(Stuck):
            aside.call(divmod, 7, 2)
    assert done == []
    assert aside.call(divmod, 9, 4) == (2, 1)
    wait_until(lambda: done == ["last"], "it to be done")


def test_a_guests_thread_does_without_descriptors(aside: Aside, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They may all be in use: it goes on, and is charged."""

    def opened(path: Path, *_: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", opened)
    for _ in range(3):
        assert aside.call(divmod, 7, 2) == (3, 1)
    assert len(taken) == 3
    assert min(taken) >= 0
