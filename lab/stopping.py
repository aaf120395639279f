"""Stopping a process: SIGSTOP says so, and each of its threads stands still when it next gets a CPU to do that with.

On a busy machine that may take milliseconds, in which a loop goes on. Who measures, or proves, what happens without a process waits
for all of its threads.
"""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from lab.errors import LabError

LOOK_S = 0.0005
PATIENCE_S = 10.0


async def stop(*pids: int) -> None:
    """SIGSTOP to all, and wait until they stand still; who has ended does. LabError if one goes on."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    await standing_still(*pids)


async def standing_still(*pids: int) -> None:
    """Wait until processes that were sent a SIGSTOP stand still. LabError if one goes on."""
    limit = time.monotonic() + PATIENCE_S
    for pid in pids:
        while not stands_still(pid):
            if time.monotonic() > limit:
                raise LabError(f"process {pid} does not stand still: somebody lets it go on, or it is stuck in the kernel")
            await asyncio.sleep(LOOK_S)


def stands_still(pid: int) -> bool:
    """No thread of it runs, or will."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return True
    return all(_state(pid, task) in "TtZX" for task in tasks)


def _state(pid: int, task: str) -> str:
    try:
        stat = Path(f"/proc/{pid}/task/{task}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return stat.rpartition(")")[2].split()[0]
