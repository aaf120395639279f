"""A terminal of a program's own, which stands for its caller's: what is typed at that is typed at it, what it shows that shows.

For a program that isn't trusted with the caller's terminal, a confined guest's. What it leaves behind, in a session of its own too,
has the program's, which is hung up, and not one at which passwords will be typed. As ssh(1) and ``docker run -t`` have it.

==================  ===============================================================================================================
whose               what
==================  ===============================================================================================================
launch.py           the caller's terminal; the program's master, with whose end the program's terminal is hung up
the supervisor      the program's session, whose leader it is: without a parent in its session the program's group would be
                    orphaned, and Ctrl-Z stopped nothing
the program         the group that is in the foreground there; each descriptor that was a terminal of the caller's is the program's
==================  ===============================================================================================================

Where standard input and output both are the caller's terminal, that is raw while launch.py's job has it, so that every key reaches
the program's, which makes signals of some. Where only one is (a pipeline), the caller's goes on making lines and signals, which
launch.py passes on, and what is typed reaches the program as its standard input, if it is that. In the background nothing is read.
Nobody is told when a job comes to the foreground without having been stopped: it is looked at LOOK_MS after each other.
"""

import contextlib
import fcntl
import os
import select
import termios
import tty
from collections.abc import Set
from pathlib import Path
from typing import Any

from lab.execute.terminal import Terminal

LOOK_MS = 100
MOST_KEYS = 4096
MOST_SHOWN = 1 << 16
LAST_SHOWN = 4 * MOST_SHOWN
"""What is shown at most of what a terminal still has when its program has ended: more than its buffers are."""
LOCAL, CONTROLS = 3, 6  # of termios.tcgetattr


def terminals() -> set[int]:
    """Those of this process's descriptors that a program inherits and that are terminals."""
    found = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    return {fd for fd in found if os.isatty(fd) and os.get_inheritable(fd)}


class Relay:
    """`end` is the program's, and the supervisor's after the fork. It stands for the terminals `replaced`."""

    def __init__(self, replaced: Set[int], terminal: Terminal | None) -> None:
        self.replaced = replaced
        self.master, self.end = os.openpty()
        os.set_blocking(self.master, False)
        self._screen = os.dup(next(fd for fd in (1, 2, *sorted(replaced)) if fd in replaced))
        self._keys = _open_again(0) if 0 in replaced else None
        self._raw = terminal is not None and terminal.is_both(0, 1)  # if it is ours
        self._modes: list[Any] | None = None  # the caller's, while it is raw
        self._typed = b""  # and not yet taken
        modes = termios.tcgetattr(self._screen)
        if not self._raw:  # the caller's terminal does that
            modes[1] &= ~termios.OPOST
            modes[LOCAL] &= ~(termios.ECHO | termios.ISIG)
        self._end_of_file = bytes(modes[CONTROLS][termios.VEOF])
        termios.tcsetattr(self.end, termios.TCSANOW, modes)
        self.resize()

    @property
    def fds(self) -> set[int]:
        """The caller's end's descriptors."""
        return {self.master, self._screen} | ({self._keys} if self._keys is not None else set())

    def resize(self) -> None:
        """Give the program's terminal the size of the caller's."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, fcntl.ioctl(self._screen, termios.TIOCGWINSZ, bytes(8)))

    def begin(self) -> None:
        """Make the caller's terminal raw, if it should be and isn't."""
        if not self._raw or self._modes is not None or self._keys is None or not self._is_ours():
            return
        with contextlib.suppress(termios.error):
            self._modes = termios.tcgetattr(self._keys)
            tty.setraw(self._keys, termios.TCSANOW)
        self.resize()

    def pause(self) -> bool:
        """Let the caller's terminal be as it was; returns whether it was raw."""
        modes, self._modes = self._modes, None
        if modes is not None and self._keys is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, modes)
        return modes is not None

    def poll(self, others: Set[int]) -> list[int]:
        """Wait until there is something to do at a descriptor of `others`, which are returned, or for `move`."""
        self.begin()
        poll, ours = select.poll(), self._keys is not None and self._is_ours()
        for fd in others:
            poll.register(fd, select.POLLIN)
        poll.register(self.master, select.POLLIN | (select.POLLOUT if self._typed else 0))
        if self._keys is not None and ours and not self._typed:
            poll.register(self._keys, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(LOOK_MS if self._keys is not None and not ours else None)}
        if self.master in ready:
            self._show()
            self._type()
        if self._keys in ready:
            self._listen()
        return sorted(ready & others)

    def drain(self) -> None:
        """Show what the program has left to be shown."""
        left = LAST_SHOWN
        while left > 0 and (shown := self._show()):
            left -= shown

    def _is_ours(self) -> bool:
        """Whether this process's job has the terminal at which is typed; one that is nobody's controlling terminal has all."""
        assert self._keys is not None
        try:
            return os.tcgetpgrp(self._keys) == os.getpgrp()
        except OSError:
            return True

    def _show(self) -> int:
        """Show some of what there is to be shown; returns how many bytes."""
        try:
            data = os.read(self.master, MOST_SHOWN)
        except OSError:  # nothing; nobody has it open
            return 0
        shown = 0
        while shown < len(data):
            try:
                shown += os.write(self._screen, data[shown:])
            except BlockingIOError:  # the caller has made it so
                select.select([], [self._screen], [])
            except OSError:  # hung up
                break
        return len(data)

    def _listen(self) -> None:
        """Take what was typed."""
        assert self._keys is not None
        try:
            keys = os.read(self._keys, MOST_KEYS)
        except BlockingIOError:  # somebody else has taken it
            return
        except OSError:  # hung up
            keys = b""
        if not keys and (self._modes is not None or not os.isatty(self._keys)):
            os.close(self._keys)
            self._keys = None
            return
        self.resize()  # what is typed after that finds it so
        self._typed = keys or self._end_of_file
        self._type()

    def _type(self) -> None:
        """Type what was typed, as far as there is room."""
        if self._typed:
            with contextlib.suppress(OSError):
                self._typed = self._typed[os.write(self.master, self._typed) :]


def _open_again(fd: int) -> int | None:
    """The terminal `fd` anew, as others who read there must not let our reads wait; None if it can't be had."""
    try:
        os.tcgetpgrp(fd)
        path = "/dev/tty"  # can always be opened
    except OSError:  # it is not the one that controls us
        path = f"/proc/self/fd/{fd}"
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return None
