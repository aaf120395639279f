"""The bench's row with the front end in C: measured beside the lab's own, or left out with what is missing."""

import asyncio
from pathlib import Path

import pytest

from bench.benchmarks import netfront
from bench.method.options import Options
from bench.peers import c_netfront
from bench.peers.base import PeerError
from bench.report.results import BenchmarkResult
from tests.support.labs import run


class Steps:
    """Nobody looks."""

    def step(self, what: str, done: float) -> None:
        pass


def measured(options: Options) -> BenchmarkResult:
    result = BenchmarkResult(netfront.TITLE, netfront.ABOUT)
    run(netfront.run(result, options, Steps()))
    return result


@pytest.mark.long
@pytest.mark.usefixtures("warm")
@pytest.mark.needs("gcc", "xen-headers")
def test_both_front_ends_are_measured_side_by_side() -> None:
    result = measured(Options(paths=("split",), frames=(64, 65536), repeat=2, quick=True, slice_s=0.05))
    assert all(": no figure, no slice was in a steady regime" in note for note in result.notes), result.notes  # a busy machine
    places = {(row["direction"], row["frame"], row["payload"]) for row in result.records}
    assert places == {
        (way, frame, payload)
        for way, frames in (("guest→wire", (64, 65536)), ("wire→guest", (64,)))
        for frame in frames
        for payload in ("full", "header")
    }
    for place in places:
        rows = [row for row in result.records if (row["direction"], row["frame"], row["payload"]) == place]
        assert {row.get("path") or row.get("peer") for row in rows} == {"split", "c_netfront"}
        assert all(row["errors"] == [] for row in rows), rows
    assert {(row["of"], row["to"]) for row in result.ratios} == {("c_netfront", "split")}
    assert len(result.claims) == 3


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measured(Options()).notes == ["c_netfront: left out: the command gcc is not here: apt install gcc libc6-dev"]
    for name in ("gcc", "make"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'it is broken' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(c_netfront, "HEADER", tmp_path / "none")
    assert measured(Options()).notes == ["c_netfront: left out: Xen's headers are not here: apt install libxen-dev"]
    monkeypatch.setattr(c_netfront, "HEADER", tmp_path / "make")
    assert measured(Options()).notes == [f"c_netfront: left out: {c_netfront.EXAMPLE}: it is broken"]


def test_a_report_that_does_not_come_is_an_error() -> None:
    import socket

    from dom0.xenstore.server import Xenstored
    from hyp.xenstore.client import XenstoreClient

    async def main() -> None:
        server, (near, far) = Xenstored(), socket.socketpair()
        server.expect(0, far)
        jobs = c_netfront.Jobs(await XenstoreClient.open(near))
        with pytest.raises(PeerError, match=r"has not reported job 1 in 0\.05 s"):
            await jobs.run(3, "report", 0.05)
        await jobs.close()
        server.close()

    asyncio.run(main())
