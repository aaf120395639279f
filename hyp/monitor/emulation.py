"""Emulated NICs: the control side of the VMM's loop (hyp/monitor/vmm.py).

The device model of a guest is a pseudo-domain ``<guest>.vmm``, as Xen has stub domains: with RAM and an IOMMU table of its
own and a NIC context whose MAC address is the guest's, so that the NIC checks the guest's source addresses as it does
everybody's. It talks to the hypervisor by the hypercalls that a guest uses, over a socket pair within this process, and is
in no table that a guest's domain numbers go to.

A machine's life: `attach`, `start` (hypercalls of its guest) → traps, in which nothing of this file takes part → `detach` (the
guest died): the loop lets go, then the NIC context goes, then translations and memory. The loop runs from the first
`attach` on; a topology without trapped guests has none.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.features import EMULATION_OFFERS
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, PAGE
from hyp.abi.sizes import FRAME_BUFFER, LARGEST_FRAME_BUFFER, MAX_GUESTS
from hyp.abi.trap import TRAP_BYTES
from hyp.control import Answer, Channel, ControlError, Handler, Refused, close_all, socketpair
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.events import DEBT, Wait, new_eventfd, new_notifier, new_wait
from hyp.fairness.timing import new_timing
from hyp.fairness.waking import KeptFair
from hyp.memory import Mapping, create_region
from hyp.monitor.contexts import Contexts
from hyp.monitor.domain import DEVICE_MODEL, Domain
from hyp.monitor.event_channels import Upcall
from hyp.monitor.machine import MACHINE, post_all_buffers
from hyp.monitor.vmm import MAIL, START_MACHINE, STOP_MACHINE, VMM, run
from hyp.offload.frame import PIECES_BYTES, FrameMemory
from hyp.paths import EMULATION_SLOTS
from hyp.ram import QueuePair, Ram, open_queue_pair, register, start_queue_pair

log = logging.getLogger(__name__)

QUEUES = ("sq", "scq", "rq", "rcq")


@dataclass(slots=True)
class Machine:
    """One guest's emulated NIC: its number in the loop, its pseudo-domain, and what its record points at."""

    number: int
    domain: Domain
    channel: Channel
    trap_fd: int
    answer_fd: int
    interrupt_fd: int
    interrupts: Upcall
    answers: Upcall
    ram: Ram | None = None
    pair: QueuePair | None = None
    started: bool = False
    keep: list[Any] = field(default_factory=list)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _memory(entries: int) -> int:
    """RAM of a device model, in bytes: page 0, four queues, a buffer for each slot of the send and the receive queue."""
    per_slot = (DESC_BYTES, CQE_BYTES, DESC_BYTES, CQE_BYTES, LARGEST_FRAME_BUFFER, FRAME_BUFFER)
    return PAGE + sum(_pages(entries * size) for size in per_slot)


class Emulation:
    """All emulated NICs of a topology."""

    def __init__(
        self,
        contexts: Contexts,
        platform: Mapping,
        calls: Callable[[Domain], dict[str, Handler]],
        hold: Callable[[str, int], Awaitable[None]],
        traced: Callable[[Engine, Wait], None],
    ) -> None:
        """`calls`: the hypercalls that a domain has; `hold`: gives the keeper a region to hold; `traced`: is told of the loop."""
        self._contexts, self._platform, self._calls, self._hold, self._traced = contexts, platform, calls, hold, traced
        self._machines: dict[int, Machine] = {}
        self._attaching: set[int] = set()
        self._free = list(range(MAX_GUESTS))
        self._starting: asyncio.Task[None] | None = None
        self._engine: Engine | None = None

    # -- the loop --

    async def _start(self) -> None:
        """Start the loop. Its counters are held like a domain's."""
        topology, backing = self._contexts.topology, self._contexts.backing
        self._region = create_region(backing, topology, "hyp", "counters", COUNTERS_BYTES)
        readonly = self._region.readonly_fd()
        try:
            await self._hold("hyp.counters", readonly)
        finally:
            os.close(readonly)
        self._counters = CounterPage(self._region.map())
        self._upcall = Upcall()
        engine = Engine("vmm", os.dup(self._upcall.epoll.fileno()))
        self._records = np.zeros(MAX_GUESTS, MACHINE)
        self._vmm = np.zeros(1, VMM)
        self._debts, self._notifier = np.zeros(MAX_GUESTS, DEBT), new_notifier(self._platform)
        self._timing = new_timing()
        self._wait = new_wait(engine.epoll, self._platform.address)
        self._traced(engine, self._wait)
        KeptFair(self._notifier)
        self._frame, self._to = FrameMemory(), np.zeros(PIECES_BYTES // 8, np.int64)
        row = self._vmm[0]
        row["machines"], row["wait"] = self._records.ctypes.data, self._wait.ctypes.data
        row["mailbox"], row["platform"] = engine.mailbox, self._platform.address
        row["counts"], row["counts_shared"] = self._counters.row("loop")
        engine.start(run, int(self._vmm.ctypes.data), mail=MAIL)
        self._engine = engine

    async def _running(self) -> Engine:
        """The loop's engine, started at the first call."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        await asyncio.shield(self._starting)
        assert self._engine is not None
        return self._engine

    def threads(self) -> dict[str, int]:
        """Kernel thread id of the loop, by name; empty if there is none."""
        return {self._engine.name: self._engine.thread_id} if self._engine else {}

    def pin(self, cpus: list[int]) -> None:
        """Let the loop run on these CPUs only."""
        if self._engine is not None:
            self._engine.pin(cpus)

    async def stop(self) -> None:
        """End the loop and let go of everything (the topology ends)."""
        for domid in list(self._machines):
            await self.detach(domid)
        if self._engine is not None:
            await self._engine.stop()
            self._upcall.close()
            self._region.close()

    # -- machines --

    async def attach(self, guest: Domain, interrupts: Upcall, answers: Upcall, queues: dict[str, int]) -> Answer:
        """Give `guest` an emulated NIC whose queues (addresses and sizes, checked) are where `queues` says.

        The answer has its MAC address; fds: trap page, the eventfd that signals a trap. Refused if the guest has one, or the
        toolstack says no.
        """
        domid = guest.domid
        if domid in self._machines or domid in self._attaching:
            raise Refused("EBUSY", f"{guest.who} has an emulated device already")
        self._attaching.add(domid)
        try:
            await self._contexts.policy_for(guest, emulated=True)  # before anything is made for it
            self._must_live(guest)
            await self._running()
            for upcall in (interrupts, answers):
                await upcall.paid()
            self._must_live(guest)
            for upcall in (interrupts, answers):
                upcall.check()
            machine, pair = await self._open(guest, interrupts, answers, queues)
        finally:
            self._attaching.discard(domid)
        return Answer(
            {"mac": pair.mac, "features": int(EMULATION_OFFERS)}, fds=[guest.region("traps", TRAP_BYTES).fd, machine.trap_fd]
        )

    async def start(self, guest: Domain, features: int) -> None:
        """Serve the guest's emulated NIC from now on. ENODEV if it has none, EBUSY if that has been started.

        `features`: what the guest accepted. So does the device model on the NIC, which then does for it what the guest does not.
        """
        domid, name = guest.domid, guest.name
        machine = self._machines.get(domid)
        if machine is None:
            raise Refused("ENODEV", f"domain {domid} ({name}) has no emulated device")
        if machine.started:
            raise Refused("EBUSY", f"domain {domid} ({name}): its emulated device has been started already")
        machine.started = True
        ram, pair, record = machine.ram, machine.pair, self._records[machine.number : machine.number + 1]
        assert ram is not None
        assert pair is not None
        engine = await self._running()
        try:
            await start_queue_pair(machine.channel, ram, pair, features)
            self._must_live(guest)
            record[0]["features"] = features
            post_all_buffers(int(record.ctypes.data))
            await engine.post(START_MACHINE, machine=machine.number)
            self._must_live(guest)
        except BaseException:
            await self.detach(domid)
            raise

    def _must_live(self, guest: Domain) -> None:
        """ESRCH if the guest has ended while something was waited for."""
        if guest.dying:
            raise Refused("ESRCH", f"{guest.who} has ended")

    async def _open(self, guest: Domain, interrupts: Upcall, answers: Upcall, queues: dict[str, int]) -> tuple[Machine, QueuePair]:
        """Everything of a machine but its start."""
        entries = min(max(queues["sq_size"], queues["rq_size"]), EMULATION_SLOTS)
        machine = self._pseudo_domain(guest, interrupts, answers, _memory(entries))
        try:
            self._records[machine.number : machine.number + 1] = 0
            # First what the guest can make fail, which costs little
            self._upcall.deliver(machine.trap_fd, guest.domid, answers)
            answers.deliver(machine.answer_fd, guest.domid)
            interrupts.deliver(machine.interrupt_fd, guest.domid)
            self._set_up(guest, machine, queues)
            pair = await self._connect(guest, machine, entries)
            # From here on nothing is waited for: the guest is there until it is in the table
            self._must_live(guest)
        except BaseException:
            await self._release(machine)
            raise
        self._machines[guest.domid] = machine
        return machine, pair

    def _pseudo_domain(self, guest: Domain, interrupts: Upcall, answers: Upcall, memory: int) -> Machine:
        if not self._free:
            raise Refused("ENOSPC", f"all {MAX_GUESTS} emulated devices are taken")
        domain = Domain(guest.domid, f"{guest.name}{DEVICE_MODEL}", guest.topology, guest.backing, memory, device_model=True)
        domain.upcalls.append(self._upcall)
        near, far = socketpair()
        domain.channel = Channel(near, self._calls(domain), name=domain.name)
        channel = Channel(far, name="the hypervisor")
        fds = (new_eventfd(), new_eventfd(), new_eventfd())
        return Machine(self._free.pop(0), domain, channel, *fds, interrupts, answers)

    async def _connect(self, guest: Domain, machine: Machine, entries: int) -> QueuePair:
        """Open the device model's own NIC context, as a driver does; `start` brings it up, when features have been agreed on."""
        channel = machine.channel
        info = await channel.call("domain_info")
        ram = Ram(Mapping.adopt(info.fds[0], machine.domain.memory))
        close_all(info.fds[1:])
        uplink = self._counters.row(f"uplink{guest.domid}:{guest.name}")
        pair = await open_queue_pair(channel, 0, entries, uplink[0])
        machine.ram, machine.pair = ram, pair
        row = self._records[machine.number]
        row["qp"], row["own_ram"], row["uplink"], row["uplink_shared"] = pair.address, ram.address, *uplink
        row["frame"], row["to"] = self._frame.address, self._to.ctypes.data
        row["wait"], row["domid"] = self._wait.ctypes.data, guest.domid
        row["send_wanted"] = row["receive_wanted"] = 1
        row["max_frame"], row["to_host"] = self._contexts.nic.max_frame, self._contexts.nic.to_host
        for pool, size, writable in (("tx_pool", LARGEST_FRAME_BUFFER, False), ("rx_pool", FRAME_BUFFER, True)):
            row[pool] = ram.allocate(entries * size)
            await register(channel, int(row[pool]), entries * size, writable=writable)
        return pair

    def _set_up(self, guest: Domain, machine: Machine, queues: dict[str, int]) -> None:
        """Fill in the guest's side of the machine's record."""
        guest_ram, page = guest.ram.map(), guest.region("traps", TRAP_BYTES).map()
        machine.keep += [guest_ram, page]
        row = self._records[machine.number]
        for name, value in queues.items():
            row[name] = value + guest_ram.address if name in QUEUES else value
        row["page"], row["ram"], row["ram_bytes"] = page.address, guest_ram.address, guest.memory
        row["answer_fd"], row["interrupt_fd"] = machine.answer_fd, machine.interrupt_fd
        self._debts[machine.number] = 0
        row["timing"] = self._timing.ctypes.data
        row["notifier"], row["debt"] = self._notifier.ctypes.data, self._debts[machine.number :].ctypes.data
        row["counts"], row["counts_shared"] = self._counters.row(f"vmm{guest.domid}:{guest.name}")

    async def detach(self, domid: int) -> None:
        """Take a guest's emulated NIC away, if it has one: the loop lets go first, then the NIC, then memory goes."""
        machine = self._machines.get(domid)
        if machine is None or self._engine is None:
            return
        await self._engine.post(STOP_MACHINE, machine=machine.number)
        if self._machines.pop(domid, None) is machine:
            await self._release(machine)

    async def _release(self, machine: Machine) -> None:
        """Let go of everything that a machine has; the loop does not serve it."""
        domain = machine.domain
        domain.dying = True
        try:
            await self._contexts.close_contexts(domain)
        except ControlError as error:
            log.warning("contexts of %s: %s", domain.name, error)
        if domain.iommu is not None:
            domain.iommu.clear()
            await self._contexts.nic.shootdown()
        answers, interrupts = machine.answers, machine.interrupts
        for upcall, fd, holder in (
            (self._upcall, machine.trap_fd, answers),
            (answers, machine.answer_fd, answers),
            (interrupts, machine.interrupt_fd, interrupts),
        ):
            upcall.forget(fd, holder, partial(holder.close_eventfd, fd))
        if machine.pair is not None:
            close_all([int(machine.pair.record[0]["doorbell_fd"])])
        machine.ram, machine.pair = None, None
        machine.keep.clear()
        machine.channel.close()
        assert domain.channel is not None
        domain.channel.close()
        domain.upcalls.clear()  # the loop's own, which others use
        domain.close()
        self._free.append(machine.number)
