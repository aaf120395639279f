"""A terminal as a user has it: a program on a pseudo-terminal of its own, typed to and read from."""

import fcntl
import os
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.labs import ROOT, WAIT_S
from tests.support.patience import patient

PROMPT = "outside> "


def is_readable(fd: int, seconds: float) -> bool:
    """Whether there is something to be read within that time. A test's process may have more descriptors than select(2) takes."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


class Screen:
    """The master's side of a pseudo-terminal on which a session leader runs."""

    def __init__(self, pid: int, master: int) -> None:
        self.pid, self.master = pid, master
        self.shown = ""  # all that was shown
        self._status: int | None = None
        self._read = 0  # how much of it has been looked for

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def enter(self, line: str) -> None:
        """Type a line."""
        self.type(line + "\n")

    def expect(self, pattern: str) -> "re.Match[str]":
        """Wait for the first match of a regular expression in what was shown since the last one's end."""
        deadline = time.monotonic() + patient(WAIT_S)
        while (match := re.search(pattern, self.shown[self._read :])) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.shown[self._read :]!r} after {self.shown[: self._read]!r}"
            if is_readable(self.master, 0.2):
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="replace")
                except OSError as error:  # the last process that had the terminal open has ended
                    raise AssertionError(f"the terminal's end, and no {pattern!r} in {self.shown!r}") from error
        self._read += match.end()
        return match

    def wait(self) -> int:
        """Wait for the session's leader to end; returns its exit status (negative: the signal that ended it)."""
        if self._status is None:
            pidfd = os.pidfd_open(self.pid)
            ended = is_readable(pidfd, patient(WAIT_S))
            os.close(pidfd)
            if not ended:
                os.kill(self.pid, signal.SIGKILL)
            assert ended, f"no end of the terminal's session, after {self.shown!r}"
            self._status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(self._status)

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> int:
        """The terminal's local modes (ICANON, ECHO)."""
        return int(termios.tcgetattr(self.master)[3])


@contextmanager
def screen(*argv: str, **environment: str) -> Iterator[Screen]:
    """A program on a pseudo-terminal that is its session's; hung up at the end, as by closing a terminal's window."""
    master, slave = os.openpty()
    shown = Screen(0, master)
    shown.resize(24, 80)
    shown.pid = os.fork()
    if shown.pid == 0:
        try:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(slave, fd)
            os.chdir(ROOT)
            os.execvpe(argv[0], argv, {**os.environ, "TERM": "dumb", **environment})
        finally:
            os._exit(127)
    os.close(slave)
    try:
        yield shown
    finally:
        os.close(master)
        shown.wait()


START = {"dash": ["-i"], "bash": ["--norc", "--noediting", "-i"]}
"""Shells with job control, and with what arguments each is interactive and reads no file of the user's."""


@contextmanager
def shell(name: str = "sh") -> Iterator[Screen]:
    """An interactive shell, at its prompt."""
    with screen(name, *START.get(name, ["-i"]), PS1=PROMPT, ENV="") as shown:
        shown.expect(PROMPT)
        yield shown


def state(pid: int) -> str:
    """What a process does, as ps shows it: "S" (sleeping), "T" (stopped)… or "" if there is none such."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
