"""A trace ring: what one loop did with which frames, and when, for whoever looks.

One ring for each loop, in memory of the viewer's, which maps it to read. The loop never waits: it writes over what is oldest, and a
viewer that was too slow learns how much it has missed. Layout (little-endian), after a page with::

      0  u64  MAGIC
      8  u64  capacity: bytes of data, a power of two, at least two blocks
     64  u64  reserved: the loop writes, or has written, data in front of it
    128  u64  committed: data in front of it is whole
    136  u64  records: how many there have been

Indices are free-running. Data lies at `index % capacity` and is in blocks of BLOCK bytes, each of which begins with a record: from
any block on a viewer can go on reading. A record has a header (RECORD) and bytes of the frame, `size` bytes with its padding, and
never crosses a block's end: what is left there is a record whose moment is PAD.

Writer: reserved := end; record; committed := end. A viewer reads committed, copies, then reads reserved: what is older than
reserved − capacity may have been written over while it copied, and is not believed.

A guest's loop writes its own ring, and may write anything there: a viewer checks that each record makes sense.
"""

from enum import IntEnum
from typing import Final

import numpy as np

MAGIC: Final = 0x5842_4C54_5241_4345
MAGIC_AT, CAPACITY_AT, RESERVED_AT, COMMITTED_AT, RECORDS_AT = 0, 8, 64, 128, 136
DATA_AT: Final = 4096
BLOCK: Final = 128 * 1024
DEFAULT_CAPACITY: Final = 64 * BLOCK
MOST_SNAP: Final = 65536 + 18
"""Bytes of a frame that a record can have: with its header and padding it fits in a block."""


class Moment(IntEnum):
    """What was done with the frame."""

    PAD = 0
    POSTED = 1  # a guest's program has sent it: it is the front end's
    TAKEN = 2  # the loop has it from a port: checked, and copied where that is its way
    PASSED = 3  # it is the next one's, at port `other`: copied into the receiver's buffer, or posted
    DROPPED = 4  # under the name `drop`
    RECEIVED = 5  # a guest's program has taken it


RECORD: Final = np.dtype([
    ("size", "<u4"),  # of all of it: a multiple of ALIGN
    ("captured", "<u4"),  # bytes of the frame that follow the header
    ("time_ns", "<i8"),  # CLOCK_MONOTONIC
    ("key", "<u8"),  # the same for a frame wherever it is seen, as far as its bytes are: hyp/trace/ring.py
    ("length", "<u4"),  # of the frame
    ("moment", "<u2"),
    ("drop", "<u2"),  # a Count column, 0 if it isn't dropped
    ("port", "<i4"),  # where it came from: of NIC, Dom0 and VMM the number of a context or a port; of a guest the queue
    ("other", "<i4"),  # where it went; WIRE, or NOWHERE
    ("offload", "<u4"),  # the upper half of the fragment word (hyp/abi/fragment.py): what is left to be done to it
    ("number", "<u4"),  # of the record
    ("woken_ns", "<i8"),  # when the loop was last woken from a sleep
    ("spare", "<u8"),
])  # fmt: skip
RECORD_BYTES: Final = RECORD.itemsize
ALIGN: Final = 64
assert RECORD_BYTES == ALIGN  # so that there is always room for a PAD
WIRE: Final = -1
NOWHERE: Final = -2
FLOODED: Final = -3
"""In `other`, and WIRE in `port`. FLOODED: it went to several."""
