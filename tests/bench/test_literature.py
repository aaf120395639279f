"""Published trends beside a run's figures: judged like claims; words for sizes have numbers; nothing recalled is a target."""

import re
from typing import Any

import pytest

from bench.benchmarks.literature import AGREES, DIFFERS, READ, RECALLED, TRENDS, trends
from bench.method.verdicts import WORDS

Row = dict[str, Any]


def ratio(of: str, to: str, metric: str, middle: float, width: float = 1.02, aa: float = 1.03, **where: Any) -> Row:
    """A row of results.json."""
    return {
        "of": of, "to": to, "metric": metric, "median": middle, "low": middle / width, "high": middle * width, "pairs": 12,
        "regime": "apart", "strata": {}, "aa": [1 / aa, aa], **where,
    }  # fmt: skip


def found(benchmarks: dict[str, Row], words: str) -> Row:
    """The one trend whose text has these words."""
    rows = [row for row in trends({"benchmarks": benchmarks}) if words in row["text"]]
    assert len(rows) == 1
    return rows[0]


def held(middle: float, **more: Any) -> Row:
    return {"cost": {"ratios": [ratio("split, no hold-off", "split", "notifications_per_frame", middle, frame=64, **more)]}}


@pytest.mark.parametrize(
    ("without", "verdict"), [(1.12, DIFFERS), (1.9, DIFFERS), (2.02, "undecided"), (2.2, AGREES), (40.0, AGREES)]
)
def test_most_is_more_than_half(without: float, verdict: str) -> None:
    """0.0165 notifications per frame with hold-off against 0.0185 without is not "most"."""
    row = found(held(without), "Hold-off removes most")
    assert row["verdict"] == verdict
    assert len(row["here"]) == 1
    assert verdict != "undecided" or "within the A/A interval" in row["here"][0]


def test_one_pair_that_claims_call_undecided_is_no_trend() -> None:
    for more in ({"aa": 3.0}, {"width": 4.0}):
        assert found(held(3.0, **more), "Hold-off")["verdict"] == "undecided"
    lonely = held(3.0)
    lonely["cost"]["ratios"][0] |= {"low": None, "high": None, "pairs": 1}
    row = found(lonely, "Hold-off")
    assert row["verdict"] == "undecided"
    assert "n too small: 1 pairs" in row["here"][0]


@pytest.mark.parametrize(("middles", "verdict"), [((0.98, 1.0), AGREES), ((0.98, 0.8), DIFFERS), ((0.98, 0.91), "undecided")])
def test_near_native_means_near_at_every_point(middles: tuple[float, ...], verdict: str) -> None:
    rows = [
        ratio("bypass", "native", "mpps", middle, frame=frame, cores="all", direction="guest→wire")
        for middle, frame in zip(middles, (64, 1500), strict=True)
    ]
    assert found({"throughput": {"ratios": rows}}, "nearly as fast as a native")["verdict"] == verdict


@pytest.mark.parametrize(
    ("small", "large", "verdict"), [(10.0, 3.0, AGREES), (3.0, 3.0, "undecided"), (3.0, 10.0, DIFFERS), (10.0, 0.9, DIFFERS)]
)
def test_dom0_costs_most_where_frames_are_small(small: float, large: float, verdict: str) -> None:
    rows = [
        ratio("bypass", "split", "mframes_per_cpu_s", middle, frame=frame, cores="1", direction="guest→wire")
        for middle, frame in ((small, 64), (large, 1500))
    ]
    assert found({"throughput": {"ratios": rows}}, "where frames are small")["verdict"] == verdict


@pytest.mark.parametrize(("middle", "verdict"), [(1.5, DIFFERS), (3.05, "undecided"), (4.0, AGREES)])
def test_several_times_is_three(middle: float, verdict: str) -> None:
    assert WORDS["several times"] == 3
    rows = [ratio("split", "bypass", "p50_us", middle, frame=64, cores="1", mode="blocking", direction="guest→wire")]
    assert found({"latency": {"ratios": rows}}, "several times shorter")["verdict"] == verdict


def test_only_the_ratio_of_all_regimes_counts() -> None:
    """It is the first row of its place; the regimes' own come after it."""
    whole, part = held(40.0)["cost"]["ratios"][0], held(1.1)["cost"]["ratios"][0]
    row = found({"cost": {"ratios": [whole, part]}}, "Hold-off")
    assert (row["verdict"], len(row["here"])) == (AGREES, 1)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert {(row["verdict"], tuple(row["here"])) for row in trends({"benchmarks": {}})} == {("not measured in this run", ())}


def test_what_is_recalled_is_a_direction_without_a_figure() -> None:
    """Nor is a figure of any paper a target: those are 1, and what our own words mean."""
    assert {trend.basis for trend in TRENDS} == {READ, RECALLED}
    for trend in TRENDS:
        if trend.basis == RECALLED:
            assert not re.search(r"[\d.]+ ?[×%µ]", trend.source), trend.source
            assert "direction only" in trend.basis
