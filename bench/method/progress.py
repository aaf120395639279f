"""Says how far a run has come, and how long it still takes: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from lab.command.screen import Screen

EVERY_S = 5.0  # between plain lines


class Steps(Protocol):
    """What benchmarks report to."""

    def step(self, text: str, fraction: float) -> None:
        """`fraction` (0 to 1) is done; `text` says what comes now."""


class Part:
    """A part of a longer run: what it calls 0 to 1 is `low` to `high` of the whole."""

    def __init__(self, whole: Steps, low: float, high: float, title: str = "") -> None:
        self._whole, self._low, self._high, self._title = whole, low, high, title

    def step(self, text: str, fraction: float) -> None:
        """As `Steps`."""
        words = f"{self._title}: {text}" if self._title else text
        self._whole.step(words, self._low + (self._high - self._low) * min(1.0, max(0.0, fraction)))


def parts(whole: Steps, titles: list[str]) -> Iterator[Part]:
    """Equal parts of a run, one per title."""
    for number, title in enumerate(titles):
        yield Part(whole, number / len(titles), (number + 1) / len(titles), title)


class Silent:
    """For a benchmark that nobody watches."""

    def step(self, text: str, fraction: float) -> None:
        """Nothing."""


def time_left(elapsed: float, fraction: float) -> str:
    """ "1:05 left"; nothing while too little is done to tell."""
    if fraction < 0.005 or elapsed < 1:
        return ""
    seconds = round(elapsed * (1 - fraction) / fraction)
    return f"{seconds // 60}:{seconds % 60:02} left"


class Lines:
    """Plain lines for logs: now and then, with the time left."""

    def __init__(self, out: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock, self._start = out, clock, clock()
        self._last = -EVERY_S

    def step(self, text: str, fraction: float) -> None:
        """As `Steps`; at most one line in 5 s."""
        elapsed = self._clock() - self._start
        if elapsed - self._last >= EVERY_S:
            self._last = elapsed
            left = time_left(elapsed, fraction)
            self._out(f"[{fraction:4.0%}] {text}" + (f" ({left})" if left else ""))


class _Bar:
    """A bar of rich."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._start = bar, time.monotonic()
        self._task = bar.add_task("", total=1.0, left="")

    def step(self, text: str, fraction: float) -> None:
        """As `Steps`."""
        left = time_left(time.monotonic() - self._start, fraction)
        self._bar.update(self._task, completed=fraction, description=text, left=left)


@contextmanager
def watched(console: Screen) -> Iterator[Steps]:
    """Progress on this console while the block runs."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line))
        return
    left, now = TextColumn("{task.fields[left]}"), TextColumn("{task.description}", markup=False)
    with Progress(BarColumn(24), TaskProgressColumn(), left, now, console=console, transient=True) as bar:
        yield _Bar(bar)
