"""A guest: its RAM, its upcall, its network device by whichever path."""

import asyncio
import importlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from domu.device import Behind, Device, InUse
from domu.exchange import lose
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.platform import PLATFORM_BYTES
from hyp.control import Channel
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.events import new_wait
from hyp.memory import Mapping
from hyp.paths import CUT_OFF, IOMMU_FRONT_ENDS, PATHS, Attachment
from hyp.process import Process
from hyp.ram import Ram
from hyp.trace.points import TracePoints
from hyp.upcall import ControlUpcall
from hyp.xenstore.client import XenstoreClient

log = logging.getLogger(__name__)


class GuestQueue:
    """One queue of the guest's device: an engine, which alone drives it, and the upcall that wakes this one."""

    def __init__(self, name: str, number: int, platform: Mapping, upcall: int, epoll: int) -> None:
        self.number, self.upcall = number, upcall
        self.waiting = new_wait(epoll, platform.address)
        self.wait = int(self.waiting.ctypes.data)
        self.engine = Engine(name if number == 0 else f"{name}.{number}", epoll)

    def row(self, name: str) -> str:
        """What the queue's own row of counters is called."""
        return name if self.number == 0 else f"{name}.{self.number}"


class Guest:
    """What front ends and programs find in their domain. `upcall`, `wait`, `engine`: the first queue's, often the only one."""

    devices: list[Device]
    """One for each queue that front end and back end have agreed on."""
    queues: list[GuestQueue]

    def __init__(self, process: Process, config: dict[str, Any]) -> None:
        self.process, self.config = process, config
        self.devices, self.queues = [], []
        self._places: dict[int, list[tuple[int, int]]] = {}  # in RAM, of each device that has been connected
        self._store: XenstoreClient | None = None
        self._control_upcall: ControlUpcall | None = None
        self._trace = TracePoints(process)
        self.hyp: Channel = process.hypercalls({"daemon_lost": self._daemon_lost}, on_close=self._hypervisor_gone)
        process.serve("threads", self.threads)
        process.serve("time_registration", self.time_registration)
        process.serve("pin", self.pin)

    async def boot(self) -> None:
        """Get one's memory, platform page and upcall from the hypervisor."""
        reply = await self.hyp.call("domain_info")
        ram_fd, counters_fd, platform_fd = reply.fds
        self.domid = int(reply.value["domid"])
        self.ram = Ram(Mapping(ram_fd, int(reply.value["memory"])))
        self.counters = CounterPage(Mapping(counters_fd, COUNTERS_BYTES))
        self.platform = Mapping(platform_fd, PLATFORM_BYTES, writable=False)
        self.queues = [await self._open_queue(number) for number in range(int(self.config["queues"]))]
        for queue in self.queues:
            self._trace.add(queue.engine, queue.waiting)
        first = self.queues[0]
        self.upcall, self.wait, self.engine = first.upcall, first.wait, first.engine

    async def _open_queue(self, number: int) -> GuestQueue:
        upcall = await self.hyp.call("upcall_create")
        return GuestQueue(self.process.name, number, self.platform, int(upcall.value["upcall"]), upcall.fds[0])

    async def control_upcall(self) -> ControlUpcall:
        """Where events arrive that are for no loop."""
        if self._control_upcall is None:
            reply = await self.hyp.call("upcall_create")
            self._control_upcall = ControlUpcall(int(reply.value["upcall"]), reply.fds[0])
        return self._control_upcall

    async def connect(self) -> None:
        """Let the front end of this guest's path set the device up."""
        self.devices = await self.connect_on(str(self.config["path"]))

    async def connect_on(self, name: str) -> list[Device]:
        """Let the front end of a path set a device up, of which `release` gives everything back."""
        path = PATHS[name]
        through_iommu = path.attachment is Attachment.CONTEXT
        front_end = importlib.import_module(IOMMU_FRONT_ENDS[self.config["iommu"]] if through_iommu else path.front_end)
        with self.ram.noting() as places:
            try:
                devices: list[Device] = await front_end.connect(self)
            except InUse:  # whoever has it may write there
                raise
            except BaseException:
                for place, length in places:
                    self.ram.free(place, length)
                raise
        for device in devices:
            if device.behind is not None:
                self._places[id(devices[0].behind)] = places
        return devices

    async def release(self, behind: "Sequence[Behind | None]") -> None:
        """Close what is behind a device, queue by queue, and have its memory back."""
        places = self._places.pop(id(behind[0]), [])
        try:
            for one in reversed(behind):
                if one is not None:
                    await one.close()
        except InUse as error:
            log.warning("%s: so it stays as it is", error)
            return
        for place, length in places:
            self.ram.free(place, length)

    async def xenstore(self) -> XenstoreClient:
        """This guest's connection to the store."""
        if self._store is None:
            self._store = await XenstoreClient.lasting(self.process.store_socket)
        return self._store

    async def _daemon_lost(self, role: str) -> None:
        """A daemon is dead for good: the device is lost if it needs that one."""
        if PATHS[str(self.config["path"])].cut_off_by.get(role) != CUT_OFF:
            return
        log.warning("%s is dead for good: the network device is out of service", role)
        for queue, device in zip(self.running, self.devices, strict=True):
            await lose(device, queue.engine)

    def _hypervisor_gone(self) -> None:
        self._losing = asyncio.get_running_loop().create_task(self._daemon_lost("hyp"))

    @property
    def device(self) -> Device:
        """The first queue's, of who knows of one only."""
        return self.devices[0]

    @property
    def running(self) -> list[GuestQueue]:
        """The queues that have a device."""
        return self.queues[: len(self.devices)]

    async def time_registration(self, size: int, rounds: int) -> dict[str, list[int]]:
        """Register and deregister `size` bytes of RAM `rounds` times; the time of each call in ns, messages included."""
        times: dict[str, list[int]] = {"register": [], "deregister": []}
        for _ in range(rounds):
            start = time.monotonic_ns()
            reply = await self.hyp.call("mr_register", addr=0, length=size, writable=True)
            middle = time.monotonic_ns()
            await self.hyp.call("mr_deregister", key=reply.value["key"])
            times["register"].append(middle - start)
            times["deregister"].append(time.monotonic_ns() - middle)
        return times

    def threads(self) -> dict[str, int]:
        """Kernel thread ids of the data plane, by name."""
        return {queue.engine.name: queue.engine.thread_id for queue in self.running}

    def pin(self, cpus: list[int]) -> None:
        """Let the loops run on these CPUs only."""
        for queue in self.running:
            queue.engine.pin(cpus)
