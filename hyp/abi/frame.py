"""What the lab's test frame looks like. Plain Python only: read by processes that must not import numpy.

Layout (little-endian; Ethernet without FCS; "frame size" counts these bytes)::

     0  6 B  destination MAC
     6  6 B  source MAC
    12  u16  EtherType 0x88B5 (IEEE local experimental), in network order
    14  u16  stream: one per workload
    16  u64  sequence number within the stream, from 0
    24  u64  checksum
    32  u64  time at which the frame was due to be sent, CLOCK_MONOTONIC ns; 0: not stamped, nobody measures it
    40  ...  payload: every byte written by the sender, a function of stream and sequence number

The checksum is the sum over all 64-bit words but its own, from byte 16 to the end (the tail zero-extended), each multiplied by an
odd number that depends on its place: it sees any change of one word and any exchange of two that differ in their low bits.
"""

from typing import Final

ETHERTYPE_WIRE: Final = 0xB588  # 0x88B5 as a little-endian load sees it
STREAM, SEQUENCE, CHECKSUM, SENT, PAYLOAD = 14, 16, 24, 32, 40
MIN_TEST_FRAME: Final = 48
HEADER_ONLY: Final = 0x4000
"""In the stream number: only the first COVERED bytes are written and checksummed, what follows is whatever the buffer held.

So a stream can be held against programs that do not touch their payload (a packet generator's, a counting sink).
"""
COVERED: Final = 64
