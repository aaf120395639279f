"""The trapped path: an emulated NIC whose register writes trap; guests that break its protocol or die; a hypervisor that stops."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.ledger import difference, total
from bench.workloads import Runner
from dom0.toolstack import Toolstack
from domu.frontends.trapped import VirtualCpu
from hyp.abi.counters import COUNTERS_BYTES, DROPS, FAULTS, read_rows
from hyp.abi.nic import (
    CQE,
    DESC,
    DESC_SIGNALED,
    MAX_FRAME,
    PAGE,
    RCQ_EVENT,
    RQ_PROD,
    SCQ_EVENT,
    SQ_PROD,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_OK,
)
from hyp.abi.trap import ANSWERED, SEQUENCE, TRAP_BYTES
from hyp.control import Refused
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.ram import QueuePair, place_queues
from hyp.trap import write_register
from hyp.verbs import QP
from tests.drivers import FINISHED, head_words, header, post_garbage, scribble
from tests.labs import left_behind, workload
from tests.labs import run as run_lab
from tests.peers import WIRE_MAC, WRAP, Bench, Guest, Loop, eventually, well
from tests.test_paths import check, running

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.timeout(120)]
REGISTERS = {"sq_prod": SQ_PROD, "rq_prod": RQ_PROD, "scq_event": SCQ_EVENT, "rcq_event": RCQ_EVENT}
INDICES = ("sq_prod", "sq_cons", "scq_prod", "scq_told", "rq_prod", "rq_cons", "rcq_prod", "rcq_told", "trap", "trap_armed")
OWN = ("sq_prod", "sq_rung", "sq_done", "scq_cons", "signaled", "rq_prod", "rq_rung", "rcq_cons")


@entry(void(i64, i64, i64))
def _trap(vcpu: int, register: int, value: int) -> None:
    write_register(vcpu, register, value)


class Registers:
    """Stands in for the doorbell page's words: to assign is to trap."""

    def __init__(self, vcpu: VirtualCpu) -> None:
        self._vcpu = vcpu

    def __setitem__(self, name: str, value: Any) -> None:
        _trap(self._vcpu.address, REGISTERS[name], int(value))


def trapped(bench: Bench, mac: str | None = None, entries: int = 64, start: int = 0) -> Guest:
    """A domain with an emulated NIC, for the drivers of tests/peers.py; its indices and its traps' numbers begin at `start`."""
    guest = bench.domain(mac)
    platform = bench.hypervisor._platform_page.address
    answers = guest.call("upcall_create")

    async def vcpu() -> VirtualCpu:
        counts = int(guest._counts.ctypes.data)
        return VirtualCpu(answers.fds[0], platform, (counts, counts + 8 * 60), guest.hyp)

    guest.vcpu = bench.run(vcpu())  # type: ignore[attr-defined]
    record = np.zeros(1, QP)
    guest.q, guest.entries, guest.context = record[0], entries, -1
    guest.q["sq_size"] = guest.q["rq_size"] = entries
    guest.q["counts"], guest.q["trap"] = guest._counts.ctypes.data, guest.vcpu.address  # type: ignore[attr-defined]
    for name in OWN:
        guest.q[name] = start
    places = place_queues(guest.ram, guest.q)
    with _beginning_at(bench, start):
        reply = guest.call("emulation_attach", interrupts=guest.upcall, answers=1, **places, sq_size=entries, rq_size=entries)
    assert reply.value == {"mac": guest.mac}
    page = Mapping.adopt(reply.fds[0], TRAP_BYTES)
    guest.vcpu.attach(page, reply.fds[1])  # type: ignore[attr-defined]
    guest.vcpu.record[0]["sequence"] = start  # type: ignore[attr-defined]
    guest.q["doorbell"], guest.q["doorbell_fd"] = page.address, reply.fds[1]
    guest.pair = QueuePair(-1, guest.mac, record, page)
    guest.words = Registers(guest.vcpu)  # type: ignore[assignment,attr-defined]
    guest.places = places
    guest.sq, guest.rq = (guest._view(places[name], DESC, entries) for name in ("sq", "rq"))
    guest.scq, guest.rcq = (guest._view(places[name], CQE, entries) for name in ("scq", "rcq"))
    for ring in (guest.scq, guest.rcq):
        index = (start + (np.arange(entries) - start) % entries) % WRAP
        ring["owner"] = (index & entries) != 0
    guest.tx_pool, guest.rx_pool = guest.ram.allocate(entries * PAGE), guest.ram.allocate(entries * PAGE)
    guest.free = guest.rx_pool + entries * PAGE
    return guest


@contextmanager
def _beginning_at(bench: Bench, start: int) -> Iterator[None]:
    """Machines attached in here begin with all indices at `start`."""
    emulation = bench.hypervisor.emulation
    set_up = emulation._set_up

    def begin(guest: Any, machine: Any, queues: dict[str, int]) -> None:
        set_up(guest, machine, queues)
        row = emulation._records[machine.number]
        for name in INDICES:
            row[name] = start
        words = np.frombuffer(machine.keep[-1].array, "<u4")
        words[SEQUENCE // 4] = words[ANSWERED // 4] = start

    emulation._set_up = begin  # type: ignore[method-assign]
    try:
        yield
    finally:
        emulation._set_up = set_up  # type: ignore[method-assign]


def rows(bench: Bench) -> dict[str, dict[str, int]]:
    """The hypervisor's own counters."""
    page = Mapping(bench.hypervisor.emulation._region.fd, COUNTERS_BYTES, writable=False)
    return read_rows(page.array.data)


def of(bench: Bench, guest: Guest, kind: str = "vmm") -> dict[str, int]:
    """A guest's row in the hypervisor, columns that are not zero only."""
    return {column: n for column, n in rows(bench)[f"{kind}{guest.domid}:{guest.name}"].items() if n}


def faults_and_drops(bench: Bench, guest: Guest) -> dict[str, int]:
    names = {column.name.lower() for column in (*DROPS, *FAULTS)}
    return {column: n for column, n in of(bench, guest).items() if column in names}


@contextmanager
def pair_of(start: int = 0, **options: Any) -> Iterator[tuple[Bench, Guest, Guest]]:
    """Two trapped guests."""
    with Bench(**options) as bench:
        yield bench, trapped(bench, start=start), trapped(bench, start=start)


@contextmanager
def attacked(**options: Any) -> Iterator[tuple[Bench, Guest]]:
    """A guest to attack with; two others, one of them trapped, whose traffic has to arrive whole afterwards."""
    with Bench(**options) as bench:
        mallory, anna, bert = trapped(bench), trapped(bench), bench.guest()
        yield bench, mallory
        well(bench, anna, bert)
        well(bench, bert, anna)
        assert faults_and_drops(bench, anna) == {}


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


def test_the_toolstack_gives_each_path_its_own_device() -> None:
    guests = [{"domid": n, "name": path, "path": path, "mac": WIRE_MAC} for n, path in enumerate(("trapped", "bypass", "split"), 1)]
    toolstack = Toolstack(guests)
    assert toolstack.emulation_authorize(1) == toolstack.context_authorize(2) == {"mac": WIRE_MAC, "passthrough": False}
    for refused in (lambda: toolstack.context_authorize(1), *(lambda n=n: toolstack.emulation_authorize(n) for n in (2, 3, 9))):
        with pytest.raises(Refused, match="gives domain"):
            refused()


def test_no_trapped_guest_no_loop() -> None:
    with Bench() as bench:
        bench.guest()
        assert bench.hypervisor.emulation.threads() == {}
        trapped(bench)
        assert list(bench.hypervisor.emulation.threads()) == ["vmm"]


# --- hostile guests --------------------------------------------------------------------------------------------------


def test_bad_send_descriptors_drop_by_name() -> None:
    with attacked() as (bench, mallory):
        size, ok = mallory.mapping.size, mallory.tx_pool
        attacks = [
            (ok, 0, DESC_SIGNALED, STATUS_BAD_LENGTH), (ok, 13, DESC_SIGNALED, STATUS_BAD_LENGTH),
            (ok, MAX_FRAME + 1, DESC_SIGNALED, STATUS_BAD_LENGTH), (ok, (1 << 32) - 1, DESC_SIGNALED, STATUS_BAD_LENGTH),
            (ok, 64, 2, STATUS_BAD_FLAGS), (ok, 64, 0xFFFF, STATUS_BAD_FLAGS),
            (size, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS), (size - 63, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS),
            (-1, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS), ((1 << 63) - 1, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS),
            (1 << 63, 64, DESC_SIGNALED, STATUS_BAD_ADDRESS), (-64, MAX_FRAME, DESC_SIGNALED, STATUS_BAD_ADDRESS),
        ]  # fmt: skip
        for addr, length, flags, status in attacks:
            assert mallory.send_one(addr, length, flags) == status, (addr, length, flags)
        assert faults_and_drops(bench, mallory) == {
            "faults_descriptor": 6, "faults_address": 6, "drop_bad_frame": 6, "drop_bad_address": 6,
        }  # fmt: skip
        assert mallory.send_one(size - 64, 64) == STATUS_OK  # the last bytes of RAM are its own


def test_bad_receive_buffers_drop_by_name_and_are_used_up() -> None:
    with attacked() as (bench, mallory):
        size, sender = mallory.mapping.size, bench.guests[1]
        attacks = [
            (mallory.rx_pool, 63, 0, STATUS_BAD_LENGTH), (mallory.rx_pool, 64, 1, STATUS_BAD_LENGTH),
            (size - 63, PAGE, 0, STATUS_BAD_ADDRESS), (-8, PAGE, 0, STATUS_BAD_ADDRESS),
            ((1 << 63) - 8, PAGE, 0, STATUS_BAD_ADDRESS),
        ]  # fmt: skip
        for addr, length, flags, _ in attacks:
            mallory.post_buffer(addr, length, flags)
        mallory.post_buffers(1)
        sender.send(*(sender.frame(mallory.mac, sequence=k) for k in range(6)))
        sender.sent(6)
        taken = mallory.take(6)
        assert [status for status, _ in taken] == [*(status for *_, status in attacks), STATUS_OK]
        assert taken[-1][1] == sender.frame(mallory.mac, sequence=5)
        assert faults_and_drops(bench, mallory) == {
            "faults_descriptor": 2, "faults_address": 3, "drop_small_buffer": 2, "drop_bad_address": 3,
        }  # fmt: skip


@pytest.mark.parametrize(("register", "value"), [
    (SQ_PROD, 65), (SQ_PROD, WRAP - 1), (SQ_PROD, 0x8000_0000), (RQ_PROD, 65), (RQ_PROD, WRAP - 1),
    (4, 0), (0x1000, 1), (WRAP - 1, 0),
])  # fmt: skip
def test_a_write_that_makes_no_sense_fails_the_device(register: int, value: int) -> None:
    with attacked() as (bench, mallory):
        sender = bench.guests[1]
        _trap(mallory.vcpu.address, register, value)  # type: ignore[attr-defined]
        assert faults_and_drops(bench, mallory) == {"faults_protocol": 1}
        mallory.send(mallory.frame(WIRE_MAC))  # traps are answered and do nothing
        mallory.post_buffers(4)
        sender.send(*(sender.frame(mallory.mac) for _ in range(3)))
        sender.sent(3)
        eventually(lambda: of(bench, mallory).get("drop_down") == 3, "frames for a failed device to drop by name")
        assert faults_and_drops(bench, mallory) == {"faults_protocol": 1, "drop_down": 3}
        assert "tx_frames" not in of(bench, mallory)


@pytest.mark.parametrize("sequence", [0, 2, 77, WRAP - 1])
def test_a_trap_out_of_order_fails_the_device(sequence: int) -> None:
    with attacked() as (bench, mallory):
        _trap(mallory.vcpu.address, SCQ_EVENT, 1)  # type: ignore[attr-defined]
        words = np.frombuffer(mallory.pair.doorbell.array, "<u4")
        words[SEQUENCE // 4] = sequence if sequence != 2 else 3
        mallory.kick()
        eventually(lambda: faults_and_drops(bench, mallory) == {"faults_protocol": 1}, "the device to fail")
        eventually(lambda: words[ANSWERED // 4] == words[SEQUENCE // 4], "the answer")


def test_garbage_at_full_speed() -> None:
    with attacked() as (bench, mallory):
        mallory.post_buffers(mallory.entries)
        sender = bench.guests[1]
        garbage = Loop(post_garbage, mallory, mallory.job())
        for _ in range(5):
            sender.send(*(sender.frame(mallory.mac) for _ in range(16)))
            sender.sent(16)
        eventually(lambda: faults_and_drops(bench, mallory).get("drop_bad_address", 0) > 1000, "attacks to arrive")
        garbage.job[0]["stop"] = 1
        assert garbage.wait() > 1000
        assert "faults_protocol" not in faults_and_drops(bench, mallory)


def test_scribbling_over_trap_page_and_queues() -> None:
    with attacked(pause_us=1000) as (bench, mallory):
        scribbler = Loop(scribble, mallory, mallory.job(first=0, size=mallory.rx_pool))

        def failed() -> int | None:
            mallory.kick()  # again and again: the scribbler may not have begun, or just written what makes sense
            return faults_and_drops(bench, mallory).get("faults_protocol")

        eventually(failed, "the device to fail")
        well(bench, bench.guests[1], bench.guests[2])
        scribbler.job[0]["stop"] = 1
        scribbler.wait()


def test_the_end_of_a_guest_takes_its_machine_away() -> None:
    with attacked() as (bench, mallory):
        head0, head1 = head_words(bench.guests[2].mac, mallory.mac)
        sending = Loop(post_garbage, mallory, mallory.job(head0=head0, head1=head1))
        eventually(lambda: of(bench, mallory).get("traps", 0) > 100, "traps")
        bench.run(bench.hypervisor.domain_destroy(mallory.domid))
        assert mallory.domid not in bench.hypervisor.emulation._machines
        traps = of(bench, mallory)["traps"]
        sending.job[0]["stop"] = 1
        sending.wait()  # its channel is closed: the virtual CPU is let go
        assert of(bench, mallory)["traps"] == traps
        again = trapped(bench)  # the place in the loop can be used again
        well(bench, again, bench.guests[2])


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
            os.kill(runner.pids["hyp"], signal.SIGSTOP)
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
                lab.call("bert", "send_stream", mac=lab.topology["nic"]["wire"]["mac"], frame=64, stream=903, seconds=60.0)
            )
            going = asyncio.create_task(_whole_stream(runner, "anna"))
            reader = await lab.counters()
            while total(reader.read(), "tx_frames", "hyp/vmm2") < 1000:
                await asyncio.sleep(0.005)
            os.kill(runner.pids["bert"], signal.SIGKILL)
            with pytest.raises(Exception, match="is gone"):
                await dying
            await going
            for guest in ("anna", "carl"):
                await _whole_stream(runner, guest)
            while any("bert.vmm" in path for path in left_behind(lab.name)):
                await asyncio.sleep(0.01)

    run_lab(main())


async def _whole_stream(runner: Runner, guest: str) -> None:
    """A stream to the wire arrives whole."""
    stream, lab = 910 + next(runner._streams), runner.lab
    job = {"mac": lab.topology["nic"]["wire"]["mac"], "frame": 64, "stream": stream, "frames": 100_000}
    assert (await lab.call(guest, "send_stream", **job))["sent"] == 100_000
    while (report := (await lab.call("nic", "wire_report", stream=stream))["received"])["frames"] < 100_000:
        await asyncio.sleep(0.005)
    assert report["lost"] == report["corrupt"] == report["duplicated"] == 0
