"""What is done to whom: kill or stop a process of a topology."""

import asyncio
import os
import signal
from dataclasses import dataclass

from lab.owner import Lab
from lab.stopping import stop

KILL, STOP, NOTHING = "kill", "stop", "nothing"
VICTIM = "victim"
"""What the name of the guest begins with that is killed on a path."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`victim`: a process, or "guest", one on each path, or "nobody". `path`: whose guest, if it is a guest."""

    victim: str
    action: str
    path: str = ""

    @property
    def name(self) -> str:
        """For people: "dom0 killed"."""
        if self.action == NOTHING:
            return self.victim
        whose = f"{self.path} {self.victim}" if self.path else self.victim
        return f"{whose} {'killed' if self.action == KILL else 'stopped'}"

    @property
    def process(self) -> str:
        """Whose process it is."""
        return f"{VICTIM}-{self.path}" if self.path else self.victim


def faults(paths: tuple[str, ...]) -> list[Fault]:
    """All of them, for a topology with guests on these paths."""
    killed = [Fault(victim, KILL) for victim in ("dom0", "nic", "xenstored")]
    guests = [Fault("guest", KILL, path) for path in paths]
    stopped = [Fault(victim, STOP) for victim in ("dom0", "hyp", "xenstored")]
    return [Fault("nobody", NOTHING), *killed, *guests, *stopped]


async def commit(fault: Fault, lab: Lab, stop_s: float) -> None:
    """Do it; returns when it is over: who was killed is ready again, who was stopped goes on. LabError if it is dead for good."""
    if fault.action == NOTHING:
        return
    pid = (await lab.pids())[fault.process]
    if fault.action == KILL:
        times = lab.restarts(fault.process)
        os.kill(pid, signal.SIGKILL)
        await lab.restarted(fault.process, times + 1)
        return
    try:
        await stop(pid)
        await asyncio.sleep(stop_s)
    finally:
        os.kill(pid, signal.SIGCONT)
