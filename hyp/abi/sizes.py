"""Sizes and limits that several parts must agree on: pages, buffers, pools. Plain numbers, for what runs without numpy too.

Buffers are not powers of two, or begin at one of several *colours*, so that they do not all fall on the same cache sets.
"""

from typing import Final

PAGE: Final = 4096
DEFAULT_MTU: Final = 1500
MAX_MTU: Final = 9000
MAX_FRAME: Final = 0xFFFF
"""Bytes of a frame that is to be segmented: what netif's 16-bit sizes can say."""
QUEUE_ENTRY: Final = 16  # a descriptor or a completion of the NIC (hyp/abi/nic.py)

FRAME_BUFFER: Final = 2048 + 64
"""A driver's buffer for one frame, to send or to receive: a guest's on a NIC context, the uplink's, the device model's."""
SHORT_FRAME: Final = 256
"""A frame no longer than that is few cache lines: loops that pass many fetch its first one ahead."""
LARGEST_FRAME_BUFFER: Final = 4096 + 64
"""A buffer that holds any frame that the NIC takes: the wire's, and the device model's for what its guest sends."""

COLOUR_BYTES: Final = 64
COLOURS: Final = 15  # a frame alone in a page begins at one of these multiples of COLOUR_BYTES
COLOURED_FRAME: Final = PAGE - COLOURS * COLOUR_BYTES
"""The longest frame that fits into a page at any colour: a split guest's send buffer."""
JUMBO_BUFFER: Final = 9088
"""A buffer of the wire for a frame of up to the largest MTU (hyp/abi/nic.py), and a line to spare."""

SPLIT_SLOTS: Final = 256  # of each of the two rings of a vif, with a page each: what fits into a ring page (hyp/abi/netif.py)
SPLIT_RINGS: Final = 2
DOM0_BUFFERS: Final = 1024  # of Dom0's engine, a page each
DOM0_SCRATCH: Final = 192  # and pages to make frames in: one for each operation of a batch of grant copies

MAX_GUESTS: Final = 64  # ports of the bridge beside the uplink, and emulated devices
MAX_ENGINES: Final = 8
MAX_QUEUES: Final = 8  # of a guest: pairs of rings of its vif, or contexts of the NIC
GUEST_EVENTS: Final = 40
"""Upcalls and event-channel ports of a guest, together: each is a descriptor of the hypervisor's. 8 queues need 8 and 17."""
MIN_GBPS: Final = 0.001  # bit rates that the wire can be given
MAX_GBPS: Final = 1000.0

MAX_PRICE: Final = 10**6
"""The most that one operation of the model can cost, in ns; and a byte, in ps (hyp/model/operations.py)."""
