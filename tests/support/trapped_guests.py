"""Guests with an emulated NIC on the bench of tests/support/peers.py, for its drivers; and what the hypervisor counts for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from domu.frontends.trapped import VirtualCpu
from hyp.abi.counters import COUNTERS_BYTES, DROPS, FAULTS, read_rows
from hyp.abi.features import EMULATION_OFFERS
from hyp.abi.nic import CQE, DESC, PAGE, RCQ_EVENT, RQ_PROD, SCQ_EVENT, SQ_PROD
from hyp.abi.trap import ANSWERED, SEQUENCE, TRAP_BYTES
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.ram import QueuePair, place_queues
from hyp.trap import write_register
from hyp.verbs import QP
from tests.support.guests import WRAP, Guest, eventually
from tests.support.peers import DEFAULT_RAM, Bench

REGISTERS = {"sq_prod": SQ_PROD, "rq_prod": RQ_PROD, "scq_event": SCQ_EVENT, "rcq_event": RCQ_EVENT}
INDICES = ("sq_prod", "sq_cons", "scq_prod", "scq_told", "rq_prod", "rq_cons", "rcq_prod", "rcq_told", "trap", "trap_armed")
OWN = ("sq_prod", "sq_rung", "sq_done", "scq_cons", "signaled", "rq_prod", "rq_rung", "rcq_cons")


@entry(void(i64, i64, i64))
def trap(vcpu: int, register: int, value: int) -> None:
    """Write a register, as a guest's driver does."""
    write_register(vcpu, register, value)


class Registers:
    """Stands in for the doorbell page's words: to assign is to trap."""

    def __init__(self, vcpu: VirtualCpu) -> None:
        self._vcpu = vcpu

    def __setitem__(self, name: str, value: Any) -> None:
        trap(self._vcpu.address, REGISTERS[name], int(value))


def trapped(
    bench: Bench, mac: str | None = None, *, queue: int = 64, memory: int = DEFAULT_RAM, start: int = 0, features: int = 0
) -> Guest:
    """A domain with an emulated NIC, for the drivers of guests.py; its indices and its traps' numbers begin at `start`."""
    guest = bench.domain(mac, memory)
    platform = bench.hypervisor.system.platform_page.address
    answers = guest.call("upcall_create")

    async def vcpu() -> VirtualCpu:
        counts = int(guest._counts.ctypes.data)
        return VirtualCpu(answers.fds[0], platform, (counts, counts + 8 * 60), guest.hyp)

    guest.vcpu = bench.run(vcpu())  # type: ignore[attr-defined]
    record = np.zeros(1, QP)
    guest.q, guest.entries, guest.context = record[0], queue, -1
    guest.q["sq_size"] = guest.q["rq_size"] = queue
    guest.q["counts"], guest.q["trap"] = guest._counts.ctypes.data, guest.vcpu.address  # type: ignore[attr-defined]
    guest.q["doorbell_fd"] = -1
    for name in OWN:
        guest.q[name] = start
    places = place_queues(guest.ram, guest.q)
    with _beginning_at(bench, start):
        reply = guest.call("emulation_attach", interrupts=guest.upcall, answers=1, **places, sq_size=queue, rq_size=queue)
        guest.q["doorbell_fd"] = reply.fds[1]
        guest.call("emulation_start", features=features)
    assert reply.value == {"mac": guest.mac, "features": EMULATION_OFFERS}
    page = Mapping.adopt(reply.fds[0], TRAP_BYTES)
    guest.vcpu.attach(page, reply.fds[1])  # type: ignore[attr-defined]
    guest.vcpu.record[0]["sequence"] = start  # type: ignore[attr-defined]
    guest.q["doorbell"] = page.address
    guest.pair = QueuePair(-1, guest.mac, record, page, 0)
    guest.words = Registers(guest.vcpu)  # type: ignore[attr-defined]
    guest.places = places
    guest.sq, guest.rq = (guest._view(places[name], DESC, queue) for name in ("sq", "rq"))
    guest.scq, guest.rcq = (guest._view(places[name], CQE, queue) for name in ("scq", "rcq"))
    for ring in (guest.scq, guest.rcq):
        index = (start + (np.arange(queue) - start) % queue) % WRAP
        ring["owner"] = (index & queue) != 0
    guest.tx_pool, guest.rx_pool = guest.ram.allocate(queue * PAGE), guest.ram.allocate(queue * PAGE)
    guest.free = guest.rx_pool + queue * PAGE
    return guest


@contextmanager
def _beginning_at(bench: Bench, start: int) -> Iterator[None]:
    """Machines attached in here begin with all indices at `start`."""
    emulation = bench.hypervisor.system.emulation
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
    page = Mapping(bench.hypervisor.system.emulation._region.fd, COUNTERS_BYTES, writable=False)
    return read_rows(page.array.data)


def of(bench: Bench, guest: Guest, kind: str = "vmm") -> dict[str, int]:
    """A guest's row in the hypervisor, columns that are not zero only."""
    return {column: n for column, n in rows(bench)[f"{kind}{guest.domid}:{guest.name}"].items() if n}


def counted(bench: Bench, guest: Guest, expected: dict[str, int]) -> None:
    """Wait until just that has gone wrong: a turn's counts are there after its completions."""
    eventually(lambda: faults_and_drops(bench, guest) == expected, f"to be counted: {expected}")


def published(bench: Bench, guest: Guest, received: int) -> None:
    """Wait until the hypervisor's loop has published that the guest has received so many frames: after it delivered them."""

    def told() -> bool:
        return {of(bench, guest, kind).get("rx_frames") for kind in ("vmm", "uplink")} == {received}

    eventually(told, f"{received} frames in the guest's rows")


def faults_and_drops(bench: Bench, guest: Guest) -> dict[str, int]:
    """Of a guest's row: what went wrong, by name."""
    names = {column.name.lower() for column in (*DROPS, *FAULTS)}
    return {column: n for column, n in of(bench, guest).items() if column in names}
