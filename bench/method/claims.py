"""Claims: a statement, the figure it rests on, and whether that figure bears it.

A claim is *met* or *missed* only if the figure's distance from the target is wider than the A/A interval (slices.py); else it is
*undecided*. Without a figure there is *no figure*, and the reason says why.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

from bench.method.slices import FEWEST, Figure, Ratio

MET, MISSED, UNDECIDED, NO_FIGURE = "met", "missed", "undecided", "no figure"
Judged = Literal["median", "bound"]
Relation = Literal["≥", "≤", "="]


class Decision(NamedTuple):
    """A verdict and its reason, in words."""

    verdict: str
    reason: str


def decide(
    measured: Ratio | Figure, target: float, at_least: bool = True, *, judged: Judged = "median", errors: Sequence[str] = ()
) -> Decision:
    """Is what was measured at least (or at most) `target`, a positive number of the same unit?

    `judged` = "median": met or missed if the whole 95 % interval is on one side of the target.
    `judged` = "bound": the claim is about the end of the interval that is nearer to failing ("the lower 95 % bound is at least x"):
    it is met or missed by that bound alone, and never undecided for the interval's width.
    Either way the median's distance from the target has to be wider than the A/A interval. `errors`: why slices gave no figure.
    """
    n, what = (measured.pairs, "pairs") if isinstance(measured, Ratio) else (measured.n, "slices")
    middle, low, high = measured.median, measured.low, measured.high
    if middle is None:
        return Decision(NO_FIGURE, "; ".join(dict.fromkeys(errors)) or f"no {what} of one steady regime")
    if low is None or high is None:
        return Decision(UNDECIDED, f"n too small: {n} {what}, {FEWEST} are needed for a 95 % interval")
    if measured.aa_low is None or measured.aa_high is None:
        return Decision(UNDECIDED, "no A/A interval was measured")
    if middle > 0 and abs(math.log(middle / target)) <= math.log(measured.aa_high):
        margin = f"the margin, {abs(middle / target - 1):.1%}"
        return Decision(UNDECIDED, f"{margin}, is within the A/A interval, {measured.aa_low:.3f} to {measured.aa_high:.3f}")
    nearer, further = (low, high) if at_least else (high, low)
    if judged == "bound":
        good = nearer >= target if at_least else nearer <= target
        end = "lower" if at_least else "upper"
        return Decision(MET if good else MISSED, f"the {end} 95 % bound is {nearer:.4g}, of {n} {what}")
    if nearer >= target if at_least else nearer <= target:
        return Decision(MET, f"the whole interval is {'above' if at_least else 'below'} the target, {n} {what}")
    if further < target if at_least else further > target:
        return Decision(MISSED, f"the whole interval is {'below' if at_least else 'above'} the target, {n} {what}")
    return Decision(UNDECIDED, f"the 95 % interval contains the target, {n} {what}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as it is reported; its plain form is a row of results.json."""

    text: str
    target: str
    value: float | None
    low: float | None
    high: float | None
    aa: tuple[float, float] | None
    verdict: str
    reason: str

    @classmethod
    def about(
        cls,
        text: str,
        measured: Ratio | Figure,
        target: float,
        at_least: bool = True,
        *,
        judged: Judged = "median",
        errors: Sequence[str] = (),
    ) -> Self:
        """A claim about something measured (`decide`)."""
        verdict, reason = decide(measured, target, at_least, judged=judged, errors=errors)
        bound = "" if judged == "median" else ("lower bound " if at_least else "upper bound ")
        goal = f"{bound}{'≥' if at_least else '≤'} {target:g}"
        aa = None if measured.aa_low is None or measured.aa_high is None else (measured.aa_low, measured.aa_high)
        steady = f"{reason}; regime {measured.regime}" if measured.median is not None else reason
        return cls(text, goal, measured.median, measured.low, measured.high, aa, verdict, steady)

    @classmethod
    def counted(cls, text: str, value: float | None, relation: Relation, target: float, why: str = "") -> Self:
        """A claim about a count, which has no noise: no intervals. `why`: the reason if there is no value."""
        if value is None:
            return cls(text, f"{relation} {target:g}", None, None, None, None, NO_FIGURE, why or "not counted")
        holds = {"≥": value >= target, "≤": value <= target, "=": value == target}[relation]
        return cls(text, f"{relation} {target:g}", value, None, None, None, MET if holds else MISSED, "counted, not sampled")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "aa": None if self.aa is None else list(self.aa)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        return cls(**{**plain, "aa": None if plain["aa"] is None else tuple(plain["aa"])})
