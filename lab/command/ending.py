"""How a command ends: by a signal, in order; and without its output, when nobody takes that.

A shell starts a script's background jobs with SIGINT ignored; whoever sends it to one means it, so it is handled all the same.
SIGHUP that was ignored stays so: that is what nohup is for.
"""

import asyncio
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SURROUNDINGS = (
    errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR,
    errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
"""Errors that are about the machine and its files, not about the lab's code."""


def _heeded() -> list[signal.Signals]:
    return [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]


def run_in_order(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command that starts topologies; returns its exit status.

    The first signal cancels it, which takes everything down; further ones, while that goes on, change nothing. The status is then
    128 + the signal's number.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_signal(main))
    finally:
        for number in _heeded():  # nothing is left to end but this process, whose status says how
            signal.signal(number, signal.SIG_IGN)


async def _until_signal(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    loop, caught = asyncio.get_running_loop(), list[int]()
    task = loop.create_task(main())

    def end(number: int) -> None:
        caught.append(number)
        if len(caught) == 1:
            task.cancel()

    for number in _heeded():
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
    print(f"{_word(caught[0])}; everything has been taken down", file=sys.stderr)
    return 128 + caught[0]


def _word(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "terminated"


def silence(stream: Any) -> None:
    """Let nothing more be written to a stream that failed, not even what is left in its buffer at the end of Python."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def unwritable(path: Path) -> str | None:
    """Why `path` cannot be written, or None if it can. Makes nothing, and changes nothing that is there."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _unmakable(path)
    except OSError as error:
        return error.strerror
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    return None if os.access(path, os.W_OK) else os.strerror(errno.EACCES)


def _unmakable(path: Path) -> str | None:
    try:
        with open(path, "x"):
            pass
        path.unlink()
    except OSError as error:
        return error.strerror
    return None
