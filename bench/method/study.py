"""Measuring until it is known: points take turns in sweeps, and those whose questions are decided stop taking part.

A *point* is a place where contenders are measured side by side (a direction, a frame size, a set of cores), with the questions that
are asked there: is a ratio at least so much? First every point gets the rounds that were asked for. Then the points whose questions
are still open get more, a sweep after the other, until all are decided or the budget is spent. What is open then says how much
longer it would take: the width of a median's interval goes down with the root of the number of rounds.

Looking at the figures in between and stopping when one likes them makes false decisions more frequent than an interval says. So
points are looked at seldom (their rounds grow by half from one look to the next), and stop by an interval of `CERTAIN`, wider than
the 95 % one that is reported. tests/bench/test_study.py simulates it: the reported intervals contain the truth in 93 to 97 % of the
cases.

What lies where in memory is chance, differs from one start of a topology to the next, and holds for as long as it lives: no number
of rounds in one says anything about that. So what is measured is made anew (`renew`) in the middle of the first rounds, and before
every further sweep.
"""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from bench.method.claims import Claim
from bench.method.estimate import CONFIDENCE, FEWEST
from bench.method.progress import Part, Steps
from bench.method.samples import Ratio, Samples
from bench.method.slices import Contender, Probe, interleave
from bench.method.verdicts import MET, MISSED, UNDECIDED, Judged, decide

Row = dict[str, Any]

CERTAIN = 0.99
"""Confidence of the interval by which measuring ends."""
GROWTH = 1.5
MOST_ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class Question:
    """Is `of` ÷ `to` at least (or at most) `target`, in `metric`? `judged` as in verdicts.py."""

    of: str
    to: str
    metric: str
    target: float = 1.0
    at_least: bool = True
    judged: Judged = "median"
    precision: float | None = None  # not done either before the ends of the 95 % interval are that near to the median
    steadier: str | None = None  # what says the same and is less disturbed by stolen time, to decide what `metric` leaves open

    def ratio(self, samples: Samples, confidence: float = CONFIDENCE) -> Ratio:
        """What has been measured of it."""
        return samples.ratio(self.of, self.to, self.metric, confidence=confidence)

    def verdict(self, samples: Samples, confidence: float = CONFIDENCE) -> str:
        """What has come of it, in its own metric."""
        return decide(self.ratio(samples, confidence), self.target, self.at_least, judged=self.judged).verdict

    def decided_by(self, samples: Samples, confidence: float = CONFIDENCE) -> Self:
        """The question as it can be decided: itself, or, where that is open, in its steadier metric, if it does not contradict."""
        if self.steadier is None or self.verdict(samples, confidence) != UNDECIDED:
            return self
        other, own = replace(self, metric=self.steadier, steadier=None), self.ratio(samples)
        if own.low is None or own.high is None:
            return self
        possible = {MET: own.high >= self.target, MISSED: own.low < self.target}
        if not self.at_least:
            possible = {MET: own.low <= self.target, MISSED: own.high > self.target}
        return other if possible.get(other.verdict(samples, confidence), False) else self

    def is_decided(self, samples: Samples) -> bool:
        """Whether more rounds would hardly change the verdict."""
        asked = self.decided_by(samples, CERTAIN)
        return asked.verdict(samples, CERTAIN) in (MET, MISSED) and asked._width(samples) <= (self.precision or math.inf)

    def _width(self, samples: Samples) -> float:
        ratio = self.ratio(samples)
        if not ratio.median or not ratio.low or not ratio.high:
            return math.inf
        return max(ratio.high / ratio.median, ratio.median / ratio.low) - 1

    def rounds_needed(self, samples: Samples) -> float:
        """About how many rounds would decide it; infinite where what is measured *is* the target, or nothing is known."""
        if self.steadier is not None:
            return min(replace(self, metric=one, steadier=None).rounds_needed(samples) for one in (self.metric, self.steadier))
        ratio = self.ratio(samples, CERTAIN)
        if ratio.median is None or ratio.low is None or ratio.high is None or ratio.aa_high is None or not ratio.pairs:
            return math.inf
        margin = abs(math.log(ratio.median / self.target))
        side = math.log(ratio.median / ratio.low) if ratio.median > self.target else math.log(ratio.high / ratio.median)
        widest = max(side, math.log(ratio.aa_high))
        return samples.rounds * (widest / margin) ** 2 if margin > 0 else math.inf


@dataclass(slots=True)
class Point:
    """Where contenders are measured side by side. `where`: as in a record; `arrange` makes the place ready, at each visit."""

    title: str
    where: Row
    contenders: Sequence[Contender]
    again: str
    probe: Probe
    questions: Sequence[Question] = ()
    arrange: Callable[[], Awaitable[None]] | None = None
    slice_s: float | None = None  # where slices are to be longer or shorter than others
    samples: Samples = field(default_factory=Samples)
    spent_s: float = 0.0

    def open(self) -> list[Question]:
        """The questions that are not decided yet."""
        return [question for question in self.questions if not question.is_decided(self.samples)]

    def pairs(self) -> int:
        """How many pairs there are of the question that has the fewest."""
        return min((question.ratio(self.samples).pairs for question in self.questions), default=0)

    def longer_s(self, question: Question) -> float:
        """About how many more seconds would decide a question."""
        each = self.spent_s / self.samples.rounds if self.samples.rounds else math.inf
        return max(0.0, question.rounds_needed(self.samples) - self.samples.rounds) * each

    def claim(self, question: Question, text: str) -> Claim:
        """What a question has come to."""
        errors = [*self.samples.errors(question.of), *self.samples.errors(question.to)]
        asked = question.decided_by(self.samples)
        if asked.metric != question.metric:
            text += f" (by {asked.metric}: {question.metric} leaves it open)"
        return Claim.about(
            text, asked.ratio(self.samples), question.target, question.at_least, judged=question.judged, errors=errors,
            longer_s=self.longer_s(question),
        )  # fmt: skip

    async def run(self, rounds: int, seconds: float, progress: Steps, clock: Callable[[], float] = time.monotonic) -> None:
        """So many more rounds."""
        begin, seconds = clock(), self.slice_s or seconds
        if self.arrange is not None:
            await self.arrange()
        if not self.samples.taken:
            self.samples = Samples(again=self.again, seconds=seconds)
        await interleave(
            self.contenders,
            rounds=rounds,
            seconds=seconds,
            probe=self.probe,
            again=self.again,
            progress=progress,
            samples=self.samples,
        )
        self.spent_s += clock() - begin


def next_rounds(point: Point) -> int:
    """How many more, so that points are looked at seldom: half as many as there are, an even number."""
    more = max(FEWEST, math.ceil(point.samples.rounds * (GROWTH - 1)))
    return min(more + more % 2, MOST_ROUNDS - point.samples.rounds)


async def study(
    points: Sequence[Point],
    *,
    rounds: int,
    seconds: float,
    budget_s: float,
    progress: Steps,
    found: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    since: float | None = None,
    renew: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Measure the points: `rounds` rounds each, then those that are open, those first of which least is known.

    That goes on for at most `budget_s` more; with `since`, a time of `clock`, until `budget_s` after it.
    `found` is called when there is something new to be said: after every point of the first sweep, and every other sweep.
    `renew` takes down what is measured, and starts it again.
    """
    first = [rounds] if renew is None or rounds < 2 else [rounds - rounds // 2, rounds // 2]
    visits = [(point, share) for share in first for point in points]
    for number, (point, share) in enumerate(visits):
        if renew is not None and number == len(points):
            await renew()
        await point.run(share, seconds, Part(progress, number / len(visits), (number + 1) / len(visits), point.title), clock)
        found()
    begin = clock() if since is None else since
    while waiting := [point for point in points if point.open() and next_rounds(point) > 0]:
        fitting = [point for point in sorted(waiting, key=Point.pairs) if _fits(point, budget_s - (clock() - begin))]
        if not fitting:
            return
        if renew is not None:
            await renew()
        for point in fitting:
            if _fits(point, budget_s - (clock() - begin)):
                title = f"{len(waiting)} of {len(points)} undecided: {point.title}"
                await point.run(next_rounds(point), seconds, Part(progress, 1.0, 1.0, title), clock)
        found()


def _fits(point: Point, left: float) -> bool:
    """Whether a point's next rounds are done before the budget is spent."""
    return next_rounds(point) * point.spent_s / max(1, point.samples.rounds) <= left
