"""Two runs compared: what changed is told, what did not is not, and nothing that the runs cannot bear."""

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.method.samples import Samples, Slice, Taken, again_name
from bench.report.compare import CANT_TELL, compare, only_in_one, other_machine
from bench.report.results import VERSION, BenchmarkResult, metric

SEED = 4


def run(rates: dict[str, float], seed: int, noise: float = 0.05, rounds: int = 16, regime: str = "apart") -> Any:
    """Results of a simulated run."""
    draw = random.Random(seed)
    taken = []
    for number in range(rounds):
        for name in (*rates, again_name("bypass")):
            value = rates[name.removesuffix(" again")] * math.exp(draw.gauss(0, noise))
            taken.append(Taken(number, name, regime, Slice({"mpps": value, "p50_us": 9 / value, "odd": value})))
    samples = Samples(taken, "bypass", 0.4)
    found = BenchmarkResult("Throughput", "")
    for name in rates:
        found.take(samples, name, {"path": name}, {"direction": "guest→wire", "frame": 64, "cores": "all"}, checksummed=1.0)
    machine = {"cpu": "x", "cores": 2, "kernel": "6.1", "python": "3.11"}
    options = {"slice_s": 0.4}
    benchmarks = {"throughput": json.loads(json.dumps(found.plain()))}
    return {"version": VERSION, "machine": machine, "options": options, "benchmarks": benchmarks}


def verdicts(a: Any, b: Any) -> dict[tuple[str, str], str]:
    return {(row.contender, row.metric): row.verdict for row in compare(a, b)}


def test_a_change_is_told_with_its_direction() -> None:
    found = verdicts(run({"bypass": 4, "split": 2}, 1), run({"bypass": 4, "split": 3}, 2))
    assert found["split", "mpps"] == "faster"
    assert found["split", "p50_us"] == "faster"  # less is better
    assert found["split", "odd"] == "higher"  # nobody said which way is better
    assert found["bypass", "mpps"] == CANT_TELL
    back = verdicts(run({"bypass": 4, "split": 3}, 2), run({"bypass": 4, "split": 2}, 1))
    assert (back["split", "mpps"], back["split", "p50_us"], back["split", "odd"]) == ("slower", "slower", "lower")


def test_equal_runs_are_practically_never_told_apart() -> None:
    told = 0
    for seed in range(200):
        found = verdicts(run({"bypass": 4, "split": 2}, 2 * seed), run({"bypass": 4, "split": 2}, 2 * seed + 1))
        told += any(verdict != CANT_TELL for verdict in found.values())
    assert told <= 4


def test_a_change_within_the_aa_intervals_is_not_told() -> None:
    a, b = run({"bypass": 4}, 1, noise=0.001), run({"bypass": 4.2}, 2, noise=0.001)
    assert verdicts(a, b)["bypass", "mpps"] == "faster"
    for figure in (record["mpps"] for record in b["benchmarks"]["throughput"]["records"]):
        figure["aa"] = [1 / 1.06, 1.06]
    assert verdicts(a, b)["bypass", "mpps"] == CANT_TELL


def test_a_run_compared_with_itself_has_not_changed() -> None:
    a = run({"bypass": 4, "split": 2}, SEED)
    rows = compare(a, a)
    assert len(rows) == 6
    for row in rows:
        assert row.ratio == 1
        assert row.low is not None
        assert row.high is not None
        assert row.low * row.high == pytest.approx(1)
        assert row.verdict == CANT_TELL


def test_regimes_are_never_mixed() -> None:
    a, b = run({"bypass": 4}, 1), run({"bypass": 40}, 2, regime="together")
    assert compare(a, b) == []
    assert [line.split(":")[0] for line in only_in_one(a, b)] == ["only in A", "only in B"]


def test_without_intervals_nothing_is_told() -> None:
    rows = compare(run({"bypass": 4}, 1, rounds=5), run({"bypass": 40}, 2))
    assert {row.verdict for row in rows} == {CANT_TELL}
    assert rows[0].reason == "A has no 95 % interval"
    b = run({"bypass": 40}, 2)
    b["benchmarks"]["throughput"]["records"][0]["mpps"]["aa"] = None
    assert next(row for row in compare(run({"bypass": 4}, 1), b) if row.metric == "mpps").reason == "B has no A/A interval"


def test_another_machine_is_named() -> None:
    a = run({"bypass": 4}, 1)
    b = copy.deepcopy(a)
    assert other_machine(a, b) == []
    b["machine"] |= {"kernel": "6.2", "load": [3, 2, 1]}
    b["options"]["slice_s"] = 0.2
    assert other_machine(a, b) == ["kernel: 6.1 / 6.2", "slices of 0.4 / 0.2 s"]


def test_the_command_prints_a_row_per_figure_and_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b"
    b.mkdir()
    a.write_text(json.dumps(run({"bypass": 4, "split": 2}, 1)))
    (b / "results.json").write_text(json.dumps(run({"bypass": 4, "split": 3, "native": 5}, 2)))
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(a), str(b)])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "faster" in out
    assert "only in B: throughput · native" in out
    assert "3 can't be told, 2 faster, 1 higher" in out


def test_the_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path / "none.json"), str(tmp_path)])
    assert ended.value.code == 2
    assert "none.json" in capsys.readouterr().err


def test_the_metrics_that_are_measured_know_their_better_side() -> None:
    assert metric("mpps").better == metric("mframes_per_cpu_s").better == 1
    assert metric("cpu_ns_per_frame").better == metric("p99_us").better == -1
