"""The TAP program: the guest's kernel side. Unmodified programs in the guest's network namespace talk through an `eth0`.

One compiled loop moves frames between the TAP and the device: a read or write system call per frame, as TAP has it, and no
copy of our own: frames are read into the device's send buffers and written from its receive buffers.

The guest's MTU is the topology's. Programs inside can raise that of `eth0`, and then send frames longer than the path and its
buffers are made for: each is dropped whole, as `oversize`. One VLAN tag does not count, as with Ethernet drivers.
"""

from typing import Any

import numpy as np

from domu.boot import run_program
from domu.device import (
    BURST,
    FAILED,
    RX,
    TX,
    arm,
    device_at,
    frame_addr,
    frame_length,
    rx_poll,
    rx_release,
    set_word,
    sleep_for,
    tx_commit,
    tx_reserve,
)
from domu.guest import Guest
from domu.netns import Tap, create
from hyp.abi.counters import DROP_OVERSIZE, DROP_TAP, RX_BYTES, RX_FRAMES, TX_BYTES, TX_FRAMES
from hyp.atomics import clock_ns, load16, record_view, sys_read, sys_write
from hyp.counters import commit, count
from hyp.engine import STOP, Engine, mail_opcode, mail_taken, mail_waiting
from hyp.events import end_spin, spins, wait_at
from hyp.kernels import compiled, entry, i64
from hyp.process import Process

TAP = np.dtype(
    [
        ("device", "i8"),
        ("tap_fd", "i8"),
        ("mailbox", "i8"),
        ("mail", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        ("readable", "i8"),  # the TAP has not said EAGAIN since it was last seen readable
        ("full", "i8"),  # the device had no send buffer
        ("longest", "i8"),  # bytes of a frame that the guest's MTU allows
        ("now", "i8"),
        ("idle_since", "i8"),
        ("shown", "i8"),  # when the counters were published last
    ]
)
_tap_at = record_view(TAP)
SHOW_NS = 20_000_000  # a loop that is never idle publishes its counters this often
_ETHERNET_HEADER, _VLAN_TAG = 14, 4
_ETHERTYPE_VLAN = 0x0081  # 0x8100 as a little-endian load sees it


@compiled
def _is_oversize(t, frame, length):
    """True for a frame that the guest's MTU does not allow. `frame`: its address; what a buffer had no room for is not there."""
    return length > t.longest + (_VLAN_TAG if load16(frame + 12) == _ETHERTYPE_VLAN else 0)


@compiled
def _from_tap(t, d):
    """Read frames from the TAP into send buffers until it has no more. Returns how many, or FAILED."""
    room = tx_reserve(t.device, BURST)
    if room < 0:
        return FAILED
    t.full = 1 if room == 0 else 0
    n, oversize, total = 0, 0, 0
    while n + oversize < room:
        length = sys_read(t.tap_fd, frame_addr(d.tx, n), d.room)
        if length <= 0:
            t.readable = 0
            break
        total += length
        if length > t.longest and _is_oversize(t, frame_addr(d.tx, n), length):
            oversize += 1
        else:
            set_word(d.tx, n, length)
            n += 1
    if n + oversize == 0:
        return 0
    count(t.counts, TX_FRAMES, n + oversize)
    count(t.counts, TX_BYTES, total)
    if oversize > 0:
        count(t.counts, DROP_OVERSIZE, oversize)
    return tx_commit(t.device, n) if n > 0 else oversize


@compiled
def _to_tap(t, d):
    """Write received frames to the TAP. Returns how many, or FAILED."""
    n = rx_poll(t.device, BURST)
    for k in range(n):
        length = frame_length(d.rx, k)
        if length <= 0:
            continue
        if sys_write(t.tap_fd, frame_addr(d.rx, k), length) == length:
            count(t.counts, RX_FRAMES, 1)
            count(t.counts, RX_BYTES, length)
        else:
            count(t.counts, DROP_TAP, 1)
    if n > 0:
        rx_release(t.device, n)
    return n


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
            stop = mail_opcode(t.mailbox, t.mail) == STOP
            t.mail += 1
            mail_taken(t.mailbox, t.mail)
            if stop:
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


def _longest(mtu: int, room: int) -> int:
    """Bytes of the longest frame without a tag that goes out. `room`: of a send buffer, which must not cut what is to be known."""
    if room <= mtu + _ETHERNET_HEADER + _VLAN_TAG:
        raise ValueError(f"an MTU of {mtu} is too much for send buffers of {room} bytes")
    return mtu + _ETHERNET_HEADER


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
        row["longest"] = _longest(int(guest.config["mtu"]), int(guest.device.record[0]["room"]))

    def start(self) -> None:
        """Start the loop."""
        self._engine.start(run, int(self._record.ctypes.data))

    def stop(self) -> None:
        """Nothing to end: whoever runs a program in the guest ends it when the guest is gone (lab/execute)."""


async def main(process: Process, config: dict[str, Any]) -> None:
    """The guest process's role."""
    tap = create(str(config["mac"]), str(config["address"]), int(config["mtu"]))  # while there is one thread
    await run_program(process, config, lambda guest: TapProgram(guest, tap))
