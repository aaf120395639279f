"""Calibration: the fit finds what made the ratios, within the ranges; what was fitted is not said to be reproduced; a live run."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.calibrate.fit import MACHINE, MACHINE_RANGE, Measured, Parameter, Side, fit, parameters, sensitivity
from bench.calibrate.page import claim, sentences
from bench.calibrate.targets import COST, METRICS, RATE, TARGETS, TRIP
from bench.method.samples import Ratio
from bench.method.verdicts import MET, MISSED, UNDECIDED, near
from hyp.model.operations import OPERATIONS
from hyp.model.profile import Cost, Free, Profile, names
from tests.support.labs import ROOT
from tests.support.patience import patient

SEED = 20
FREE = {"event_send_ns": Free(100, 10_000, "x"), "domain_switch_ns": Free(100, 10_000, "x")}
FIXED = Cost(500, "text", "x", "x", "x", "x", "x", "x")
PROFILE = Profile("test", "x", {"grant_copy_ns": FIXED}, FREE, dict.fromkeys(set(OPERATIONS) - {"grant_copy_ns", *FREE}, "x"))
THERE = {**PROFILE.prices, "event_send_ns": 400.0, "domain_switch_ns": 3000.0}


def side(draw: random.Random, events: float, switches: float, copies: float = 0.0) -> Side:
    made = {"event_send_ns": events, "domain_switch_ns": switches, "grant_copy_ns": copies}
    return Side({"dom0": draw.uniform(100, 200), "anna": draw.uniform(10, 50)}, {"dom0": made})


def rows(machine: float, count: int = 6) -> list[Measured]:
    """Ratios as a machine would show them whose costs are THERE; the last one is held out."""
    draw, found = random.Random(SEED), list[Measured]()
    for k in range(count):
        of, to = side(draw, 0.1 * k, 0.3), side(draw, draw.random(), draw.random(), draw.random())
        metric = (RATE, COST)[k % 2]
        plain = Measured(of, to, metric, None, False)
        found.append(Measured(of, to, metric, plain.ratio(THERE, machine), k < count - 1))
    return found


def test_what_a_side_costs_is_linear_in_the_prices() -> None:
    one = Side({"dom0": 100.0, "anna": 40.0}, {"dom0": {"grant_copy_ns": 2.0, "grant_copy_ps_per_byte": 64.0}, "anna": {}})
    prices = {**dict.fromkeys(OPERATIONS, 0.0), "grant_copy_ns": 50.0, "grant_copy_ps_per_byte": 500.0}
    assert one.figure(COST, prices, 3.0) == pytest.approx(3 * 140 + 2 * 50 + 64 * 0.5)
    assert one.figure(RATE, prices, 3.0) == pytest.approx(1 / (3 * 100 + 2 * 50 + 64 * 0.5))
    assert one.figure(COST, dict.fromkeys(prices, 0.0), 1.0) == pytest.approx(140)


@pytest.mark.parametrize("machine", [1.5, 4.0, 9.0])
def test_the_fit_finds_what_made_the_ratios(machine: float) -> None:
    measured = rows(machine)
    found = fit(measured, PROFILE, parameters(measured, PROFILE))
    assert found.machine == pytest.approx(machine, rel=0.1)
    for name in FREE:
        assert found.values[name] == pytest.approx(THERE[name], rel=0.1)
    assert max(abs(residual or 0.0) for residual in found.residuals) < 0.02, "the one that was held out too"
    assert found.spun(PROFILE)["grant_copy_ns"] == round(500 / found.machine)


def test_no_parameter_leaves_its_range() -> None:
    out_of_reach = [Measured(row.of, row.to, row.metric, (row.published or 1) * 1000, row.fitted) for row in rows(4.0)]
    free = parameters(out_of_reach, PROFILE)
    found = fit(out_of_reach, PROFILE, free)
    assert all(one.low * 0.999 <= found.values[one.name] <= one.high * 1.001 for one in free)
    assert min(residual for residual in found.residuals if residual is not None) < -1


def test_with_nothing_to_fit_everything_is_in_the_middle() -> None:
    measured = [Measured(row.of, row.to, row.metric, row.published, False) for row in rows(4.0)]
    found = fit(measured, PROFILE, parameters(measured, PROFILE))
    assert found.values["event_send_ns"] == pytest.approx(1000)
    assert found.machine == pytest.approx(math.sqrt(math.prod(MACHINE_RANGE)))


def test_parameters_are_what_is_free_and_made() -> None:
    quiet = [Measured(row.of, Side({"dom0": 1.0}, {}), row.metric, None, False) for row in rows(4.0)[:1]]
    silent = Measured(Side({"dom0": 1.0}, {"dom0": {"grant_copy_ns": 1.0}}), Side({"dom0": 1.0}, {}), COST, None, False)
    assert [one.name for one in parameters(quiet, PROFILE)] == [MACHINE, *FREE]
    assert [one.name for one in parameters([silent], PROFILE)] == [MACHINE]
    assert Parameter("x", 10, 1000).value(-1) == 10
    assert Parameter("x", 10, 1000).value(1) == pytest.approx(1000)


def test_sensitivity_keeps_fitted_rows_and_moves_held_out_ones() -> None:
    (first, *_, last) = rows(4.0)
    measured = [first, Measured(last.of, last.to, last.metric, last.published, False)]
    free = parameters(measured, PROFILE)
    moved = sensitivity(measured, PROFILE, free)
    ratios = fit(measured, PROFILE, free).ratios
    assert set(moved) == {one.name for one in free}
    assert max(ends[1][1] / ends[1][0] for ends in moved.values()) > 1.05
    for ends in moved.values():
        for (low, high), ratio in zip(ends, ratios, strict=True):
            assert low * 0.999 <= ratio <= high * 1.001


def ratio(median: float, spread: float = 0.02) -> Ratio:
    return Ratio(median, median * (1 - spread), median * (1 + spread), 24, "apart", 0.99, 1.01)


@pytest.mark.parametrize(("measured", "verdict"), [
    (ratio(3.6), MET), (ratio(3.8), MET), (ratio(2.0), MISSED), (ratio(7.0), MISSED), (ratio(3.6, 0.5), UNDECIDED),
])  # fmt: skip
def test_near_is_so_on_both_sides(measured: Ratio, verdict: str) -> None:
    assert near(measured, 3.64).verdict == verdict


def test_only_what_was_held_out_is_claimed() -> None:
    target = TARGETS["staging-grants"]
    fitted, held = target.rows
    assert (fitted.fitted, held.fitted) == (True, False)
    assert claim(held, ratio(6.7)).verdict == MET
    assert claim(held, ratio(2.2)).verdict == MISSED
    assert "modelled" in claim(held, ratio(2.2)).text
    one, other = rows(4.0)[:2]
    measured = [
        Measured(one.of, one.to, RATE, fitted.published, True), Measured(other.of, other.to, RATE, held.published, False),
    ]  # fmt: skip
    free = parameters(measured, PROFILE)
    said = sentences(
        target, measured, fit(measured, PROFILE, free), sensitivity(measured, PROFILE, free), [[ratio(1), ratio(2)]] * 2
    )
    assert "comes out" not in said[2], "a ratio used to fit is not counted as reproduced"
    assert "does not come out" in said[3]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_where_its_ratios_are_from(name: str) -> None:
    target = TARGETS[name]
    assert target.profile in names()
    assert "read" in target.source
    for row in target.rows:
        assert row.where
        assert row.metric in METRICS
        assert not (row.fitted and row.published is None)
        assert row.setting.cores == "1"
        assert len({other.metric == TRIP for other in target.rows if other.setting == row.setting}) == 1
        assert row.least is None or (row.published is None and not row.fitted), "a trend is no ratio to fit"
    assert not all(row.fitted for row in target.rows)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "said"), [
    (["--target", "gone"], "unknown target: 'gone' (known: staging-grants"),
    (["--target", "cdna", "--profile", "xen-9"], "neither a profile"),
    (["--target", "cdna", "--rounds", "3"], "--rounds 3: 6 to 1000"),
])  # fmt: skip
def test_a_command_line_that_is_wrong_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", *arguments, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_calibration_from_nothing_to_its_page(warm: None, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench", "calibrate", "--target", "staging-grants", "--rounds", "6", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=patient(120))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["calibrate"]
    priced = [record for record in found["records"] if record["price"] == "modelled"]
    assert {record["path"] for record in priced} == {"split", "split, persistent grants"}
    assert all(record["modelled"]["grant_copy_ns"] > 0 for record in priced)
    assert all("modelled" not in record for record in found["records"] if record["price"] == "0")
    (held_out,) = found["claims"]
    assert held_out["text"].startswith("held out: UDP 64 B, guest receives")
    free, spun = (
        next(row["median"] for row in found["ratios"] if row["price"] == price and row["direction"] == "guest→wire")
        for price in ("0", "modelled")
    )
    assert spun > free, "a grant copy that costs something makes pages that stay mapped worth more"
    assert {series["id"] for series in found["series"]} == {"ratios", "sensitivity"}
    assert "Sensitivity" in (tmp_path / "report.html").read_text()
