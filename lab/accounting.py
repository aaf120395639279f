"""The kernel's own figures of a process: CPU time and context switches. They do not rest on anything that we count."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, all threads together."""

    cpu_ns: int
    switches: int

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_ns - other.cpu_ns, self.switches - other.switches)


def usage(pid: int) -> Usage:
    """CPU time (schedstat, ns) and context switches (voluntary and not) so far. Zero for a process that has ended."""
    cpu_ns = switches = 0
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return Usage(0, 0)
    for task in tasks:
        try:
            cpu_ns += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
            for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines():
                if "ctxt_switches" in line:
                    switches += int(line.split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return Usage(cpu_ns, switches)


def usages(pids: dict[str, int]) -> dict[str, Usage]:
    """`usage` of several processes by name."""
    return {name: usage(pid) for name, pid in pids.items()}


def spent(after: dict[str, Usage], before: dict[str, Usage]) -> dict[str, Usage]:
    """What each process used in between."""
    return {name: after[name] - before[name] for name in after if name in before}
