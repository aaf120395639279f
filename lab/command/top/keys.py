"""A terminal that a full-screen command has for itself: keys one by one, the screen its own, and all as it was at the end.

Whatever ends the command ends in `leave`: a key, Ctrl-C, SIGTERM, a topology that ends. Ctrl-Z gives the terminal back while it
lasts. A SIGKILL leaves it as it is (`reset`).
"""

import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any

_ALTERNATE, _USUAL = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_KEYS = {"\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\r": "enter", "\n": "enter", "\x1b": "escape",
         "\x7f": "escape", " ": "space", "\x1b[D": "escape", "\x1bOD": "escape", "\x1b[C": "enter", "\x1bOC": "enter",
         "\x1b[5~": "page up", "\x1b[6~": "page down"}  # fmt: skip
_ONE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Z])|.", re.DOTALL)
_MOST = 1024  # bytes of keys at a time: somebody leans on the keyboard


def keys_of(typed: str) -> list[str]:
    """What was typed, key by key: "up", "down", "enter", "escape", "space" … or the letter."""
    return [_KEYS.get(one, one) for one in _ONE.findall(typed)]


class OwnScreen:
    """The terminal of standard input and output, from `enter` to `leave`."""

    def __init__(self) -> None:
        self._modes: list[Any] | None = None
        self._entered = False

    def __enter__(self) -> "OwnScreen":
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    @property
    def has_keys(self) -> bool:
        """Standard input is a terminal, too."""
        return sys.stdin.isatty()

    @staticmethod
    def size() -> tuple[int, int]:
        """Columns and rows, of the window itself: what the environment says may be another's."""
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        return columns or 80, rows or 24

    def enter(self) -> None:
        """Take it."""
        if self.has_keys:
            self._modes = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        self._entered = True
        self._write(_ALTERNATE)

    def leave(self) -> None:
        """Give it back, as it was. A second time changes nothing."""
        if not self._entered:
            return
        self._entered = False
        try:
            self._write(_USUAL)
            if self._modes is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)
        except (OSError, termios.error):
            pass  # it has been hung up

    def read(self) -> list[str]:
        """The keys that were pressed; "q" at the terminal's end."""
        try:
            typed = os.read(sys.stdin.fileno(), _MOST)
        except BlockingIOError:
            return []
        except OSError:
            return ["q"]
        return keys_of(typed.decode(errors="replace")) if typed else ["q"]

    def suspend(self, redraw: Callable[[], None]) -> None:
        """Ctrl-Z: give it back, stop, and take it again when told to go on."""
        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.enter()
        redraw()

    @staticmethod
    def draw(lines: list[str]) -> None:
        """Show these lines, one for each row."""
        # erased before it is written: behind a line that fills its row the cursor still stands on the last letter
        OwnScreen._write("\x1b[H" + "\r\n".join(f"\x1b[2K{line}\x1b[0m" for line in lines))

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
