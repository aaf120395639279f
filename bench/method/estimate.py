"""Medians and their intervals: what n values say about the middle of what they were drawn from.

The 95 % interval of a median is that of order statistics, which assumes nothing of the distribution (Hahn and Meeker, Statistical
Intervals, section 5.2): (x[k], x[n+1-k]), k the largest with 2·P(Binomial(n, 1/2) < k) ≤ 5 %. Such intervals exist for few
confidences only (96.9 % for n = 6, 97.9 % for n = 10), so the ends are moved inwards, between x[k] and x[k+1], until the confidence
is 95 %: Hettmansperger and Sheather, "Confidence intervals based on interpolated order statistics", 1986, whose coverage hardly
depends on the distribution. Below n = 6 there is no interval, and nothing is decided.
"""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95
FEWEST = 6
"""The fewest values whose median has a 95 % interval: 2 · 2⁻⁶ = 3 %."""

Interval = tuple[float | None, float | None]


def interval_rank(n: int, confidence: float = CONFIDENCE) -> int:
    """k such that the k-th smallest and k-th largest of n values enclose the median with at least `confidence`; 0 if none does."""
    k = 0
    while k < n // 2 and _enclosing(n, k + 1) >= confidence:
        k += 1
    return k


def _enclosing(n: int, k: int) -> float:
    """With what probability the k-th smallest and k-th largest of n values enclose the median."""
    return 1.0 - 2 * float(sum(math.comb(n, i) for i in range(k)) / 2**n)


def median(values: Sequence[float]) -> float:
    """The middle of an even number is the geometric one of positive values, so that median(1/x) = 1/median(x)."""
    ordered, half = sorted(values), len(values) // 2
    return _between(ordered[(len(ordered) - 1) // 2], ordered[half], 0.5)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The interval of the median by interpolated order statistics; (None, None) for too few values."""
    n, k = len(values), interval_rank(len(values), confidence)
    if k == 0:
        return None, None
    ordered = sorted(values)
    here, within = _enclosing(n, k), _enclosing(n, k + 1) if k < n // 2 else 0.0
    share = (here - confidence) / (here - within)
    inwards = (n - k) * share / (k + (n - 2 * k) * share)
    low = _between(ordered[k - 1], ordered[min(k, n - 1)], inwards)
    high = _between(ordered[n - k], ordered[max(n - k - 1, 0)], inwards)
    return min(low, high), max(low, high)


def _between(one: float, other: float, share: float) -> float:
    """From `one`, `share` of the way to `other`: on a logarithmic scale if both are positive."""
    if one == other:
        return one
    if one > 0 and other > 0:
        return math.exp((1 - share) * math.log(one) + share * math.log(other))
    return (1 - share) * one + share * other


def symmetric(interval: Interval) -> Interval:
    """[1/m, m], the smallest such interval around the given one (of a ratio)."""
    low, high = interval
    if low is None or high is None:
        return None, None
    m = max(low, 1 / low, high, 1 / high)
    return 1 / m, m
