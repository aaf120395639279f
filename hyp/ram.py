"""A domain's own view of its RAM: where things lie in it, and the set-up of a NIC context on it (control plane)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyp.abi.features import NONE
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, PAGE
from hyp.control import Channel
from hyp.memory import Mapping
from hyp.verbs import QP


class Ram:
    """Guest-physical memory, given out in whole pages. What is given back is given out again: the first place that is large."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping, self._next = mapping, PAGE  # page 0 stays unused, as a trap for forgotten addresses
        self.address, self.size = mapping.address, mapping.size
        self._free: dict[int, int] = {}  # place → length
        self._noted: list[tuple[int, int]] | None = None

    def view(self, gpa: int, length: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """The bytes of a place."""
        return self._mapping.array[gpa : gpa + length]

    @contextmanager
    def noting(self) -> Iterator[list[tuple[int, int]]]:
        """What is allocated in the block: (place, length) each."""
        self._noted, noted = [], self._noted
        try:
            yield self._noted
        finally:
            self._noted = noted

    def free(self, gpa: int, length: int) -> None:
        """Give back what `allocate` gave, with the same length."""
        self._free[gpa] = -(-length // PAGE) * PAGE

    def allocate(self, length: int) -> int:
        """Guest-physical address of `length` zeroed bytes, page-aligned. MemoryError names what is missing."""
        length = -(-length // PAGE) * PAGE
        gpa = next((place for place, there in sorted(self._free.items()) if there >= length), None)
        if gpa is not None:
            there = self._free.pop(gpa)
            if there > length:
                self._free[gpa + length] = there - length
            ctypes.memset(self.address + gpa, 0, length)
        elif self._next + length > self.size:
            raise MemoryError(f"{length} bytes do not fit into the domain's {self.size} bytes of RAM ({self._next} in use)")
        else:
            gpa, self._next = self._next, self._next + length
        if self._noted is not None:
            self._noted.append((gpa, length))
        return gpa


@dataclass(slots=True)
class QueuePair:
    """A started NIC context: `record` is its QP, alive as long as this object."""

    context: int
    mac: str
    record: "np.ndarray[tuple[int], np.dtype[np.void]]"
    doorbell: Mapping
    offered: int  # features
    keys: list[int] = field(default_factory=list)
    """Of what is registered with the IOMMU for it."""

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
            pair.keys.append(await register(hyp, gpa, length, writable=name.endswith("cq")))
    sizes: dict[str, Any] = {"sq_size": int(record["sq_size"]), "rq_size": int(record["rq_size"])}
    features = known & pair.offered
    await hyp.call("context_start", context=pair.context, features=features, **places, **sizes)
    return features
