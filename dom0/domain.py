"""The Dom0 process: driver domain (uplink, bridge, a vif per split guest) and toolstack.

One that was started in the place of a dead one (docs/faults.md) finds the guests' nodes in the store. It makes their devices
anew, as a toolstack does with a device that nobody serves; front ends that know what that means reconnect
(domu/frontends/split_follow.py). Until all that were connected have, or RECONNECT_S have passed, no frame moves in its engine:
one for a guest that has yet to come back would be dropped. What it must not do again is what the guests have from the dead one:
their homes, and that xenstored knows them."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from dom0.build import EngineState
from dom0.engine import MAIL, run
from dom0.rate import configured_rate
from dom0.state import UPLINK
from dom0.toolstack.authority import Toolstack
from dom0.toolstack.libxl import create_dom0, create_domain, create_vif, destroy_domain, destroy_vif, renew_vif, vm_path
from dom0.toolstack.moves import Moves
from dom0.vifs import Cause, Vif
from hyp import lost_memory
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.nic import PAGE
from hyp.abi.platform import PLATFORM_BYTES
from hyp.abi.sizes import DOM0_BUFFERS, DOM0_SCRATCH
from hyp.control import close_all
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.fairness.waking import KeptFair
from hyp.memory import Mapping
from hyp.paths import PATHS, Attachment
from hyp.process import Process
from hyp.ram import Ram, open_queue_pair, register, start_queue_pair
from hyp.trace.points import TracePoints
from hyp.upcall import ControlUpcall
from hyp.xenstore.client import XenstoreClient

log = logging.getLogger(__name__)

UPLINK_TAKES = SG | CSUM | TSO4 | TSO6
"""Features of the NIC's that the uplink accepts."""
LOOK_S = 0.2
"""How often to look whether the engine has taken a port out of service, which it can't tell."""
RECONNECT_S = 2.0
"""How long nothing moves, at most, in a Dom0 that was started again: for a guest that was connected and has not come back yet."""


def _is_split(guest: dict[str, Any]) -> bool:
    """True for a guest that has a vif."""
    return PATHS[str(guest["path"])].attachment is Attachment.VIF


class DriverDomain:
    """Dom0's devices and their set-up."""

    def __init__(self, process: Process, config: dict[str, Any]) -> None:
        self._process, self._config = process, config
        self._toolstack = Toolstack(config["guests"])
        handlers = {
            "context_authorize": self._toolstack.context_authorize,
            "emulation_authorize": self._toolstack.emulation_authorize,
            "domain_gone": self._domain_gone,
        }
        self._trace = TracePoints(process)
        self._hyp = process.hypercalls(handlers)
        self._domains: dict[int, str] = {}  # domid → its /vm path
        self._vifs: dict[int, tuple[Vif, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moves: Moves | None = None  # none can begin before all are up
        self._up = asyncio.Event()
        self._burials: dict[int, asyncio.Task[None]] = {}  # of domains of which the hypervisor has said that they are gone
        process.serve("threads", self.threads)
        process.serve("domain_again", self.domain_again)
        process.serve("pin", lambda cpus: self._engine.pin(cpus))

    async def start(self) -> None:
        """The guests' nodes first, so that each finds them; then the uplink; vifs connect as their guests come."""
        self._store = await XenstoreClient.lasting(self._process.store_socket)
        await self._hyp.call("toolstack_ready")
        await create_dom0(self._store)
        served = [guest for guest in self._config["guests"] if _is_split(guest)]
        # A port for each guest, as any may become split; those that are come first, so that the engine looks at no others
        order = sorted(self._config["guests"], key=lambda guest: guest not in served)
        self._ports = {int(guest["domid"]): number for number, guest in enumerate(order, UPLINK + 1)}
        again = int(self._config.get("restarts", 0)) > 0
        if again:
            guests = await self._find_guests()
        else:
            guests = self._config["guests"]
            for guest in guests:
                await self._create(guest)
        await self._start_engine({int(guest["domid"]): self._ports[int(guest["domid"])] for guest in served}, held=again)
        if again:
            await self._reconnect(guests)
        else:
            for guest in filter(_is_split, guests):
                self._serve(guest)
        self._spawn(self._check_ports())
        self._moves = Moves(self._hyp, self._state, self._toolstack, self)
        for name, handler in self._moves.handlers().items():
            self._process.serve(name, handler)
        self._up.set()

    def _serve(self, guest: dict[str, Any], *, routed: bool = True) -> Vif:
        number = self._ports[int(guest["domid"])]
        most = int(self._config["max_queues"])
        vif = Vif(self._hyp, self._store, self._state, self._counters, guest, number, most, routed=routed)
        self._vifs[vif.who.domid] = vif, self._spawn(vif.run())
        return vif

    # -- a guest that changes its path (dom0/toolstack/moves.py) --

    async def make_vif(self, domid: int) -> Vif:
        """The nodes of a guest's device, and its vif, which gets no frames before it is given the guest's address."""
        guest = self._toolstack.guest(domid)
        self._state.admit(self._ports[domid], str(guest["mac"]), trunk=bool(guest["trunk"]))
        vif = self._serve(guest, routed=False)
        await create_vif(self._store, domid, 0, str(guest["mac"]), configured_rate(guest["rate"]) if guest["rate"] else None)
        return vif

    async def take_vif(self, domid: int) -> None:
        """Take it away, with its nodes."""
        vif, life = self._vifs.pop(domid)
        vif.wake(Cause.GONE)
        await asyncio.wait({life})
        await destroy_vif(self._store, domid, 0)

    def vif(self, domid: int) -> Vif:
        """The vif that a guest has."""
        return self._vifs[domid][0]

    def vif_port(self, domid: int) -> int:
        """The bridge's port of the vif that a guest has, or would have."""
        return self._ports[domid]

    def uplink_port(self) -> int:
        """The bridge's port to the NIC."""
        return UPLINK

    async def _find_guests(self) -> list[dict[str, Any]]:
        """The guests that a dead Dom0 has left, those that live; what there is of others is removed."""
        found = []
        for guest in self._config["guests"]:
            domid = int(guest["domid"])
            vm = await vm_path(self._store, domid)
            if domid in self._config["gone"] or vm is None:
                await destroy_domain(self._store, domid, vm)
            else:
                self._domains[domid] = vm
                found.append(guest)
        return found

    async def _reconnect(self, guests: list[dict[str, Any]]) -> None:
        """Make the guests' devices anew; the engine goes on once those that were connected are again."""

        async def renew(guest: dict[str, Any]) -> None:
            domid = int(guest["domid"])
            in_use = await renew_vif(self._store, domid, 0, str(guest["mac"]))
            vif = self._serve(guest)
            if in_use:
                await vif.connected.wait()

        waiting = [self._spawn(renew(guest)) for guest in guests if _is_split(guest)]
        if waiting:
            await asyncio.wait(waiting, timeout=RECONNECT_S)
        await self._state.go()

    async def _create(self, guest: dict[str, Any]) -> None:
        """What xl does before a domain runs: its nodes, its device's, and its introduction to xenstored."""
        domid = int(guest["domid"])
        self._domains[domid] = await create_domain(self._store, guest)
        if _is_split(guest):
            await create_vif(self._store, domid, 0, str(guest["mac"]), configured_rate(guest["rate"]) if guest["rate"] else None)
        await self._store.introduce(domid)

    def _spawn(self, what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s", error, exc_info=error)

    async def _check_ports(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for vif, _ in self._vifs.values():
                vif.check_port()

    async def _start_engine(self, ports: dict[int, int], *, held: bool) -> None:
        info = await self._hyp.call("domain_info")
        memory = int(info.value["memory"])
        ram = Ram(Mapping.adopt(info.fds[0], memory))
        self._counters = CounterPage(Mapping.adopt(info.fds[1], COUNTERS_BYTES))
        platform = Mapping.adopt(info.fds[2], PLATFORM_BYTES, writable=False)
        upcall = await self._hyp.call("upcall_create")
        number, epoll = int(upcall.value["upcall"]), upcall.fds[0]
        self._engine = Engine("dom0", epoll)
        domains = 1 + max((int(guest["domid"]) for guest in self._config["guests"]), default=0)
        self._state = EngineState(self._engine, number, epoll, platform, domains, held=held)
        self._trace.add(self._engine, self._state.waiting)
        KeptFair(self._state.notifier)
        control = await self._hyp.call("upcall_create")
        self._state.control = ControlUpcall(int(control.value["upcall"]), control.fds[0], rests=True)
        entries = int(self._config["queue"])
        uplink_counts = self._counters.row("uplink")
        pair = await open_queue_pair(self._hyp, number, entries, uplink_counts[0])
        pool, rx_pool, scratch = (ram.allocate(pages * PAGE) for pages in (DOM0_BUFFERS, entries, DOM0_SCRATCH))
        await register(self._hyp, pool, DOM0_BUFFERS * PAGE, writable=False)
        await register(self._hyp, rx_pool, entries * PAGE, writable=True)
        features = await start_queue_pair(self._hyp, ram, pair, UPLINK_TAKES)
        if features != UPLINK_TAKES:  # netback relies on it: frames go to the NIC as they came
            raise RuntimeError(f"the NIC offers {features:#x}, and the uplink needs {UPLINK_TAKES:#x}")
        counts = self._counters.row("bridge")
        limits = {name: int(self._config[name]) for name in ("pause_us", "mtu", "storm_pps")}
        self._state.configure(
            ram, pair, rx_pool, pool, scratch, counts, float(self._config["ageing_s"]), **limits, to_host=self._config["to_host"]
        )
        for guest in self._config["guests"]:
            self._state.add_guest(str(guest["mac"]), ports.get(int(guest["domid"]), UPLINK), trunk=bool(guest["trunk"]))
        self._state.add_station(str(self._config["wire"]), UPLINK)
        self._state.post_receive_buffers()
        self._engine.start(run, self._state.address, mail=MAIL)
        await self._state.add_uplink(uplink_counts, features)

    def _domain_gone(self, domid: int) -> None:
        self._burials[domid] = self._spawn(self._bury(domid))

    async def _bury(self, domid: int) -> None:
        """A guest's domain is gone: close its vif, then remove its nodes, as xl does."""
        if self._moves is not None:
            await self._moves.gone(domid)
        if domid in self._vifs:
            vif, life = self._vifs.pop(domid)
            vif.wake(Cause.GONE)
            await asyncio.wait({life})
        if domid in self._domains:
            await destroy_domain(self._store, domid, self._domains.pop(domid))

    async def domain_again(self, domid: int) -> None:
        """A guest's domain is gone, and there is going to be one of the same number: its nodes, and its vif if it is split."""
        await self._up.wait()
        close_all((await self._hyp.call("domain_info")).fds)  # whatever it had to say of that has come before the answer
        if (burial := self._burials.pop(domid, None)) is not None:
            await asyncio.wait({burial})
        await self._bury(domid)
        guest = self._toolstack.guest(domid)
        await self._create(guest)
        if _is_split(guest):
            self._serve(guest)

    def threads(self) -> dict[str, int]:
        """Kernel thread ids of the data plane, by name."""
        return {self._engine.name: self._engine.thread_id}

    async def stop(self) -> None:
        """End the engine."""
        await self._engine.stop()


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be Dom0 until the keeper says stop."""
    lost_memory.guard()
    domain = DriverDomain(process, config)
    await domain.start()
    process.ready()
    await process.stopped.wait()
    await domain.stop()
