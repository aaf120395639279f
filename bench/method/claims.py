"""Claims: a statement, the figure it rests on, and whether that figure bears it.

A claim is *met* or *missed* only if the figure's distance from the target is wider than the A/A interval (verdicts.py); else it is
*undecided*. Without a figure there is *no figure*, and the reason says why.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from bench.method.samples import Figure, Ratio
from bench.method.verdicts import UNDECIDED, Judged, Relation, counted, decide, near

LONGEST_S = 10 * 3600.0
"""Beyond that nobody waits, and an estimate means nothing."""


def longer(seconds: float) -> str:
    """What would decide what is undecided."""
    if not math.isfinite(seconds) or seconds > LONGEST_S:
        return f"not in {LONGEST_S / 3600:g} h"
    minutes = seconds / 60
    return f"about {max(1.0, minutes):.0f} min more would decide it" if minutes < 100 else f"about {minutes / 60:.0f} h would"


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
        longer_s: float | None = None,
    ) -> Self:
        """A claim about something measured (`decide`). `longer_s`: how much more time would decide it, if it is undecided."""
        verdict, reason = decide(measured, target, at_least, judged=judged, errors=errors)
        if verdict == UNDECIDED and longer_s is not None:
            reason += f"; {longer(longer_s)}"
        bound = "" if judged == "median" else ("lower bound " if at_least else "upper bound ")
        goal = f"{bound}{'≥' if at_least else '≤'} {target:g}"
        aa = None if measured.aa_low is None or measured.aa_high is None else (measured.aa_low, measured.aa_high)
        steady = f"{reason}; regime {measured.regime}" if measured.median is not None else reason
        return cls(text, goal, measured.median, measured.low, measured.high, aa, verdict, steady)

    @classmethod
    def near(cls, text: str, measured: Ratio | Figure, target: float) -> Self:
        """A claim that something measured is near `target`, on either side (`bench.method.verdicts.near`)."""
        verdict, reason = near(measured, target)
        aa = None if measured.aa_low is None or measured.aa_high is None else (measured.aa_low, measured.aa_high)
        return cls(text, f"near {target:.4g}", measured.median, measured.low, measured.high, aa, verdict, reason)

    @classmethod
    def counted(cls, text: str, value: float | None, relation: Relation, target: float, why: str = "") -> Self:
        """A claim about a count, which has no noise: no intervals. `why`: the reason if there is no value."""
        verdict, reason = counted(value, relation, target, why)
        return cls(text, f"{relation} {target:g}", value, None, None, None, verdict, reason)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "aa": None if self.aa is None else list(self.aa)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Back from JSON."""
        return cls(**{**plain, "aa": None if plain["aa"] is None else tuple(plain["aa"])})
