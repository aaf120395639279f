"""Mixed traffic with faults for as long as one likes: does anything grow, and is anything left?

``python -m bench.chaos.soak [--minutes M] [--cycles N] [--seed S] [--json FILE]`` (``make soak``)

Rounds of the chaos benchmark (world.py), one fault after the other; after each the memory, descriptors and threads of every process
are noted. A process that was killed begins a line of its own. *Flat*: the median of the last third of a line is not above that of
its first third by more than `SLACK`. Then a topology is started and stopped `--cycles` times, after each of which nothing of it
may be left.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from bench.chaos.faults import NOTHING, Fault, faults
from bench.chaos.world import QUICK_STOP_S, World
from bench.method.contenders import run_name, topology
from hyp.control import ControlError
from hyp.paths import PATHS
from hyp.shm import objects
from lab.errors import LabError
from lab.owner import Lab
from lab.rundir import RunDir

SLACK = {"rss_kib": 2048, "fds": 4, "threads": 1}
FEWEST = 6
"""Rounds that a process must have lived for there to be thirds."""

Usage = dict[str, int]
Line = dict[tuple[str, int], list[Usage]]
"""By a process's name and pid, what it used after each round."""


def usage_of(pid: int) -> Usage:
    """What a process holds: private and shared memory that is resident, in KiB; descriptors; threads."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory, threads = int(status["VmRSS"].split()[0]), int(status["Threads"])
    return {"rss_kib": memory, "fds": len(os.listdir(f"/proc/{pid}/fd")), "threads": threads}


def growth(line: list[Usage]) -> dict[str, float]:
    """How much more of each there is in the last third of a line than in the first."""
    third = len(line) // 3
    return {what: median(one[what] for one in line[-third:]) - median(one[what] for one in line[:third]) for what in SLACK}


def grown(lines: Line) -> list[str]:
    """Who has grown beyond the slack."""
    found = []
    for (name, pid), line in lines.items():
        if len(line) >= FEWEST:
            more = growth(line)
            found += [
                f"{name} ({pid}): {what} +{more[what]:g} over {len(line)} rounds" for what in SLACK if more[what] > SLACK[what]
            ]
    return found


async def soak(minutes: float, seed: int) -> dict[str, Any]:
    """Rounds with faults for so long."""
    rng, lines, counts, errors = (
        random.Random(seed),
        defaultdict[tuple[str, int], list[Usage]](list),
        defaultdict[str, int](int),
        [],
    )
    until = time.monotonic() + 60 * minutes
    async with World(tuple(PATHS), seed, QUICK_STOP_S) as world:
        kinds = [fault for fault in faults(world.paths) if fault.action != NOTHING]
        while time.monotonic() < until:
            fault = rng.choice(kinds)
            counts["rounds"] += 1
            try:
                for outcome in await world.round(fault):
                    for what in ("sent", "lost", "duplicated", "corrupt"):
                        counts[what] += int(getattr(outcome, what))
                    if outcome.hung or outcome.lost or outcome.corrupt or outcome.failure:
                        errors.append(f"{fault.name}: {outcome}")
            except (LabError, ControlError, TimeoutError) as error:
                errors.append(f"{fault.name}: {error}")
                await world.begin_anew()
            for name, pid in (await world.lab.pids()).items():
                lines[name, pid].append(usage_of(pid))
            _say(fault, counts, until)
    watched = sum(len(line) >= FEWEST for line in lines.values())
    return {**counts, "errors": errors, "processes": len(lines), "watched": watched, "grown": grown(lines), "after": _after(lines)}


def _after(lines: Line) -> dict[str, dict[str, float]]:
    """Of each process that lived longest under its name: rounds, what it used at last, and how much more than at first."""
    longest = {name: max((line for (who, _), line in lines.items() if who == name), key=len) for name, _ in lines}
    return {
        name: {"rounds": len(line), **line[-1], **{f"{what}_grown": more for what, more in growth(line).items()}}
        for name, line in longest.items()
        if len(line) >= FEWEST
    }


def _say(fault: Fault, counts: dict[str, int], until: float) -> None:
    left = max(0, round(until - time.monotonic()))
    print(
        f"{left // 60}:{left % 60:02} left, {counts['rounds']} rounds, {counts['lost']} lost: {fault.name}",
        file=sys.stderr,
        flush=True,
    )


async def cycles(times: int) -> dict[str, Any]:
    """Start and stop a topology so often."""
    left: list[str] = []
    mine = len(os.listdir("/proc/self/fd"))
    for number in range(times):
        name = run_name("soak", os.getpid())
        async with Lab(topology(name, ("bypass", "split"))):
            pass
        run = RunDir(name)
        left += [f"cycle {number}: {what}" for what in [*objects(name), *([str(run.path)] if run.path.exists() else [])]]
        if number % 10 == 9:
            print(f"{number + 1} of {times} cycles, {len(left)} things left", file=sys.stderr, flush=True)
    return {"cycles": times, "left": left, "descriptors_grown": len(os.listdir("/proc/self/fd")) - mine}


def main(
    minutes: Annotated[float, typer.Option(help="How long to go on.")] = 30.0,
    starts: Annotated[int, typer.Option("--cycles", help="How often to start and stop a topology.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 1,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file.")] = None,
) -> None:
    """Soak the lab. Exit status 1 if a frame was lost, a process has grown, or something is left."""
    found = {"soak": asyncio.run(soak(minutes, seed)) if minutes > 0 else {}, "cycles": asyncio.run(cycles(starts))}
    text = json.dumps(found, indent=2)
    print(text)
    if json_out is not None:
        json_out.write_text(text)
    ended = found["cycles"]
    if found["soak"].get("errors") or found["soak"].get("grown") or ended["left"] or ended["descriptors_grown"] > 0:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
