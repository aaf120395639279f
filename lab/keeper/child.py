"""One process of a topology, as the keeper knows it."""

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import Any

from hyp.control import Channel
from lab.keeper.lifeline import Lifeline

STOP_TIMEOUT_S = 3.0
GUEST = "domu"
"""The role of those whom nobody trusts."""


@dataclass(slots=True)
class Child:
    """One process of the topology. `plan` is what it was forked by; `restarts`: how often there was one of its name before."""

    plan: dict[str, Any]
    pid: int
    pidfd: int
    console: Channel
    ready: asyncio.Future[None]
    ended: asyncio.Future[int]
    succeeded: asyncio.Future[None]  # of one that was to be restarted: that has been tried, and `Keeper._children` has the outcome
    restarts: int = 0
    restarting: bool = False  # it has ended, and another one is to come
    failure: str | None = None
    notices: list[str] = field(default_factory=list)  # what its user ought to know
    sockets: dict[str, tuple[socket.socket, socket.socket]] = field(default_factory=dict)  # purpose → server's end, its own
    lifeline: Lifeline | None = None  # of a guest that is a machine

    @property
    def name(self) -> str:
        return str(self.plan["name"])

    @property
    def role(self) -> str:
        return str(self.plan["role"])

    @property
    def domid(self) -> int | None:
        return int(self.plan["domain"]["domid"]) if self.plan["domain"] else None

    @property
    def is_done(self) -> bool:
        """A guest whose program has ended with status 0: it has done its work, perhaps before the others were ready. No death."""
        return self.role == GUEST and self.ready.done() and self.ended.done() and self.ended.result() == 0

    @property
    def state(self) -> str:
        """ "starting", "ready", or how it ended."""
        if self.ended.done():
            return f"died ({self.failure})" if self.failure else describe_exit(self.ended.result())
        return "ready" if self.ready.done() else "starting"

    def forget(self) -> None:
        """Another one has taken its place."""
        self.console.close()
        os.close(self.pidfd)


def describe_exit(code: int) -> str:
    """How a process ended: "died (signal 9)", "died (status 1)", "ended"."""
    if code < 0:
        return f"died (signal {-code})"
    return f"died (status {code})" if code else "ended"


async def end(children: list[Child]) -> None:
    """Ask processes to stop, kill those that do not, and wait, `STOP_TIMEOUT_S` at most each time, until they have ended."""
    running = [child for child in children if not child.ended.done()]
    for child in running:
        child.console.tell("stop")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGCONT)
    if running:
        await asyncio.wait([child.ended for child in running], timeout=STOP_TIMEOUT_S)
    for child in running:
        if not child.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    still = [child.ended for child in running if not child.ended.done()]
    if still:
        await asyncio.wait(still, timeout=STOP_TIMEOUT_S)
