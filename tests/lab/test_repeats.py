"""Workloads in turns, and what is made of their records; the wording of counts and paths."""

import io
from typing import Any, ClassVar

import pytest
from rich.console import Console

from lab.command.repeats import in_turns, summary
from lab.command.session import Progress
from lab.command.tables import against, comparison, not_compared, runs, spread, with_spread
from lab.figures import number, plural
from lab.workloads import Runner, describe

LOADS: list[dict[str, Any]] = [
    {"kind": kind, "from": sender, "to": to, "frame": frame}
    for kind, far, frame in (("stream", None, 64), ("rr", "wire", 64), ("rr", "wire", 1500))
    for sender, to in (("anna", far or "bert"), ("carl", far or "dora"))
]


def record(path: str, mpps: float, frames: int = 100, p50: float | None = None, **more: Any) -> dict[str, Any]:
    return {
        "path": path, "workload": "rr" if p50 else "stream", "from": "a", "to": "b", "frame": 64, "frames": frames, "sent": frames,
        "seconds": 1.0, "elapsed": 1.0, "mpps": mpps, "gbps": mpps * 0.5, "rtt_us": {"p50": p50, "p99": 2 * p50} if p50 else None,
        "cpu_us_per_frame": 1 / mpps, "per_frame": {"copies": mpps}, "lost": 0, "corrupt": 0, "duplicated": 0, "checksummed": 1.0,
        "drops": {}, "processes": {"dom0": {"cpu_ms": 1.5, "switches": 2}}, "errors": [], **more,
    }  # fmt: skip


def test_neighbours_take_turns() -> None:
    assert [index for index, _ in in_turns(LOADS, 3)] == [0, 1] * 3 + [2, 3] * 3 + [4, 5] * 3
    assert [load for _, load in in_turns(LOADS, 1)] == LOADS


def test_a_summary_has_medians_of_rates_and_sums_of_counts() -> None:
    records = [
        record("split", 4.0, 100, p50=9.0, drops={"no_buffer": 2}, errors=["x"]),
        record("split", 1.0, 300, p50=5.0, lost=3, drops={"no_buffer": 1, "down": 1}),
        record("split", 2.0, 100, p50=7.0),
    ]
    got = summary(records)
    assert (got["mpps"], got["gbps"], got["cpu_us_per_frame"]) == (2.0, 1.0, 0.5)
    assert got["rtt_us"] == {"p50": 7.0, "p99": 14.0}
    assert (got["frames"], got["sent"], got["lost"], got["seconds"]) == (500, 500, 3, 3.0)
    assert got["per_frame"]["copies"] == pytest.approx((4 * 100 + 1 * 300 + 2 * 100) / 500)
    assert got["drops"] == {"no_buffer": 3, "down": 1}
    assert got["errors"] == ["x"]
    assert got["processes"] == {"dom0": {"cpu_ms": 4.5, "switches": 6}}
    assert runs(got) == records
    assert runs(records[0]) == [records[0]]


def text(records: list[dict[str, Any]]) -> str:
    screen = Console(file=io.StringIO(), width=104)
    table = comparison(records)
    assert table is not None
    screen.print(table)
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_a_ratio_is_the_median_of_neighbours_ratios() -> None:
    """Not the ratio of medians, which is 1 here: the machine got slower by and by, for both."""
    split = summary([record("split", rate) for rate in (8.0, 4.0, 2.0)])
    bypass = summary([record("bypass", rate) for rate in (16.0, 4.0, 3.0)])
    (line,) = [line for line in text([split, bypass]).splitlines() if "Mframes/s" in line]
    assert "4.00 (2.00–8.00)" in line
    assert "4.00 (3.00–16.0)" in line
    assert line.split()[-3:] == ["1.50", "(1.00–2.00)", "unclear"]


def test_single_runs_are_compared_without_ranges() -> None:
    shown = text([record("split", 2.0, p50=74.3), record("bypass", 4.0, p50=7.43)])
    (line,) = [line for line in shown.splitlines() if "p50" in line]
    assert line.split()[-5:] == ["74.3", "7.43", "0.100", "one", "run"]


def test_polling_is_not_held_against_sleeping() -> None:
    """0.27 µs against 14.3 is no property of a path: the loops of one have a core each, those of the other share them."""
    split = summary([record("split", 2.0, p50=14.3, polls=False) for _ in range(3)])
    bypass = summary([record("bypass", 4.0, p50=0.27, polls=True) for _ in range(3)])
    shown = text([split, bypass])
    assert shown.count("bypass polls") == 2
    assert len(not_compared([split, bypass])) == 1
    assert "0.0189" not in shown
    assert spread([split, bypass]) == 1.0
    assert against([split, bypass]) == []


@pytest.mark.parametrize(
    ("split", "bypass", "verdict"),
    [((1.0, 1.0), (2.0, 3.0), "better"), ((2.0, 3.0), (1.0, 1.0), "worse"), ((1.0, 2.0), (2.0, 1.0), "unclear")],
)
def test_better_is_what_all_neighbours_say(split: tuple[float, ...], bypass: tuple[float, ...], verdict: str) -> None:
    records = [summary([record(path, rate) for rate in rates]) for path, rates in (("split", split), ("bypass", bypass))]
    assert text(records).count(verdict) == 2  # rate, and CPU per frame, of which less is better
    assert len(against(records)) == (0 if verdict == "better" else 2)


def test_counts_and_figures_are_written_alike() -> None:
    assert [plural(n, "frame") for n in (0, 1, 2, 5000)] == ["0 frames", "1 frame", "2 frames", "5,000 frames"]
    assert [number(value, 3) for value in (None, 0, 0.00005, 0.0123, 1234.5)] == ["–", "0", "<0.001", "0.012", "1,234.500"]
    assert with_spread([2.0]) == "2.00"
    load = {"kind": "stream", "from": "a", "to": "b", "frame": 64, "frames": 1, "seconds": None}
    assert describe(load) == "stream a → b, 64 B, 1 frame"
    assert describe({**load, "kind": "rr", "frames": 5000}) == "rr a → b, 64 B, 5,000 round trips"
    assert describe({**load, "frames": None, "seconds": 0.4}, "3 × ") == "stream a → b, 64 B, 3 × 0.4 s"


class _Lab:
    topology: ClassVar = {
        "guest": [{"name": "anna", "path": "split"}, {"name": "bert", "path": "split"}, {"name": "carl", "path": "bypass"}],
        "nic": {"wire": {"mac": "02:00:00:00:ff:01"}},
    }


@pytest.mark.parametrize(
    ("sender", "to", "path"),
    [
        ("anna", "bert", "split"), ("anna", "carl", "split→bypass"), ("carl", "anna", "bypass→split"),
        ("carl", "wire", "bypass"), ("wire", "anna", "split"),
    ],
)  # fmt: skip
def test_a_path_is_named_in_the_direction_of_the_frames(sender: str, to: str, path: str) -> None:
    lab: Any = _Lab()
    counters: Any = None
    assert Runner(lab, counters, {}).path({"from": sender, "to": to}) == path


def test_the_time_of_compiling_is_kept_apart() -> None:
    screen = Console(file=io.StringIO(), width=104)
    progress = Progress(screen, "demo")  # type: ignore[arg-type]
    progress.event("warm", {"seconds": 0.5})
    assert progress.compiled_s == 0.0
    progress.event("compiling", {"kernels": 2, "kept": True})
    for index, seconds in ((1, 2.0), (2, 0.25)):
        progress.event("progress", {"index": index, "total": 2, "kernel": f"k{index}", "seconds": seconds})
    progress.event("warm", {"seconds": 2.25})
    assert progress.compiled_s == 2.25
    printed = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(printed) == 2
    assert printed[1] == "  [1/2] k1  2.0 s"
