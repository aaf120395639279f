"""The bench's row about a TAP's system calls: each way and burst gives a figure, and what can't be had is said."""

import pytest

from bench.benchmarks import tapcalls
from bench.method.options import Options
from bench.method.progress import Silent
from bench.report.results import BenchmarkResult
from tests.support.labs import run


def measured() -> BenchmarkResult:
    result = BenchmarkResult(tapcalls.TITLE, tapcalls.ABOUT)
    run(tapcalls.run(result, Options(frames=(64,), repeat=2, quick=True, slice_s=0.02), Silent()))
    return result


@pytest.mark.long
@pytest.mark.needs("taps")
def test_each_way_and_burst_is_timed_both_ways() -> None:
    result = measured()
    if result.notes and result.notes[0].startswith("one call for many is not to be had"):
        assert result.records == []
        return
    places = {f"{what} × {burst}" for what in ("read", "write") for burst in tapcalls.BURSTS}
    assert {(row["direction"], row["floor"]) for row in result.records} == {
        (place, name) for place in places for name in (tapcalls.SINGLE, tapcalls.BATCH)
    }
    assert all(row["errors"] == [] for row in result.records), result.records
    assert all(row[tapcalls.METRIC]["median"] > 0 for row in result.records if row["n"])
    assert len(result.claims) == len(places)


def test_without_taps_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tapcalls, "can_create", lambda: "cannot open /dev/net/tun")
    assert measured().notes == ["left out: cannot open /dev/net/tun"]
