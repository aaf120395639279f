"""The one place where something measured becomes a verdict: `decide`, against a target, and `direction`, against 1.

Whatever the bench says of a figure (a claim that is met, a published trend that is found here, a ratio that is above 1) is made
here, from a median, its 95 % interval and the A/A interval (bench/method/samples.py). A word for a size has a number (`WORDS`).
Counts, which have no noise, are compared by `counted`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from bench.method.estimate import FEWEST

MET, MISSED, UNDECIDED, NO_FIGURE = "met", "missed", "undecided", "no figure"
ABOVE, BELOW = "above", "below"
Judged = Literal["median", "bound"]
Relation = Literal["≥", "≤", "="]

WORDS = {"near": 0.9, "several times": 3.0, "most": 0.5}
"""What words for sizes mean. "near": at least this part of the other; "several times": so many at least; "most": more than this."""


class Measured(Protocol):
    """A figure or a ratio: its median, 95 % interval and A/A interval, where there are any; and of how many values."""

    @property
    def median(self) -> float | None:
        """The middle."""

    @property
    def low(self) -> float | None:
        """The lower end of the 95 % interval."""

    @property
    def high(self) -> float | None:
        """The upper end."""

    @property
    def aa_high(self) -> float | None:
        """By what factor equal things differ here; the A/A interval is from its inverse to it."""

    @property
    def count(self) -> str:
        """Of what it was made: "12 pairs"."""

    @property
    def spread(self) -> "Sequence[tuple[str, float, float]]":
        """Where regimes have intervals of their own: (label, low, high) of each."""


class Decision(NamedTuple):
    """A verdict and its reason, in words."""

    verdict: str
    reason: str


def decide(
    measured: Measured, target: float, at_least: bool = True, *, judged: Judged = "median", errors: Sequence[str] = ()
) -> Decision:
    """Is what was measured at least (or at most) `target`, a positive number of the same unit?

    `judged` = "median": met or missed if the whole 95 % interval is on one side of the target.
    `judged` = "bound": the claim is about the end of the interval that is nearer to failing ("the lower 95 % bound is at least x"):
    it is met or missed by that bound alone, and never undecided for the interval's width.
    Either way the median's distance from the target has to be wider than the A/A interval, and no regime's own interval may be on
    the other side. `errors`: why slices gave no figure.
    """
    middle, low, high = measured.median, measured.low, measured.high
    if middle is None:
        return Decision(NO_FIGURE, "; ".join(dict.fromkeys(errors)) or f"no {measured.count.split()[-1]} of one steady regime")
    if low is None or high is None:
        return Decision(UNDECIDED, f"n too small: {measured.count}, {FEWEST} are needed for a 95 % interval")
    if measured.aa_high is None:
        return Decision(UNDECIDED, "no A/A interval was measured")
    if middle > 0 and abs(math.log(middle / target)) <= math.log(measured.aa_high):
        equal = f"{1 / measured.aa_high:.3f} to {measured.aa_high:.3f}"
        return Decision(UNDECIDED, f"the margin, {abs(middle / target - 1):.1%}, is within the A/A interval, {equal}")
    nearer, further = (low, high) if at_least else (high, low)
    if judged == "bound":
        good, end = _holds(nearer, target, at_least), "lower" if at_least else "upper"
        found = Decision(MET if good else MISSED, f"the {end} 95 % bound is {nearer:.4g}, of {measured.count}")
    elif _holds(nearer, target, at_least):
        found = Decision(MET, f"the whole interval is {'above' if at_least else 'below'} the target, {measured.count}")
    elif not _holds(further, target, at_least):
        found = Decision(MISSED, f"the whole interval is {'below' if at_least else 'above'} the target, {measured.count}")
    else:
        return Decision(UNDECIDED, f"the 95 % interval contains the target, {measured.count}")
    for label, low, high in measured.spread:
        if high < target if middle > target else low > target:
            return Decision(UNDECIDED, f"regimes disagree: {label} alone gives {low:.4g} to {high:.4g}")
    return found


def _holds(value: float, target: float, at_least: bool) -> bool:
    return value >= target if at_least else value <= target


def near(measured: Measured, target: float) -> Decision:
    """Is it near `target`, on either side (`WORDS`)? Met if both sides are, missed if one is."""
    sides = [decide(measured, target * WORDS["near"]), decide(measured, target / WORDS["near"], at_least=False)]
    for verdict in (MISSED, NO_FIGURE, UNDECIDED):
        for found in sides:
            if found.verdict == verdict:
                return found
    return Decision(MET, f"the whole interval is near the target, {measured.count}")


def direction(measured: Measured) -> Decision:
    """ "above" or "below" 1, or "undecided"; why."""
    found = decide(measured, 1.0)
    verdict = {MET: ABOVE, MISSED: BELOW}.get(found.verdict, UNDECIDED)
    return Decision(verdict, found.reason)


def sign(measured: Measured) -> int:
    """Of a difference: 1 or -1 if its whole 95 % interval is above or below 0; 0 if that is not known."""
    if measured.low is None or measured.high is None or measured.low <= 0 <= measured.high:
        return 0
    return 1 if measured.low > 0 else -1


def counted(value: float | None, relation: Relation, target: float, why: str = "") -> Decision:
    """A verdict on a count. `why`: the reason if there is no value."""
    if value is None:
        return Decision(NO_FIGURE, why or "not counted")
    holds = {"≥": value >= target, "≤": value <= target, "=": value == target}[relation]
    return Decision(MET if holds else MISSED, "counted, not sampled")
