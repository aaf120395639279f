"""The method of measuring: on simulated machines that drift, switch regimes and make noise, with seeds that are fixed."""

import asyncio
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.method.claims import Claim
from bench.method.estimate import interval_rank, median, median_interval
from bench.method.samples import Figure, Ratio, Samples, Slice, Taken
from bench.method.slices import Contender, interleave
from bench.method.verdicts import decide

SEED = 20120613


class Machine:
    """A simulated machine: time passes by slices, and `speed(slice number)` is a factor on everything. It is the probe, too."""

    def __init__(
        self, noise: float = 0.0, speed: Callable[[int], float] = lambda t: 1.0, label: Callable[[int], str] = lambda t: "apart"
    ) -> None:
        self.random, self.noise, self.speed, self.label = random.Random(SEED), noise, speed, label
        self.now, self.reads, self.order = 0, 0, ""

    def read(self) -> int:
        self.reads += 1
        return self.now

    def regime(self, before: int, after: int) -> str:
        assert after == before + 1
        return self.label(before)

    def contender(self, name: str, rate: float, broken: Callable[[int], bool] = lambda t: False) -> Contender:
        async def run(seconds: float) -> Slice:
            now, self.now, self.order = self.now, self.now + 1, self.order + name
            if broken(now):
                return Slice(errors=["3 frames lost, 0 of them under a name"])
            value = rate * self.speed(now) * math.exp(self.random.gauss(0, self.noise))
            return Slice({"mpps": value, "cpu_ns": 1000 / value}, detail={"at": now})

        return Contender(name, run)


def measure(machine: Machine, *contenders: Contender, rounds: int = 12, again: str | None = "A") -> Samples:
    return asyncio.run(interleave(contenders, rounds=rounds, seconds=0.25, probe=machine, again=again))


# -- order statistics --


@pytest.mark.parametrize(("n", "k"), [(0, 0), (1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (25, 8), (100, 40)])
def test_ranks_are_the_published_ones(n: int, k: int) -> None:
    """Hahn and Meeker, table of distribution-free intervals for the median, two-sided, 95 %."""
    assert interval_rank(n) == k


@pytest.mark.parametrize("n", [6, 9, 12, 25, 40])
@pytest.mark.parametrize("shape", ["normal", "heavy", "skewed"])
def test_intervals_cover_the_true_median(n: int, shape: str) -> None:
    """In 95 % of 2000 samples, whatever the distribution (and within 1 % of that, and three standard errors)."""
    draw = random.Random(SEED)
    sample = {
        "normal": lambda: draw.gauss(10, 1),
        "heavy": lambda: 10 + math.tan(math.pi * (draw.random() - 0.5)),
        "skewed": lambda: 10 * math.exp(draw.gauss(0, 2)),
    }[shape]
    trials, covered = 2000, 0
    for _ in range(trials):
        low, high = median_interval([sample() for _ in range(n)])
        assert low is not None
        assert high is not None
        covered += low <= 10 <= high
    assert covered / trials == pytest.approx(0.95, abs=0.01 + 3 * math.sqrt(0.05 * 0.95 / trials))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_the_median_of_inverses_is_the_inverse(values: list[float]) -> None:
    assert median([1 / value for value in values]) == pytest.approx(1 / median(values))
    low, high = median_interval(values)
    assert (low is None) == (high is None) == (len(values) < 6)
    if low is not None and high is not None:
        assert low <= median(values) * (1 + 1e-12)
        assert high >= median(values) * (1 - 1e-12)


# -- interleaving --


def test_slices_alternate_and_readings_are_shared_by_neighbours() -> None:
    machine = Machine()
    samples = measure(machine, machine.contender("A", 1), machine.contender("B", 1), machine.contender("C", 1), rounds=2)
    assert machine.order == "ABCA" + "ACBA"
    assert machine.reads == len(machine.order) + 1
    assert samples.names == ["A", "B", "C"]
    assert [one.name for one in samples.taken if one.round == 0] == ["A", "B", "C", "A again"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.51, 2.0, math.nan])
def test_long_slices_are_refused(seconds: float) -> None:
    machine = Machine()
    with pytest.raises(ValueError, match="a slice of"):
        asyncio.run(interleave([machine.contender("A", 1)], rounds=6, seconds=seconds, probe=machine, again=None, progress=None))
    assert machine.order == ""


@pytest.mark.parametrize(("names", "again"), [("AA", None), ("AB", "C"), ("", None)])
def test_contenders_that_cannot_be_told_apart_are_refused(names: str, again: str | None) -> None:
    machine = Machine()
    with pytest.raises(ValueError, match=r"contenders|again"):
        measure(machine, *(machine.contender(name, 1) for name in names), again=again)


def test_progress_goes_from_nothing_to_almost_all() -> None:
    steps: list[tuple[str, float]] = []

    class Listener:
        def step(self, text: str, fraction: float) -> None:
            steps.append((text, fraction))

    machine = Machine()
    asyncio.run(interleave([machine.contender("A", 1)], rounds=4, seconds=0.1, probe=machine, again="A", progress=Listener()))
    assert [fraction for _, fraction in steps] == [number / 8 for number in range(8)]
    assert steps[-1][0] == "A, round 4 of 4"


# -- what noise does --


def test_a_linear_drift_cancels() -> None:
    """The machine gets 1 % faster with every slice; plain medians of the first and second half would differ by a factor."""
    machine = Machine(speed=lambda now: 1.01**now)
    samples = measure(machine, machine.contender("A", 1), machine.contender("B", 1), rounds=12)
    ratio = samples.ratio("B", "A", "mpps")
    assert ratio.median == pytest.approx(1, rel=1e-9)
    assert ratio.verdict == "undecided"
    faster = measure(machine, machine.contender("A", 1), machine.contender("B", 1.5), rounds=12).ratio("B", "A", "mpps")
    assert faster.median == pytest.approx(1.5, rel=1e-9)
    assert faster.verdict == "above"


def test_identical_contenders_are_practically_never_decided() -> None:
    machine, decided = Machine(noise=0.2), 0
    for _ in range(400):
        ratio = measure(machine, machine.contender("A", 1), machine.contender("B", 1)).ratio("B", "A", "mpps")
        decided += ratio.verdict in ("above", "below")
    assert decided / 400 <= 0.02


def test_a_real_difference_is_decided() -> None:
    machine, found = Machine(noise=0.1), 0
    for _ in range(100):
        samples = measure(machine, machine.contender("A", 1), machine.contender("B", 1.4))
        found += samples.ratio("B", "A", "mpps").verdict == "above" and samples.ratio("A", "B", "mpps").verdict == "below"
    assert found >= 97


def test_regimes_are_kept_apart() -> None:
    """Two regimes that differ by a factor of 20, at random: equal contenders stay equal, and a gain of 1.5 is seen in each."""
    plan = random.Random(SEED)
    labels = [plan.choice(["apart", "apart", "together"]) for _ in range(10_000)]
    machine = Machine(0.05, lambda now: 1.0 if labels[now] == "apart" else 0.05, lambda now: labels[now])
    wrong, seen_faster = 0, 0
    for _ in range(100):
        samples = measure(machine, machine.contender("A", 1), machine.contender("B", 1), machine.contender("C", 1.5), rounds=20)
        assert all(0.5 < quotient < 2 for quotient in samples.pairs("B", "A", "mpps", "apart"))
        wrong += samples.ratio("B", "A", "mpps").verdict in ("above", "below")
        seen_faster += samples.ratio("C", "A", "mpps").verdict == "above"
    assert wrong <= 2
    assert seen_faster >= 95
    apart, together = samples.figure("A", "mpps", "apart").median, samples.figure("A", "mpps", "together").median
    assert apart == pytest.approx(1, rel=0.1)
    assert together == pytest.approx(0.05, rel=0.1)
    assert samples.figure("A", "mpps").regime == samples.regimes()[0] == "apart"
    assert [ratio.regime for ratio in samples.ratios("C", "A", "mpps")] == ["apart + together", "apart", "together"]
    assert samples.switches() > 0


@pytest.mark.parametrize("label", ["mixed", "starved"])
def test_unsteady_slices_are_compared_with_nothing(label: str) -> None:
    machine = Machine(label=lambda now: label)
    samples = measure(machine, machine.contender("A", 1), machine.contender("B", 9))
    assert samples.figure("A", "mpps") == Figure(None, None, None, 0, "none")
    ratio = samples.ratio("B", "A", "mpps")
    assert (ratio.verdict, ratio.reason) == ("undecided", "no pairs of one steady regime")
    assert decide(samples.ratio("B", "A", "mpps"), 1).verdict == "no figure"
    assert samples.regime_counts() == {label: 36}


# -- errors --


def test_a_slice_with_errors_gives_no_figure_and_says_why() -> None:
    machine = Machine()
    samples = measure(machine, machine.contender("A", 1), machine.contender("B", 9, broken=lambda now: True))
    assert samples.figure("B", "mpps").median is None
    assert len(samples.errors("B")) == 12
    claim = Claim.about("B is fast", samples.ratio("B", "A", "mpps"), 2, errors=samples.errors("B"))
    assert claim.verdict == "no figure"
    assert "3 frames lost" in claim.reason


def test_only_the_rounds_with_errors_lose_their_pairs() -> None:
    machine = Machine()
    samples = measure(machine, machine.contender("A", 1), machine.contender("B", 2, broken=lambda now: now < 6))
    assert samples.ratio("B", "A", "mpps").pairs == 10
    assert samples.errors("B")[0] == "round 1: 3 frames lost, 0 of them under a name"
    assert samples.errors("A") == []


def test_few_rounds_decide_nothing() -> None:
    machine = Machine()
    samples = measure(machine, machine.contender("A", 1), machine.contender("B", 100), rounds=5)
    ratio = samples.ratio("B", "A", "mpps")
    assert ratio.median == pytest.approx(100)
    assert ratio.low is None
    assert ratio.high is None
    assert (ratio.verdict, ratio.reason) == ("undecided", "n too small: 5 pairs, 6 are needed for a 95 % interval")
    assert decide(ratio, 2).verdict == "undecided"


def test_without_a_second_run_nothing_is_decided() -> None:
    machine = Machine()
    ratio = measure(machine, machine.contender("A", 1), machine.contender("B", 100), again=None).ratio("B", "A", "mpps")
    assert (ratio.verdict, ratio.reason) == ("undecided", "no A/A interval was measured")
    assert decide(ratio, 2).verdict == "undecided"


# -- claims --


def seen(middle: float, low: float, high: float, aa: float = 1.05) -> Ratio:
    return Ratio(middle, low, high, 12, "apart", 1 / aa, aa)


@pytest.mark.parametrize(
    ("measured", "target", "at_least", "judged", "verdict"),
    [
        (seen(2.0, 1.8, 2.2), 1.5, True, "median", "met"),
        (seen(2.0, 1.8, 2.2), 1.9, True, "median", "undecided"),  # wide interval, margin of 5 %
        (seen(2.0, 1.4, 2.2), 1.5, True, "median", "undecided"),  # the interval contains the target
        (seen(2.0, 1.8, 2.2), 3.0, True, "median", "missed"),
        (seen(2.0, 1.8, 2.2), 3.0, False, "median", "met"),
        (seen(2.0, 1.8, 2.2), 1.5, False, "median", "missed"),
        (seen(1.03, 1.02, 1.04), 1.0, True, "median", "undecided"),  # narrower than A/A, however sure of itself
        (seen(1.03, 1.02, 1.04, aa=1.001), 1.0, True, "median", "met"),
        (seen(2.0, 1.4, 2.2), 1.5, True, "bound", "missed"),
        (seen(2.0, 1.6, 2.2), 1.5, True, "bound", "met"),
        (seen(1.52, 1.51, 1.53), 1.5, True, "bound", "undecided"),
        (seen(1.0, 0.9, 1.4), 1.5, False, "bound", "met"),
        (seen(1.0, 0.9, 1.6), 1.5, False, "bound", "missed"),
    ],
)
def test_claims(measured: Ratio, target: float, at_least: bool, judged: Any, verdict: str) -> None:
    decision = decide(measured, target, at_least, judged=judged)
    assert decision.verdict == verdict
    assert decision.reason


@pytest.mark.parametrize(
    ("value", "relation", "verdict"), [(0, "=", "met"), (1, "=", "missed"), (None, "=", "no figure"), (0, "≤", "met")]
)
def test_counts_have_no_noise(value: float | None, relation: Any, verdict: str) -> None:
    assert Claim.counted("Dom0 handles no frame", value, relation, 0).verdict == verdict


@given(st.floats(0.5, 2), st.floats(1, 1.5), st.floats(1, 1.5), st.floats(0.5, 2), st.floats(1.0, 1.2))
def test_no_claim_and_its_opposite_are_both_met(middle: float, down: float, up: float, target: float, aa: float) -> None:
    measured = seen(middle, middle / down, middle * up, aa)
    verdicts = [decide(measured, target, True).verdict, decide(measured, target, False).verdict]
    assert verdicts.count("met") <= 1
    assert verdicts.count("missed") <= 1


# -- JSON --


def test_everything_survives_json() -> None:
    labels = ["apart", "together", "mixed"]
    machine = Machine(0.1, label=lambda now: labels[now // 9 % 3])
    b = machine.contender("B", 2, broken=lambda now: now == 4)
    samples = measure(machine, machine.contender("A", 1), b, rounds=18)
    back = Samples.of(json.loads(json.dumps(samples.plain())))
    assert back.plain() == samples.plain()
    assert back.errors("B") == samples.errors("B") != []
    for metric in samples.metrics("B"):
        assert back.ratios("B", "A", metric) == samples.ratios("B", "A", metric) != []
        assert back.figures("B", metric) == samples.figures("B", metric)
    ratio, figure = samples.ratio("B", "A", "mpps"), samples.figure("B", "mpps")
    assert Ratio.of(json.loads(json.dumps(ratio.plain()))) == ratio
    assert Figure.of(json.loads(json.dumps(figure.plain()))) == figure
    claim = Claim.about("B ÷ A", ratio, 1.5)
    assert Claim.of(json.loads(json.dumps(claim.plain()))) == claim


def test_only_the_last_details_are_kept() -> None:
    machine = Machine()
    samples = measure(machine, machine.contender("A", 1), again=None)
    assert samples.details("A") == [{"at": 8}, {"at": 9}, {"at": 10}, {"at": 11}]
    taken = [Taken(0, "A", "apart", Slice({"mpps": math.inf})), Taken(1, "A", "apart", Slice({"mpps": math.nan}))]
    assert Samples(taken).figure("A", "mpps").median is None
