"""The header before each frame of a TAP made with IFF_VNET_HDR: `struct virtio_net_hdr` (linux/virtio_net.h; VIRTIO 1.2, 5.1.6).

::

     0 u8  flags        NEEDS_CSUM: a checksum is to be filled in; DATA_VALID: it is known to be good
     1 u8  gso_type     0, or TCPV4 or TCPV6, with ECN beside it: to be cut into segments
     2 u16 hdr_len      bytes of headers, a hint
     4 u16 gso_size     payload bytes of each segment
     6 u16 csum_start   from where on is summed up
     8 u16 csum_offset  from there: where the sum goes

Numbers are in the machine's byte order. It says what a fragment word (hyp/abi/fragment.py) says of offloads, and where headers are.
"""

from typing import Final

VNET_BYTES: Final = 10
VNET_FLAGS, VNET_GSO_TYPE, VNET_HDR_LEN, VNET_GSO_SIZE, VNET_CSUM_START, VNET_CSUM_OFFSET = 0, 1, 2, 4, 6, 8
NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
TYPE_NONE: Final = 0
TYPE_TCPV4: Final = 1
TYPE_TCPV6: Final = 4
TYPE_ECN: Final = 0x80
