"""The NIC's programming interface: doorbell page, descriptors, completions. Little-endian; every address is an IOVA.

A *context* is what one guest (or Dom0: the physical function) owns of the device: a send queue (SQ) and a receive queue
(RQ), each with a completion queue (CQ) of the same size, all in the owner's RAM, and one doorbell page that nobody else
maps. Queue sizes are powers of two, `MIN_QUEUE` to `MAX_QUEUE` entries; indices run free modulo 2^32, slot = index & (size − 1).

Doorbell page (4096 B). A word has one writer; words of different writers never share a cache line::

    offset  u32 field    writer   meaning and ordering
         0  sq_prod      driver   descriptors posted to the SQ; release, after the descriptors
        64  rq_prod      driver   buffers posted to the RQ; release, after the descriptors
       128  scq_event    driver   notify me when the send CQ's producer passes this; then a full fence and a re-check
       192  rcq_event    driver   the same for the receive CQ
       256  sq_event     NIC      ring the doorbell's eventfd when sq_prod passes this; then a full fence and a re-check
       320  rq_event     NIC      the same for rq_prod (set only while a frame waits for a receive buffer)

Hold-off is that of Xen's io/ring.h: a producer that moved an index from `old` to `new` notifies iff
(u32)(new − event) < (u32)(new − old), checked after a full fence.

Descriptor (16 B, written by the driver, read once by the NIC). Its second half is a *fragment word* (hyp/abi/fragment.py)::

    0 u64 addr     IOVA of the fragment (send) or of the buffer (receive)
    8 u32 length   bytes: of the fragment, or of the buffer
   12 u16 flags    SIGNALED: write a completion for this send; MORE and the offloads. Receive: 0
   14 u16 segment  bytes of TCP payload per segment of a frame that is to be segmented; else 0

A frame to send is a *chain* of 1 to MAX_FRAGMENTS descriptors in a row, with MORE in all but the last, `MIN_FRAME` to `MAX_FRAME`
bytes in all, its Ethernet header in the first. The first one has the frame's offloads, the last one may be SIGNALED. A driver
publishes whole chains. Features (hyp/abi/features.py) say what a driver may use.

Completion (16 B, written by the NIC)::

    0 u32 index    SQ: index of the descriptor; it and all before it are done. RQ: index of the buffer filled
    4 u32 length   bytes received in this buffer
    8 u16 status   one of STATUS_*
   10 u16 flags    RQ: of the fragment in the buffer: MORE, and in a frame's first one its offloads
   12 u16 owner    1 on the ring's first pass, 0 on the second, and so on; written last, with release
   14 u16 segment  RQ: as in a descriptor

For a driver that takes fragments a frame goes on in the next buffer where one of MIN_BUFFER bytes or more is too small for it. The
completions of a frame of several buffers are written from the last to the first: who sees one sees those that follow.
A frame that is dropped has one completion with its cause; of a chain, the index is the last one's.

NOTE: a CQ has the size of its queue and a completion uses up one descriptor, so a driver that reposts only what it has
consumed can never be overrun; one that does not overwrites its own memory only.
"""

from typing import Final

import numpy as np

from hyp.abi.fragment import MORE, SIGNALED
from hyp.abi.sizes import DEFAULT_MTU as DEFAULT_MTU
from hyp.abi.sizes import MAX_ENGINES as MAX_ENGINES
from hyp.abi.sizes import MAX_FRAME as MAX_FRAME
from hyp.abi.sizes import MAX_MTU as MAX_MTU
from hyp.abi.sizes import PAGE as PAGE
from hyp.abi.sizes import QUEUE_ENTRY

SQ_PROD: Final = 0
RQ_PROD: Final = 64
SCQ_EVENT: Final = 128
RCQ_EVENT: Final = 192
SQ_EVENT: Final = 256
RQ_EVENT: Final = 320

DOORBELL: Final = np.dtype(
    {
        "names": ["sq_prod", "rq_prod", "scq_event", "rcq_event", "sq_event", "rq_event"],
        "formats": ["<u4"] * 6,
        "offsets": [SQ_PROD, RQ_PROD, SCQ_EVENT, RCQ_EVENT, SQ_EVENT, RQ_EVENT],
        "itemsize": PAGE,
    }
)

DESC: Final = np.dtype([("addr", "<u8"), ("length", "<u4"), ("flags", "<u2"), ("segment", "<u2")])
DESC_BYTES: Final = QUEUE_ENTRY
DESC_SIGNALED: Final = SIGNALED >> 32
DESC_MORE: Final = MORE >> 32

CQE: Final = np.dtype(
    [("index", "<u4"), ("length", "<u4"), ("status", "<u2"), ("flags", "<u2"), ("owner", "<u2"), ("segment", "<u2")]
)
CQE_BYTES: Final = QUEUE_ENTRY

STATUS_OK: Final = 0
STATUS_BAD_LENGTH: Final = 1  # frame or buffer length outside the limits
STATUS_BAD_ADDRESS: Final = 2  # the IOMMU table has no translation, or not the right
STATUS_BAD_FLAGS: Final = 3  # a flag this device does not know
STATUS_SPOOFED: Final = 4  # source MAC is not the context's
STATUS_DROPPED: Final = 5  # well-formed, but nobody took it; the NIC's counters name the reason
STATUS_BAD_CHAIN: Final = 6  # too many fragments, an empty one, the last one missing, or no header in the first
STATUS_BAD_OFFLOAD: Final = 7  # not accepted, or headers or segment size with which it can't be done

MIN_QUEUE: Final = 64
MAX_QUEUE: Final = 4096
MIN_BUFFER: Final = 1024
"""Bytes of a receive buffer behind which a frame goes on in the next one: the smallest of Intel's 82599. One that takes all that is
left of a frame may be smaller. With less a driver would have the device look up dozens of buffers for a short frame."""
MIN_FRAME: Final = 14
"""Of a frame to be segmented, as netif's length field has it. What is not may have `LINK_HEADER` bytes more than the NIC's MTU."""
LINK_HEADER: Final = 18
"""Bytes of Ethernet header, a VLAN tag included."""
MAX_LONE_FRAME: Final = PAGE - 64
"""Of one that a device model or a hypercall takes as one piece."""
MAX_FRAGMENTS: Final = 36
"""Of a chain: MAX_FRAME in a driver's frame buffers, and its headers apart."""

CONTEXTS: Final = 128  # contexts a NIC has; context 0 is the physical function
HUSH_NS: Final = 100_000_000  # for which a doorbell that rings for nothing is not listened to (nic/doorbell.py)
NO_CONTEXT: Final = -1
BROADCAST: Final = 0xFFFF_FFFF_FFFF  # a MAC as an integer: first byte on the wire in the low 8 bits
"""A MAC address as compiled code sees it: the six bytes as a little-endian integer, first byte on the wire lowest."""
GROUP_BIT: Final = 1  # set in the first byte of multicast and broadcast addresses
MAC_MASK: Final = 0xFFFF_FFFF_FFFF


def mac_bytes(mac: str) -> bytes:
    """``"02:00:00:00:00:01"`` as it is on the wire."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_to_int(mac: str) -> int:
    """``"02:00:00:00:00:01"`` as an integer (see `BROADCAST`). ValueError if it is not a MAC address."""
    octets = bytes(int(part, 16) for part in mac.split(":"))
    if len(octets) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return int.from_bytes(octets, "little")


def mac_to_str(mac: int) -> str:
    """The inverse of `mac_to_int`."""
    return ":".join(f"{octet:02x}" for octet in mac.to_bytes(6, "little"))
