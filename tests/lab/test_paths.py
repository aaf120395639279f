"""Both paths end to end, in real processes: every frame verified, every hop balanced, the ledger as the models say."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hyp.fairness.storm import BURST
from hyp.paths import PATHS
from lab.ledger import Snapshot, difference, total, unbalanced
from lab.owner import Lab
from lab.stopping import stop
from lab.workloads import Runner, WorkloadError
from lab.workloads import runner as runner_module
from tests.support.labs import GUESTS, left_behind, run, topology, until, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

PAIRS = {"split": ("anna", "bert"), "bypass": ("carl", "dora")}
COPIES = {("split", "guest"): 2, ("split", "wire"): 2, ("bypass", "guest"): 1, ("bypass", "wire"): 1}


@asynccontextmanager
async def running(tmp_path: Path, name: str, text: str = GUESTS) -> AsyncIterator[Runner]:
    lab = Lab(topology(tmp_path, name, text))
    async with lab:
        yield await Runner.open(lab)
    assert left_behind(lab.name) == []


def check(record: dict[str, Any]) -> None:
    assert record["errors"] == []
    assert record["frames"] > 0
    assert record["lost"] == sum(record["drops"].values())
    assert record["corrupt"] == record["duplicated"] == 0


def test_streams_and_round_trips_on_both_paths(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "paths") as runner:
            for path, (one, other) in PAIRS.items():
                for far, peer in (("guest", other), ("wire", "wire")):
                    for load in (
                        workload("stream", one, peer, 64),
                        workload("stream", one, peer, 1514),
                        workload("stream", one, peer, 333, frames=5000),
                        workload("rr", one, peer, 64, frames=300),
                    ):
                        record = await runner.run(load)
                        check(record)
                        assert record["path"] == path
                        reflected = load["kind"] == "rr" and peer == "wire"  # the reflector verifies nothing, the guest does
                        assert record["checksummed"] == (0.5 if reflected else 1.0)
                        if load["frames"]:
                            assert record["sent"] == load["frames"]
                        cost, hop = record["per_frame"], 0 if path == "bypass" else 1
                        assert cost["dom0_frames"] == pytest.approx(hop, abs=1e-3)
                        assert (cost["hypercalls"] == 0) == (path == "bypass")
                        if load["kind"] == "stream":
                            assert cost["copies"] == pytest.approx(
                                COPIES[path, far] * (1 - _lost(record)), abs=0.6 * _lost(record) + 1e-3
                            )

    run(main())


def _lost(record: dict[str, Any]) -> float:
    return record["lost"] / record["sent"]


def test_wire_to_guest(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "inbound") as runner:
            for guest in ("bert", "dora"):
                record = await runner.run(workload("stream", "wire", guest, 128, frames=20_000))
                check(record)
                assert record["sent"] == 20_000

    run(main())


def test_guests_of_different_paths_reach_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "mixed") as runner:
            for one, other in (("anna", "dora"), ("carl", "bert")):
                check(await runner.run(workload("stream", one, other, 64, frames=20_000)))
                record = await runner.run(workload("rr", one, other, 64, frames=100))
                check(record)
                assert record["rtt_us"]["p50"] > 0

    run(main())


SETTINGS = ['[memory]\nbacking = "sealed"\n', "[nic]\nengines = 2\n", "[nic]\nengines = 3\nqueue = 64\n"]


@pytest.mark.parametrize("settings", tiered(SETTINGS, SETTINGS[2:]))
def test_other_settings(tmp_path: Path, settings: str) -> None:
    async def main() -> None:
        async with running(tmp_path, "settings", settings + GUESTS) as runner:
            for one, other in (*PAIRS.values(), ("carl", "wire"), ("anna", "wire"), ("anna", "dora")):
                check(await runner.run(workload("stream", one, other, 200, frames=10_000)))

    run(main())


def test_a_guest_that_is_no_end_of_a_workload_says_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counters are its own to write: copies and drops that there were not, and what never balances."""

    async def main() -> None:
        async with running(tmp_path, "liar") as runner:
            read, lies = runner._counters.read, itertools.count(1)

            def lied() -> Snapshot:
                found, number = read(), next(lies)
                for row in (row for row in found if row.startswith("dora/")):
                    found[row] |= {
                        "copies": number << 20,
                        "drop_bad_frame": number << 21,
                        "tx_frames": number,
                        "faults_chain": number,
                    }
                return found

            monkeypatch.setattr(runner._counters, "read", lied)
            record = await runner.run(workload("stream", "anna", "bert", 64, frames=1000))
            check(record)
            assert record["drops"] == {}
            assert record["per_frame"]["copies"] == COPIES["split", "guest"]

    run(main())


def test_who_does_not_answer_ends_no_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that is stopped: its workload fails in time, and says so."""
    monkeypatch.setattr(runner_module, "MARGIN_S", 0.2)

    async def main() -> None:
        async with running(tmp_path, "mute") as runner:
            os.kill(runner.pids["bert"], signal.SIGSTOP)
            try:
                with pytest.raises(WorkloadError, match=r"not ready after 0\.2 s"):
                    await runner.prepare(workload("stream", "anna", "bert", 64, frames=10))
            finally:
                os.kill(runner.pids["bert"], signal.SIGCONT)

    run(main())


def test_a_guest_has_no_more_broadcasts_passed_on_than_it_may(tmp_path: Path) -> None:
    """On each path; those of the others are none of its affair, and what is for one station is not counted."""
    lab_of_all = "[nic]\nstorm_pps = 1\n" + "".join(f'[[guest]]\nname = "{path}"\npath = "{path}"\n' for path in PATHS)
    sent = 3 * BURST

    async def main() -> None:
        async with running(tmp_path, "storm", lab_of_all) as runner:
            lab, wire = runner.lab, runner.lab.topology["nic"]["wire"]["mac"]
            for number, path in enumerate(PATHS, 1):
                before = await runner._settled()
                for stream, mac in ((2 * number, "ff:ff:ff:ff:ff:ff"), (2 * number + 1, wire)):
                    await lab.call(path, "send_stream", mac=mac, frame=64, stream=stream, frames=sent)
                moved = difference(await runner._settled(), before)
                reports = [await lab.call("nic", "wire_report", stream=2 * number + k) for k in range(2)]
                dropped = total(moved, "drop_storm")
                assert BURST <= sent - dropped <= BURST + 60  # those of a minute
                assert [report["received"]["frames"] for report in reports] == [sent - dropped, sent]
                (blamed,) = [row for row, counts in moved.items() if counts["drop_storm"]]
                assert blamed.rpartition(":")[2].removesuffix(".vmm") == path

    run(main())


@pytest.mark.parametrize("path", ["split", "bypass"])
def test_a_guest_of_many_queues_has_no_more_broadcasts_passed_on_than_one_of_one(tmp_path: Path, path: str) -> None:
    text = f'[nic]\nstorm_pps = 1\n[[guest]]\nname = "many"\npath = "{path}"\nqueues = 4\n'

    async def main() -> None:
        async with running(tmp_path, "storms", text) as runner:
            before, streams = await runner._settled(), range(16)
            for stream in streams:  # each is of one queue
                await runner.lab.call("many", "send_stream", mac="ff:ff:ff:ff:ff:ff", frame=64, stream=stream, frames=BURST)
            moved = difference(await runner._settled(), before)
            used = [row for row, counts in moved.items() if row.startswith("many/device") and counts["tx_frames"]]
            assert len(used) > 1
            assert BURST <= len(streams) * BURST - total(moved, "drop_storm") <= BURST + 60  # those of a minute

    run(main())


def test_bypass_goes_on_with_dom0_and_hypervisor_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "stopped") as runner:
            load = workload("stream", "carl", "dora", 64, frames=100_000)
            await runner.prepare(load)
            stopped = [runner.pids["dom0"], runner.pids["hyp"]]
            try:
                await stop(*stopped)
                check(await runner.measure(load))
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)

    run(main())


def test_a_stopped_receiver_loses_frames_under_a_name_and_nobody_else_notices(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "full", "[nic]\npause_us = 2000\n" + GUESTS) as runner:
            lab = runner.lab
            for sender, receiver, bystanders in (
                ("carl", "dora", ("anna", "bert")),
                ("anna", "bert", ("carl", "dora")),
            ):
                target = next(guest["mac"] for guest in lab.topology["guest"] if guest["name"] == receiver)
                await runner.prepare(workload("stream", sender, receiver))
                await stop(runner.pids[receiver])
                try:
                    sending = asyncio.create_task(lab.call(sender, "send_stream", mac=target, frame=64, stream=900, frames=20_000))
                    stream = {"mac": lab.topology["nic"]["wire"]["mac"], "frame": 64, "stream": 901, "frames": 20_000}
                    assert (await lab.call(bystanders[0], "send_stream", **stream))["sent"] == 20_000
                    assert (await sending)["sent"] == 20_000
                finally:
                    os.kill(runner.pids[receiver], signal.SIGCONT)
                counters = await lab.counters()
                await until(partial(_balanced, counters), "all hops to balance")
                received = await lab.call(receiver, "received", stream=900)
                dropped = sum(row["drop_no_buffer"] for row in counters.read().values())
                assert 0 < received["frames"] < 20_000
                assert dropped >= 20_000 - received["frames"] > 0

    async def _balanced(counters: Any) -> bool:
        return not unbalanced(counters.read())

    run(main())


def test_idle_loops_sleep(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "idle") as runner:
            await runner.run(workload("stream", "carl", "dora", frames=1000))
            counters = await runner.lab.counters()
            before = {row: counts["wakeups"] for row, counts in counters.read().items()}
            await asyncio.sleep(0.5)  # not a synchronisation: the time in which nothing is to happen
            assert {row: counts["wakeups"] for row, counts in counters.read().items()} == before

    run(main())


def test_no_page_of_python_per_packet(tmp_path: Path) -> None:
    """R1: a guest's Python thread is not scheduled because of traffic."""

    async def main() -> None:
        async with running(tmp_path, "r1") as runner:
            for one, other in PAIRS.values():
                record = await runner.run(workload("stream", one, other, frames=100_000))
                check(record)
                main_threads = {name: _switches(pid) for name, pid in runner.pids.items()}
                check(await runner.run(workload("stream", one, other, frames=200_000)))
                for name, before in main_threads.items():
                    assert _switches(runner.pids[name]) - before < 500, f"{name}'s event loop ran with the traffic"

    run(main())


def _switches(pid: int) -> int:
    """Voluntary context switches of the process's first thread, which runs its event loop."""
    lines = Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
