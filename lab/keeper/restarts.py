"""Which processes are started again when they die, and how often (docs/faults.md).

A process that dies soon after each start would be started for ever: who has been started again so many times within so many
seconds as the topology says (`Limit`) is given up, and dead, as a process is that nobody restarts.
"""

from collections import deque
from typing import NamedTuple

READY_S = 20.0
"""From the fork to `ready`. Who takes longer is killed, which is a death like others."""


class Limit(NamedTuple):
    """So many restarts within so many seconds, and no more."""

    restarts: int
    within_s: float


class Restarts:
    """How often each process was started again, and when."""

    def __init__(self) -> None:
        self._starts: dict[str, deque[float]] = {}

    def may(self, name: str, now: float, limit: Limit) -> bool:
        """True if process `name` may be started once more, which is counted then. `now`: seconds of any clock."""
        starts = self._starts.setdefault(name, deque())
        while starts and now - starts[0] > limit.within_s:
            starts.popleft()
        if len(starts) >= limit.restarts:
            return False
        starts.append(now)
        return True
