"""The Dom0 process: driver domain (uplink, bridge, a vif per split guest) and toolstack."""

import asyncio
import logging
from typing import Any

from dom0.build import EngineState
from dom0.engine import MAIL, run
from dom0.toolstack import Toolstack
from dom0.vifs import Vif, create_nodes
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.nic import PAGE
from hyp.abi.platform import PLATFORM_BYTES
from hyp.abi.sizes import DOM0_BUFFERS
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.memory import Mapping
from hyp.paths import PATHS, Attachment
from hyp.process import Process, adopt_socket
from hyp.ram import Ram, open_queue_pair, register, start_queue_pair
from hyp.xenstore.client import XenstoreClient

log = logging.getLogger(__name__)


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
        self._hyp = process.hypercalls(handlers)
        self._vifs: dict[int, Vif] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        process.serve("threads", self.threads)
        process.serve("pin", lambda cpus: self._engine.pin(cpus))

    async def start(self) -> None:
        """Uplink first, then the guests' nodes; vifs connect as their guests come."""
        self._store = await XenstoreClient.open(adopt_socket(self._process.sockets["xenstore"]))
        await self._hyp.call("toolstack_ready")
        served = [guest for guest in self._config["guests"] if PATHS[guest["path"]].attachment is Attachment.VIF]
        for guest in served:
            await create_nodes(self._store, int(guest["domid"]), 0, str(guest["mac"]))
        await self._start_engine()
        for number, guest in enumerate(served, 1):
            vif = self._vifs[int(guest["domid"])] = Vif(self._hyp, self._store, self._state, self._counters, guest, number)
            task = asyncio.get_running_loop().create_task(self._serve(vif))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _start_engine(self) -> None:
        info = await self._hyp.call("domain_info")
        memory = int(info.value["memory"])
        ram = Ram(Mapping.adopt(info.fds[0], memory))
        self._counters = CounterPage(Mapping.adopt(info.fds[1], COUNTERS_BYTES))
        platform = Mapping.adopt(info.fds[2], PLATFORM_BYTES, writable=False)
        upcall = await self._hyp.call("upcall_create")
        number, epoll = int(upcall.value["upcall"]), upcall.fds[0]
        self._engine = Engine("dom0", epoll)
        domains = 1 + max((int(guest["domid"]) for guest in self._config["guests"]), default=0)
        self._state = EngineState(self._engine, number, epoll, platform, domains)
        entries = int(self._config["queue"])
        uplink_counts = self._counters.row("uplink")
        pair = await open_queue_pair(self._hyp, number, entries, uplink_counts[0])
        pool, rx_pool = ram.allocate(DOM0_BUFFERS * PAGE), ram.allocate(entries * PAGE)
        await register(self._hyp, pool, DOM0_BUFFERS * PAGE, writable=False)
        await register(self._hyp, rx_pool, entries * PAGE, writable=True)
        await start_queue_pair(self._hyp, ram, pair)
        counts = self._counters.row("bridge")
        self._state.configure(ram, pair, rx_pool, pool, counts, float(self._config["ageing_s"]), int(self._config["pause_us"]))
        self._state.post_receive_buffers()
        self._engine.start(run, self._state.address, mail=MAIL)
        await self._state.add_uplink(uplink_counts)

    async def _serve(self, vif: Vif) -> None:
        try:
            await vif.run()
        except Exception as error:  # one guest's vif; the others go on
            log.warning("vif of %s: %s", vif.name, error)

    def _domain_gone(self, domid: int) -> None:
        if domid in self._vifs:
            self._vifs[domid].gone.set()

    def threads(self) -> dict[str, int]:
        """Kernel thread ids of the data plane, by name."""
        return {self._engine.name: self._engine.thread_id}

    async def stop(self) -> None:
        """End the engine."""
        await self._engine.stop()


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be Dom0 until the keeper says stop."""
    domain = DriverDomain(process, config)
    await domain.start()
    process.ready()
    await process.stopped.wait()
    await domain.stop()
