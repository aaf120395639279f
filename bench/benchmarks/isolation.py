"""What a hostile guest can do to its neighbours on every path: the attacks of bench/isolation/, each beside its control.

``python -m bench isolation [--paths …] [--attacks NAME,…] [--quick]``

An attack is *contained* if meanwhile no frame of the bystanders was lost, corrupted or seen twice, none of the canaries was seen or
changed, nobody but the attacker died, and the rate of the two bystanders that exchange streams was at least `ENOUGH` of what it is
beside an honest guest that takes as much of the machine. It is not if any single stream of theirs, or that of a third one to the
wire, is shown to have less.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.isolation import catalogue
from bench.isolation.attack import Attack, Control
from bench.isolation.trial import STREAMS, Trial
from bench.method.claims import Claim
from bench.method.contenders import probe_of, run_name
from bench.method.options import Options
from bench.method.progress import Part, Steps
from bench.method.samples import Ratio, Samples, Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, next_rounds
from bench.method.verdicts import MET, MISSED, decide
from bench.report.results import BenchmarkResult, Row
from lab.figures import short

UNDISTURBED = "undisturbed"
ENOUGH = 0.9
SLICE_S = 0.3
"""Processes that share a CPU have it in turns of milliseconds: in less time equal things differ by half."""
BETWEEN_S = 0.2
"""What comes with a slice, about."""
GROUP = 14
"""Attackers in one topology; one that has been broken is begun anew."""
BESIDE = 5
"""Attacks that take turns beside one control: what is compared is to be near in time, as a machine changes within seconds."""
COUNTS = ("lost", "corrupt", "leaked", "changed")

TITLE = "Isolation"
ABOUT = (
    "A guest attacks, two others exchange verified streams both ways, a third one, whose memory is full of canaries, sends one to "
    "the wire. Contained: nothing lost, corrupted, leaked or changed, nobody else dead, and the bystanders at 0.9 or more of their "
    "rate beside an honest guest that takes as much (it is quiet, computes, sends as many frames, posts as many descriptors, or "
    "makes as many calls), and no single stream is shown to have less. Attackers have a CPU of their own; all that serves them "
    "shares another one with the bystanders."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Every attack on every path."""
    found: list[Row] = []
    chosen = {path: _chosen(path, options.attacks) for path in options.paths}
    pairs = sum(map(len, chosen.values()))
    waiting = deque((path, group) for path, attacks in chosen.items() for group in _groups(attacks, GROUP))
    budget = Budget(options.budget_s, pairs)
    with probe_of("all") as probe:
        while waiting:
            path, group = waiting.popleft()
            part = Part(progress, len(found) / pairs, (len(found) + len(group)) / pairs, path)
            async with Trial(path, group, run_name("isolation", os.getpid())) as trial:
                rows = await _try(trial, group, options, budget, part, probe)
            if trial.broken and len(group) > 1:  # by one of them: each that met it is tried by itself
                met = [attack for attack, row in zip(group, rows, strict=True) if row["errors"]]
                rows = [row for row in rows if not row["errors"]]
                waiting.extendleft((path, [attack]) for attack in met)
            found += rows
            _report(result, found, options.paths)


def _chosen(path: str, names: Sequence[str]) -> list[Attack]:
    """Those of a path, or of them those that are named."""
    return [one for one in catalogue.on(path) if not names or one.name in names]


def _groups(attacks: Sequence[Attack], most: int) -> Iterator[list[Attack]]:
    """So many at a time."""
    left = iter(attacks)
    while group := list(itertools.islice(left, most)):
        yield group


@dataclass
class Budget:
    """Seconds for what is undecided after the rounds, of so many attacks: what some don't need the ones after them may use."""

    left_s: float
    attacks: int

    async def spend(self, attacks: int, work: Callable[[float], Awaitable[float]]) -> None:
        """``work(seconds at most)`` for so many of them; it returns how many seconds it took."""
        self.left_s -= await work(self.left_s * attacks / max(self.attacks, attacks))
        self.attacks -= attacks


async def _try(
    trial: Trial, attacks: Sequence[Attack], options: Options, budget: Budget, progress: Steps, probe: Probe
) -> list[Row]:
    """Attacks on one path, those with the same control side by side: their records."""
    alike: dict[tuple[Control, bool], list[Attack]] = {}
    for attack in attacks:
        alike.setdefault((attack.control_on(trial.path), attack.sent_to), []).append(attack)
    records: dict[str, Row] = {}
    for control, those in ((control, some) for (control, _), all_ in alike.items() for some in _groups(all_, BESIDE)):
        part = Part(progress, len(records) / len(attacks), (len(records) + len(those)) / len(attacks), str(control))
        reports: dict[str, list[Row]] = {attack.name: [] for attack in those}
        contenders = [_contender(trial, those[0], None), *(_contender(trial, attack, reports[attack.name]) for attack in those)]
        questions = {attack.name: Question(attack.name, UNDISTURBED, "mpps", ENOUGH) for attack in those}
        point = Point(str(control), {}, contenders, UNDISTURBED, probe, list(questions.values()))
        await budget.spend(len(those), partial(_measure, point, options, part))
        for attack in those:
            records[attack.name] = _record(trial.path, attack, point.samples, questions[attack.name], reports[attack.name])
    return [records[attack.name] for attack in attacks]


async def _measure(point: Point, options: Options, progress: Steps, budget_s: float) -> float:
    """The rounds that were asked for; then more of those attacks whose question is open, while the budget lasts: what that took."""
    seconds, every = max(options.slice_s, SLICE_S), point.contenders
    await point.run(options.rounds, seconds, progress)
    begin = time.monotonic()
    while (open_ := {UNDISTURBED, *(question.of for question in point.open())}) != {UNDISTURBED}:
        rounds = next_rounds(point)
        point.contenders = [one for one in every if one.name in open_]
        longer_s = rounds * (len(point.contenders) + 1) * (seconds + BETWEEN_S)
        if rounds < 1 or time.monotonic() - begin + longer_s > budget_s:
            break
        await point.run(rounds, seconds, progress)
    return time.monotonic() - begin


def _contender(trial: Trial, attack: Attack, reports: list[Row] | None) -> Contender:
    """The bystanders beside an attack, with what each slice came to; or beside its control (`reports` is None)."""

    async def run(seconds: float) -> Slice:
        found = await trial.slice(attack, seconds, attacked=reports is not None)
        if reports is not None:
            reports.append(found.detail)
        return found

    return Contender(UNDISTURBED if reports is None else attack.name, run)


def _record(path: str, attack: Attack, samples: Samples, question: Question, details: Sequence[Row]) -> Row:
    """What became of it. `contained` is None where the bystanders' rate is not decided and all else is well."""
    errors = samples.errors(attack.name)
    rate, calls = question.ratio(samples), samples.ratio(attack.name, UNDISTURBED, "calls_per_s")
    streams = {name: samples.ratio(attack.name, UNDISTURBED, name) for name in STREAMS}
    slow = [name for name, ratio in streams.items() if decide(ratio, ENOUGH).verdict == MISSED]
    verdict = decide(rate, ENOUGH)
    contained = False if errors or slow or verdict.verdict == MISSED else True if verdict.verdict == MET else None
    got: dict[str, int] = {}
    for detail in details:
        for what, times in detail.get("got", {}).items():
            got[what] = got.get(what, 0) + times
    return {
        "path": path, "attack": attack.name, "about": attack.about, "door": str(attack.door),
        "control": str(attack.control_on(path)),
        "contained": contained, "rate": verdict.verdict, "reason": verdict.reason,
        "bystanders": _figure(rate), "calls": _figure(calls), "slow": slow,
        "streams": {name.removesuffix("_mpps"): _figure(ratio) for name, ratio in streams.items()},
        **{name: sum(max(0, detail.get(name, 0)) for detail in details) for name in COUNTS},
        "attempts": sum(detail.get("attempts", 0) for detail in details), "got": got,
        "regime": rate.regime, "n": rate.pairs, "slices": samples.slices(attack.name), "errors": errors,
    }  # fmt: skip


def _figure(ratio: Ratio) -> Row | None:
    if ratio.median is None:
        return None
    aa = None if ratio.aa_low is None else [ratio.aa_low, ratio.aa_high]
    return {"median": ratio.median, "low": ratio.low, "high": ratio.high, "aa": aa}


def _report(result: BenchmarkResult, found: Sequence[Row], paths: Sequence[str]) -> None:
    """All that is known so far: the records, a claim for each path, and the matrix."""
    result.forget()
    result.records += found
    for path in paths:
        rows = [row for row in found if row["path"] == path]
        if rows:
            contained, not_ = (sum(row["contained"] is what for row in rows) for what in (True, False))
            open_ = [row["attack"] for row in rows if row["contained"] is None]
            result.claims.append(Claim.counted(f"{path}: attacks that were not contained, of {len(rows)}", not_, "=", 0))
            if open_:
                result.notes.append(
                    f"{path}: {contained} contained; not decided, for the bystanders' rate alone: {', '.join(open_)}"
                )
    names = list(dict.fromkeys(row["attack"] for row in found))
    by = {(row["attack"], row["path"]): row for row in found}
    head = ["attack", *paths, "what the attacker got"]
    result.table("Contained (bystanders attacked ÷ undisturbed)", head, [_line(name, paths, by) for name in names])


def _line(name: str, paths: Sequence[str], by: dict[tuple[str, str], Row]) -> list[str]:
    rows = [by.get((name, path)) for path in paths]
    got: dict[str, int] = {}
    for row in rows:
        for what, times in (row["got"] if row else {}).items():
            got[what] = got.get(what, 0) + times
    most = sorted(got, key=lambda what: -got[what])[:3]
    return [name, *map(_cell, rows), ", ".join(most)]


def _cell(row: Row | None) -> str:
    """ "✓ 0.98"; "✗ 12 lost"; "? 0.93"; "✗ no figure": nothing arrived, the errors say why; "–": it cannot be tried there."""
    if row is None:
        return "–"
    mark = {True: "✓", False: "✗", None: "?"}[row["contained"]]
    counts = [f"{row[name]} {name}" for name in COUNTS if row[name]]
    counts += [f"{name} {short(row['streams'][name]['median'])}" for name in (one.removesuffix("_mpps") for one in row["slow"])]
    figure: Any = row["bystanders"]
    return f"{mark} {', '.join(counts) or (short(figure['median']) if figure else 'no figure')}"
