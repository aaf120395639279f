"""How everything here is measured: short slices that take turns, kept apart by what the machine did, compared pair by pair.

A small virtual machine changes under a measurement: its host lays two virtual cores on one physical core, or takes them away,
and the same program differs by a factor from one second to the next. So:

1. *Slices* of at most half a second take turns in one live topology: A B C, then C B A, then A B C … A drift that is linear over
   two rounds moves A÷B up in one round and down in the next, so that it cancels in the median of an even number of rounds.
2. A *probe* is read between slices. What it saw before and after a slice is the slice's *regime*. Only slices of one regime are
   compared; "mixed" (the machine changed meanwhile) and "stolen" (the host ran something else) are compared with nothing.
3. The unit of comparison is the *pair*: two contenders' slices of the same round and the same regime, divided. What both slices
   had in common falls out of the quotient.
4. A figure is a *median*, and its 95 % interval is that of order statistics: (x[k], x[n+1-k]) with the largest k such that
   2·P(Binomial(n, 1/2) < k) ≤ 5 % (Hahn and Meeker, Statistical Intervals, section 5.2). It is exact for any continuous
   distribution; slices are taken to be independent. Below n = 6 there is no such interval, and nothing is decided.
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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, Self

from bench.method.progress import Steps

LONGEST_SLICE_S = 0.5
CONFIDENCE = 0.95
FEWEST = 6  # the fewest values whose median has a 95 % interval: 2 · 2⁻⁶ = 3 %
UNSTEADY = frozenset({"mixed", "stolen"})
NO_REGIME = "none"
KEPT_DETAILS = 4  # of each contender: histograms are large

Kind = Literal["path", "peer", "floor"]
Interval = tuple[float | None, float | None]


class Probe(Protocol):
    """Looks at the machine between two slices; a reading costs a few milliseconds."""

    def read(self) -> Any:
        """What the machine is like now."""

    def regime(self, before: Any, after: Any) -> str:
        """The label of a slice between two readings: "apart", "together", "mixed", "stolen"."""


@dataclass(slots=True)
class Slice:
    """What one contender did in one slice: figures by metric, or errors. `detail` is for JSON, and kept of the last slices."""

    figures: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that can be measured: `run(seconds)` is one slice of it. `prepare`, if there is, comes before the first one."""

    name: str
    run: Callable[[float], Awaitable[Slice]]
    kind: Kind = "path"
    prepare: Callable[[], Awaitable[None]] | None = None


@dataclass(slots=True)
class Taken:
    """A slice, when it was run, and in what regime."""

    round: int
    name: str
    regime: str
    slice: Slice


# -- the estimator --


def interval_rank(n: int, confidence: float = CONFIDENCE) -> int:
    """k such that the k-th smallest and k-th largest of n values enclose the median with at least `confidence`; 0 if none does."""
    tail, k = 0.0, 0
    while k < n // 2:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - confidence:
            break
        k += 1
    return k


def median(values: Sequence[float]) -> float:
    """Of positive values. The middle of an even number is the geometric one, so that median(1/x) = 1/median(x)."""
    ordered, half = sorted(values), len(values) // 2
    low, high = ordered[(len(ordered) - 1) // 2], ordered[half]
    return math.sqrt(low * high) if low > 0 else (low + high) / 2


def median_interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of the median by order statistics; (None, None) for fewer than 6 values."""
    k = interval_rank(len(values))
    if k == 0:
        return None, None
    ordered = sorted(values)
    return ordered[k - 1], ordered[-k]


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

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the pair ratios of one regime, its interval, and the A/A interval that it has to clear; verdict against 1."""

    median: float | None
    low: float | None
    high: float | None
    pairs: int
    regime: str
    aa_low: float | None
    aa_high: float | None
    verdict: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        return cls(**plain)


def symmetric(interval: Interval) -> Interval:
    """[1/m, m], the smallest such interval around the given one (of a ratio)."""
    low, high = interval
    if low is None or high is None:
        return None, None
    m = max(low, 1 / low, high, 1 / high)
    return 1 / m, m


def ratio_verdict(middle: float | None, interval: Interval, aa: Interval) -> str:
    """ "above", "below", or "undecided" (with the reason) against 1."""
    (low, high), (aa_low, aa_high) = interval, aa
    if middle is None:
        return "undecided (no pairs)"
    if low is None or high is None:
        return "undecided (n too small)"
    if aa_low is None or aa_high is None:
        return "undecided (no A/A interval)"
    if low > 1 and middle > aa_high:
        return "above"
    if high < 1 and middle < aa_low:
        return "below"
    return "undecided"


# -- running --


def again_name(name: str) -> str:
    """The name under which a contender's second slice of a round is kept."""
    return f"{name} again"


async def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    probe: Probe,
    again: str | None = None,
    progress: Steps | None = None,
) -> "Samples":
    """Run `rounds` rounds of one slice of `seconds` each per contender, every other round backwards.

    `again` names the contender that runs at both ends of a round, for the A/A interval; without it nothing can be decided.
    ValueError for slices longer than 0.5 s, names that occur twice, or an unknown `again`.
    """
    if not 0 < seconds <= LONGEST_SLICE_S:
        raise ValueError(f"a slice of {seconds:g} s: more than 0 and at most {LONGEST_SLICE_S} s keep the machine the same in it")
    if rounds < 1:
        raise ValueError(f"{rounds} rounds")
    order = _order(contenders, again)
    taken: list[Taken] = []
    for contender in contenders:
        if contender.prepare is not None:
            await contender.prepare()
    before = probe.read()
    for number in range(rounds):
        for contender in order if number % 2 == 0 else order[::-1]:
            if progress is not None:
                progress.step(f"{contender.name}, round {number + 1} of {rounds}", len(taken) / (rounds * len(order)))
            result = await contender.run(seconds)
            after = probe.read()
            taken.append(Taken(number, contender.name, probe.regime(before, after), result))
            before = after
    return Samples(taken, again, seconds)


def _order(contenders: Sequence[Contender], again: str | None) -> list[Contender]:
    """The contender that runs twice is first and last; names are unique."""
    by_name = {contender.name: contender for contender in contenders}
    if len(by_name) < len(contenders) or not contenders:
        raise ValueError(f"contenders need names of their own: {[contender.name for contender in contenders]}")
    if again is None:
        return list(contenders)
    if again not in by_name or again_name(again) in by_name:
        raise ValueError(f"cannot run {again!r} again among {list(by_name)}")
    one = by_name.pop(again)
    return [one, *by_name.values(), Contender(again_name(again), one.run, one.kind)]


# -- what came out --


class Samples:
    """All slices of one interleaved measurement, and what they say. Names are the contenders'."""

    def __init__(self, taken: Iterable[Taken], again: str | None = None, seconds: float = 0.0) -> None:
        self.taken, self.again, self.seconds = list(taken), again, seconds
        seen: Counter[str] = Counter()
        for one in reversed(self.taken):
            seen[one.name] += 1
            if seen[one.name] > KEPT_DETAILS:
                one.slice.detail = {}

    @property
    def names(self) -> list[str]:
        """The contenders, the second run for A/A excepted."""
        twice = again_name(self.again) if self.again is not None else None
        return [name for name in dict.fromkeys(one.name for one in self.taken) if name != twice]

    def metrics(self, name: str) -> list[str]:
        """Of a contender, in the order of its slices' figures."""
        return list(dict.fromkeys(metric for one in self.taken if one.name == name for metric in one.slice.figures))

    def regimes(self) -> list[str]:
        """Steady regimes, the one with the most slices with a figure first: the headline."""
        counts = Counter(one.regime for one in self.taken if one.regime not in UNSTEADY and not one.slice.errors)
        return [regime for regime, _ in counts.most_common()]

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

    def pairs(self, one: str, other: str, metric: str, regime: str) -> list[float]:
        """`one` ÷ `other`, of each round in which both have a figure in this regime."""
        upper, lower = self._values(one, metric, regime), self._values(other, metric, regime)
        common = [number for number in upper if number in lower]
        return [upper[number] / lower[number] for number in common if upper[number] > 0 and lower[number] > 0]

    def aa(self, metric: str, regime: str) -> Interval:
        """The A/A interval of a metric in a regime, symmetric about 1; (None, None) if it was not measured or n is too small."""
        if self.again is None:
            return None, None
        return symmetric(median_interval(self.pairs(again_name(self.again), self.again, metric, regime)))

    def ratio(self, one: str, other: str, metric: str, regime: str | None = None) -> Ratio:
        """`one` ÷ `other`. Without `regime`: the one with the most pairs."""
        if regime is None:
            regimes = self.regimes()
            regime = max(regimes, key=lambda label: len(self.pairs(one, other, metric, label)), default=NO_REGIME)
        quotients = self.pairs(one, other, metric, regime)
        middle = median(quotients) if quotients else None
        interval, aa = median_interval(quotients), self.aa(metric, regime)
        return Ratio(middle, *interval, len(quotients), regime, *aa, ratio_verdict(middle, interval, aa))

    def ratios(self, one: str, other: str, metric: str) -> list[Ratio]:
        """In every steady regime with pairs, the one with the most pairs first."""
        found = [self.ratio(one, other, metric, regime) for regime in self.regimes()]
        return sorted((ratio for ratio in found if ratio.pairs), key=lambda ratio: -ratio.pairs)

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
