"""Network ring slots, after Xen's ``xen/io/netif.h``: what netfront and netback write into their shared rings.

A transmit ring has slots of 12 bytes, a receive ring of 8, a control ring of 16; a page holds 256, 256 and 128 of
them. Front ends write requests and read responses, back ends the reverse; slots are published by the ring's producer
index (`hyp.abi.ring`), and each side takes one copy of a slot and judges the copy.

Transmit request, 12 bytes::

     0           4        6        8     10    12
    +-----------+--------+--------+-----+-----+      gref    grant of the page that holds the bytes
    | gref      | offset | flags  | id  | size|      offset  of the first byte in the page; offset + size <= 4096
    +-----------+--------+--------+-----+-----+      flags   TXF_*;  id  echoed in the response

`size` in the *first* request of a packet is the size of the whole packet; in the others that of their fragment. The
order is first request, extra infos (TXF_EXTRA_INFO, then EXTRA_FLAG_MORE), further requests (TXF_MORE_DATA).

Transmit response, 4 bytes of the slot's 12::

     0     2        4
    +-----+--------+       status  RSP_OKAY, RSP_ERROR, RSP_DROPPED, RSP_NULL (answers an extra info's slot)
    | id  | status |
    +-----+--------+

Receive request, 8 bytes, and receive response, 8 bytes::

     0     2     4           8          0     2        4       6        8
    +-----+-----+-----------+          +-----+--------+-------+--------+
    | id  | pad | gref      |          | id  | offset | flags | status |   status >= 0: bytes in this fragment
    +-----+-----+-----------+          +-----+--------+-------+--------+   status < 0: RSP_*

A receive response stands in the slot of the request that it answers, whatever its id says: front ends rely on it,
because an extra info has no id. Here every fragment's status is its own length, and the packet's size is the sum.

Extra info, 8 bytes, in a transmit request's or a receive response's slot::

     0      1       2       4      5     6          8
    +------+-------+-------+------+-----+----------+      GSO: size = payload bytes of a segment (MSS)
    | type | flags | size  | type | pad | features |
    +------+-------+-------+------+-----+----------+      MCAST_ADD/DEL: 6 bytes of address at 2
                                                          HASH: type at 2 (the number of a bit of
                                                          CTRL_HASH_TYPE_*), algorithm at 3, value (4) at 4

Control request, 16 bytes, and control response, 12 bytes::

     0     2      4         8         12        16       0     2      4        8      12
    +-----+------+---------+---------+---------+        +-----+------+--------+------+
    | id  | type | data[0] | data[1] | data[2] |        | id  | type | status | data |
    +-----+------+---------+---------+---------+        +-----+------+--------+------+

Statuses are signed 16-bit values; a 16-bit load in compiled code zero-extends, so take them through
`hyp.ring.signed16`.
"""

import numpy as np

NR_SLOTS_MIN = 18  # slots of one packet that any back end takes (XEN_NETIF_NR_SLOTS_MIN)
MAX_TX_SIZE = 0xFFFF  # bytes of one packet

FEATURE_CTRL_RING, CTRL_RING_REF, EVENT_CHANNEL_CTRL = "feature-ctrl-ring", "ctrl-ring-ref", "event-channel-ctrl"
"""Nodes: the back end's, "1" if it serves a control ring; the front end's, the grant of its page and the port of its events."""
FEATURE_MULTICAST_CONTROL, REQUEST_MULTICAST_CONTROL = "feature-multicast-control", "request-multicast-control"
"""Nodes: the back end's, "1" if it can filter group addresses; the front end's, "1" if it is to, by what is added."""
FEATURE_SPLIT_EVENT_CHANNELS = "feature-split-event-channels"
"""Node of the back end: "1" if there may be a channel for each ring of a queue."""
MAX_QUEUES_NODE, NUM_QUEUES_NODE = "multi-queue-max-queues", "multi-queue-num-queues"
"""How many pairs of rings the back end takes, and how many the front end has."""

# --- transmit --------------------------------------------------------------------------------------------------------

TX_SLOT_BYTES = 12

TX_REQ_GREF = 0
TX_REQ_OFFSET = 4
TX_REQ_FLAGS = 6
TX_REQ_ID = 8
TX_REQ_SIZE = 10

TX_RSP_ID = 0
TX_RSP_STATUS = 2

TXF_CSUM_BLANK = 1  # the checksum field holds only the pseudo-header's sum
TXF_DATA_VALIDATED = 2  # the checksum is known to be good
TXF_MORE_DATA = 4  # the packet goes on in the next request
TXF_EXTRA_INFO = 8  # the next slot is an extra info

TX_REQUEST = np.dtype([("gref", "<u4"), ("offset", "<u2"), ("flags", "<u2"), ("id", "<u2"), ("size", "<u2")])
TX_RESPONSE = np.dtype([("id", "<u2"), ("status", "<i2")])

# --- receive ---------------------------------------------------------------------------------------------------------

RX_SLOT_BYTES = 8

RX_REQ_ID = 0
RX_REQ_PAD = 2
RX_REQ_GREF = 4

RX_RSP_ID = 0
RX_RSP_OFFSET = 2
RX_RSP_FLAGS = 4
RX_RSP_STATUS = 6

RXF_DATA_VALIDATED = 1  # bits 0 and 1 are the other way round than in transmit flags
RXF_CSUM_BLANK = 2
RXF_MORE_DATA = 4
RXF_EXTRA_INFO = 8
RXF_GSO_PREFIX = 16  # deprecated; never sent

RX_REQUEST = np.dtype([("id", "<u2"), ("pad", "<u2"), ("gref", "<u4")])
RX_RESPONSE = np.dtype([("id", "<u2"), ("offset", "<u2"), ("flags", "<u2"), ("status", "<i2")])

# --- statuses of both ------------------------------------------------------------------------------------------------

RSP_OKAY = 0
RSP_ERROR = -1
RSP_DROPPED = -2
RSP_NULL = 1

# --- extra info ------------------------------------------------------------------------------------------------------

EXTRA_BYTES = 8

EXTRA_TYPE = 0
EXTRA_FLAGS = 1
EXTRA_GSO_SIZE = 2
EXTRA_GSO_TYPE = 4
EXTRA_GSO_PAD = 5
EXTRA_GSO_FEATURES = 6
EXTRA_MCAST_ADDR = 2
EXTRA_HASH_TYPE = 2
EXTRA_HASH_ALGORITHM = 3
EXTRA_HASH_VALUE = 4

EXTRA_TYPE_NONE = 0
EXTRA_TYPE_GSO = 1
EXTRA_TYPE_MCAST_ADD = 2
EXTRA_TYPE_MCAST_DEL = 3
EXTRA_TYPE_HASH = 4
EXTRA_TYPE_MAX = 5  # the first value that is no type

EXTRA_FLAG_MORE = 1  # another extra info follows

GSO_TYPE_NONE = 0
GSO_TYPE_TCPV4 = 1
GSO_TYPE_TCPV6 = 2

EXTRA_GSO = np.dtype([("type", "u1"), ("flags", "u1"), ("size", "<u2"), ("gso_type", "u1"), ("pad", "u1"), ("features", "<u2")])
EXTRA_MCAST = np.dtype([("type", "u1"), ("flags", "u1"), ("addr", "u1", 6)])
EXTRA_HASH = np.dtype([("type", "u1"), ("flags", "u1"), ("hash_type", "u1"), ("algorithm", "u1"), ("value", "u1", 4)])

# --- control ---------------------------------------------------------------------------------------------------------

CTRL_SLOT_BYTES = 16

CTRL_REQ_ID = 0
CTRL_REQ_TYPE = 2
CTRL_REQ_DATA = 4  # three u32

CTRL_RSP_ID = 0
CTRL_RSP_TYPE = 2
CTRL_RSP_STATUS = 4
CTRL_RSP_DATA = 8

CTRL_TYPE_INVALID = 0
CTRL_TYPE_GET_HASH_FLAGS = 1
CTRL_TYPE_SET_HASH_FLAGS = 2
CTRL_TYPE_SET_HASH_KEY = 3
CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4
CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5
CTRL_TYPE_SET_HASH_MAPPING = 6
CTRL_TYPE_SET_HASH_ALGORITHM = 7
CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8
CTRL_TYPE_ADD_GREF_MAPPING = 9
CTRL_TYPE_DEL_GREF_MAPPING = 10

CTRL_STATUS_SUCCESS = 0
CTRL_STATUS_NOT_SUPPORTED = 1
CTRL_STATUS_INVALID_PARAMETER = 2
CTRL_STATUS_BUFFER_OVERFLOW = 3

CTRL_HASH_ALGORITHM_NONE = 0
CTRL_HASH_ALGORITHM_TOEPLITZ = 1

CTRL_HASH_TYPE_IPV4 = 1
CTRL_HASH_TYPE_IPV4_TCP = 2
CTRL_HASH_TYPE_IPV6 = 4
CTRL_HASH_TYPE_IPV6_TCP = 8

CTRLF_GREF_READONLY = 1  # a static grant mapping is for reading only

GREF = np.dtype([("ref", "<u4"), ("flags", "<u2"), ("status", "<u2")])
"""An entry of the tables of ADD_GREF_MAPPING and DEL_GREF_MAPPING; the back end writes `status` for the latter."""
CTRL_REQUEST = np.dtype([("id", "<u2"), ("type", "<u2"), ("data", "<u4", 3)])
CTRL_RESPONSE = np.dtype([("id", "<u2"), ("type", "<u2"), ("status", "<u4"), ("data", "<u4")])
