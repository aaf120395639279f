"""Where client, server and whatever carries frames between them run: with two CPUs that decides more than what they do.

All get the same choice: as they are started, anywhere, all on one CPU, or one of them on a CPU of its own and the others on
another. A lab can be laid out like that by its topology's `[cpu]` and taskset(1). Which one suits a program best on a contender,
short runs say before it is measured: a few in each, then more in the best of these, as one run may be lucky.
"""

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress

from bench.method.estimate import median

ANYWHERE, TOGETHER = "anywhere", "all on one CPU"
CLIENT_END, SERVER_END = "client", "server"
APART = " apart"
FIRST_TRIALS, BEST, MORE_TRIALS = 2, 3, 3


def apart(name: str) -> str:
    """The placement in which it has a CPU of its own."""
    return name + APART


def placements(usual: str, carriers: Sequence[str]) -> tuple[str, ...]:
    """What there is to choose from. `usual`: as they are started; `carriers`: processes that frames go through."""
    return (*dict.fromkeys((usual, ANYWHERE)), TOGETHER, *map(apart, (CLIENT_END, SERVER_END, *carriers)))


def cpus_in(placement: str, name: str) -> set[int] | None:
    """A process's CPUs, of those that this one may use; None: its usual ones."""
    cpus = os.sched_getaffinity(0)
    if placement == ANYWHERE:
        return cpus
    if placement == apart(name):
        return {min(cpus)}
    return {max(cpus)} if placement == TOGETHER or placement.endswith(APART) else None


def place_threads(placement: str, processes: Mapping[str, int], usual: Callable[[str, int], Collection[int]]) -> None:
    """Let all threads of these processes, by name, run where a placement says. `usual`: of (name, thread), the CPUs."""
    for name, pid in processes.items():
        cpus = cpus_in(placement, name)
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread, cpus or usual(name, thread))


async def best_placement(choice: Sequence[str], trial: Callable[[str], Awaitable[float]]) -> str:
    """Which of these has the best median of rates. `trial`: a short run in one."""
    rates: dict[str, list[float]] = {placement: [] for placement in choice}
    for trials, among in ((FIRST_TRIALS, len(choice)), (MORE_TRIALS, BEST)):
        chosen = sorted(choice, key=lambda placement: -median(rates[placement]) if rates[placement] else 0.0)[:among]
        for _ in range(trials):
            for placement in chosen:
                rates[placement].append(await trial(placement))
    return max(chosen, key=lambda placement: median(rates[placement]))
