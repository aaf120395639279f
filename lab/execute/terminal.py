"""The controlling terminal, and which process group has it: what a shell does for its jobs (termios(3), credentials(7))."""

import contextlib
import fcntl
import os
import termios
from typing import Any


class Terminal:
    """The controlling terminal of this process, which can lend it to a process group of a child's.

    The kernel does the rest: the group that has it gets its keys' signals and SIGWINCH, others get SIGTTIN when they read. Whoever
    lends must ignore SIGTTOU, which it would get for taking it back.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._group = os.getpgrp()
        self._modes: list[Any] | None = None
        self.lent = False

    @classmethod
    def controlling(cls) -> "Terminal | None":
        """The controlling terminal; None if there is none.

        The leader of a session that has none takes the one it has for standard input, as it would if it had opened it itself.
        """
        if os.getsid(0) == os.getpid() and os.isatty(0):
            with contextlib.suppress(OSError):  # it is so already, or another session's
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return None

    def is_ours(self, borrower: int | None = None) -> bool:
        """Whether this process's group has the terminal; or `borrower`, a group to which it may have been lent."""
        try:
            return os.tcgetpgrp(self.fd) in (self._group, borrower)
        except OSError:  # hung up
            return False

    def is_both(self, one: int, other: int) -> bool:
        """Whether both descriptors refer to it."""
        try:
            return os.tcgetpgrp(one) == os.tcgetpgrp(other) >= 0
        except OSError:
            return False

    def lend(self, group: int) -> None:
        """Let `group` have it."""
        with contextlib.suppress(OSError, termios.error):
            self._modes = self._modes or termios.tcgetattr(self.fd)
            os.tcsetpgrp(self.fd, group)
            self.lent = True

    def take_back(self, *, restore: bool = False) -> bool:
        """Have it again; `restore`: with the modes it had when it was first lent. Returns whether it was lent."""
        lent, self.lent = self.lent, False
        if lent:
            with contextlib.suppress(OSError, termios.error):
                os.tcsetpgrp(self.fd, self._group)
                if restore and self._modes is not None:
                    termios.tcsetattr(self.fd, termios.TCSANOW, self._modes)
        return lent
