"""What the benchmarks of moves and of downloads over deaths report, in short runs of themselves."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bench.benchmarks import downloads, moves
from bench.chaos import downloading
from bench.method.options import Options
from bench.method.progress import Silent
from bench.report.results import BenchmarkResult
from tests.support.labs import run

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]


def measured(module: Any, **options: Any) -> BenchmarkResult:
    result = BenchmarkResult(module.TITLE, module.ABOUT)
    run(module.run(result, Options(quick=True, **options), Silent()))
    return result


@pytest.mark.long
@pytest.mark.needs("iperf3")
def test_moves_under_streams_and_under_tcp() -> None:
    result = measured(moves, repeat=4)
    made = Counter[str]()
    for row in result.records:
        made[row["under"]] += len(row["moves"])
    assert list(made.values()) == [4, 4, 4], made
    for row in result.records:
        assert row["errors"] == []
        assert row["by_split"] > 0 < row["by_bypass"], row
        assert row["sent"] == row["by_split"] + row["by_bypass"]
    amiss = [claim for claim in result.claims if claim.verdict != "met" and "pause" not in claim.text]
    assert not amiss, [row["drops"] for row in result.records]
    assert sum("pause" in claim.text for claim in result.claims) == 3


@pytest.mark.long
@pytest.mark.needs("curl")
def test_downloads_over_deaths() -> None:
    result = measured(downloads, repeat=2, paths=("split", "bypass"))
    assert [row["path"] for row in result.records] == ["split", "bypass"]
    for row in result.records:
        assert row["errors"] == [], row
        assert row["killed"] == ["dom0", "nic"]
        assert row["sha256"] == row["sent_sha256"]
        assert row["bytes"] == downloads.QUICK_MIB << 20
    assert [claim.verdict for claim in result.claims] == ["met", "met"]


@pytest.mark.needs("curl")
def test_a_download_that_is_not_whole_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., str] = downloading._write

    def cut(file: Any, octets: int) -> str:
        digest = write(file, octets)
        with file.open("r+b") as data:
            data.truncate(octets - 1)
        return digest

    monkeypatch.setattr(downloading, "_write", cut)
    monkeypatch.setattr(downloads, "QUICK_MIB", 8)
    result = measured(downloads, repeat=1, paths=("bypass",))
    assert [claim.verdict for claim in result.claims] == ["missed"]
    assert result.records[0]["errors"]
