"""The trapped path: an emulated NIC whose register writes trap; a hypervisor that stops; a guest that is killed."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dom0.toolstack.authority import Toolstack
from hyp.abi.nic import PAGE, STATUS_OK
from hyp.control import Refused
from hyp.monitor import event_channels
from lab.counters import CounterReader
from lab.ledger import difference, total
from lab.stopping import stop
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.drivers import FINISHED, header
from tests.support.guests import WIRE_MAC, Guest, eventually
from tests.support.labs import left_behind, until, workload
from tests.support.labs import run as run_lab
from tests.support.peers import Bench
from tests.support.trapped_guests import faults_and_drops, of, published, rows, trapped

pytestmark = pytest.mark.usefixtures("warm")


@contextmanager
def pair_of(start: int = 0, **options: Any) -> Iterator[tuple[Bench, Guest, Guest]]:
    """Two trapped guests."""
    with Bench(**options) as bench:
        yield bench, trapped(bench, start=start), trapped(bench, start=start)


# --- the device ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [14, 15, 64, 65, 1514, 2112])
def test_a_frame_arrives_as_it_was_sent(start: int, length: int) -> None:
    with pair_of(start) as (bench, anna, bert):
        frame = header(bert.mac, anna.mac) + random.Random(length).randbytes(length - 14)
        bert.post_buffers(3)
        anna.send(frame, frame, frame)
        assert anna.sent(3) == [STATUS_OK] * 3
        assert bert.take(3) == [(STATUS_OK, frame)] * 3
        bench.at_rest(3)
        published(bench, bert, 3)
        sender, receiver = of(bench, anna), of(bench, bert)
        assert (sender["tx_frames"], sender["copies"], sender["copied_bytes"]) == (3, 3, 3 * length)
        assert (receiver["rx_frames"], receiver["copies"], receiver["rx_bytes"]) == (3, 3, 3 * length)
        assert of(bench, anna, "uplink")["tx_frames"] == of(bench, bert, "uplink")["rx_frames"] == 3
        assert sender["traps"] == 1
        assert faults_and_drops(bench, anna) == faults_and_drops(bench, bert) == {}


def test_a_trap_is_carried_out_before_it_is_answered() -> None:
    with Bench() as bench:
        anna = trapped(bench)
        for sequence in range(200):
            if sequence % 32 == 0:  # else it waits for room in the queue to the NIC
                eventually(lambda: bench.count("rx_frames", "wire") == int(anna.q["sq_done"]), "the NIC to have sent them")
            anna.send(anna.frame(WIRE_MAC, sequence=sequence))
            assert anna._is_new(anna.scq, int(anna.q["scq_cons"])), "the completion is there when the guest goes on"
            anna.sent(1)
        assert of(bench, anna)["traps"] == 200
        assert rows(bench)["loop"]["wakeups"] > 0
        bench.at_rest(200)


def test_streams_both_ways_over_the_wrap_of_all_indices(start: int) -> None:
    with pair_of(start) as (bench, anna, bert):
        one = anna.traffic(bert.mac, 20_000, 20_000, stream=1, length=1514)
        other = bert.traffic(anna.mac, 20_000, 20_000, stream=2, length=77)
        assert (one.wait(), other.wait()) == (FINISHED, FINISHED)
        for end, stream in ((one, 2), (other, 1)):
            assert {end.report(stream)[name] for name in ("lost", "corrupt", "duplicated")} == {0}
        bench.at_rest(40_000)
        assert bench.drops() == {}
        assert of(bench, anna)["tx_frames"] == of(bench, bert)["rx_frames"] == 20_000


def test_back_pressure_leaves_descriptors_where_they_are() -> None:
    with Bench(pause_us=60_000_000) as bench:
        anna, bert = trapped(bench), bench.guest(queue=256, memory=4 << 20)
        for first in (0, 64):
            anna.send(*(anna.frame(bert.mac, sequence=first + k) for k in range(64)))
            if first == 0:
                assert anna.sent(64) == [STATUS_OK] * 64
        eventually(lambda: of(bench, anna)["tx_frames"] == 64, "the NIC's queue to be full")
        assert not anna._is_new(anna.scq, int(anna.q["scq_cons"])), "there was no room for the frame"
        bert.post_buffers(128)
        assert [frame for _, frame in bert.take(128)] == [anna.frame(bert.mac, sequence=k) for k in range(128)]
        assert anna.sent(64) == [STATUS_OK] * 64
        bench.at_rest(128)
        assert bench.drops() == faults_and_drops(bench, anna) == {}


def test_frames_wait_in_the_nic_for_a_receive_buffer() -> None:
    with Bench(pause_us=60_000_000) as bench:
        anna, bert = bench.guest(), trapped(bench)
        anna.send(*(anna.frame(bert.mac, sequence=k) for k in range(10)))
        assert anna.sent(10) == [STATUS_OK] * 10
        assert bert.waiting() == 0
        bert.post_buffers(4)
        assert len(bert.take(4)) == 4
        bert.post_buffers(6)
        assert [frame for _, frame in bert.take(6)] == [anna.frame(bert.mac, sequence=k) for k in range(4, 10)]
        assert faults_and_drops(bench, bert) == {}


def test_the_nic_refuses_a_spoofed_source() -> None:
    with pair_of() as (bench, anna, bert):
        bert.post_buffers(1)
        anna.send(anna.frame(bert.mac, source=WIRE_MAC), anna.frame(bert.mac))
        assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
        bench.at_rest(2)
        assert bench.drops() == {"drop_spoofed": 1}


# --- set-up ----------------------------------------------------------------------------------------------------------


def test_set_up_is_checked() -> None:
    with Bench() as bench:
        anna = bench.domain()
        anna.call("upcall_create")
        places = {"sq": PAGE, "scq": 2 * PAGE, "rq": 3 * PAGE, "rcq": 4 * PAGE}
        good = {"interrupts": 0, "answers": 1, **places, "sq_size": 64, "rq_size": 64}
        for bad in (
            {"sq": -PAGE}, {"rcq": anna.mapping.size}, {"scq": 100}, {"sq_size": 65}, {"rq_size": 8192}, {"answers": 2},
            {"sq_size": "64"}, {"rq": anna.mapping.size - PAGE, "rq_size": 512},
        ):  # fmt: skip
            with pytest.raises(Refused) as refused:
                anna.call("emulation_attach", **{**good, **bad})
            assert refused.value.name == "EINVAL", bad
        anna.call("emulation_attach", **good)
        with pytest.raises(Refused) as refused:
            anna.call("emulation_attach", **good)
        assert refused.value.name == "EBUSY"


def test_who_is_too_dear_to_notify_gets_no_emulated_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told so before anything is made for it, and gets one when that is paid."""
    monkeypatch.setattr(event_channels, "PAID_S", 0.01)
    with Bench() as bench:
        anna, emulation = bench.domain(), bench.hypervisor.system.emulation
        anna.call("upcall_create")
        asked = {"interrupts": 0, "answers": 1, "sq": PAGE, "scq": 2 * PAGE, "rq": 3 * PAGE, "rcq": 4 * PAGE}
        domain = bench.hypervisor.system.domains[anna.domid]
        domain.debt.owe(10**12)
        with pytest.raises(Refused, match="too dear") as refused:
            anna.call("emulation_attach", **asked, sq_size=64, rq_size=64)
        assert refused.value.name == "EBUSY"
        assert emulation._machines == {}
        domain.debt._until = 0
        assert anna.call("emulation_attach", **asked, sq_size=64, rq_size=64).value["mac"]


def test_the_toolstack_gives_each_path_its_own_device() -> None:
    guests = [
        {"domid": n, "name": path, "path": path, "mac": WIRE_MAC, "queues": 1}
        for n, path in enumerate(("trapped", "bypass", "split"), 1)
    ]
    toolstack = Toolstack(guests)
    assert (
        toolstack.emulation_authorize(1) == toolstack.context_authorize(2) == {"mac": WIRE_MAC, "passthrough": False, "queues": 1}
    )
    for refused in (lambda: toolstack.context_authorize(1), *(lambda n=n: toolstack.emulation_authorize(n) for n in (2, 3, 9))):
        with pytest.raises(Refused, match="gives domain"):
            refused()


def test_no_trapped_guest_no_loop() -> None:
    with Bench() as bench:
        bench.guest()
        assert bench.hypervisor.system.emulation.threads() == {}
        trapped(bench)
        assert list(bench.hypervisor.system.emulation.threads()) == ["vmm"]


# --- the whole lab ---------------------------------------------------------------------------------------------------

LAB = """
[[guest]]
name = "anna"
path = "trapped"
[[guest]]
name = "bert"
path = "trapped"
[[guest]]
name = "carl"
path = "bypass"
[[guest]]
name = "dora"
path = "split"
"""


EXPECTED = (  # from, to, kind; per frame: times that the hypervisor handles it, payload copies
    ("anna", "wire", "stream", 1, 2), ("anna", "bert", "stream", 2, 3), ("wire", "bert", "stream", 1, 2),
    ("carl", "bert", "stream", 1, 2), ("anna", "wire", "rr", 1, 2), ("anna", "bert", "rr", 2, 3),
)  # fmt: skip


def test_streams_and_round_trips_are_whole_and_each_frame_is_the_hypervisors_business(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "trapped", LAB) as runner:
            for sender, receiver, kind, times, copies in EXPECTED:
                for frame in (64, 1514):
                    record = await runner.run(workload(kind, sender, receiver, frame, frames=20_000 if kind == "stream" else 300))
                    check(record)
                    cost = record["per_frame"]
                    assert (cost["vmm_frames"], cost["copies"]) == (times, copies), record
                    assert cost["traps"] > 0
                    assert cost["dom0_frames"] == cost["hypercalls"] == 0
                    assert record["trap_ns"] > 0
            record = await runner.run(workload("stream", "dora", "bert", frames=10_000))
            check(record)
            assert (record["per_frame"]["dom0_frames"], record["per_frame"]["vmm_frames"]) == (1, 1)
            record = await runner.run(workload("stream", "carl", "wire", frames=10_000))
            check(record)
            assert record["per_frame"]["vmm_frames"] == record["per_frame"]["traps"] == 0
            assert record["trap_ns"] is None
            counters = (await runner.lab.counters()).read()
            for domid, guest in ((1, "anna"), (2, "bert")):
                assert counters[f"{guest}/device"]["traps"] == total(counters, "traps", f"hyp/vmm{domid}:") > 0

    run_lab(main())


def test_other_settings(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "trapset", '[memory]\nbacking = "sealed"\n[nic]\nengines = 2\nqueue = 64\n' + LAB) as runner:
            for one, other in (("anna", "bert"), ("anna", "dora"), ("wire", "anna")):
                check(await runner.run(workload("stream", one, other, 200, frames=10_000)))

    run_lab(main())


def test_a_stopped_hypervisor_stops_trapped_traffic_and_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "trapstop", LAB) as runner:
            lab, wire = runner.lab, str(runner.lab.topology["nic"]["wire"]["mac"])
            load = workload("stream", "carl", "wire", frames=50_000)
            await runner.prepare(load)
            await stop(runner.pids["hyp"])
            try:
                stuck = asyncio.create_task(lab.call("anna", "send_stream", mac=wire, frame=64, stream=900, frames=1000))
                reader = await lab.counters()
                before = reader.read()
                bypass = {"mac": wire, "frame": 64, "stream": 901, "frames": 50_000}
                assert (await lab.call("carl", "send_stream", **bypass))["sent"] == 50_000
                assert (await lab.call("dora", "send_stream", **{**bypass, "stream": 902}))["sent"] == 50_000
                moved = difference(reader.read(), before)
                assert total(moved, "tx_frames", "hyp/") == 0
                assert not stuck.done()
            finally:
                os.kill(runner.pids["hyp"], signal.SIGCONT)
            assert (await stuck)["sent"] == 1000
            await runner._settled()
            assert (await lab.call("nic", "wire_report", stream=900))["received"]["frames"] == 1000

    run_lab(main())


def test_a_killed_guest_leaves_the_others_undisturbed(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "trapkill", LAB) as runner:
            lab = runner.lab
            assert [path for path in left_behind(lab.name) if "bert.vmm" in path]
            dying = asyncio.create_task(
                lab.call("bert", "send_stream", mac=lab.topology["nic"]["wire"]["mac"], frame=64, stream=903, seconds=600.0)
            )
            going = asyncio.create_task(_whole_stream(runner, "anna"))
            reader = await lab.counters()
            await until(lambda: _sent(reader, "hyp/vmm2", 1000), "bert to send")
            os.kill(runner.pids["bert"], signal.SIGKILL)
            with pytest.raises(Exception, match="is gone"):
                await dying
            await going
            for guest in ("anna", "carl"):
                await _whole_stream(runner, guest)
            await until(lambda: _let_go(lab.name, "bert.vmm"), "the hypervisor to let go of bert's memory")

    run_lab(main())


async def _sent(reader: CounterReader, row: str, frames: int) -> bool:
    return total(reader.read(), "tx_frames", row) >= frames


async def _let_go(name: str, what: str) -> bool:
    return not any(what in path for path in left_behind(name))


async def _whole_stream(runner: Runner, guest: str) -> None:
    """A stream to the wire arrives whole."""
    stream, lab = 910 + next(runner._streams), runner.lab
    job = {"mac": lab.topology["nic"]["wire"]["mac"], "frame": 64, "stream": stream, "frames": 100_000}
    assert (await lab.call(guest, "send_stream", **job))["sent"] == 100_000
    report: dict[str, Any] = {}

    async def arrived() -> bool:
        report.update((await lab.call("nic", "wire_report", stream=stream))["received"])
        return bool(report["frames"] == 100_000)

    await until(arrived, "the last frame to arrive")
    assert report["lost"] == report["corrupt"] == report["duplicated"] == 0
