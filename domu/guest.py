"""A guest: its RAM, its upcall, its network device by whichever path."""

import importlib
import time
from typing import Any

import numpy as np

from domu.device import Device
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.platform import PLATFORM_BYTES
from hyp.control import Channel
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.events import WAIT
from hyp.memory import Mapping
from hyp.paths import IOMMU_FRONT_ENDS, PATHS, Attachment
from hyp.process import Process
from hyp.ram import Ram


class Guest:
    """What front ends and programs find in their domain."""

    device: Device

    def __init__(self, process: Process, config: dict[str, Any]) -> None:
        self.process, self.config = process, config
        self.hyp: Channel = process.hypercalls()
        process.serve("threads", self.threads)
        process.serve("time_registration", self.time_registration)
        process.serve("pin", lambda cpus: self.engine.pin(cpus))

    async def boot(self) -> None:
        """Get one's memory, platform page and upcall from the hypervisor."""
        reply = await self.hyp.call("domain_info")
        ram_fd, counters_fd, platform_fd = reply.fds
        self.domid = int(reply.value["domid"])
        self.ram = Ram(Mapping(ram_fd, int(reply.value["memory"])))
        self.counters = CounterPage(Mapping(counters_fd, COUNTERS_BYTES))
        self.platform = Mapping(platform_fd, PLATFORM_BYTES, writable=False)
        upcall = await self.hyp.call("upcall_create")
        self.upcall = int(upcall.value["upcall"])
        self._wait = np.zeros(1, WAIT)
        self._wait[0]["epoll"], self._wait[0]["platform"] = upcall.fds[0], self.platform.address
        self.wait = int(self._wait.ctypes.data)
        self.engine = Engine(self.process.name, upcall.fds[0])

    async def connect(self) -> None:
        """Let the front end of this guest's path set the device up."""
        path = PATHS[self.config["path"]]
        through_iommu = path.attachment is Attachment.CONTEXT
        front_end = importlib.import_module(IOMMU_FRONT_ENDS[self.config["iommu"]] if through_iommu else path.front_end)
        self.device = await front_end.connect(self)

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
        return {self.engine.name: self.engine.thread_id}
