"""The bench's row with unmodified programs: each gives a figure, contenders are compared, and what is missing is said."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.benchmarks import programs
from bench.method.options import Options
from bench.method.progress import Silent
from bench.peers import PeerError
from bench.programs import ends, placement, relay_worker, running, suite
from bench.report.results import BenchmarkResult
from lab.accounting import Usage
from tests.support.labs import run
from tests.support.patience import patient


def measured(options: Options) -> BenchmarkResult:
    result = BenchmarkResult(programs.TITLE, programs.ABOUT)
    run(programs.run(result, options, Silent()))
    return result


async def on_veth(program: suite.Program) -> suite.Reading:
    """What a short run of a program says."""
    pair = ends.VethEnds()
    try:
        await pair.start()
        server = await program.serve(pair)
        try:
            reading, used = await suite.once(program, pair, 0.05, program.first_per_s)
        finally:
            server.stop()
    finally:
        await pair.stop()
    assert used.cpu_ns > 0
    assert used.switches > 0
    return reading


@pytest.mark.needs("ip", "taps", "iperf3", "nginx", "wrk", "redis")
@pytest.mark.parametrize("program", suite.programs(), ids=lambda program: program.name)
def test_each_program_gives_a_figure(program: suite.Program) -> None:
    assert program.missing() is None
    reading = asyncio.run(asyncio.wait_for(on_veth(program), patient(20)))
    assert reading.moved >= 1
    assert program.figures(reading, 1000).keys() == {program.rate, program.cost}


@pytest.mark.long
@pytest.mark.usefixtures("warm")
@pytest.mark.needs("ip", "taps", "iperf3", "redis")
def test_contenders_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "programs", lambda: [suite.IperfTcp(), suite.Redis(1, 5231)])
    result = measured(Options(paths=("bypass", "split"), repeat=2, quick=True, seconds=0.1))
    # How steady the machine is is not the test's: of two rounds there may be no figure, and the note says why
    assert [note for note in result.notes if "no slice was in a steady regime" not in note] == []
    contenders = {("path", "bypass"), ("path", "split"), ("peer", "relay"), ("peer", "pump"), ("peer", "veth")}
    for program, rate in (("iperf3 TCP", "gbps"), ("redis GET", "requests_per_s")):
        assert {row["path"] for row in result.records if row["direction"] == programs.BY_THE_WIRE} == {"bypass", "split"}
        rows = [row for row in result.records if row["program"] == program]
        assert {(kind, row[kind]) for row in rows for kind in ("path", "peer") if kind in row} == contenders
        assert all(row["errors"] == [] for row in rows), rows
        assert all(row[rate]["median"] > 0 for row in rows if row["n"])
        pump = next(row for row in rows if row.get("peer") == "pump")
        assert pump["placement"] in ends.PumpEnds.placements
        placed = {row["placement"] for row in rows if "path" in row}
        laid = placement.placements(placement.ANYWHERE, ["nic", "dom0"])
        assert all(one in laid or "nic on CPU" in one or "nic, bob on CPU" in one for one in placed), placed
        ours, beyond = (
            next(row for row in rows if row.get("path") == "split" and row["direction"] == where)
            for where in (programs.BETWEEN_GUESTS, programs.BY_THE_WIRE)
        )
        assert {"alice", "bob", "dom0", "nic", "client", "server"} <= ours["processes"].keys()
        assert ours["processes"]["dom0"] > 0
        assert ours["switches"]["dom0"] > 0
        relay = next(row for row in rows if row.get("peer") == "relay")
        assert all(relay["processes"][name] > 0 for name in relay_worker.NAMES), relay
        assert {"bob", "dom0", "nic", "client", "server"} <= beyond["processes"].keys()
        assert "alice" not in beyond["processes"]
        assert beyond["processes"]["nic"] > 0
    (costs,) = result.tables
    assert ["redis GET", programs.BETWEEN_GUESTS, "relay"] in [row[:3] for row in costs["rows"]]
    assert all(row[0] == "redis GET" for row in costs["rows"])
    asked = [(claim.text, claim.target) for claim in result.claims]
    assert asked == [
        ("iperf3 TCP, guest↔guest: rate, bypass ÷ pump", "≥ 0.8"),
        ("iperf3 TCP, guest↔guest: rate, bypass ÷ veth", "≥ 0.5"),
        ("iperf3 TCP, guest↔guest: rate, split ÷ pump", "≥ 0.5"),
        ("iperf3 TCP, guest↔guest: rate, split ÷ veth", "≥ 0.35"),
        ("iperf3 TCP, guest↔guest: CPU per byte, split ÷ bypass", "≥ 1.3"),
        ("redis GET, guest↔guest: rate, bypass ÷ split", "≥ 1"),
        ("redis GET, guest↔guest: rate, bypass ÷ pump", "≥ 0.9"),
        ("redis GET, guest↔guest: rate, bypass ÷ relay", "≥ 0.9"),
        ("iperf3 TCP, guest↔guest, all on one CPU: CPU per byte, split ÷ bypass", "≥ 1.3"),
        ("iperf3 TCP, wire↔guest: rate, bypass ÷ split", "≥ 1"),
        ("iperf3 TCP, wire↔guest: CPU per byte, split ÷ bypass", "≥ 1.3"),
        ("redis GET, wire↔guest: rate, bypass ÷ split", "≥ 1"),
        ("iperf3 TCP, wire↔guest, all on one CPU: CPU per byte, split ÷ bypass", "≥ 1.3"),
    ]
    assert not [name for name in os.listdir("/dev/shm") if name.endswith(f"-{os.getpid()}") or f"-{os.getpid()}." in name]


THREADS = "import threading; threading.Thread(target=input, daemon=True).start(); print(flush=True); threading.Event().wait()"


def test_one_process_has_a_cpu_of_its_own_and_its_threads_with_it() -> None:
    cpus = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-SE", "-c", THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            threads = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task")]
            assert len(threads) == 2
            for name, wanted in (
                (placement.apart("nic"), {min(cpus)}),
                (placement.apart("dom0"), {max(cpus)}),
                (placement.TOGETHER, {max(cpus)}),
                (placement.ANYWHERE, cpus),
            ):
                placement.place_threads(name, {"nic": process.pid}, lambda name, thread: cpus)
                assert all(os.sched_getaffinity(thread) == wanted for thread in threads), name
        finally:
            process.kill()


def test_the_placement_that_suits_best_is_found_though_another_was_lucky_once() -> None:
    rates = {"a": [90.0, 91.0, 10.0, 10.0, 10.0], "b": [50.0] * 5, "c": [60.0] * 5, "d": [1.0] * 5}
    asked: list[str] = []

    async def trial(name: str) -> float:
        asked.append(name)
        return rates[name][asked.count(name) - 1]

    assert asyncio.run(placement.best_placement(list(rates), trial)) == "c"
    assert {name: asked.count(name) for name in rates} == {"a": 5, "b": 5, "c": 5, "d": 2}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ends, "can_create", lambda: "cannot open /dev/net/tun")
    assert measured(Options(paths=("bypass",))).notes == [
        "bypass: left out: cannot open /dev/net/tun",
        "relay: left out: cannot open /dev/net/tun",
        "pump: left out: cannot open /dev/net/tun",
        "veth: left out: the command ip is not here: apt install iproute2",
        "bypass, wire↔guest: left out: cannot open /dev/net/tun",
        *(
            f"{name}: left out: the command iperf3 is not here: apt install iperf3"
            for name in ("iperf3 TCP", "iperf3 UDP 64 B", "iperf3 UDP 1400 B")
        ),
        "nginx, wrk: left out: the command nginx and wrk is not here: apt install nginx-light wrk",
        *(
            f"{name}: left out: the command redis-server and redis-benchmark is not here: apt install redis-server redis-tools"
            for name in ("redis GET", "redis GET, 16 pipelined")
        ),
    ]


class Here:
    """Ends that are no namespaces."""

    name, kind, address = "here", "peer", "127.0.0.1"

    def enter(self, end: int) -> None:
        """Stay."""


@pytest.mark.parametrize(
    ("argv", "interrupt_s", "said"),
    [
        (["false"], None, "false on here ended with status 1: not a word"),
        (["sh", "-c", "echo no route; exit 7"], None, "sh on here ended with status 7: no route"),
        (["sleep", "1000"], 0.0, "sleep on here ended with status -2"),
        (["/nowhere/x"], None, "/nowhere/x does not start on here"),
    ],
)
def test_a_client_that_fails_is_named_with_its_words(argv: list[str], interrupt_s: float | None, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        asyncio.run(running.run_client(Here(), argv, interrupt_s))  # type: ignore[arg-type]


def test_a_client_without_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LIMIT_S", 0.05)
    with pytest.raises(PeerError, match="does not come to an end"):
        asyncio.run(running.run_client(Here(), ["sleep", "1000"]))  # type: ignore[arg-type]


def test_a_server_that_ends_or_does_not_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(PeerError, match="sh on here ended: it broke"):
            asyncio.run(running.Server.start(Here(), ["sh", "-c", "echo it broke; exit 1"], port))  # type: ignore[arg-type]
        monkeypatch.setattr(running, "READY_S", 0.05)
        with pytest.raises(PeerError, match=f"sleep on here does not listen at {port}"):
            asyncio.run(running.Server.start(Here(), ["sleep", "1000"], port))  # type: ignore[arg-type]


@pytest.mark.parametrize("program", suite.programs(), ids=lambda program: program.name)
@pytest.mark.parametrize("output", ["", "{}", '"test","rps"\n', "Socket errors: 3"])
def test_no_figure_is_no_figure(program: suite.Program, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(*_: object) -> running.Done:
        return running.Done(output, Usage(1, 1))

    monkeypatch.setattr(suite, "run_client", ended)
    with pytest.raises(PeerError, match="gave no figure"):
        asyncio.run(suite.once(program, Here(), 0.1, 1.0))  # type: ignore[arg-type]
