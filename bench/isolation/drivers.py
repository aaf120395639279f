"""Front ends that do as they are told: what is posted, published and taken back is not looked at, whatever it breaks.

They work on what an honest front end has set up (domu/frontends/), so that the device is in service when the attack begins. All
have the same steps, so that an attack is written once for all paths: an *address* is guest-physical; a split driver grants the page
that it is in, whether there is one or not.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from bench.isolation import loops
from domu.device import Device
from domu.frontends.bypass import BYPASS
from domu.frontends.cdna import CDNA_FRONT
from domu.frontends.split_state import NETFRONT, RX_SLOTS, TX_SLOTS
from domu.guest import Guest
from hyp.abi.fragment import CSUM_BLANK, GSO_TCPV4
from hyp.abi.grant import GRANT_ENTRY, GTF_PERMIT_ACCESS, GTF_READONLY
from hyp.abi.netif import (
    EXTRA_FLAG_MORE,
    EXTRA_TYPE_GSO,
    GSO_TYPE_TCPV4,
    RX_REQUEST,
    RX_RESPONSE,
    TX_REQUEST,
    TX_RESPONSE,
    TXF_CSUM_BLANK,
    TXF_EXTRA_INFO,
    TXF_MORE_DATA,
)
from hyp.abi.nic import CQE, DESC, DESC_MORE, DESC_SIGNALED, PAGE, RQ_PROD, SQ_PROD
from hyp.abi.ring import FIRST_SLOT, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hyp.abi.sizes import FRAME_BUFFER
from hyp.ring import RING
from hyp.trap import VCPU
from hyp.verbs import QP

Call = Callable[..., dict[str, Any] | None]
"""A hypercall, by name and arguments: its value, or None if it was refused."""
WRAP: Final = 1 << 32
TO_BE_CUT: Final = (CSUM_BLANK | GSO_TCPV4) >> 32
"""In a descriptor's flags."""


def array_at(address: int, dtype: Any, count: int) -> Any:
    """Memory of this process by its address, as an array."""
    size = np.dtype(dtype).itemsize * count
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype)


def signal(eventfd: int) -> None:
    """Notify; one that is full, by an attack of ours, says so already."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd, 1)


class HostileDriver(Protocol):
    """The steps."""

    slots: int
    memory: Any
    """All of the guest's RAM, as bytes."""
    job: Any
    """The JOB record of loops on its queue."""

    def send(self, addr: int, length: int, *, more: bool = False, segment: int = 0, flags: int = 0) -> None:
        """Post the next fragment, or frame, to send. `segment`: it is to be cut into segments of so many bytes."""

    def post(self, addr: int, length: int = PAGE) -> None:
        """Post a receive buffer. On split, where a buffer is a page, `length` means nothing."""

    def publish(self) -> None:
        """Let the device see what was posted, and notify it."""

    def notify(self) -> None:
        """Notify it, of nothing."""

    def room(self) -> int:
        """Take what the device says it has sent; how many more fragments can be posted."""

    def drain(self) -> int:
        """Take what was received, and post no buffers for it. How many fragments."""

    def ask(self) -> None:
        """Ask to be notified of the next frame received."""

    def claim(self, ahead: int, *, receives: bool = False) -> None:
        """Publish a producer index that is `ahead` of the truth (negative: behind it)."""

    def forge(self, seed: int) -> None:
        """Write nonsense where the device writes its answers."""

    def rewrite(self, seed: int) -> None:
        """Change what is published already."""

    def revoke(self) -> None:
        """Take the device's right to the pages of both pools away, while it uses them, and give it back."""

    def shared(self) -> list[tuple[int, int]]:
        """[(guest-physical address, bytes)] of rings, queues and pools: what is shared with the device."""

    def page(self, number: int) -> int:
        """Address of a page of the send pool."""

    def buffer(self, number: int) -> int:
        """Address of a receive buffer."""

    def write(self, addr: int, content: bytes) -> None:
        """Put bytes into RAM."""


class _Memory:
    """What all have: RAM, and a job for the loops."""

    tx_pool: int
    rx_pool: int
    slots: int

    def __init__(self, guest: Guest, device: Device, call: Call) -> None:
        self.guest, self.device, self.call = guest, device, call
        self.ram, self.size = guest.ram.address, guest.ram.size
        self.memory = array_at(self.ram, np.uint8, self.size)
        self.counts = np.zeros(128, np.int64)
        self.job = np.zeros(1, loops.JOB)
        row = self.job[0]
        row["ram"], row["counts"], row["seed"] = self.ram, self.counts.ctypes.data, 0x1234_5678_9ABC_DEF1

    @property
    def pages(self) -> int:
        """Whole pages of either pool."""
        return self.slots * FRAME_BUFFER // PAGE

    def page(self, number: int) -> int:
        return self.tx_pool + number % self.pages * PAGE

    def buffer(self, number: int) -> int:
        return self.rx_pool + number % self.pages * PAGE

    def write(self, addr: int, content: bytes) -> None:
        self.memory[addr : addr + len(content)] = np.frombuffer(content, np.uint8)


class QueueDriver(_Memory):
    """Of the paths with a queue pair: native, bypass, trapped."""

    def __init__(self, guest: Guest, device: Device, call: Call, front: Any = BYPASS) -> None:
        super().__init__(guest, device, call)
        self.front = array_at(int(device.record[0]["front"]), front, 1)[0]
        self.q = array_at(int(self.front["qp"]), QP, 1)[0]
        self._qp = int(self.front["qp"])
        self.slots = int(self.q["sq_size"])
        self.tx_pool, self.rx_pool = int(self.front["tx_pool"]), int(self.front["rx_pool"])
        self.sq, self.rq = (array_at(int(self.q[name]), DESC, self.slots) for name in ("sq", "rq"))
        self.scq, self.rcq = (array_at(int(self.q[name]), CQE, self.slots) for name in ("scq", "rcq"))
        if int(self.q["trap"]):  # there is no doorbell page: what a trap is written to stands in for it
            self.q["doorbell"] = array_at(int(self.q["trap"]), VCPU, 1)[0]["page"]
            self.q["doorbell_fd"] = array_at(int(self.q["trap"]), VCPU, 1)[0]["trap_fd"]
        row = self.job[0]
        row["qp"], row["tx_pool"], row["rx_pool"] = self._qp, self.tx_pool, self.rx_pool
        self._keys = {self.tx_pool: 1, self.rx_pool: 2}  # the front end's own, in its order

    def send(self, addr: int, length: int, *, more: bool = False, segment: int = 0, flags: int = 0) -> None:
        index = int(self.q["sq_prod"])
        offload = TO_BE_CUT if segment else 0
        word = flags | offload | (DESC_MORE if more else DESC_SIGNALED)
        self.sq[index % self.slots] = (addr % (1 << 64), length % WRAP, word, segment)
        self.q["sq_prod"] = (index + 1) % WRAP
        self.q["signaled"] = (int(self.q["signaled"]) + (not more)) % WRAP

    def post(self, addr: int, length: int = PAGE) -> None:
        index = int(self.q["rq_prod"])
        self.rq[index % self.slots] = (addr % (1 << 64), length % WRAP, 0, 0)
        self.q["rq_prod"] = (index + 1) % WRAP

    def publish(self) -> None:
        loops.ring(self._qp)

    def notify(self) -> None:
        signal(int(self.q["doorbell_fd"]))

    def room(self) -> int:
        return int(loops.room(self._qp))

    def drain(self) -> int:
        return int(loops.drain(self._qp))

    def ask(self) -> None:
        loops.ask(self._qp)

    def claim(self, ahead: int, *, receives: bool = False) -> None:
        index = int(self.q["rq_prod" if receives else "sq_prod"])
        loops.write_index(self._qp, RQ_PROD if receives else SQ_PROD, (index + ahead) % WRAP)

    def forge(self, seed: int) -> None:
        noise = np.random.default_rng(seed)
        for queue in (self.scq, self.rcq):
            queue.view(np.uint8)[:] = np.frombuffer(noise.bytes(queue.nbytes), np.uint8)

    def rewrite(self, seed: int) -> None:
        noise = np.random.default_rng(seed)
        for queue in (self.sq, self.rq):
            k = noise.integers(self.slots)
            queue[k : k + 1].view(np.uint8)[:] = np.frombuffer(noise.bytes(queue.itemsize), np.uint8)

    def shared(self) -> list[tuple[int, int]]:
        places = [(int(self.q[name]) - self.ram, self.slots * DESC.itemsize) for name in ("sq", "scq", "rq", "rcq")]
        return [*places, (self.tx_pool, self.pages * PAGE), (self.rx_pool, self.pages * PAGE)]

    def revoke(self) -> None:
        for pool, writable in ((self.tx_pool, False), (self.rx_pool, True)):
            self.call("mr_deregister", key=self._keys[pool])
            length = -(-self.slots * FRAME_BUFFER // PAGE) * PAGE
            if (reply := self.call("mr_register", addr=pool, length=length, writable=writable)) is not None:
                self._keys[pool] = int(reply["key"])


class CdnaDriver(QueueDriver):
    """Its requests go through the hypervisor; `rewrite` and `forge` go past it."""

    def __init__(self, guest: Guest, device: Device, call: Call) -> None:
        super().__init__(guest, device, call, CDNA_FRONT)
        self._front = int(device.record[0]["front"])

    def send(self, addr: int, length: int, *, more: bool = False, segment: int = 0, flags: int = 0) -> None:
        offload = TO_BE_CUT if segment else 0
        word = (length % WRAP) | (flags | offload | (DESC_MORE if more else 0)) << 32 | segment << 48
        loops.cdna_enqueue(self._front, _signed(addr), _signed(word), 0)

    def post(self, addr: int, length: int = PAGE) -> None:
        loops.cdna_enqueue(self._front, _signed(addr), length % WRAP, 1)


def _signed(word: int) -> int:
    word %= 1 << 64
    return word - (1 << 64) if word >> 63 else word


class RingDriver(_Memory):
    """Of netif's rings."""

    def __init__(self, guest: Guest, device: Device, call: Call) -> None:
        super().__init__(guest, device, call)
        self.front = array_at(int(device.record[0]["front"]), NETFRONT, 1)[0]
        self.slots = TX_SLOTS
        self.tx_pool, self.rx_pool = int(self.front["tx_pool"]), int(self.front["rx_pool"])
        self.tx, self.rx = (array_at(int(self.front[name]), RING, 1)[0] for name in ("tx_ring", "rx_ring"))
        self.tx_words, self.rx_words = (array_at(int(ring["sring"]), "<u4", 16) for ring in (self.tx, self.rx))
        self.requests = array_at(int(self.tx["sring"]) + FIRST_SLOT, TX_REQUEST, TX_SLOTS)
        self.buffers = array_at(int(self.rx["sring"]) + FIRST_SLOT, RX_REQUEST, RX_SLOTS)
        self.tx_ref, self.rx_ref = int(self.front["tx_ref"]), int(self.front["rx_ref"])
        self.table = array_at(int(self.front["table"]), GRANT_ENTRY, self.rx_ref + RX_SLOTS)
        self.sent, self.posted = int(self.tx["req_prod_pvt"]), int(self.rx["req_prod_pvt"])
        self.job[0]["front"] = device.record[0]["front"]
        self.job[0]["tx_pool"], self.job[0]["rx_pool"] = self.tx_pool, self.rx_pool

    def grant(self, ref: int, addr: int, *, writable: bool) -> None:
        """Grant the page that an address is in, if there is one or not."""
        flags = GTF_PERMIT_ACCESS | (0 if writable else GTF_READONLY)
        self.table[ref] = (flags, 0, (addr // PAGE) % WRAP)

    def send(self, addr: int, length: int, *, more: bool = False, segment: int = 0, flags: int = 0) -> None:
        number = self.sent % TX_SLOTS
        self.grant(self.tx_ref + number, addr, writable=False)
        word = flags | (TXF_MORE_DATA if more else 0) | (TXF_EXTRA_INFO | TXF_CSUM_BLANK if segment else 0)
        self.requests[number] = (self.tx_ref + number, addr % PAGE, word, number, length % (1 << 16))
        self.sent = (self.sent + 1) % WRAP
        if segment:
            self.extra(EXTRA_TYPE_GSO, segment)

    def extra(self, kind: int, segment: int, *, more: bool = False) -> None:
        """The next slot is an extra info."""
        slot = self.requests[self.sent % TX_SLOTS : self.sent % TX_SLOTS + 1].view(np.uint8)
        slot[:8] = [kind, EXTRA_FLAG_MORE if more else 0, segment & 255, segment >> 8 & 255, GSO_TYPE_TCPV4, 0, 0, 0]
        self.sent = (self.sent + 1) % WRAP

    def granted_send(self, addr: int) -> int:
        """The reference by which the page of an address is granted for the next request."""
        number = self.sent % TX_SLOTS
        self.grant(self.tx_ref + number, addr, writable=False)
        return self.tx_ref + number

    def request(self, gref: int, offset: int, size: int, flags: int = 0, number: int = 0) -> None:
        """Any request, word by word."""
        self.requests[self.sent % TX_SLOTS] = (gref, offset, flags, number, size)
        self.sent = (self.sent + 1) % WRAP

    def post(self, addr: int, length: int = PAGE) -> None:
        number = self.posted % RX_SLOTS
        self.grant(self.rx_ref + number, addr, writable=True)
        self.buffers[number] = (number, 0, self.rx_ref + number)
        self.posted = (self.posted + 1) % WRAP

    def publish(self) -> None:
        self.tx_words[REQ_PROD // 4], self.rx_words[REQ_PROD // 4] = self.sent, self.posted
        self.tx["req_prod_pvt"] = self.tx["req_prod_pushed"] = self.sent
        self.rx["req_prod_pvt"] = self.rx["req_prod_pushed"] = self.posted
        self.notify()

    def notify(self) -> None:
        for name in ("tx_event_fd", "rx_event_fd"):
            signal(int(self.front[name]))

    def room(self) -> int:
        return TX_SLOTS - (self.sent - int(self.tx_words[RSP_PROD // 4])) % WRAP

    def drain(self) -> int:
        seen, taken = int(self.rx_words[RSP_PROD // 4]), int(self.rx["rsp_cons"])
        self.rx["rsp_cons"] = seen
        return (seen - taken) % WRAP

    def ask(self) -> None:
        self.rx_words[RSP_EVENT // 4] = (int(self.rx["rsp_cons"]) + 1) % WRAP

    def claim(self, ahead: int, *, receives: bool = False) -> None:
        words, index = (self.rx_words, self.posted) if receives else (self.tx_words, self.sent)
        words[REQ_PROD // 4] = (index + ahead) % WRAP
        self.notify()

    def forge(self, seed: int) -> None:
        noise = np.random.default_rng(seed)
        for words, slots in ((self.tx_words, self.requests.view(TX_RESPONSE)), (self.rx_words, self.buffers.view(RX_RESPONSE))):
            words[[RSP_PROD // 4, REQ_EVENT // 4, RSP_EVENT // 4]] = noise.integers(0, WRAP, 3, np.uint32)
            slots.view(np.uint8)[:] = np.frombuffer(noise.bytes(slots.nbytes), np.uint8)

    def rewrite(self, seed: int) -> None:
        noise = np.random.default_rng(seed)
        for slots in (self.requests, self.buffers):
            k = noise.integers(len(slots))
            slots[k : k + 1].view(np.uint8)[:] = np.frombuffer(noise.bytes(slots.itemsize), np.uint8)

    def revoke(self) -> None:
        pools = self.table[self.tx_ref :]
        sound = pools.copy()
        sound["flags"] &= np.uint16(GTF_PERMIT_ACCESS | GTF_READONLY)
        pools[:] = np.zeros(1, GRANT_ENTRY)
        pools[:] = sound

    def shared(self) -> list[tuple[int, int]]:
        rings = [(int(ring["sring"]) - self.ram, PAGE) for ring in (self.tx, self.rx)]
        return [*rings, (self.tx_pool, TX_SLOTS * PAGE), (self.rx_pool, RX_SLOTS * PAGE)]


def driver_for(guest: Guest, device: Device, call: Call) -> "QueueDriver | RingDriver":
    """The one for a device of the guest's, one for each of its queues, on the guest's path."""
    if guest.config["path"] == "split":
        return RingDriver(guest, device, call)
    return (CdnaDriver if guest.config["path"] == "cdna" else QueueDriver)(guest, device, call)
