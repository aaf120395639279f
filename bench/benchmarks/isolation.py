"""What a hostile guest can do to its neighbours on every path: the attacks of bench/isolation/, each beside its control.

``python -m bench isolation [--paths …] [--attacks NAME,…] [--quick]``

An attack is *contained* if meanwhile no frame of the bystanders was lost, corrupted or seen twice, none of the canaries was seen or
changed, nobody but the attacker died, and the bystanders' rate was at least `ENOUGH` of what it is beside an honest guest that
takes as much of the machine.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from bench.isolation import catalogue
from bench.isolation.attack import Attack
from bench.isolation.trial import Trial
from bench.method.claims import Claim
from bench.method.contenders import probe_of, run_name
from bench.method.options import Options
from bench.method.progress import Part, Steps
from bench.method.samples import Ratio, Samples, Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.method.verdicts import MET, MISSED, decide
from bench.report.results import BenchmarkResult, Row
from lab.figures import short

ATTACKED, UNDISTURBED = "attacked", "undisturbed"
ENOUGH = 0.9
SLICE_S = 0.3
"""Processes that share a CPU have it in turns of milliseconds: in less time equal things differ by half."""
GROUP = 14
"""Attackers in one topology; one that has been broken is begun anew."""
COUNTS = ("lost", "corrupt", "leaked", "changed")

TITLE = "Isolation"
ABOUT = (
    "A guest attacks, two others exchange verified streams both ways, a third one's memory is full of canaries. Contained: nothing "
    "lost, corrupted, leaked or changed, nobody else dead, and the bystanders at 0.9 or more of their rate beside an honest guest "
    "that takes as much (it is quiet, computes, sends as many frames, or makes as many calls). Attackers have a CPU of their own; "
    "all that serves them shares another one with the bystanders."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Every attack on every path."""
    found: list[Row] = []
    chosen = {path: _chosen(path, options.attacks) for path in options.paths}
    pairs = [(path, attack) for path, attacks in chosen.items() for attack in attacks]
    budget_s = options.budget_s / max(1, len(pairs))
    with probe_of("all") as probe:
        done = 0
        for path in options.paths:
            for group in _groups(chosen[path]):
                waiting = list(group)
                while waiting:
                    async with Trial(path, waiting, run_name("isolation", os.getpid())) as trial:
                        for attack in list(waiting):
                            part = Part(progress, done / len(pairs), (done + 1) / len(pairs), path)
                            found.append(await _try(trial, attack, options, budget_s, part, probe))
                            waiting.remove(attack)
                            done += 1
                            _report(result, found, options.paths)
                            if trial.broken:
                                break


def _chosen(path: str, names: Sequence[str]) -> list[Attack]:
    """Those of a path, or of them those that are named."""
    return [one for one in catalogue.on(path) if not names or one.name in names]


def _groups(attacks: Sequence[Attack]) -> Iterator[list[Attack]]:
    """So many at a time."""
    left = iter(attacks)
    while group := list(itertools.islice(left, GROUP)):
        yield group


async def _try(trial: Trial, attack: Attack, options: Options, budget_s: float, progress: Steps, probe: Probe) -> Row:
    """One attack on one path: its record."""
    reports: list[Row] = []
    contenders = [_contender(trial, attack, UNDISTURBED, []), _contender(trial, attack, ATTACKED, reports)]
    question = Question(ATTACKED, UNDISTURBED, "mpps", ENOUGH)
    point = Point(attack.name, {}, contenders, UNDISTURBED, probe, [question])
    seconds = max(options.slice_s, SLICE_S)
    await study([point], rounds=options.rounds, seconds=seconds, budget_s=budget_s, progress=progress)
    return _record(trial.path, attack, point.samples, question, reports)


def _contender(trial: Trial, attack: Attack, name: str, reports: list[Row]) -> Contender:
    """The bystanders beside an attack, or beside its control. `reports`: what each slice came to."""

    async def run(seconds: float) -> Slice:
        found = await trial.slice(attack, seconds, attacked=name == ATTACKED)
        reports.append(found.detail)
        return found

    return Contender(name, run)


def _record(path: str, attack: Attack, samples: Samples, question: Question, details: Sequence[Row]) -> Row:
    """What became of it. `contained` is None where the bystanders' rate is not decided and all else is well."""
    errors = samples.errors(ATTACKED)
    rate, calls = question.ratio(samples), samples.ratio(ATTACKED, UNDISTURBED, "calls_per_s")
    verdict = decide(rate, ENOUGH)
    contained = False if errors or verdict.verdict == MISSED else True if verdict.verdict == MET else None
    got: dict[str, int] = {}
    for detail in details:
        for what, times in detail.get("got", {}).items():
            got[what] = got.get(what, 0) + times
    return {
        "path": path, "attack": attack.name, "about": attack.about, "door": str(attack.door),
        "control": str(attack.control_on(path)),
        "contained": contained, "rate": verdict.verdict, "reason": verdict.reason,
        "bystanders": _figure(rate), "calls": _figure(calls),
        **{name: sum(max(0, detail.get(name, 0)) for detail in details) for name in COUNTS},
        "attempts": sum(detail.get("attempts", 0) for detail in details), "got": got,
        "regime": rate.regime, "n": rate.pairs, "slices": samples.slices(ATTACKED), "errors": errors,
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
    figure: Any = row["bystanders"]
    return f"{mark} {', '.join(counts) or (short(figure['median']) if figure else 'no figure')}"
