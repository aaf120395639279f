"""A running guest changes its path, split or bypass, under whatever traffic it has: the order of the steps.

Dom0's part is dom0/toolstack/moves.py, the guest's domu/move.py. Here nothing is known but who is asked what next. What fails
before the switch is undone, and the guest stays where it was; a guest that is left alone after it goes on by itself.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hyp.control import ControlError

Call = Callable[..., Awaitable[Any]]
"""``await call(process, operation, **arguments)``: an operation of a process's console; its value."""


async def move(call: Call, guest: str, domid: int, path: str) -> float:
    """Move a guest to `path`; returns for how many seconds it sent nothing. ControlError if it stays where it is, and why."""
    await call("dom0", "move_begin", domid=domid, path=path)
    try:
        await call(guest, "move_connect", path=path)
    except BaseException:
        with contextlib.suppress(ControlError):
            await call("dom0", "move_abort", domid=domid)
        raise
    try:
        await call("dom0", "move_switch", domid=domid)
    except BaseException:
        for process, argument in ((guest, {}), ("dom0", {"domid": domid})):
            with contextlib.suppress(ControlError):  # the guest may be gone, and it is undone all the same
                await call(process, "move_abort", **argument)
        raise
    paused = time.monotonic()
    await call(guest, "move_receive")
    await call("dom0", "move_settle", domid=domid)
    await call(guest, "move_send")
    pause_s = time.monotonic() - paused
    await call(guest, "move_close")
    await call("dom0", "move_end", domid=domid)
    return pause_s
