"""A running guest changes its path, split or bypass, under whatever traffic it has: the order of the steps.

Dom0's part is dom0/toolstack/moves.py, the guest's domu/move.py. Here nothing is known but who is asked what next. What fails
before the switch is undone, and the guest stays where it was; a guest that is left alone after it goes on by itself. From then on
its address is the new device's, and the old one is taken from it, whether it does its own part, in GUEST_S each time, or not
(`Moved`).
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from hyp.control import ControlError

Call = Callable[..., Awaitable[Any]]
"""``await call(process, operation, **arguments)``: an operation of a process's console; its value."""


GUEST_S = 30.0


class Moved(ControlError):
    """The guest is on its new path, and has not done its own part of the move."""


async def move(call: Call, guest: str, domid: int, path: str) -> float:
    """Move a guest to `path`; returns for how many seconds it sent nothing. ControlError if it stays where it is, and why.

    But `Moved`, and why, if it does not.
    """

    async def ask(op: str, **args: Any) -> None:
        try:
            async with asyncio.timeout(GUEST_S):
                await call(guest, op, **args)
        except TimeoutError:
            raise ControlError(f"{guest} has not answered {op} within {GUEST_S:g} s") from None

    await call("dom0", "move_begin", domid=domid, path=path)
    try:
        await ask("move_connect", path=path)
    except BaseException:
        with contextlib.suppress(ControlError):
            await call("dom0", "move_abort", domid=domid)
        raise
    try:
        await call("dom0", "move_switch", domid=domid)
    except BaseException:
        with contextlib.suppress(ControlError):  # the guest may be gone, and it is undone all the same
            await ask("move_abort")
        with contextlib.suppress(ControlError):
            await call("dom0", "move_abort", domid=domid)
        raise
    paused = time.monotonic()
    try:
        await ask("move_receive")
        await call("dom0", "move_settle", domid=domid)
        await ask("move_send")
        pause_s = time.monotonic() - paused
        await ask("move_close")
    except ControlError as error:
        await call("dom0", "move_end", domid=domid)
        raise Moved(f"{guest} is on {path}, and has not done its part: {error}") from error
    await call("dom0", "move_end", domid=domid)
    return pause_s
