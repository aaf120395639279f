"""What slices say: figures by regime, ratios by pairs, each with its interval and the A/A interval that it has to clear.

1. What the probe saw before and after a slice is the slice's *regime*. Only slices of one regime are compared; "mixed" (the machine
   changed meanwhile) and "starved" (the host took too much of the CPUs' time) are compared with nothing.
2. The unit of comparison is the *pair*: two contenders' slices of the same round and the same regime, divided. What both had in
   common falls out of the quotient. A contender that runs twice in a round is paired by whichever of the two is nearer.
3. A *ratio* is the median of the pairs of *all* regimes: each pair is of one, and each counts. Where regimes have intervals of
   their own they are shown, and a ratio on which two of them disagree is not decided (verdicts.py).
4. A *figure*, which has a unit, is of one regime: the headline is the one with the most slices that the host left alone, if there
   are enough of them for an interval.
5. *A/A*: one contender runs twice in each round, at both ends of it, so that the two are further apart than any other pair. The
   same estimator over those pairs says how far apart "two equal things" come out here.

Which A/A interval? That of single pair ratios says where *one* pair may fall; it does not shrink with n. What a claim rests on is
a median of n pairs, and that has to be held against what the *median* of n such pairs does when nothing is different: the
interval of the median of the A/A pairs. Which of the two equal contenders is the numerator is arbitrary, and their true ratio is
1, so the interval is made symmetric: [1/m, m] with m = max(1/low, high). It covers any bias that a slice's position in its round
brings, too. A ratio is decided if its own interval lies on one side of 1 *and* its median is outside the A/A interval; the two
conditions together make false decisions rarer than 5 %.

A slice that lost, duplicated or corrupted frames without a drop's name has errors, and no figure: the errors are kept, and shown.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Self

from bench.method.estimate import CONFIDENCE, FEWEST, Interval, median, median_interval, symmetric
from bench.method.verdicts import direction

UNSTEADY = frozenset({"mixed", "starved"})
STOLEN = ", stolen"
"""What a regime's label ends in when the host took a little of the CPUs' time."""
NO_REGIME = "none"
KEPT_DETAILS = 4  # of each contender: histograms are large


@dataclass(slots=True)
class Slice:
    """What one contender did in one slice: figures by metric, or errors. `detail` is for JSON, and kept of the last slices."""

    figures: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Taken:
    """A slice, when it was run, and in what regime."""

    round: int
    name: str
    regime: str
    slice: Slice


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's median over the slices of one regime. `aa_*` are factors: what the same metric of equal contenders spans."""

    median: float | None
    low: float | None
    high: float | None
    n: int
    regime: str
    aa_low: float | None = None
    aa_high: float | None = None

    @property
    def count(self) -> str:
        """Of what it was made."""
        return f"{self.n} slices"

    @property
    def spread(self) -> list[tuple[str, float, float]]:
        """A figure is of one regime."""
        return []

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of pair ratios, its interval, the A/A interval that it has to clear, and on which side of 1 it is, with the reason.

    `regime`: whose pairs these are; several are joined by " + ", the most frequent first. `strata`: where there are several, the
    median and interval of each that has enough pairs for one: {label: [median, low, high, pairs]}.
    """

    median: float | None
    low: float | None
    high: float | None
    pairs: int
    regime: str
    aa_low: float | None
    aa_high: float | None
    strata: dict[str, list[float]] = field(default_factory=dict)

    @property
    def count(self) -> str:
        """Of what it was made."""
        return f"{self.pairs} pairs"

    @property
    def spread(self) -> list[tuple[str, float, float]]:
        """The intervals of the regimes."""
        return [(label, low, high) for label, (_, low, high, _) in self.strata.items()]

    @property
    def verdict(self) -> str:
        """ "above", "below" or "undecided", against 1."""
        return direction(self).verdict

    @property
    def reason(self) -> str:
        """Why that."""
        return direction(self).reason

    def plain(self) -> dict[str, Any]:
        """For JSON, with its verdict."""
        return {**asdict(self), "verdict": self.verdict, "reason": self.reason}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        return cls(**{key: value for key, value in plain.items() if key not in ("verdict", "reason")})


def quotient(one: Figure | Ratio, other: Figure | Ratio) -> Ratio:
    """`one` ÷ `other` of things that were not measured in the same rounds, so that there are no pairs.

    The interval is made of both intervals by the method of variance estimates recovery, on logarithms (Donner and Zou, "Closed-form
    confidence intervals for functions of the normal mean and standard deviation", 2012); the A/A intervals add up.
    """
    a, b = one.median, other.median
    pairs = min(int(part.count.split()[0]) for part in (one, other))
    regime = one.regime if one.regime == other.regime else f"{one.regime} + {other.regime}"
    if not a or not b:
        return Ratio(None, None, None, 0, regime, None, None)
    low = high = aa = None
    if one.low and one.high and other.low and other.high:
        low = a / b * math.exp(-math.hypot(math.log(a / one.low), math.log(other.high / b)))
        high = a / b * math.exp(math.hypot(math.log(one.high / a), math.log(b / other.low)))
    if one.aa_high and other.aa_high:
        aa = one.aa_high * other.aa_high
    return Ratio(a / b, low, high, pairs, regime, None if aa is None else 1 / aa, aa)


def again_name(name: str) -> str:
    """The name under which a contender's second slice of a round is kept."""
    return f"{name} again"


class Samples:
    """All slices of one interleaved measurement, and what they say. Names are the contenders'."""

    def __init__(self, taken: Iterable[Taken] = (), again: str | None = None, seconds: float = 0.0) -> None:
        self.taken: list[Taken] = []
        self.again, self.seconds = again, seconds
        self._kept: dict[str, list[Slice]] = {}
        self._by_round: dict[int, list[Taken]] = {}
        for one in taken:
            self.add(one)

    def add(self, one: Taken) -> None:
        """One more slice, later than all others."""
        self.taken.append(one)
        self._by_round.setdefault(one.round, []).append(one)
        kept = self._kept.setdefault(one.name, [])
        kept.append(one.slice)
        if len(kept) > KEPT_DETAILS:
            kept.pop(0).detail = {}

    @property
    def rounds(self) -> int:
        """How many rounds were run."""
        return self.taken[-1].round + 1 if self.taken else 0

    @property
    def names(self) -> list[str]:
        """The contenders, the second run for A/A excepted."""
        twice = again_name(self.again) if self.again is not None else None
        return [name for name in dict.fromkeys(one.name for one in self.taken) if name != twice]

    def metrics(self, name: str) -> list[str]:
        """Of a contender, in the order of its slices' figures."""
        return list(dict.fromkeys(metric for one in self.taken if one.name == name for metric in one.slice.figures))

    def slices(self, name: str) -> int:
        """How many were run of a contender, its second run for A/A excepted."""
        return sum(one.name == name for one in self.taken)

    def regimes(self) -> list[str]:
        """Steady regimes, the headline first: the one with the most good slices, of those with enough that lost no time."""
        counts = Counter(one.regime for one in self.taken if one.regime not in UNSTEADY and not one.slice.errors)
        enough = FEWEST * len({one.name for one in self.taken})

        def rank(regime: str) -> tuple[bool, int]:
            return regime.endswith(STOLEN) or counts[regime] < enough, -counts[regime]

        return sorted(counts, key=rank)

    def regime_counts(self) -> dict[str, int]:
        """How many slices were run in each regime, the unsteady ones included."""
        return dict(Counter(one.regime for one in self.taken).most_common())

    def errors(self, name: str) -> list[str]:
        """Why slices of a contender (and of its second run) have no figure."""
        names = (name, again_name(name))
        return [f"round {one.round + 1}: {error}" for one in self.taken if one.name in names for error in one.slice.errors]

    def details(self, name: str, regime: str | None = None) -> list[dict[str, Any]]:
        """The details of the last slices, of one regime if given."""
        wanted = (one for one in self.taken if one.name == name and not one.slice.errors and regime in (None, one.regime))
        return [one.slice.detail for one in wanted if one.slice.detail]

    def _values(self, name: str, metric: str, regime: str) -> dict[int, float]:
        """By round: the metric of the slices of one regime that have it, and no errors."""
        found = {}
        for one in self.taken:
            if one.name == name and one.regime == regime and not one.slice.errors:
                value = one.slice.figures.get(metric)
                if value is not None and math.isfinite(value):
                    found[one.round] = value
        return found

    def figure(self, name: str, metric: str, regime: str | None = None) -> Figure:
        """A metric's median. Without `regime`: the headline's, or where this contender has none, of its most frequent one."""
        if regime is None:
            with_values = [regime for regime in self.regimes() if self._values(name, metric, regime)]
            regime = with_values[0] if with_values else NO_REGIME
        values = list(self._values(name, metric, regime).values())
        middle = median(values) if values else None
        return Figure(middle, *median_interval(values), len(values), regime, *self.aa(metric, regime))

    def figures(self, name: str, metric: str) -> list[Figure]:
        """In every steady regime in which the contender has a figure, the headline first."""
        found = [self.figure(name, metric, regime) for regime in self.regimes()]
        return [figure for figure in found if figure.n]

    def _slices(self, name: str, metric: str) -> dict[int, list[tuple[int, str, float]]]:
        """By round: (position, regime, value) of the slices that have the metric, in a steady regime, and no errors."""
        found: dict[int, list[tuple[int, str, float]]] = {}
        for position, one in enumerate(self.taken):
            if one.name == name and one.regime not in UNSTEADY and not one.slice.errors:
                value = one.slice.figures.get(metric)
                if value is not None and math.isfinite(value) and value > 0:
                    found.setdefault(one.round, []).append((position, one.regime, value))
        return found

    def _both(self, name: str) -> tuple[str, ...]:
        return (name, again_name(name)) if name == self.again else (name,)

    def paired(self, one: str, other: str, metric: str) -> list[tuple[str, float]]:
        """(regime, `one` ÷ `other`) of each round in which both have a figure in one regime: of the two slices nearest in time."""
        found = []
        upper = [self._slices(name, metric) for name in self._both(one)]
        lower = [self._slices(name, metric) for name in self._both(other)]
        for number in range(self.rounds):
            over, under = ([slice_ for by_round in side for slice_ in by_round.get(number, [])] for side in (upper, lower))
            near = [(abs(a[0] - b[0]), a[1], a[2] / b[2]) for a in over for b in under if a[1] == b[1]]
            if near:
                found.append(min(near, key=lambda pair: pair[0])[1:])
        return found

    def pairs(self, one: str, other: str, metric: str, regime: str | None = None) -> list[float]:
        """`one` ÷ `other`, of each round in which both have a figure; of one regime if given."""
        return [quotient for label, quotient in self.paired(one, other, metric) if regime in (None, label)]

    def together(self, names: Sequence[str], metrics: Sequence[str]) -> list[tuple[str, list[list[float]]]]:
        """(regime, for each of `metrics` that of each of `names`) of every round in which all have them in one regime."""
        found = []
        for slices in self._by_round.values():
            rows: list[dict[str, list[float]]] = [{} for _ in names]
            for one in slices:
                if one.regime in UNSTEADY or one.slice.errors or not one.slice.figures.keys() >= set(metrics):
                    continue
                for row, name in zip(rows, names, strict=True):
                    if one.name in self._both(name):
                        row[one.regime] = [one.slice.figures[metric] for metric in metrics]
            for label in sorted(set(rows[0]).intersection(*rows[1:])):
                found.append((label, [list(column) for column in zip(*(row[label] for row in rows), strict=True)]))
        return found

    def made(self, names: Sequence[str], metrics: str | Sequence[str], make: Callable[..., float]) -> Figure:
        """The median of what `make` makes of several contenders' figures of one round and regime, over all regimes.

        It is given a list for each of `metrics`: the contenders' figures in the order of `names`. A round in which it divides by
        zero says nothing.
        """
        wanted = [metrics] if isinstance(metrics, str) else list(metrics)
        finite: list[tuple[str, float]] = []
        for label, columns in self.together(names, wanted):
            with suppress(ZeroDivisionError):
                finite.append((label, make(*columns)))
        labels = [label for label, _ in Counter(label for label, _ in finite).most_common()]
        numbers = [value for _, value in finite]
        middle = median(numbers) if numbers else None
        return Figure(middle, *median_interval(numbers), len(numbers), " + ".join(labels) or NO_REGIME)

    def _equal(self, metric: str, regime: str | None) -> list[float]:
        """The pairs of the contender that runs twice."""
        if self.again is None:
            return []
        one, other = (self._slices(name, metric) for name in (again_name(self.again), self.again))
        both = [(one[number][0], other[number][0]) for number in one if number in other]
        return [a[2] / b[2] for a, b in both if a[1] == b[1] and regime in (None, a[1])]

    def aa(self, metric: str, regime: str | None = None) -> Interval:
        """The A/A interval of a metric, symmetric about 1; (None, None) if it was not measured or n is too small."""
        return symmetric(median_interval(self._equal(metric, regime)))

    def ratio(self, one: str, other: str, metric: str, regime: str | None = None, confidence: float = CONFIDENCE) -> Ratio:
        """`one` ÷ `other`, of all steady regimes or of one."""
        paired = [(label, quotient) for label, quotient in self.paired(one, other, metric) if regime in (None, label)]
        quotients = [quotient for _, quotient in paired]
        labels = [label for label, _ in Counter(label for label, _ in paired).most_common()]
        strata: dict[str, list[float]] = {}
        for label in labels if len(labels) > 1 else []:
            part = [quotient for where, quotient in paired if where == label]
            low, high = median_interval(part, confidence)
            if low is not None and high is not None:
                strata[label] = [median(part), low, high, len(part)]
        middle = median(quotients) if quotients else None
        name = " + ".join(labels) or regime or NO_REGIME
        interval = median_interval(quotients, confidence)
        return Ratio(middle, *interval, len(quotients), name, *self.aa(metric, regime), strata)

    def ratios(self, one: str, other: str, metric: str) -> list[Ratio]:
        """The ratio; then, if it is of several regimes, that of each."""
        whole = self.ratio(one, other, metric)
        labels = whole.regime.split(" + ") if whole.pairs else []
        return [whole, *(self.ratio(one, other, metric, label) for label in labels if len(labels) > 1)] if whole.pairs else []

    def switches(self) -> int:
        """How often the machine's regime changed from one slice to the next."""
        return sum(one.regime != other.regime for one, other in pairwise(self.taken))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"again": self.again, "seconds": self.seconds, "slices": [asdict(one) for one in self.taken]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        taken = [Taken(one["round"], one["name"], one["regime"], Slice(**one["slice"])) for one in plain["slices"]]
        return cls(taken, plain["again"], plain["seconds"])
