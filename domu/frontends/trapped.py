"""The trapped front end: the guest drives an emulated NIC. The driver is the bypass driver, on the same queues; but every write
to a register traps, and the guest stands still until the hypervisor's device model has carried it out (hyp/abi/trap.py).
"""

import asyncio
import os
import select
from typing import TYPE_CHECKING, Any

import numpy as np

from domu.device import Device, new_device
from domu.frontends.bypass import BYPASS, KNOWN, OPERATIONS, post_all_buffers
from hyp import limits
from hyp.abi.nic import mac_to_int
from hyp.abi.sizes import FRAME_BUFFER
from hyp.abi.trap import TRAP_BYTES
from hyp.control import Channel
from hyp.events import new_eventfd, new_wait
from hyp.memory import Mapping
from hyp.ram import place_queues
from hyp.trap import VCPU
from hyp.verbs import QP

if TYPE_CHECKING:
    from domu.guest import Guest


class VirtualCpu:
    """What a trap needs: the trap page, and an upcall of its own for the answers."""

    def __init__(self, epoll: int, platform: int, counts: tuple[int, int], hyp: Channel) -> None:
        self.record, self._wait = np.zeros(1, VCPU), new_wait(epoll, platform)
        self.record[0]["wait"] = self._wait.ctypes.data
        self.record[0]["counts"], self.record[0]["counts_shared"] = counts
        self._poll, self._wake = select.epoll.fromfd(epoll), new_eventfd()
        self._poll.register(self._wake, select.EPOLLIN | select.EPOLLET)
        hyp.closed.add_done_callback(self._lost)

    @property
    def address(self) -> int:
        return int(self.record.ctypes.data)

    def attach(self, page: Mapping, trap_fd: int) -> None:
        """Begin to trap."""
        self._page = page
        self.record[0]["page"], self.record[0]["trap_fd"] = page.address, trap_fd

    def _lost(self, _: "asyncio.Future[Any]") -> None:
        """The hypervisor is gone: nobody answers any more, and a guest that stands still must not for ever."""
        self.record[0]["lost"] = 1
        os.eventfd_write(self._wake, 1)


async def connect(guest: "Guest") -> list[Device]:
    """Place queues and pools in RAM, have a device emulated on them, post all receive buffers."""
    entries = int(guest.config["queue"])
    counts = guest.counters.row("device")
    answers = await guest.hyp.call("upcall_create")
    vcpu = VirtualCpu(answers.fds[0], int(guest.platform.address), counts, guest.hyp)
    qp = np.zeros(1, QP)
    qp[0]["sq_size"] = qp[0]["rq_size"] = entries
    qp[0]["counts"], qp[0]["trap"] = counts[0], vcpu.address
    places: dict[str, Any] = place_queues(guest.ram, qp[0])
    reply = await guest.hyp.call(
        "emulation_attach", interrupts=guest.upcall, answers=int(answers.value["upcall"]), **places,
        sq_size=entries, rq_size=entries,
    )  # fmt: skip
    page_fd, trap_fd = reply.fds
    vcpu.attach(Mapping.adopt(page_fd, TRAP_BYTES), trap_fd)
    features = KNOWN & int(guest.config["features"]) & int(reply.value["features"])
    await guest.hyp.call("emulation_start", features=features)
    front = np.zeros(1, BYPASS)
    record = front[0]
    record["qp"], record["ram"] = int(qp.ctypes.data), guest.ram.address
    for name in ("tx_pool", "rx_pool"):
        record[name] = guest.ram.allocate(entries * FRAME_BUFFER)
    scratch = np.zeros(entries * FRAME_BUFFER, np.uint8)
    record["scratch"] = scratch.ctypes.data
    mac = str(reply.value["mac"])
    device = new_device(OPERATIONS, int(front.ctypes.data), mac, mac_to_int(mac), FRAME_BUFFER, counts, guest.wait, features)
    device.keep += [qp, front, scratch, vcpu]
    # A trap waits for the hypervisor, whose end this thread must be able to notice
    with limits.told_of_threads("the thread that posts the first buffers"):
        await asyncio.get_running_loop().run_in_executor(None, post_all_buffers, device.address)
    return [device]
