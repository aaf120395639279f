"""Births and deaths as the kernel has them: forking by the warm fork server, and reaping whoever has ended.

A process that is born becomes the keeper's child by adoption, and nobody knows its pid until the fork server has told it. It may
end before. So while a pid is awaited, only those are reaped who are known: the new one stays a zombie until its pidfd is open, and
its end is then a death like others. `fork` returns with the pid known and the pidfd open, and whoever awaits it has made it one of
those it knows (`Family.living`) before the loop reaps again.

The fork server's own end takes away births, and nothing else: whoever was forked goes on.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from hyp.control import Channel, Handler, Refused
from lab.keeper.child import describe_exit

REAPED = 64
"""Processes that are reaped before others get a turn: a guest can make any number of orphans, which are all the keeper's."""


class Family(Protocol):
    """Who is told of deaths."""

    def living(self) -> Iterable[int]:
        """The pids of those it knows of who have not ended."""

    def died(self, pid: int, code: int) -> None:
        """A process has been reaped, perhaps one that it does not know. `code`: as `os.waitstatus_to_exitcode` has it."""

    def childless(self, cause: str) -> None:
        """The fork server has ended: nobody more will be born."""


class Births:
    """`told`: handlers of what else the fork server says while it loads."""

    def __init__(self, family: Family, pid: int, sock: socket.socket, told: Mapping[str, Handler]) -> None:
        self._family, self._pid = family, pid
        self._loop = asyncio.get_running_loop()
        self._awaits_pid = False
        self._turn = asyncio.Lock()
        self._ready: asyncio.Future[float] = self._loop.create_future()
        self.over: str | None = None
        """Why nobody more will be born."""
        handlers: dict[str, Handler] = {"warm": self._is_warm, "failed": self._cannot_warm, **told}
        self._channel = Channel(sock, handlers, name="the fork server", on_close=self._gone)
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    async def warm(self) -> float:
        """Wait until it can fork; the seconds that it took. Refused, with the reason, if it never will."""
        return await asyncio.shield(self._ready)

    async def fork(self, purposes: Sequence[str], fds: Sequence[int], args: Mapping[str, Any]) -> tuple[int, int]:
        """A new process, with the descriptors `fds`, each for its purpose: its pid and a pidfd. ControlError if there is none."""
        async with self._turn:
            self._awaits_pid = True
            try:
                pid = int((await self._channel.call("fork", fds=list(fds), purposes=list(purposes), **args)).value["pid"])
                return pid, os.pidfd_open(pid)
            finally:
                self._awaits_pid = False
                self._loop.call_soon(self.reap)

    def end(self) -> None:
        """Nobody more will be born."""
        self._channel.close()
        if self.over is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def reap(self) -> None:
        """See who has ended."""
        if self._awaits_pid:
            for pid in [self._pid, *self._family.living()]:
                self._reap_one(pid)
            return
        for _ in range(REAPED):
            if not self._reap_one(-1):
                return
        self._loop.call_soon(self.reap)  # there may be more

    def _reap_one(self, pid: int) -> bool:
        """Whether that process, or any (−1), had ended and is reaped now."""
        try:
            pid, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return False
        code = os.waitstatus_to_exitcode(status)
        if pid == self._pid:
            self.over = f"forkserver {describe_exit(code)}: new processes cannot be started; data goes on"
            self._family.childless(self.over.removeprefix("forkserver "))
        else:
            self._family.died(pid, code)
        return True

    # -- what the fork server says --

    def _is_warm(self, seconds: float) -> None:
        if not self._ready.done():
            self._ready.set_result(seconds)

    def _cannot_warm(self, cause: str) -> None:
        self._never(f"the compiled code could not be loaded: {cause}")

    def _gone(self) -> None:
        self._never("the fork server died while it loaded the compiled code")

    def _never(self, why: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(Refused("ECHILD", why))
