"""The fragment word: how long a piece of a frame is, whether the frame goes on, and what is still to be done to it.

The same 64 bits in descriptors and completions of the NIC (hyp/abi/nic.py), in the bursts of the device interface
(domu/device.py) and wherever a frame waits inside the lab::

    bits  0-31  length of the fragment, in bytes
    bit     32  SIGNALED     (send descriptors only) write a completion
    bit     33  MORE         the frame goes on in the next fragment
    bit     34  CSUM_BLANK   its TCP or UDP checksum field holds the pseudo-header's sum: to be filled in
    bit     35  CSUM_VALID   its TCP or UDP checksum is known to be good (what a device delivers; a sender's word is nobody's proof)
    bit     36  GSO_TCPV4    to be cut into segments with `segment` bytes of payload each: TCP over IPv4
    bit     37  GSO_TCPV6    the same over IPv6
    bits 48-63  segment

Bits 34 and up concern the frame and stand in its first fragment. They say what `struct virtio_net_hdr` (Linux, virtio_net.h) and
netif's flags and extra info (Xen, io/netif.h) both say; where headers are follows from the frame itself. A frame with GSO has
CSUM_BLANK too.
"""

from typing import Final

LENGTH_MASK: Final = 0xFFFF_FFFF
SIGNALED: Final = 1 << 32
MORE_BIT: Final = 33
MORE: Final = 1 << MORE_BIT
CSUM_BLANK: Final = 1 << 34
CSUM_VALID: Final = 1 << 35
GSO_TCPV4: Final = 1 << 36
GSO_TCPV6: Final = 1 << 37
SEGMENT_SHIFT: Final = 48

GSO: Final = GSO_TCPV4 | GSO_TCPV6
SEND_FLAGS: Final = SIGNALED | MORE | CSUM_BLANK | GSO
"""What a send descriptor may have."""
OFFLOAD_MASK: Final = (CSUM_BLANK | CSUM_VALID | GSO) | (0xFFFF << SEGMENT_SHIFT) - (1 << 64)
"""The bits of the *offload word*, as a signed integer: what the first fragment's word says of the frame."""
MIN_SEGMENT: Final = 48
"""Payload of a segment, at least, but for the last: Linux's TCP_MIN_SND_MSS. Less would be work without end for the device."""
