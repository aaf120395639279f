"""Which processes are started again when they die, and how often (docs/faults.md).

A process that dies soon after each start would be started for ever: who has been started again so many times within so many
seconds as the topology says (`Limit`) is given up, and dead, as a process is that nobody restarts.

A guest's next life has others work: its RAM is cleared away and made anew, which takes the longer the more it is. So it owes
`LIFE_DEARNESS` times as long as that took, and is not started before it owes no more than `LIFE_CREDIT_S`: one that dies now and
then is there again at once, one that dies again and again has others work for a small share of the time.
"""

from collections import deque
from typing import NamedTuple

READY_S = 20.0
"""From the fork to `ready`. Who takes longer is killed, which is a death like others."""
LIFE_DEARNESS, LIFE_CREDIT_S = 10, 2.0


class Limit(NamedTuple):
    """So many restarts within so many seconds, and no more."""

    restarts: int
    within_s: float


class Restarts:
    """How often each process was started again, and when."""

    def __init__(self) -> None:
        self._starts: dict[str, deque[float]] = {}
        self._paid_at: dict[str, float] = {}

    def may(self, name: str, now: float, limit: Limit) -> bool:
        """True if process `name` may be started once more, which is counted then. `now`: seconds of any clock."""
        starts = self._starts.setdefault(name, deque())
        while starts and now - starts[0] > limit.within_s:
            starts.popleft()
        if len(starts) >= limit.restarts:
            return False
        starts.append(now)
        return True

    def owe(self, name: str, now: float, seconds: float) -> None:
        """A guest has been given another life, which took so long."""
        self._paid_at[name] = max(self._paid_at.get(name, now), now) + LIFE_DEARNESS * seconds

    def wait_s(self, name: str, now: float) -> float:
        """For how long it is not to be given one."""
        return max(self._paid_at.get(name, now) - LIFE_CREDIT_S - now, 0.0)
