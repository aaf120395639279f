"""The device interface: what a program in a guest sees of its network device, whichever path is behind it.

A front end fills in a DEVICE record; programs (compiled) call its operations by address, as a kernel calls through
`struct net_device_ops`. Frames are handed over in bursts of *fragments* (hyp/abi/fragment.py), most of which are a whole
frame; it is always visible who owns a buffer:

=====================  ==============================================================================================
`tx_reserve(d, want)`  up to `want` free send buffers; their addresses are in the tx burst. They stay the program's
`tx_commit(d, n)`      sends the first `n` of them, whole frames, whose words the program has put into the tx burst: lengths, MORE,
                       and the offloads that device and front end have agreed on (`features`). They are the device's
`tx_pending(d)`        number of buffers committed and not yet done with (sent, or dropped under a name)
`rx_poll(d, want)`     up to `want` of the oldest fragments received, whole frames, in the rx burst. They are the program's until
                       released; polling again before that shows the same frames
`rx_release(d, n)`     gives the oldest `n` back to the device
`arm(d, what)`         asks to be woken for what is in `what`; true if it is there already. RX: a frame received;
                       TX: room for a burst (woken when three quarters of what is pending is done); ALL: nothing is pending
=====================  ==============================================================================================

A send buffer is given at the place where a frame alone in it best begins, with `room` bytes from there on. A fragment of a chain
may have all of it: `whole_buffer` has its beginning, `fragment_room` its size. A frame with GSO takes up one buffer more than it
has fragments, which the program reserves and leaves out of what it commits. A chain has at most `max_fragments`.

Where there are more loops than cores, and so nobody may spin, a front end may let the other side sleep until half of its queue
waits: with fewer frames it is woken by `arm` or `tx_pending`, one of which comes before every sleep.

Every operation returns −1 once the device has failed (the other side broke the protocol, or is gone).

What is behind a device may change while the program runs (domu/exchange.py), always between two rounds of its loop. So a program
reads the record's fields whenever it needs them, or asks to be told (`Device.told`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hyp.abi.counters import DOMAIN_SWITCHES, INTERRUPTS
from hyp.abi.fragment import LENGTH_MASK
from hyp.abi.nic import MAX_FRAGMENTS
from hyp.abi.platform import DOMAIN_SWITCH_PRICE, INTERRUPT_PRICE
from hyp.atomics import call_operation, load64, record_view, store64
from hyp.events import most_of, sleep, tracer_of, wait_at
from hyp.kernels import Operation, compiled
from hyp.model.price import charge
from hyp.trace.ring import POSTED, RECEIVED, trace_burst
from hyp.verbs import qp_at, receives_completed, sends_completed

BURST = 64
RX, TX, ALL = 1, 2, 4
FAILED = -1

FRAME_BYTES = 16  # address, fragment word: i8 each

DEVICE = np.dtype(
    [
        ("op_tx_reserve", "i8"),
        ("op_tx_commit", "i8"),
        ("op_tx_pending", "i8"),
        ("op_rx_poll", "i8"),
        ("op_rx_release", "i8"),
        ("op_arm", "i8"),
        ("front", "i8"),  # the front end's own record
        ("tx", "i8"),  # BURST frames
        ("rx", "i8"),
        ("mac", "i8"),
        ("room", "i8"),  # bytes in a send buffer, as it is reserved
        ("fragment_room", "i8"),  # bytes in all of it
        ("fragment_align", "i8"),  # what all of it begins at a multiple of; 1: where it is reserved
        ("max_fragments", "i8"),  # of a frame to send
        ("counts", "i8"),  # private counters row, and its shared place
        ("counts_shared", "i8"),
        ("wait", "i8"),  # a WAIT record (hyp/events.py)
        ("scheduled", "i8"),  # 1: a hypervisor schedules the program, so that its wake-ups are domain switches
        ("interrupts", "i8"),  # a QP record whose completions reach the guest as events that have a price; 0: none
        ("features", "i8"),  # what device and front end agreed on (hyp/abi/features.py)
        ("behind_arm", "i8"),  # `arm` of what is behind the device, where that is not to be called for all (domu/exchange.py)
        ("next", "i8"),  # address of the record that the loop is to have in the place of this one (domu/exchange.py)
    ]
)
DEVICE_BYTES = DEVICE.itemsize
device_at = record_view(DEVICE)


@compiled
def tx_reserve(device: int, want: int) -> int:
    return call_operation(device_at(device).op_tx_reserve, device, want)


@compiled
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    tracer = tracer_of(d.wait)
    if tracer != 0:
        trace_burst(tracer, POSTED, 0, d.tx, n)
    return call_operation(d.op_tx_commit, device, n)


@compiled
def tx_pending(device: int) -> int:
    return call_operation(device_at(device).op_tx_pending, device, 0)


@compiled
def rx_poll(device: int, want: int) -> int:
    return call_operation(device_at(device).op_rx_poll, device, want)


@compiled
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    tracer = tracer_of(d.wait)
    if tracer != 0:
        trace_burst(tracer, RECEIVED, 0, d.rx, n)
    return call_operation(d.op_rx_release, device, n)


@compiled
def arm(device: int, what: int) -> int:
    return call_operation(device_at(device).op_arm, device, what)


@compiled
def frame_addr(burst: int, k: int) -> int:
    """Address of fragment `k` of a burst."""
    return load64(burst + k * FRAME_BYTES)


@compiled
def frame_length(burst: int, k: int) -> int:
    """Length of fragment `k` of a burst, in bytes."""
    return load64(burst + k * FRAME_BYTES + 8) & LENGTH_MASK


@compiled
def frame_word(burst: int, k: int) -> int:
    """Fragment word of fragment `k` of a burst."""
    return load64(burst + k * FRAME_BYTES + 8)


@compiled
def set_frame(burst: int, k: int, addr: int, word: int) -> None:
    """Enter a fragment into a burst."""
    store64(burst + k * FRAME_BYTES, addr)
    store64(burst + k * FRAME_BYTES + 8, word)


@compiled
def set_word(burst: int, k: int, word: int) -> None:
    """Say what fragment `k` of the tx burst is: of a whole frame without offloads, its length."""
    store64(burst + k * FRAME_BYTES + 8, word)


@compiled
def whole_buffer(d: Any, k: int) -> int:
    """Address of all of send buffer `k`, `d.fragment_room` bytes, for a fragment of a chain; the burst has it then."""
    addr = frame_addr(d.tx, k) & -d.fragment_align
    set_frame(d.tx, k, addr, 0)
    return addr


@compiled
def completions_to_wait_for(what: int, due: int) -> int:
    """How many of the `due` completions make a wake-up worth it: all for ALL, three quarters for TX, at least one."""
    return max(due if what & ALL else most_of(due), 1)


@compiled
def sleep_for(d: Any, what: int, timeout_ns: int) -> None:
    """Sleep until an event or for `timeout_ns` (negative: no limit), having armed the device `d` for `what`."""
    wait = wait_at(d.wait)
    if sleep(wait, timeout_ns, d.counts) <= 0 or d.scheduled == 0:
        return
    charge(wait.platform, DOMAIN_SWITCH_PRICE, d.counts, DOMAIN_SWITCHES, 1)
    if d.interrupts == 0:
        return
    q = qp_at(d.interrupts)
    if (what & RX and receives_completed(q)) or (what & (TX | ALL) and sends_completed(q)):
        charge(wait.platform, INTERRUPT_PRICE, d.counts, INTERRUPTS, 1)


@dataclass(slots=True)
class Operations:
    """The six operations of a front end."""

    tx_reserve: Operation
    tx_commit: Operation
    tx_pending: Operation
    rx_poll: Operation
    rx_release: Operation
    arm: Operation


Record = np.ndarray[tuple[int], np.dtype[np.void]]


class InUse(Exception):
    """The other side has not let go of memory of ours."""


class Behind(Protocol):
    """A front end's hold on one queue of what it has connected, for who exchanges it (domu/move.py)."""

    def adopt(self, device: "Device", record: Record, counts: tuple[int, int]) -> None:
        """It is behind `device` from now on, as `record`, and counts in this row."""

    async def close(self) -> None:
        """Give it all back; no loop drives it any more. Of several queues the last one is closed first.

        InUse if the other side has not let go of memory, which must not be used for anything else then.
        """


@dataclass(slots=True)
class Device:
    """A connected device: `record` is its DEVICE, whose address never changes; `keep` holds what the record points at."""

    mac: str
    record: Record
    keep: list[Any] = field(default_factory=list)
    told: list[Callable[[Record], None]] = field(default_factory=list)
    """Called with the record of what will be behind the device, while nothing is."""
    lost: bool = False
    """It has failed for good."""
    coming: Record | None = None
    """What the loop has been given last to take up; `changing` is held while it has not."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    behind: Behind | None = None
    """None: it cannot be given back, nor exchanged for another path's."""

    @property
    def address(self) -> int:
        return int(self.record.ctypes.data)


def set_operations(row: Any, operations: Operations) -> None:
    """Let a DEVICE record have these operations."""
    for name in ("tx_reserve", "tx_commit", "tx_pending", "rx_poll", "rx_release", "arm"):
        row[f"op_{name}"] = getattr(operations, name).address


def new_device(
    operations: Operations, front: int, mac: str, mac_word: int, room: int, counts: tuple[int, int], wait: int, features: int
) -> Device:
    """A DEVICE record with its bursts. `front`: address of the front end's record; `wait`: of the WAIT record."""
    record = np.zeros(1, DEVICE)
    bursts = np.zeros((2, BURST * FRAME_BYTES // 8), np.int64)
    row = record[0]
    set_operations(row, operations)
    row["front"], row["mac"], row["room"], row["wait"], row["features"] = front, mac_word, room, wait, features
    row["fragment_room"], row["fragment_align"], row["max_fragments"] = room, 1, MAX_FRAGMENTS
    row["counts"], row["counts_shared"] = counts
    row["scheduled"] = 1
    row["tx"], row["rx"] = bursts[0].ctypes.data, bursts[1].ctypes.data
    return Device(mac, record, [bursts])


class FrontEnd(Protocol):
    """What a module in domu/frontends offers."""

    async def connect(self, guest: Any) -> list[Device]:
        """Set the device up with the other side and return it, ready for traffic: one for each of its queues, or the one."""
