"""The benchmarks as a user runs them, briefly: what their output is made of and what they refuse. Never how fast anything was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks.openloop import keeps_up
from bench.benchmarks.price import crossover
from bench.benchmarks.scale import LONG, RING, jain
from bench.benchmarks.throughput import ENTRIES
from bench.floor.layout import MAX_ENTRIES
from bench.method.contenders import run_name
from bench.method.samples import STOLEN, Figure, Samples, Slice, Taken
from tests.support import captures
from tests.support.labs import ROOT, left_behind
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("warm")

STEADY = {"apart", "together", "far", "one"}
SCALES = [f"scale{number}-{ring}" for number, ring in ((1, RING), (4, RING), (24, RING), (1, LONG), (24, LONG))]
"""What `scale`'s topologies are for."""


def bench(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=patient(110))
        except BaseException:
            process.terminate()  # it takes its topologies down
            raise
    for purpose in ("throughput", "latency", "openloop", "cost", "price", "start", "idle", *SCALES):
        assert left_behind(run_name(purpose, process.pid)) == []
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def measured(tmp_path: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Run one benchmark briefly; its part of the results."""
    out = tmp_path / "results.json"
    done = bench(name, "--quick", "--repeat", "2", *arguments, "--json", out, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert results == json.loads((tmp_path / "report" / "results.json").read_text())
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    found: dict[str, Any] = results["benchmarks"][name]
    for record in found["records"]:
        assert record["errors"] == [] or record["regime"] is None, record  # a machine that was never steady has no figures
        assert record["regime"] is None or record["regime"].removesuffix(STOLEN) in STEADY or record.get("mode") == "zero loss"
    return found


def who(record: dict[str, Any]) -> str:
    return str(record.get("path") or record.get("peer") or record.get("floor"))


@pytest.mark.long
def test_throughput(tmp_path: Path) -> None:
    found = measured(tmp_path, "throughput", "--paths", "native,bypass,split,trapped", "--frames", "64,1500", "--cores", "both")
    seen = {(who(r), r["frame"], r["cores"]) for r in found["records"]}
    contenders = ("native", "bypass", "split", "trapped", "floor")
    assert seen == {(name, frame, cores) for name in contenders for frame in (64, 1500) for cores in ("all", "1")}
    for record in found["records"]:
        if record["regime"] is None:
            continue
        assert record["mpps"]["median"] > 0
        assert record["checksummed"] == 1.0
        assert record["mpps"]["low"] is None, "two slices have no 95 % interval"
        if "path" in record:
            cost = record["per_frame"]
            assert cost["dom0_frames"] == pytest.approx(int(record["path"] == "split"), abs=0.01)
            assert cost["vmm_frames"] == pytest.approx(int(record["path"] == "trapped"), abs=0.01)
            assert cost["copies"] == pytest.approx(2 if record["path"] in ("split", "trapped") else 1, abs=0.01)
    pairs = {(r["of"], r["to"]) for r in found["ratios"]}
    assert pairs >= {("bypass", other) for other in ("native", "split", "trapped", "floor")} | {("split", "floor")}
    assert all(r["verdict"].startswith("undecided") for r in found["ratios"]), "nothing can be decided with two rounds"
    assert {claim["verdict"] for claim in found["claims"] if "÷" in claim["text"]} <= {"undecided", "no figure"}
    assert any("notifications" in claim["text"] for claim in found["claims"])


@pytest.mark.long
def test_throughput_of_a_mix_of_sizes(tmp_path: Path) -> None:
    file = captures.write(tmp_path / "office.pcapng", captures.traffic(count=50))
    found = measured(tmp_path, "throughput", "--paths", "bypass,split", "--traffic", str(file))
    assert {(who(r), r["traffic"]) for r in found["records"]} == {("bypass", "office.pcapng"), ("split", "office.pcapng")}
    sizes = [min(frame.length, 1514) for frame in captures.traffic(count=50)]
    assert {r["frame"] for r in found["records"]} == {round(sum(sizes) / 50)}
    for record in found["records"]:
        assert record["regime"] is None or record["checksummed"] == 1.0


@pytest.mark.long
@pytest.mark.needs("dpdk", "two-cpus")
def test_throughput_beside_a_peer_of_equal_work(tmp_path: Path) -> None:
    found = measured(tmp_path, "throughput", "--paths", "bypass", "--frames", "512", "--peers", "vhost")
    records = {who(record): record for record in found["records"]}
    assert set(records) == {"bypass", "floor", "vhost", "bypass (header)"}
    header = records["bypass (header)"]
    assert header["payload"] == "header"
    assert header.get("checksummed", 0.0) == 0.0
    assert ("bypass (header)", "vhost") in {(r["of"], r["to"]) for r in found["ratios"]}


@pytest.mark.long
@pytest.mark.needs("ucx", "two-cpus")
def test_latency(tmp_path: Path) -> None:
    found = measured(tmp_path, "latency", "--paths", "bypass,split", "--frames", "64")
    polled = next(record for record in found["records"] if who(record) == "ucx")
    assert (polled["direction"], polled["mode"], polled["errors"]) == ("guest→wire", "polling", [])
    assert "one hop" in polled["work"]
    assert ("bypass", "ucx") in {(r["of"], r["to"]) for r in found["ratios"]}
    seen = {(who(r), r["direction"], r["mode"], r["cores"]) for r in found["records"]}
    assert {(path, way, "blocking", "1") for path in ("bypass", "split") for way in ("guest→wire", "guest→guest")} <= seen
    assert ("eventfd ping-pong of 2", "guest→wire", "blocking", "all") in seen
    for record in found["records"]:
        if record["regime"] is not None and who(record) != "ucx":  # which tells its median alone
            assert record["p50_us"]["median"] <= record["p99_us"]["median"] <= record["p999_us"]["median"]
    for series in found["series"]:
        for line in series["lines"]:
            points = [y for y in line["y"] if y is not None]
            assert points == sorted(points)
            assert points[-1] == pytest.approx(1.0)


@pytest.mark.long
def test_open_loop(tmp_path: Path) -> None:
    found = measured(tmp_path, "openloop", "--paths", "bypass,split", "--frames", "64")
    rates = {r["path"]: r["mpps"]["median"] for r in found["records"] if r.get("mode") == "zero loss"}
    assert set(rates) == {"bypass", "split"}
    assert all(0.05 <= rate < 64 for rate in rates.values())
    under_load = [r for r in found["records"] if "load" in r and r["regime"] is not None]
    assert {r["load"] for r in under_load} <= {0.1, 1.0, 4.0}
    for record in [r for r in under_load if "p50_us" in r]:
        assert 0 < record["p50_us"]["median"] <= record["p99_us"]["median"] <= record["p999_us"]["median"]
    assert {series["id"] for series in found["series"]} == {"load-p50_us", "load-p99_us", "load-p999_us"}


def test_a_path_that_falls_behind_now_and_then_keeps_its_late_slices() -> None:
    """Choosing slices by how they went would report the latency of a path that keeps up for one that does not."""
    rates, late = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0], [1.0, 1.0, 900.0, 1.0, 1.0, 1.0]
    slices = [Slice({"mpps": rate, "p99_us": us}) for rate, us in zip(rates, late, strict=True)]
    samples = Samples([Taken(number, "path", "apart", one) for number, one in enumerate(slices)])
    assert keeps_up(samples, "path", 1.0)
    high = samples.figure("path", "p99_us").high
    assert high is not None
    assert high > 10.0
    assert not keeps_up(samples, "path", 1.1)
    assert not keeps_up(samples, "nobody", 1.0)


@pytest.mark.long
def test_cost(tmp_path: Path) -> None:
    found = measured(tmp_path, "cost", "--paths", "native,bypass,split", "--frames", "1500")
    variants = {"native", "bypass", "split", "bypass + copy", "split − copy", "bypass, no hold-off", "split, no hold-off"}
    variants.add("split, persistent grants")
    assert {r["path"] for r in found["records"]} == variants
    per_frame = {(r["path"], r.get("payload")): r["per_frame"] for r in found["records"] if r.get("per_frame")}
    assert per_frame["split", None]["dom0_frames"] == pytest.approx(1, abs=0.01)
    assert per_frame["split − copy", "header"]["dom0_frames"] == pytest.approx(1, abs=0.01)
    assert per_frame["bypass, no hold-off", None]["notifications"] > per_frame["bypass", None]["notifications"]
    assert per_frame["split, no hold-off", None]["notifications"] > per_frame["split", None]["notifications"]
    kept = per_frame["split, persistent grants", None]
    assert kept["hypercalls"] < 0.001 < per_frame["split", None]["hypercalls"]
    assert kept["copies"] == pytest.approx(per_frame["split", None]["copies"], abs=0.01)
    assert ("split, persistent grants", "split") in {(r["of"], r["to"]) for r in found["ratios"]}
    line = {r["path"]: r for r in found["records"] if r.get("mode") == "10 Gbit/s wire" and r["regime"] is not None}
    assert all(record["gbps"]["median"] < 10.0 for record in line.values()), "no faster than the wire"
    assert {series["id"] for series in found["series"]} == {"processes-1500", "registration"}
    assert [note for note in found["notes"] if "a registration pays" in note]


@pytest.mark.long
def test_scale(tmp_path: Path) -> None:
    found = measured(tmp_path, "scale", "--paths", "bypass,split", "--frames", "64")
    sets = {(path, number, RING) for path in ("bypass", "split") for number in (1, 4, 24)}
    assert {(r["path"], r["guests"], r["ring"]) for r in found["records"]} == sets | {("bypass", 1, LONG), ("bypass", 24, LONG)}
    for record in found["records"]:
        if record["regime"] is not None:
            assert 0 < record["fairness"]["median"] <= 1
    assert len(found["series"]) == 3
    assert [claim["target"] for claim in found["claims"]] == ["≥ 0.8", "≥ 0.95", "≥ 0.6", "≥ 0.95"]


@pytest.mark.long
def test_price(tmp_path: Path) -> None:
    found = measured(tmp_path, "price", "--paths", "bypass,split", "--frames", "64")
    swept = {(path, price) for path in ("bypass", "split") for price in (0, 1000, 8000)}
    assert {(who(r), r["price"]) for r in found["records"]} == swept
    steady = [r for r in found["records"] if r["regime"] is not None]
    for record in steady:
        assert ("modelled" in record) == (record["price"] > 0), "what has a price says so"
    cost = {(who(r), r["price"]): r["cpu_ns_per_frame"]["median"] for r in steady}
    if {("split", 0), ("split", 8000)} <= cost.keys():
        assert cost["split", 8000] > cost["split", 0] + 8000 * 0.01, "it needs more than one operation in a hundred frames"
    assert len(found["notes"]) >= 1
    assert [series["id"] for series in found["series"]] == ["price-64"]


def at(*costs: float, width: float = 0.1) -> list[Figure]:
    return [Figure(cost, cost - width, cost + width, 6, "one") for cost in costs]


def test_crossovers_are_found_where_intervals_are_apart() -> None:
    flat = at(2.0, 2.0)
    assert crossover("a", "b", [0, 100], at(1.0, 3.0), flat).startswith("a is cheaper than b up to a price of about 50.0 ns")
    assert crossover("a", "b", [0, 100], at(3.0, 1.0), flat).startswith("b is cheaper than a up to a price of about 50.0 ns")
    assert crossover("a", "b", [0, 100], at(1.0, 1.5), flat) == "a is cheaper than b from 0 to 100 ns (modelled)"
    assert crossover("a", "b", [0, 100], at(3.0, 2.05), flat) == "b is cheaper than a at 0 ns (modelled)"
    assert crossover("a", "b", [0, 100], at(1.95, 2.05), flat) == "a and b cannot be told apart at any price"
    none = Figure(1.0, None, None, 2, "one")
    assert crossover("a", "b", [0, 100], [none, none], flat) == "a and b cannot be told apart at any price"


@pytest.mark.long
def test_startup(tmp_path: Path) -> None:
    found = measured(tmp_path, "startup")
    records = {r["path"]: r for r in found["records"]}
    assert set(records) == {"four guests", "idle"}
    assert len(found["claims"]) == 3
    start = records["four guests"]
    if start["regime"] is not None:
        assert 0 < start["after_warm_s"]["median"] < start["ready_s"]["median"]


@pytest.mark.long
def test_limit(tmp_path: Path) -> None:
    found = measured(tmp_path, "limit", "--frames", "64")
    assert {(r["frame"], r["cores"]) for r in found["records"] if "frame" in r} == {(64, "all"), (64, "1")}
    assert {who(r) for r in found["records"]} >= {f"eventfd ping-pong of {n}" for n in (2, 3, 4)}
    assert len(found["series"][0]["x"]["values"]) == len(found["series"][0]["lines"][0]["y"]) > 5


def test_the_floor_can_be_as_deep_as_the_sweep_goes() -> None:
    assert max(ENTRIES) <= MAX_ENTRIES


def test_fairness() -> None:
    assert jain([1, 1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25


def test_rings_have_as_many_entries_on_split_as_on_bypass() -> None:
    """So that nothing but the number of guests varies: a page of Xen's transmit requests (12 B each, behind a header of 64)."""
    assert 1 << ((4096 - 64) // 12).bit_length() - 1 == RING


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["throughputs"], "no benchmark"),
        (["throughput", "--paths", "bypass,fast"], "unknown path: 'fast'"),
        (["throughput", "--peers", "dpdk"], "unknown peer: 'dpdk'"),
        (["throughput", "--frames", "64,big"], "sizes in bytes"),
        (["throughput", "--traffic", "none.pcap"], "none.pcap: No such file or directory"),
        (["throughput", "--traffic", "imix", "--frames", "64"], "takes the place of --frames"),
        (["latency", "--traffic", "imix"], "--traffic is for `throughput`"),
        (["throughput", "--frames", "65537"], "65537"),
        (["throughput", "--seconds", "nan"], "seconds"),
        (["throughput", "--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], "/nowhere/a.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(tmp_path: Path, arguments: list[str], said: str) -> None:
    out = [] if arguments[0] == "compare" else ["--out", str(tmp_path)]
    done = bench(*arguments, *out)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
