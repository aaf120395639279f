"""The TAP program: the guest's kernel side. Unmodified programs in the guest's namespaces (domu/machine.py) talk through an `eth0`.

One compiled loop moves frames between the TAP and the device: one system call a frame, of up to 64 KiB where device and front end
have agreed on segmentation offload, and no copy of our own: frames are read into the device's send buffers and written from its
receive buffers. Before each stands a virtio_net_hdr (hyp/abi/vnet.py), which says what the fragment word says.

Several received frames are written by one system call where the kernel grants it (hyp/uring). Reading stays one call a frame: where
a frame goes depends on the lengths of those before it, so that a batch would have to be copied, for less than that saves
(`python -m bench tapcalls`).

The guest's MTU is the topology's. Programs inside can raise that of `eth0`, and then send frames, or segments, longer than what the
path is made for: each is dropped whole, as `oversize`. One VLAN tag does not count, as with Ethernet drivers.
"""

from typing import Any

import numpy as np

from domu.boot import run_program
from domu.confinement.confine import confinement_of
from domu.device import (
    BURST,
    FAILED,
    RX,
    TX,
    Record,
    arm,
    device_at,
    frame_addr,
    frame_length,
    frame_word,
    rx_poll,
    rx_release,
    set_word,
    sleep_for,
    tx_commit,
    tx_reserve,
    whole_buffer,
)
from domu.exchange import EXCHANGE, take_up
from domu.guest import Guest
from domu.machine import Machine
from domu.netns import Addresses, Tap, create
from hyp.abi.counters import DROP_BAD_FRAME, DROP_OVERSIZE, DROP_TAP, RX_BYTES, RX_FRAMES, TX_BYTES, TX_FRAMES
from hyp.abi.features import CSUM, NAMES, SG, TSO4, TSO6
from hyp.abi.fragment import GSO, MORE, OFFLOAD_MASK
from hyp.abi.io_uring import OP_WRITEV
from hyp.abi.nic import MAX_FRAME
from hyp.abi.vnet import VNET_BYTES
from hyp.atomics import clock_ns, load16, load64, record_view, sys_readv, sys_writev
from hyp.control import Refused
from hyp.counters import commit, count
from hyp.engine import STOP, Engine, mail_opcode, mail_taken, mail_waiting
from hyp.events import end_spin, spins, wait_at
from hyp.kernels import compiled, entry, i64
from hyp.net.tap import set_offloads
from hyp.offload.frame import FrameMemory, add_piece, begin_frame, frame_at
from hyp.offload.vnet import IOVEC_BYTES, TOO_LONG, clear_header, has_offload, header_of, set_iovec, word_of
from hyp.process import Process
from hyp.uring.batch import NOT_DONE, Batches, outcome, run_batch, set_request, uring_at
from hyp.uring.ring import Ring, why_plain

TAP = np.dtype(
    [
        ("device", "i8"),
        ("tap_fd", "i8"),
        ("mailbox", "i8"),
        ("mail", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        ("readable", "i8"),  # the TAP has not said EAGAIN since it was last seen readable
        ("full", "i8"),  # the device had no send buffers for a frame
        ("longest", "i8"),  # bytes of a frame that the guest's MTU allows
        ("most", "i8"),  # fragments that a frame of the TAP's can have
        ("header", "i8"),  # of the frame that is read: VNET_BYTES
        ("iov", "i8"),  # struct iovec: BURST + 1 of them
        ("uring", "i8"),  # a URING record
        ("batch", "i8"),  # so many frames are worth a batch
        ("out", "i8"),  # of the frames that are written: BURST records OUT
        ("out_headers", "i8"),  # BURST times HEADER_STRIDE
        ("out_iov", "i8"),  # 2 · BURST
        ("frame", "i8"),  # a FRAME record, to look at headers
        ("now", "i8"),
        ("idle_since", "i8"),
        ("shown", "i8"),  # when the counters were published last
    ]
)
_tap_at = record_view(TAP)
OUT = np.dtype([("iov", "i8"), ("pieces", "i8"), ("length", "i8")])
"""A frame to write: its iovecs, header first, and how many; bytes without the header."""
_out_at = record_view(OUT)
OUT_BYTES = OUT.itemsize
HEADER_STRIDE = 16
SHOW_NS = 20_000_000  # a loop that is never idle publishes its counters this often
_ETHERNET_HEADER, _VLAN_TAG = 14, 4
_ETHERTYPE_VLAN = 0x0081  # 0x8100 as a little-endian load sees it
WORTH_A_BATCH = 8
"""Frames from which on a batch costs less than calls one by one (`python -m bench tapcalls`)."""


@compiled
def frame_of(f, burst, first, n, length, offload):
    """The FRAME record of `n` fragments of a burst."""
    at = frame_addr(burst, first)
    begin_frame(f, length, offload, load64(at), load64(at + 8))
    for k in range(first, first + n):
        add_piece(f, frame_addr(burst, k), frame_length(burst, k))


@compiled
def _longest(t, frame):
    """Bytes that a frame, or a segment of it, may have. `frame`: its address."""
    return t.longest + (_VLAN_TAG if load16(frame + 12) == _ETHERTYPE_VLAN else 0)


@compiled
def _read_frame(t, d, first):
    """Read a frame into send buffers from `first` on, and set their words but for an offload. Returns its length; 0: there is none.

    A lone frame lies where its buffer's frames do, what goes on takes whole buffers: iovecs are the header, `first`, the rest.
    What is longer than all of them is cut, and known by its length.
    """
    set_iovec(t.iov, first, t.header, VNET_BYTES)
    set_iovec(t.iov, first + 1, frame_addr(d.tx, first), d.room)
    length = sys_readv(t.tap_fd, t.iov + first * IOVEC_BYTES, t.most + 1) - VNET_BYTES
    if length <= d.room:
        set_word(d.tx, first, length)
        return max(length, 0)
    left, k = length - d.room, first
    set_word(d.tx, k, d.room | MORE)
    while left > 0:
        k += 1
        whole_buffer(d, k)
        set_word(d.tx, k, min(left, d.fragment_room) | (MORE if left > d.fragment_room else 0))
        left -= d.fragment_room
    return length


@compiled
def _fragments(d, length):
    """How many a frame has that was read from the TAP."""
    return 1 if length <= d.room else 1 + (length - d.room + d.fragment_room - 1) // d.fragment_room


@compiled
def _judge(t, d, first, n, length):
    """Give a frame that was read its offload. 0, or the drop's name."""
    frame = frame_addr(d.tx, first)
    if has_offload(t.header):
        f = frame_at(t.frame)
        frame_of(f, d.tx, first, n, length, 0)
        word = word_of(f, t.header, _longest(t, frame))
        if word == TOO_LONG:
            return DROP_OVERSIZE
        if word < 0:
            return DROP_BAD_FRAME
        if word != 0:
            set_word(d.tx, first, frame_word(d.tx, first) | word)
            return DROP_OVERSIZE if length > MAX_FRAME else 0
    return DROP_OVERSIZE if length > t.longest and length > _longest(t, frame) else 0


@compiled
def _from_tap(t, d):
    """Read frames from the TAP into send buffers until it has no more. Returns how many, or FAILED."""
    room = tx_reserve(t.device, BURST)
    if room < 0:
        return FAILED
    t.full = 1 if room <= t.most else 0
    for k in range(1, room):
        set_iovec(t.iov, k + 1, frame_addr(d.tx, k) & -d.fragment_align, d.fragment_room)
    at, frames, total = 0, 0, 0
    while room - at > t.most:  # a frame with GSO takes one more than it has fragments: of those at the end
        length = _read_frame(t, d, at)
        if length == 0:
            t.readable = 0
            break
        frames += 1
        total += length
        n = _fragments(d, length)
        drop = _judge(t, d, at, n, length)
        if drop == 0:
            at += n
            room -= frame_word(d.tx, at - n) & GSO != 0
        else:
            count(t.counts, drop, 1)
    if frames == 0:
        return 0
    count(t.counts, TX_FRAMES, frames)
    count(t.counts, TX_BYTES, total)
    if at > 0 and tx_commit(t.device, at) < 0:
        return FAILED
    return frames


@compiled
def _lay_out(t, d, burst):
    """Make ready what is to be written of a burst: each frame's header and iovecs. Returns how many frames.

    Dropped are those that are not what their words say; a frame without a byte is what a device makes of one that failed.
    """
    first, frames, iov = 0, 0, t.out_iov
    while first < burst:
        length, n, more = 0, 0, MORE
        while more != 0:
            octets = frame_length(d.rx, first + n)
            set_iovec(iov, n + 1, frame_addr(d.rx, first + n), octets)
            length += octets
            more = frame_word(d.rx, first + n) & MORE
            n += 1
        header = t.out_headers + frames * HEADER_STRIDE
        if length > 0:
            if _write_header(t, d, header, first, n, length):
                set_iovec(iov, 0, header, VNET_BYTES)
                out = _out_at(t.out + frames * OUT_BYTES)
                out.iov, out.pieces, out.length = iov, n + 1, length
                frames += 1
                iov += (n + 1) * IOVEC_BYTES
            else:
                count(t.counts, DROP_TAP, 1)
        first += n
    return frames


@compiled
def _write_header(t, d, header, first, n, length):
    """The virtio_net_hdr of a frame of `n` fragments. False if the frame is not what its word says."""
    word = frame_word(d.rx, first) & OFFLOAD_MASK
    if word == 0:
        clear_header(header)
        return True
    f = frame_at(t.frame)
    frame_of(f, d.rx, first, n, length, word)
    return header_of(f, header)


@compiled
def _write(t, frames):
    """Write what was laid out: by one call if there is enough of it, else one by one."""
    u = uring_at(t.uring)
    batch = frames >= t.batch and u.fd >= 0
    if batch:
        for k in range(frames):
            out = _out_at(t.out + k * OUT_BYTES)
            set_request(u, k, OP_WRITEV, out.iov, out.pieces)
        run_batch(u, frames)
    for k in range(frames):
        out = _out_at(t.out + k * OUT_BYTES)
        moved = outcome(u, k) if batch else NOT_DONE
        if moved == NOT_DONE:
            moved = sys_writev(t.tap_fd, out.iov, out.pieces)
        if moved == out.length + VNET_BYTES:
            count(t.counts, RX_FRAMES, 1)
            count(t.counts, RX_BYTES, out.length)
        else:
            count(t.counts, DROP_TAP, 1)


@compiled
def _to_tap(t, d):
    """Write received frames to the TAP. Returns how many fragments, or FAILED."""
    burst = rx_poll(t.device, BURST)
    if burst > 0:
        _write(t, _lay_out(t, d, burst))
        rx_release(t.device, burst)
    return burst


@compiled
def _show(t, d):
    """Publish the counters."""
    t.shown = t.now
    commit(t.counts, t.counts_shared)
    commit(d.counts, d.counts_shared)


@compiled
def _idle(t, d):
    wait = wait_at(d.wait)
    if spins(t, wait):
        t.readable = 1  # only a read tells
        return
    _show(t, d)
    what = RX | TX if t.full != 0 else RX
    if arm(t.device, what) == 0 and mail_waiting(t.mailbox, t.mail) == 0:
        sleep_for(d, what, -1)
    t.readable = 1
    end_spin(t, d.counts)


@entry(i64(i64))
def run(address: int) -> int:
    """Pump until the mailbox says stop. `address`: the TAP record. Returns 0, or FAILED if the device failed."""
    t = _tap_at(address)
    d = device_at(t.device)
    result = 0
    while result == 0:
        if mail_waiting(t.mailbox, t.mail) > 0:
            opcode = mail_opcode(t.mailbox, t.mail)
            if opcode == EXCHANGE:
                take_up(t.device)
            t.mail += 1
            mail_taken(t.mailbox, t.mail)
            if opcode == STOP:
                break
        t.now = clock_ns()
        received = _to_tap(t, d)
        sent = _from_tap(t, d) if t.readable != 0 else 0
        if received < 0 or sent < 0:
            result = FAILED
        elif received + sent > 0:
            end_spin(t, d.counts)
            if t.now - t.shown > SHOW_NS:
                _show(t, d)
        else:
            _idle(t, d)
    _show(t, d)
    return result


def most_fragments(device: Any, mtu: int) -> int:
    """Fragments that hold what can be read from the TAP, and a byte more, by which it is known that something is cut."""
    room, whole = int(device["room"]), int(device["fragment_room"])
    longest = MAX_FRAME if int(device["features"]) & SG else mtu + _ETHERNET_HEADER + _VLAN_TAG
    most = 1 + -(-max(longest + 1 - room, 0) // whole)
    if most > 1 and not int(device["features"]) & SG:
        raise ValueError(f"an MTU of {mtu} is too much for send buffers of {room} bytes")
    return most


class TapProgram:
    """The program's control side."""

    def __init__(self, guest: Guest, tap: Tap) -> None:
        self._record = np.zeros(1, TAP)
        self._engine: Engine = guest.engine
        self._engine.wake_on(tap.fd)
        row = self._record[0]
        row["device"], row["tap_fd"], row["mailbox"] = guest.device.address, tap.fd, self._engine.mailbox
        row["counts"], row["counts_shared"] = guest.counters.row("tap")
        row["readable"] = 1
        mtu = int(guest.config["mtu"])
        self._frame = FrameMemory()
        self._memory = [np.zeros(size, np.uint8) for size in (HEADER_STRIDE, (BURST + 1) * IOVEC_BYTES)]
        row["header"], row["iov"] = (part.ctypes.data for part in self._memory)
        self._out = [np.zeros(BURST, OUT), np.zeros(BURST * HEADER_STRIDE, np.uint8), np.zeros(2 * BURST * IOVEC_BYTES, np.uint8)]
        row["out"], row["out_headers"], row["out_iov"] = (part.ctypes.data for part in self._out)
        self._batches = Batches(Ring(tap.fd, BURST) if guest.config["batches"] and not why_plain(tap.fd) else None)
        row["uring"], row["batch"] = self._batches.address, WORTH_A_BATCH
        row["frame"] = self._frame.address
        row["longest"] = mtu + _ETHERNET_HEADER

        self._tap, self._features, self._leaves = tap, 0, True

        def suit(record: Record) -> None:
            row["most"] = most_fragments(record[0], mtu)
            self._features = int(record[0]["features"])
            self.offloads(on=self._leaves)

        suit(guest.device.record)
        guest.device.told.append(suit)

    def offloads(self, on: bool) -> list[str]:
        """Console operation: whether the guest's kernel leaves to the device what that can do. Which that is, then."""
        if not isinstance(on, bool):
            raise Refused("EINVAL", "on is true or false")
        self._leaves = on
        features = self._features if on else 0
        set_offloads(self._tap.fd, self._tap.name, features)
        return [NAMES[feature] for feature in (CSUM, TSO4, TSO6) if features & feature]

    def start(self) -> None:
        """Start the loop."""
        self._engine.start(run, int(self._record.ctypes.data))

    def stop(self) -> None:
        """Nothing to end: whoever runs a program in the guest ends it when the guest is gone (lab/execute)."""


def prepare(name: str, config: dict[str, Any], sockets: dict[str, int]) -> tuple[Tap, Machine]:
    """What takes more than a confined guest may have, and one thread. The machine is furnished while the guest boots."""
    keys = ("address", "address6", "link_local", "gateway", "gateway6", "neighbours")
    tap = create(str(config["mac"]), Addresses(**{key: config[key] for key in keys}), int(config["mtu"]))
    ends = sockets.pop("lifeline"), sockets.pop("init")
    return tap, Machine(name, config["hosts"], *ends, confined=confinement_of(config) is not None)


async def main(process: Process, config: dict[str, Any]) -> None:
    """The guest process's role."""
    tap, machine = config.get("prepared") or prepare(process.name, config, process.sockets)

    def program(guest: Guest) -> TapProgram:
        machine.serve(process)
        made = TapProgram(guest, tap)
        process.serve("offloads", made.offloads)
        return made

    await run_program(process, config, program)
