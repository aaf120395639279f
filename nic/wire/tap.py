"""A wire that leads to the host: a TAP beyond the NIC's port, whose interface the host's kernel has. Set-up, and frames that leave.

Frames go to the kernel as they are, with a virtio_net_hdr (hyp/abi/vnet.py) for what their senders have left undone: one system
call for up to 64 KiB. What the NIC has judged of a frame is its own copy; only what follows these headers is read where the sender
has it. The other direction is in nic/wire/tap_input.py.

The interface is made in the network namespace that the topology was started in, and is gone when this process is.
"""

import errno
import os
from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

import numpy as np

from hyp.abi.counters import DROP_TAP, RX_BYTES, RX_FRAMES
from hyp.abi.features import NIC_OFFERS
from hyp.abi.nic import MAX_FRAGMENTS, MAX_FRAME
from hyp.abi.vnet import VNET_BYTES
from hyp.atomics import memcpy, sys_writev
from hyp.counters import count
from hyp.kernels import outlined
from hyp.net.interface import configure, octets_of
from hyp.net.tap import open_tap, set_offloads
from hyp.offload.frame import HEADER_ROOM, piece_addr, piece_length
from hyp.offload.vnet import IOVEC_BYTES, clear_header, describe, set_iovec
from nic.state import DELIVERED

REMEDIES = {
    errno.EPERM: "a wire to the host takes CAP_NET_ADMIN where the topology is started: run as root, or within"
    " `unshare --user --map-root-user --net`, a network of your own",
    errno.EBUSY: "there is an interface of that name already: say another one as nic.wire.interface",
}


def open_wire(wire: Mapping[str, Any], mtu: int, neighbours: Mapping[str, str]) -> int:
    """Make the interface that the table ``[nic.wire]`` asks for; returns the TAP's descriptor. SetupError names what fails.

    `neighbours`: as of `configure`.
    """
    name = str(wire["interface"])
    fd = open_tap(name, REMEDIES)
    try:
        set_offloads(fd, name, int(NIC_OFFERS))
        addresses = [ip_interface(wire[key]) for key in ("address", "address6") if wire[key]]
        configure(name, octets_of(str(wire["mac"])), mtu, addresses, neighbours)
    except BaseException:
        os.close(fd)
        raise
    return fd


class TapMemory:
    """What an engine needs to read from the TAP and to write to it; `attach` puts it into the WIRE record."""

    def __init__(self) -> None:
        self._iov = np.zeros((MAX_FRAGMENTS + 1) * IOVEC_BYTES // 8, np.int64)
        self._out = np.zeros(VNET_BYTES + HEADER_ROOM, np.uint8)
        self._in = np.zeros(VNET_BYTES + MAX_FRAME + 1, np.uint8)  # a byte more, by which it is known that something is cut

    def attach(self, row: Any, fd: int, *, reads: bool) -> None:
        """`row`: of WIRE. One engine `reads`."""
        row["tap_fd"], row["tap_reads"] = fd, reads
        row["tap_iov"], row["tap_out"], row["tap_in"] = (part.ctypes.data for part in (self._iov, self._out, self._in))
        row["tap_readable"] = 1


@outlined
def put_on_tap(w, f):
    """A frame, prepared if it has an offload, leaves to the host. It has left also if the kernel does not take it."""
    if f.offload != 0:
        describe(f, w.tap_out)
    else:
        clear_header(w.tap_out)
    own = min(f.header_bytes, f.length)
    memcpy(w.tap_out + VNET_BYTES, f.headers, own)
    set_iovec(w.tap_iov, 0, w.tap_out, VNET_BYTES + own)
    n, skipped = 1, own
    for k in range(f.count):
        length = piece_length(f.pieces, k)
        if skipped < length:
            set_iovec(w.tap_iov, n, piece_addr(f.pieces, k) + skipped, length - skipped)
            n += 1
        skipped = max(skipped - length, 0)
    if sys_writev(w.tap_fd, w.tap_iov, n) == f.length + VNET_BYTES:
        count(w.counts, RX_FRAMES, 1)
        count(w.counts, RX_BYTES, f.length)
    else:
        count(w.counts, DROP_TAP, 1)
    w.dirty = 1
    return DELIVERED
