"""What a guest prints: a log of bounded size, also where another one can't be begun."""

import os
import select
import socket
import threading
from pathlib import Path

import pytest

from hyp.abi.debts import DEARNESS
from lab.keeper.output import FAIR_NS, KEPT_BYTES, TURN_BYTES, Output
from tests.support.labs import wait_until


def test_a_log_that_cannot_be_begun_anew_stays_open_and_its_number_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what the guest prints goes to whoever has the number next, and he is closed in the end."""
    output = Output(tmp_path / "guest.log")
    guest, logged = output.hand_over(), os.fstat(output._log)
    try:

        def printed() -> int:
            return (tmp_path / "guest.log").stat().st_size

        while printed() <= KEPT_BYTES - TURN_BYTES:
            before = printed()
            os.write(guest, b"x" * 4096)
            wait_until(lambda: printed() > before, "it to be in the log")  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr(output, "_open", lambda: os.open(tmp_path / "none" / "such", os.O_WRONLY))
            while output._size + 4096 <= KEPT_BYTES:
                size = output._size
                os.write(guest, b"y" * 4096)
                wait_until(lambda: output._size > size, "it to be in the log")  # noqa: B023
            os.write(guest, b"lost" * 1024)
            wait_until(lambda: not (tmp_path / "guest.log").exists(), "the log to be put aside")
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            os.write(guest, b"forged")
            assert os.path.samestat(os.fstat(output._log), logged)
        os.write(guest, b"in the next one")
        wait_until(
            lambda: (tmp_path / "guest.log").exists() and b"in the next one" in (tmp_path / "guest.log").read_bytes(), "a new log"
        )
        for end in ends:
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(100)
        for end in ends:
            end.close()
        assert (tmp_path / "guest.log.1").stat().st_size <= KEPT_BYTES
    finally:
        os.close(guest)
        output.end()
        assert output.has_ended()


def test_a_lifes_output_ends_though_something_that_it_has_left_has_the_pipe(tmp_path: Path) -> None:
    """Else each life of a guest would leave descriptors and a thread."""
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    output = Output(tmp_path / "guest.log")
    left = output.hand_over()
    os.write(left, b"last words")
    output.end()
    assert output.has_ended()
    assert (tmp_path / "guest.log").read_bytes() == b"last words"
    assert threading.active_count() == threads
    os.close(left)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    output.end()  # again, as when the topology ends, is nothing


def test_a_pipe_that_is_dear_to_read_is_read_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who polls its end of it many times over has the kernel go through all places."""
    used, turns = [0], [0]
    rested: list[float] = []

    class Clock:
        @staticmethod
        def thread_time_ns() -> int:
            used[0] += 50_000_000  # each turn takes as much CPU time
            return used[0]

    class Poll:
        def __init__(self) -> None:
            self._fds: list[int] = []

        def register(self, fd: int, events: int) -> None:
            self._fds.append(fd)

        def poll(self, ms: float = -1) -> list[tuple[int, int]]:
            if ms >= 0:
                rested.append(ms)
                turns[0] += 1
                return []
            return [(self._fds[-1], select.POLLIN)] if turns[0] == 3 else [(self._fds[0], select.POLLIN)]

    monkeypatch.setattr("lab.keeper.output.time", Clock)
    monkeypatch.setattr("lab.keeper.output.select.poll", Poll)
    output = Output(tmp_path / "guest.log")
    guest = output.hand_over()
    assert output.has_ended()
    assert rested == [pytest.approx(DEARNESS * (50_000_000 - FAIR_NS) / 1e6)] * 3
    os.close(guest)
