"""The role of a traffic guest that tries what it should not be able to do, when its console says so."""

import asyncio
import ctypes
import os
from typing import Any

from domu.guest import Guest
from domu.programs import traffic
from hyp.control import Refused, close_all
from hyp.process import Process
from tests.support.attempts import _outcome, attempt

_libc = ctypes.CDLL(None, use_errno=True)


def _punch(fd: int) -> None:
    if _libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)) < 0:  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        raise OSError(ctypes.get_errno(), "fallocate")


class Tries:
    """The operations of the console."""

    def __init__(self, process: Process) -> None:
        process.serve("attempt", self.attempt)
        process.serve("memory", self.memory)
        process.serve("hypercalls", self.hypercalls)

    def take(self, guest: Guest) -> None:
        """The guest has booted."""
        self._guest = guest

    async def attempt(self, what: dict[str, Any]) -> dict[str, Any]:
        """See tests/support/attempts.py. In a thread, so that the guest's own device goes on."""
        return await asyncio.get_running_loop().run_in_executor(None, attempt, what)

    async def memory(self) -> dict[str, Any]:
        """Truncate, enlarge and punch its own RAM; open it anew."""
        fds = (await self._guest.hyp.call("domain_info")).fds
        try:
            size = os.fstat(fds[0]).st_size
            return {
                "shrink": _outcome(lambda: os.ftruncate(fds[0], 0)),
                "grow": _outcome(lambda: os.ftruncate(fds[0], 2 * size)),
                "punch": _outcome(lambda: _punch(fds[0])),
            }
        finally:
            close_all(fds)

    async def hypercalls(self, other: int, contexts: int) -> dict[str, str]:
        """Ask for what is another domain's."""
        calls: dict[str, tuple[str, dict[str, Any]]] = {
            "view": ("foreign_view", {"domid": other}),
            "filter": ("filter_change", {"domid": other, "add": ["02:00:00:00:00:01"], "remove": []}),
            "emulation": ("emulation_attach", {"interrupts": 0, "answers": 0, "entries": 256}),
            "bind": ("evtchn_bind_interdomain", {"remote": other, "remote_port": 1, "upcall": self._guest.upcall}),
        }
        calls |= {f"close {k}": ("context_close", {"context": k}) for k in range(contexts)}
        found = {}
        for name, (op, arguments) in calls.items():
            try:
                await self._guest.hyp.call(op, **arguments)
                found[name] = "done"
            except Refused as error:
                found[name] = error.name
        return found


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest, with the attempts on its console."""
    tries = Tries(process)
    boot = Guest.boot

    async def booted(guest: Guest) -> None:
        await boot(guest)
        tries.take(guest)

    vars_of: Any = Guest
    vars_of.boot = booted
    await traffic.main(process, config)
