"""What a guest prints: its standard output and error are a pipe, and what comes out of it a log of its own, of bounded size.

A guest may print anything, as fast as it can: control characters, lines that look like others', gigabytes. So it never has a file
that others write to or read from. The keeper reads its pipe, `TURN_BYTES` at a time and no faster than `RATE`, and keeps the last
`KEPT_BYTES` at least: the log, and the one before it under the name with ".1" behind it. A guest that prints faster waits in its
own write(2). The lab shows nothing of it on a terminal.

The pipe lives as long as somebody has its end: the guest, and programs that it has left behind, until its next life begins. Each
is read by its own thread: who writes has the pipe's lock while the kernel copies from his memory, which takes as long as his page
faults do: as long as he likes. Then the thread waits, whether the pipe is to block or not, and nobody else does.
"""

import contextlib
import os
import select
import threading
import time
from pathlib import Path

from hyp import limits
from hyp.abi.debts import DEARNESS, MOST_NS

KEPT_BYTES = 1 << 20
TURN_BYTES = 1 << 16
RATE = 8 << 20
"""Bytes a second."""
TURN_S = 0.002
"""From one look at the pipe to the next, at least: who prints a byte at a time, each a packet, has as little of a CPU as others."""
FAIR_NS = 200_000
"""CPU time of a turn. Who polls the pipe many times over has the kernel go through all of these places when it is read from; what
is beyond is paid off as any debt of a guest's (hyp/control/debt.py): the next turn is so much later."""
LAST_WORDS_S = 0.5


class Output:
    """One life's of a guest. `end` when the next one begins, or the topology ends."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        with contextlib.suppress(FileNotFoundError):  # of a guest that was there before, and was started again
            os.replace(path, self._before)
        self._log = self._open()
        self._pipe, self._guests_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._pipe, False)
        self._end, self._lock = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), threading.Lock()
        self._thread = threading.Thread(target=self._read, name=f"output {path.stem}", daemon=True)
        with limits.told_of_threads(f"the thread that reads the output of {path.stem}"):
            self._thread.start()

    @property
    def _before(self) -> Path:
        return self._path.with_name(f"{self._path.name}.1")

    def hand_over(self) -> int:
        """The guest's end, which the caller closes once the guest has it."""
        return self._guests_end

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _read(self) -> None:
        """The thread: until nobody has the other end, or it is told to end."""
        either, end, ended = select.poll(), self._end, False
        rest = select.poll()
        rest.register(end, select.POLLIN)
        for fd in (self._pipe, end):
            either.register(fd, select.POLLIN)
        while not ended:
            ended = end in dict(either.poll())
            printed, before = b"", time.thread_time_ns()
            with contextlib.suppress(BlockingIOError):
                printed = os.read(self._pipe, TURN_BYTES)
                ended = ended or not printed
            with contextlib.suppress(OSError):  # a full disk costs the guest its words
                self._keep(printed)
            if not ended:
                beyond_ns = min(time.thread_time_ns() - before, MOST_NS) - FAIR_NS
                rest.poll(1000 * max(len(printed) / RATE, TURN_S, DEARNESS * beyond_ns / 1e9))
        with self._lock:
            self._end = -1
        for fd in (self._pipe, self._log, end):
            os.close(fd)

    def _keep(self, printed: bytes) -> None:
        if self._size + len(printed) > KEPT_BYTES:
            with contextlib.suppress(FileNotFoundError):  # put aside already, when there could be no other
                os.replace(self._path, self._before)
            full, self._log = self._log, self._open()  # if there can be no other, the full one goes on being ours
            os.close(full)
            self._size = os.write(
                self._log, f"[what came before is in {self._before.name}, and what came before that is gone]\n".encode()
            )
        self._size += os.write(self._log, printed)

    def end(self) -> None:
        """Take what waits in the pipe, and end: soon, unless a process that the guest has left keeps the thread from it."""
        with self._lock:
            if self._end >= 0:
                os.eventfd_write(self._end, 1)

    def has_ended(self) -> bool:
        """Whether nothing is held of it any more; waits for that, for LAST_WORDS_S at most."""
        self._thread.join(LAST_WORDS_S)
        return not self._thread.is_alive()
