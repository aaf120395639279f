"""A terminal of a program's own, which stands for its caller's: what is typed at that is typed at it, what it shows that shows.

For a program that isn't trusted with the caller's terminal, a confined guest's. What it leaves behind, in a session of its own too,
has the program's, which is hung up, and not one at which passwords will be typed. As ssh(1) and ``docker run -t`` have it.

==================  ===============================================================================================================
whose               what
==================  ===============================================================================================================
launch.py           the caller's terminal; the program's master, with whose end the program's terminal is hung up
the supervisor      the program's session, whose leader it is: without a parent in its session the program's group would be
                    orphaned, and Ctrl-Z stopped nothing. It alone can say which group is in the foreground there
the program         each descriptor that was a terminal of the caller's is its own terminal
==================  ===============================================================================================================

As with the caller's own (terminal.py) the program is *lent* it: at once where standard input and output are the caller's, else when
the program asks, which stops it (SIGTTIN, SIGTTOU), and only while launch.py's job has the caller's. Lent, the program's group is
in the foreground of its terminal, the caller's is raw, and every key reaches the program's, which makes signals of some. Otherwise
nothing is read: the keys are the neighbours' in a pipeline, or a shell's.
"""

import contextlib
import fcntl
import os
import select
import termios
import tty
from collections.abc import Set
from pathlib import Path

from lab.execute.terminal import Terminal

MOST_KEYS = 4096
MOST_SHOWN = 1 << 16
LAST_SHOWN = 4 * MOST_SHOWN
"""What is shown at most of what a terminal still has when its program has ended: more than its buffers are."""
LAST_MS = 1000
"""How long a terminal may take none of that."""
OFLAG, CFLAG, LFLAG = 1, 2, 3  # of termios.tcgetattr


def takes(fd: int, ms: int) -> bool:
    """Whether something can be written to `fd` within that time."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(ms))


def terminals() -> set[int]:
    """Those of this process's descriptors that a program inherits and that are terminals."""
    found = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    return {fd for fd in found if os.isatty(fd) and os.get_inheritable(fd)}


class Relay(Terminal):
    """The caller's terminal, in whose place the program has another one.

    `end` is the program's, and the supervisor's after the fork. It stands for the terminals `replaced`.
    """

    def __init__(self, replaced: Set[int], controlling: Terminal | None) -> None:
        """OSError if there is no terminal to be had."""
        shown = next(fd for fd in (1, 2, *sorted(replaced)) if fd in replaced)
        super().__init__(_open_again("/dev/tty" if controlling is not None else f"/proc/self/fd/{shown}", shown))
        self.replaced = replaced
        self.master, self.end = os.openpty()
        os.set_blocking(self.master, False)
        self._typed, self._shown = b"", b""  # and not yet taken
        self._size = b""
        self._alone = controlling is not None and controlling.is_both(0, 1)  # nobody else is to show anything meanwhile
        with contextlib.suppress(termios.error):
            modes = termios.tcgetattr(self.fd)
            if self.is_ours() and modes[LFLAG] & termios.ICANON:  # else they are an editor's, or of another one who made it raw
                modes[CFLAG] = termios.tcgetattr(self.end)[CFLAG]
                termios.tcsetattr(self.end, termios.TCSANOW, modes)
        self.resize()

    @property
    def fds(self) -> set[int]:
        """The caller's end's descriptors."""
        return {self.master, self.fd}

    def resize(self) -> None:
        """Give the program's terminal the size of the caller's, if that has another one than it had."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self.fd, termios.TIOCGWINSZ, bytes(8))
            if size != self._size:
                self._size = size
                fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def lend(self, group: int) -> None:
        """Make the caller's terminal raw, and begin to read there. That `group` is in the foreground is the supervisor's to say."""
        with contextlib.suppress(termios.error):
            modes = termios.tcgetattr(self.fd)
            if not self.lent:
                self._modes = modes if modes[LFLAG] & termios.ICANON else None
            tty.setraw(self.fd, termios.TCSANOW)
            self._follow()
        self.lent = True
        self.resize()

    def _follow(self) -> None:
        """Among others in a pipeline, who write lines: make lines there as long as the program has its own made, too."""
        if not self._alone:
            ours, its = termios.tcgetattr(self.fd), termios.tcgetattr(self.master)  # which is its end's
            if (ours[OFLAG] ^ its[OFLAG]) & termios.OPOST:
                ours[OFLAG] ^= termios.OPOST
                termios.tcsetattr(self.fd, termios.TCSANOW, ours)

    def take_back(self, *, restore: bool = False) -> bool:
        """Let the caller's terminal be as it was; returns whether it was lent."""
        lent, self.lent = self.lent, False
        if lent and self._modes is not None and self.is_ours():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self.fd, termios.TCSANOW, self._modes)
        return lent

    def poll(self, others: Set[int]) -> list[int]:
        """Wait until there is something to do at a descriptor of `others`, which are returned, or here, which is done."""
        events = dict.fromkeys(others, select.POLLIN)
        events[self.master] = (0 if self._shown else select.POLLIN) | (select.POLLOUT if self._typed else 0)
        reads = self.lent and not self._typed and self.is_ours()
        if reads or self._shown:
            events[self.fd] = (select.POLLIN if reads else 0) | (select.POLLOUT if self._shown else 0)
        poll = select.poll()
        for fd, wanted in events.items():
            poll.register(fd, wanted)
        ready = dict(poll.poll())
        if ready.get(self.fd, 0) & (select.POLLIN | select.POLLHUP) and reads:
            self._listen()
        if self.master in ready or self.fd in ready:
            self._show()
            self._type()
        return sorted(ready.keys() & others)

    def drain(self) -> None:
        """Show what the program has left to be shown."""
        left = LAST_SHOWN
        while left > 0 and (shown := self._show()):
            left -= shown
            if self._shown and not takes(self.fd, LAST_MS):
                return

    def _show(self) -> int:
        """Show some of what there is to be shown; returns how many bytes of it there were."""
        if not self._shown:
            try:
                self._shown = os.read(self.master, MOST_SHOWN)
            except OSError:  # nothing; nobody has it open
                return 0
        there = len(self._shown)
        try:
            if self.lent:
                self._follow()
            self._shown = self._shown[os.write(self.fd, self._shown) :]
        except BlockingIOError:
            pass
        except (OSError, termios.error):  # hung up
            self._shown = b""
        return there

    def _listen(self) -> None:
        """Take what was typed."""
        try:
            keys = os.read(self.fd, MOST_KEYS)
        except BlockingIOError:  # somebody else has taken it
            return
        except OSError:  # hung up
            keys = b""
        if not keys and not os.isatty(self.fd):
            self.lent = False
        self.resize()  # what is typed after that finds it so
        self._typed = keys

    def _type(self) -> None:
        """Type what was typed, as far as there is room."""
        if self._typed:
            with contextlib.suppress(OSError):
                self._typed = self._typed[os.write(self.master, self._typed) :]


def _open_again(path: str, fd: int) -> int:
    """A terminal anew, since with others who read and write there nobody is to wait."""
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's, after su(1), say
        return os.dup(fd)
