"""What a hostile guest can do to its neighbours on every path: the attacks of bench/isolation/, each beside its control.

``python -m bench isolation [--paths …] [--attacks NAME,…] [--quick]``

An attack is *contained* if meanwhile no frame of the bystanders was lost, corrupted or seen twice, none of the canaries was seen or
changed, nobody but the attacker died, and the rate of the two bystanders that exchange streams was at least `ENOUGH` of what it is
beside an honest guest that takes as much of the machine. It is not if any single stream of theirs, or that of a third one to the
wire, is shown to have less.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.isolation import catalogue
from bench.isolation.attack import Attack, Control
from bench.isolation.trial import STREAMS, Trial
from bench.method.claims import Claim
from bench.method.contenders import probe_of, run_name
from bench.method.estimate import CONFIDENCE
from bench.method.options import Options
from bench.method.progress import Part, Steps
from bench.method.samples import Ratio, Samples, Slice
from bench.method.slices import Contender, Probe
from bench.method.study import CERTAIN, Point, Question, next_rounds
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
TRIAL_S = 5.0
"""To start one and take it down, about."""
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


@dataclass(slots=True)
class Beside:
    """Attacks on a path that take turns beside one control, and all that has been measured of them, in however many trials."""

    path: str
    attacks: list[Attack]
    point: Point
    reports: dict[str, list[Row]] = field(default_factory=dict)
    alone: bool = False  # nobody else is to attack in its trials

    @classmethod
    def of(cls, path: str, attacks: Sequence[Attack], probe: Probe) -> "Beside":
        """With nothing measured."""
        questions = [Question(attack.name, UNDISTURBED, "mpps", ENOUGH) for attack in attacks]
        return cls(path, list(attacks), Point(str(attacks[0].control_on(path)), {}, [], UNDISTURBED, probe, questions))

    def open(self) -> list[Attack]:
        """Those of which more rounds might say something else: nothing has gone wrong, and the rates are not certain."""
        samples, asked = self.point.samples, {question.of for question in self.point.open()}
        well = [attack for attack in self.attacks if not samples.errors(attack.name)]
        return [one for one in well if one.name in asked or _slow(samples, one) != _slow(samples, one, CERTAIN)]

    def longer_s(self, seconds: float) -> float:
        """How long a further look at those that are open takes, in slices of so many seconds."""
        return next_rounds(self.point) * (len(self.open()) + 2) * (seconds + BETWEEN_S)

    async def measure(self, trial: Trial, rounds: int, seconds: float, progress: Steps) -> None:
        """So many more rounds of those that are open, in a trial which has them."""
        those = self.open()
        attacked = [_contender(trial, attack, self.reports.setdefault(attack.name, [])) for attack in those]
        self.point.contenders = [_contender(trial, those[0], None), *attacked]
        await self.point.run(rounds, seconds, progress)

    def take_out_met(self) -> list[Attack]:
        """Those that met with an error leave; returns them."""
        met = [attack for attack in self.attacks if self.point.samples.errors(attack.name)]
        self.attacks = [attack for attack in self.attacks if attack not in met]
        return met


@dataclass(frozen=True, slots=True)
class Sweeps:
    """The trials of a run."""

    rounds: int
    seconds: float
    probe: Probe
    tried: list[Beside]
    broken: list[str] = field(default_factory=list)  # what became of which trial

    async def all(self, found: Callable[[], None], progress: Steps) -> None:
        """Everything has the rounds that were asked for."""
        attacks, done = sum(len(one.attacks) for one in self.tried), 0
        for group in list(_trials(self.tried)):
            then = done + sum(len(one.attacks) for one in group)
            await self._try(group, lambda _: self.rounds, Part(progress, done / attacks, then / attacks, group[0].path))
            done = then
            found()

    async def open(self, budget_s: float, found: Callable[[], None], progress: Steps) -> None:
        """What is open has more, those first of which least is known, in trials anew, as long as the budget lasts."""
        end = time.monotonic() + budget_s
        while open_ := sorted((one for one in self.tried if one.open() and next_rounds(one.point) > 0), key=_pairs):
            fitting = [one for one in open_ if TRIAL_S + one.longer_s(self.seconds) <= end - time.monotonic()]
            if not fitting:
                return
            title = f"{sum(len(one.open()) for one in open_)} undecided"
            for group in _trials(fitting):
                while group and TRIAL_S + sum(one.longer_s(self.seconds) for one in group) > end - time.monotonic():
                    group.pop()
                if group:
                    part = Part(progress, 1.0, 1.0, f"{title}: {group[0].path}")
                    await self._try(group, lambda one: next_rounds(one.point), part)
            found()

    async def _try(self, group: Sequence[Beside], rounds: Callable[[Beside], int], progress: Steps) -> None:
        """A trial of those that are open. Where one of them has broken it, each that met with that is tried anew, by itself."""
        path, attacks = group[0].path, [attack for one in group for attack in one.open()]
        done = 0
        async with Trial(path, attacks, run_name("isolation", os.getpid())) as trial:
            for one in group:
                part = Part(progress, done / len(attacks), (done := done + len(one.open())) / len(attacks), one.point.title)
                await one.measure(trial, rounds(one), self.seconds, part)
        if trial.broken and len(attacks) > 1:
            alone = [Beside.of(path, [attack], self.probe) for one in group for attack in one.take_out_met()]
            for one in alone:
                one.alone = True
            self.tried.extend(alone)
            whose = ", ".join(one.attacks[0].name for one in alone)
            self.broken.append(f"{path}: a trial of {len(attacks)} attacks broke ({trial.broken}); tried anew, each alone: {whose}")
            for one in alone:
                await self._try([one], lambda _: self.rounds, progress)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Every attack on every path. What lies where is chance, and the same for as long as a trial lasts: see `Sweeps.open`."""
    with probe_of("all") as probe:
        tried = [Beside.of(path, those, probe) for path in options.paths for those in _side_by_side(path, options.attacks)]
        sweeps = Sweeps(options.rounds, max(options.slice_s, SLICE_S), probe, tried)
        found = partial(_report, result, sweeps, options.paths)
        await sweeps.all(found, progress)
        await sweeps.open(options.budget_s, found, progress)


def _side_by_side(path: str, names: Sequence[str]) -> Iterator[list[Attack]]:
    """The attacks on a path, or of them those that are named, with the same control, so many at a time."""
    alike: dict[tuple[Control, bool], list[Attack]] = {}
    for attack in catalogue.on(path):
        if not names or attack.name in names:
            alike.setdefault((attack.control_on(path), attack.sent_to), []).append(attack)
    for those in alike.values():
        yield from (those[k : k + BESIDE] for k in range(0, len(those), BESIDE))


def _trials(those: Sequence[Beside]) -> Iterator[list[Beside]]:
    """Those that are open, on a path, at most GROUP attackers at a time."""
    for path in dict.fromkeys(one.path for one in those):
        group: list[Beside] = []
        for one in those:
            if one.path == path and one.open():
                if group and (one.alone or group[-1].alone or sum(len(other.open()) for other in [*group, one]) > GROUP):
                    yield group
                    group = []
                group.append(one)
        if group:
            yield group


def _pairs(one: Beside) -> int:
    return one.point.pairs()


def _slow(samples: Samples, attack: Attack, confidence: float = CONFIDENCE) -> list[str]:
    """The streams that are shown to have less beside it."""
    ratios = {name: samples.ratio(attack.name, UNDISTURBED, name, confidence=confidence) for name in STREAMS}
    return [name for name, ratio in ratios.items() if decide(ratio, ENOUGH).verdict == MISSED]


def _contender(trial: Trial, attack: Attack, reports: list[Row] | None) -> Contender:
    """The bystanders beside an attack, with what each slice came to; or beside its control (`reports` is None)."""

    async def run(seconds: float) -> Slice:
        found = await trial.slice(attack, seconds, attacked=reports is not None)
        if reports is not None:
            reports.append(found.detail)
        return found

    return Contender(UNDISTURBED if reports is None else attack.name, run)


def _record(path: str, attack: Attack, samples: Samples, details: Sequence[Row]) -> Row:
    """What became of it. `contained` is None where the bystanders' rate is not decided and all else is well."""
    errors = samples.errors(attack.name)
    rate, calls = (samples.ratio(attack.name, UNDISTURBED, metric) for metric in ("mpps", "calls_per_s"))
    streams = {name: samples.ratio(attack.name, UNDISTURBED, name) for name in STREAMS}
    slow, verdict = _slow(samples, attack), decide(rate, ENOUGH)
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


def _report(result: BenchmarkResult, sweeps: Sweeps, paths: Sequence[str]) -> None:
    """All that is known so far: the records, a claim for each path, and the matrix."""
    rows = [
        _record(one.path, attack, one.point.samples, one.reports[attack.name])
        for one in sweeps.tried for attack in one.attacks if attack.name in one.reports
    ]  # fmt: skip
    order = list(catalogue.ATTACKS)
    found = sorted(rows, key=lambda row: (paths.index(row["path"]), order.index(row["attack"])))
    result.forget()
    result.records += found
    result.notes += sweeps.broken
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
