"""Faults under load: who dies or stops, and what it costs whom (docs/faults.md).

``python -m bench chaos [--paths …] [--rounds N] [--seed S] [--quick]``

Rounds with a fault are in turns with rounds without one ("nobody"), so that what is measured is the fault's and not the machine's.
"""

import signal
from collections.abc import Sequence
from os import kill
from typing import Any

from bench.chaos.ends import KEEPER, OWNER, end_of
from bench.chaos.faults import KILL, NOTHING, STOP, Fault, faults
from bench.chaos.world import QUICK_STOP_S, STOP_S, Outcome, World
from bench.method.claims import Claim
from bench.method.contenders import guest_names, probe_of
from bench.method.options import Options
from bench.method.progress import Part, Steps
from bench.method.samples import Samples, Slice
from bench.method.slices import Contender, Probe, interleave
from bench.report.results import BenchmarkResult, Row
from hyp.control import ControlError
from lab.errors import LabError
from lab.figures import short

ENOUGH, SOON_S, END_S = 0.95, 1.0, 2.0
NOBODY = "nobody"
UNTOUCHED = {"dom0": ("native", "bypass", "cdna"), "hyp": ("native", "bypass", "split"), "xenstored": None, "guest": None}
"""Whose death or standstill which paths do not even notice; None: all."""
HELD_UP = {("dom0", STOP): ("split",), ("hyp", STOP): ("trapped",), ("hyp", KILL): ("trapped",)}
"""Paths that stand still meanwhile, as what they are made of does."""

TITLE = "Chaos"
ABOUT = (
    "A verified open-loop stream on each path at a time, and somebody is killed (SIGKILL) or stopped (SIGSTOP) at a random moment. "
    "Lost: sent and never received. Recovery: the longest time without a frame from the fault on. Rate: frames that arrived in the "
    "second after the fault, of those that were due."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Everybody in turns; then the hypervisor, which nobody starts again; then those with whom everything ends."""
    records: list[Row] = []
    rounds = options.repeat or (2 if options.quick else 6)
    stop_s = QUICK_STOP_S if options.quick else STOP_S
    with probe_of("all") as probe:
        async with World(options.paths, options.seed, stop_s) as world:
            samples = await _in_turns(world, rounds, probe, records, Part(progress, 0.0, 0.85))
    for number in range(max(1, rounds // 3)):
        progress.step("the hypervisor is killed", 0.85 + 0.1 * number / max(1, rounds // 3))
        async with World(options.paths, options.seed + number) as world:
            records += await _without_hypervisor(world, number)
    ends = []
    for number, victim in enumerate((OWNER, KEEPER) * max(1, rounds // 3)):
        progress.step(f"{victim} is killed", 0.95 + 0.05 * number / (2 * max(1, rounds // 3)))
        seconds, left = await end_of(victim)
        ends.append({"victim": victim, "action": KILL, "end_s": seconds, "left": left, "errors": [f"left: {left}"] if left else []})
    result.records += [*records, *ends]
    _claim(result, options.paths, samples, records, ends)
    _tabulate(result, options.paths, records, ends)


async def _in_turns(world: World, rounds: int, probe: Probe, records: list[Row], progress: Steps) -> Samples:
    contenders = [_contender(world, fault, records) for fault in faults(world.paths)]
    return await interleave(contenders, rounds=rounds, seconds=0.1, probe=probe, again=NOBODY, progress=progress)


def _contender(world: World, fault: Fault, records: list[Row]) -> Contender:
    async def run(_: float) -> Slice:
        try:
            outcomes = await world.round(fault)
        except (LabError, ControlError, TimeoutError) as error:
            reason = f"{fault.name}: {str(error) or type(error).__name__}"
            records.append({"victim": fault.victim, "action": fault.action, "path": fault.path, "errors": [reason]})
            await world.begin_anew()
            return Slice(errors=[reason])
        rows = [_record(fault, outcome, world) for outcome in outcomes]
        records.extend(rows)
        if any(outcome.hung for outcome in outcomes):
            await world.begin_anew()
        figures = {f"{outcome.path} rate": outcome.rate for outcome in outcomes}
        figures |= {f"{outcome.path} recovery_s": outcome.recovery_s for outcome in outcomes}
        return Slice(figures, [error for row in rows for error in row["errors"]])

    return Contender(fault.name, run)


def _record(fault: Fault, outcome: Outcome, world: World) -> Row:
    errors = [f"{fault.name}: {outcome.path}: {outcome.lost} frames lost"] if outcome.lost else []
    errors += [f"{fault.name}: {outcome.path}: {outcome.corrupt} frames corrupt"] if outcome.corrupt else []
    errors += [f"{fault.name}: {outcome.path}: the sender hangs"] if outcome.hung else []
    errors += [f"{fault.name}: {outcome.path}: the sender gives up: {outcome.failure}"] if outcome.failure else []
    row: Row = {
        "victim": fault.victim, "action": fault.action, "path": outcome.path, "sent": outcome.sent, "lost": outcome.lost,
        "duplicated": outcome.duplicated, "corrupt": outcome.corrupt, "recovery_s": outcome.recovery_s, "rate": outcome.rate,
        "errors": errors,
    }  # fmt: skip
    if fault.action == KILL and world.restart_s:
        row["restart_s"] = world.restart_s[-1]
    if fault.path:
        row |= {"guest": fault.path, "back_s": world.back_s}
    return row


async def _without_hypervisor(world: World, number: int) -> list[Row]:
    """It is killed under load. What is set up after that fails, at once and by name."""
    fault = Fault("hyp", KILL)
    lab = world.lab
    kill_it = (await lab.pids())["hyp"]
    outcomes = await world.round(fault, lambda: kill(kill_it, signal.SIGKILL))
    refused: list[str] = []
    for path in world.paths:
        try:
            await lab.call(guest_names(path, 2)[0], "time_registration", size=4096, rounds=1)
        except ControlError as error:
            refused.append(str(error))
    rows = [_record(fault, outcome, world) for outcome in outcomes if outcome.path not in HELD_UP["hyp", KILL]]
    if len(refused) < len(world.paths):
        rows[0]["errors"].append("set-up without a hypervisor was not refused")
    return rows


def _claim(result: BenchmarkResult, paths: Sequence[str], samples: Samples, records: Sequence[Row], ends: Sequence[Row]) -> None:
    for fault in [*faults(tuple(paths)), Fault("hyp", KILL)]:
        rows = [row for row in records if row["victim"] == fault.victim and row["action"] == fault.action and "lost" in row]
        if fault.path:
            rows = [row for row in rows if row.get("guest") == fault.path]
        if not rows:
            continue
        n = f"{fault.name}, {len(rows)} streams"
        result.claims.append(Claim.counted(f"{n}: frames lost", sum(row["lost"] for row in rows), "=", 0))
        if fault.action == KILL:
            stalls = [row["recovery_s"] for row in rows]
            result.claims.append(Claim.counted(f"{n}: longest standstill, seconds", max(stalls), "≤", SOON_S))
        if fault.path:
            back = max(row["back_s"] for row in rows)
            result.claims.append(Claim.counted(f"{n}: the guest is reached again, seconds at most", back, "≤", SOON_S))
        if fault.action != NOTHING and fault.name in {contender.name for contender in samples.taken}:
            for path in _untouched(fault, paths):
                ratio = samples.ratio(fault.name, NOBODY, f"{path} rate")
                result.claims.append(Claim.about(f"{fault.name}: {path}'s rate ÷ undisturbed", ratio, ENOUGH))
    for victim in (OWNER, KEEPER):
        rows = [row for row in ends if row["victim"] == victim]
        text = f"{victim} killed, {len(rows)} times: seconds until everything has ended"
        result.claims.append(Claim.counted(text, max(row["end_s"] for row in rows), "≤", END_S))
        result.claims.append(Claim.counted(f"{victim} killed: things left", sum(len(row["left"]) for row in rows), "=", 0))


def _untouched(fault: Fault, paths: Sequence[str]) -> list[str]:
    named = UNTOUCHED.get(fault.victim, ())
    held = HELD_UP.get((fault.victim, fault.action), ())
    return [path for path in paths if (named is None or path in named) and path not in held]


def _tabulate(result: BenchmarkResult, paths: Sequence[str], records: Sequence[Row], ends: Sequence[Row]) -> None:
    """A line for each fault and path: the table of docs/faults.md."""
    head = ["fault", "path", "rounds", "lost", "duplicated (most)", "standstill (median, most)", "rate (median)"]
    lines = []
    for fault in [*faults(tuple(paths)), Fault("hyp", KILL)]:
        for path in paths:
            rows = [row for row in records if _is_of(row, fault) and row["path"] == path and "lost" in row]
            if rows:
                lines.append([fault.name, path, *_figures(rows)])
    result.table("Faults", head, lines)
    result.table(
        "Ends",
        ["killed", "times", "until everything has ended (most)", "left"],
        [
            [
                victim,
                str(len(of)),
                f"{max(row['end_s'] for row in of):.2f} s",
                ", ".join(left for row in of for left in row["left"]) or "nothing",
            ]
            for victim in (OWNER, KEEPER)
            if (of := [row for row in ends if row["victim"] == victim])
        ],
    )


def _is_of(row: Row, fault: Fault) -> bool:
    return bool(row["victim"] == fault.victim and row["action"] == fault.action and row.get("guest", "") == fault.path)


def _figures(rows: Sequence[Row]) -> list[str]:
    stalls, rates = sorted(row["recovery_s"] for row in rows), sorted(row["rate"] for row in rows)
    middle: Any = len(rows) // 2
    return [
        str(len(rows)),
        str(sum(row["lost"] for row in rows)),
        str(max(row["duplicated"] for row in rows)),
        f"{1000 * stalls[middle]:.0f} ms, {1000 * stalls[-1]:.0f} ms",
        short(rates[middle]),
    ]
