"""Figures as people read them."""

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def percentile(ordered: Sequence[T], percent: int) -> T:
    """The smallest, of values in order, that at least so many percent of them do not exceed: one that was seen."""
    return ordered[max(-(-percent * len(ordered) // 100) - 1, 0)]


def short(value: float) -> str:
    """Three significant digits; k and M where a number would be long."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    for limit, factor, sign in ((999_500, 1e6, " M"), (99_950, 1e3, " k")):
        if abs(value) >= limit:
            return short(value / factor) + sign
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:,.{digits}f}" if digits <= 5 else f"{value:.2g}"


def plural(n: int, noun: str) -> str:
    """ "1 frame", "5,000 frames"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def number(value: float | None, digits: int = 2) -> str:
    """A figure with a sensible number of digits; a dash for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if 0 < value < 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    return f"{value:,.{digits}f}"
