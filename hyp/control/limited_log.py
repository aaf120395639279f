"""A log that others have written to, as often as they like: so many lines in so long, and how many were left out.

Linux's printk_ratelimit. All daemons of a topology write into one log, which nothing else bounds.
"""

import logging
import time
from collections.abc import Callable

BURST, INTERVAL_S = 10, 5.0
"""So many lines in so many seconds."""
TRACEBACKS_S = 60.0
"""In which there are no more than BURST where a line may be a traceback, some kilobytes."""


class LimitedLog:
    """Of one of those who have something written. Each line begins with `prefix`."""

    def __init__(
        self, log: logging.Logger, prefix: str, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._prefix, self._interval_s, self._clock = log, prefix, interval_s, clock
        self._since, self._lines, self._left_out = float("-inf"), 0, 0

    def info(self, text: str) -> None:
        """Write a line, as `logging.Logger.info` does, unless there are too many; and so on."""
        self._write(logging.INFO, text)

    def warning(self, text: str) -> None:
        """See `info`."""
        self._write(logging.WARNING, text)

    def error(self, text: str, trace: BaseException | None = None) -> None:
        """See `info`. `trace`: what has a traceback to be written with it."""
        self._write(logging.ERROR, text, trace)

    def end(self) -> None:
        """Nothing more will be written: tell what was left out since the last that was."""
        if self._left_out:
            self._log.warning("%s: %d lines left out", self._prefix, self._left_out)
            self._left_out = 0

    def _write(self, level: int, text: str, trace: BaseException | None = None) -> None:
        now = self._clock()
        if now - self._since > self._interval_s:
            self.end()
            self._since, self._lines = now, 0
        if self._lines < BURST:
            self._lines += 1
            self._log.log(level, "%s: %s", self._prefix, text, exc_info=trace)
        else:
            self._left_out += 1
