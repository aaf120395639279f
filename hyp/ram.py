"""A domain's own view of its RAM: where things lie in it, and the set-up of a NIC context on it (control plane)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hyp.abi.features import NONE
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, PAGE
from hyp.control import Channel
from hyp.memory import Mapping
from hyp.verbs import QP


class Ram:
    """Guest-physical memory, given out in whole pages and never taken back (a device's pools live as long as the domain)."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping, self._next = mapping, PAGE  # page 0 stays unused, as a trap for forgotten addresses
        self.address, self.size = mapping.address, mapping.size

    def allocate(self, length: int) -> int:
        """Guest-physical address of `length` zeroed bytes, page-aligned. MemoryError names what is missing."""
        length = -(-length // PAGE) * PAGE
        if self._next + length > self.size:
            raise MemoryError(f"{length} bytes do not fit into the domain's {self.size} bytes of RAM ({self._next} in use)")
        gpa, self._next = self._next, self._next + length
        return gpa


@dataclass(slots=True)
class QueuePair:
    """A started NIC context: `record` is its QP, alive as long as this object."""

    context: int
    mac: str
    record: "np.ndarray[tuple[int], np.dtype[np.void]]"
    doorbell: Mapping
    offered: int  # features

    @property
    def address(self) -> int:
        return int(self.record.ctypes.data)


async def register(hyp: Channel, gpa: int, length: int, *, writable: bool) -> int:
    """Register [gpa, gpa + length), rounded up to pages, with the IOMMU; returns the key."""
    length = -(-length // PAGE) * PAGE
    return int((await hyp.call("mr_register", addr=gpa, length=length, writable=writable)).value["key"])


async def open_queue_pair(hyp: Channel, upcall: int, entries: int, counts: int, queue: int = 0) -> QueuePair:
    """Open a context for queues of `entries` descriptors; `counts` is the private counters row of the driver.

    `queue`: which of the device's queues it is; they are opened in their order.
    """
    reply = await hyp.call("context_open", upcall=upcall, queue=queue)
    doorbell_fd, eventfd = reply.fds
    value, doorbell = reply.value, Mapping.adopt(doorbell_fd, PAGE)
    pair = QueuePair(int(value["context"]), str(value["mac"]), np.zeros(1, QP), doorbell, int(value["features"]))
    record = pair.record[0]
    record["doorbell"], record["doorbell_fd"], record["counts"] = pair.doorbell.address, eventfd, counts
    record["sq_size"] = record["rq_size"] = entries
    return pair


def place_queues(ram: Ram, record: Any) -> dict[str, int]:
    """Find room for the four queues of a QP record, enter their addresses in it; returns their guest-physical addresses."""
    places = {}
    for name, size in (("sq", DESC_BYTES), ("scq", CQE_BYTES), ("rq", DESC_BYTES), ("rcq", CQE_BYTES)):
        places[name] = ram.allocate(size * int(record["sq_size"]))
        record[name] = ram.address + places[name]
    return places


async def start_queue_pair(hyp: Channel, ram: Ram, pair: QueuePair, known: int = NONE, *, registers: bool = True) -> int:
    """Place the queues in RAM, register them (unless the context is passed through), and let the NIC serve them.

    Of the features that the device offers those that the driver has `known` are accepted; returns them.
    """
    record = pair.record[0]
    places: dict[str, Any] = place_queues(ram, record)
    if registers:
        for name, gpa in places.items():
            length = (CQE_BYTES if name.endswith("cq") else DESC_BYTES) * int(record["sq_size"])
            await register(hyp, gpa, length, writable=name.endswith("cq"))
    sizes: dict[str, Any] = {"sq_size": int(record["sq_size"]), "rq_size": int(record["rq_size"])}
    features = known & pair.offered
    await hyp.call("context_start", context=pair.context, features=features, **places, **sizes)
    return features
