"""Instructions that processes retire, counted by the CPU: perf_event_open(2), where machine and kernel allow it.

A virtual machine often has no such counters, and `why_not` then says so. Counted are all threads that a process has when counting
begins, in user mode only, so that no privilege is needed (``kernel.perf_event_paranoid`` up to 2).
"""

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Final, NamedTuple, Self

_libc = ctypes.CDLL(None, use_errno=True)
SYSCALL: Final = {"x86_64": 298, "aarch64": 241}.get(platform.machine())
ATTR_BYTES: Final = 112  # PERF_ATTR_SIZE_VER5
ATTR = struct.Struct("=IIQQQQQ")
"""``perf_event_attr`` (linux/perf_event.h): type, size, config, sample_period, sample_type, read_format, flags; the rest is 0."""
EXCLUDE_KERNEL, EXCLUDE_HV, CLOSE_ON_EXEC = 1 << 5, 1 << 6, 1 << 3


class Event(NamedTuple):
    """What to count: ``perf_event_attr.type`` and ``.config``."""

    type: int
    config: int


INSTRUCTIONS: Final = Event(0, 1)  # PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS
TASK_CLOCK: Final = Event(1, 1)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK, ns: every machine has it


def _open(event: Event, thread: int) -> int:
    """A descriptor that counts `event` in a thread, from now on. OSError."""
    if SYSCALL is None:
        raise OSError(0, f"the number of perf_event_open on {platform.machine()} is not known")
    attr = ATTR.pack(event.type, ATTR_BYTES, event.config, 0, 0, 0, EXCLUDE_KERNEL | EXCLUDE_HV).ljust(ATTR_BYTES, b"\0")
    fd = int(_libc.syscall(SYSCALL, ctypes.c_char_p(attr), thread, -1, -1, ctypes.c_ulong(CLOSE_ON_EXEC)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def why_not() -> str | None:
    """None if instructions can be counted here, else the reason."""
    try:
        os.close(_open(INSTRUCTIONS, 0))
    except OSError as error:
        return f"no hardware counters: {error.strerror}"
    return None


class Counting:
    """``with Counting(pids) as counting: …; counting.total()``. OSError if the event cannot be counted."""

    def __init__(self, pids: Iterable[int], event: Event = INSTRUCTIONS) -> None:
        self._pids, self._event = list(pids), event
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        try:
            for thread in (int(task) for pid in self._pids for task in os.listdir(f"/proc/{pid}/task")):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    self._fds.append(_open(self._event, thread))
        except BaseException:
            self._close()
            raise
        return self

    def total(self) -> int:
        """Counted so far, of all threads together."""
        return sum(int.from_bytes(os.read(fd, 8), "little") for fd in self._fds)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
