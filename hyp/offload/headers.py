"""Reading a frame's headers, once, into memory of our own: where IP and TCP or UDP are, for checksums and segmentation.

Sources: RFC 791, 8200 (IPv4, IPv6 and its extension headers), 9293 (TCP), 768 (UDP), IEEE 802.1Q (tags).
"""

from typing import Any

from hyp.atomics import load8, load16, store8, store64
from hyp.kernels import compiled, outlined
from hyp.offload.checksum import swap16
from hyp.offload.frame import ETHERNET_HEADER, HEADER_ROOM, gather

IPV4, IPV6 = 0x0800, 0x86DD
TAG, SERVICE_TAG = 0x8100, 0x88A8
TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, DESTINATION = 0, 43, 60
MOST_TAGS, MOST_EXTENSIONS = 2, 4


@compiled
def net16(addr: int) -> Any:
    """A 16-bit number in network order."""
    return swap16(load16(addr))


@outlined
def read_headers(f: Any) -> Any:
    """Copy the headers once, and find what the offloads need to know. False: this is no whole TCP or UDP packet.

    Sets `network`, `transport`, `version`, `protocol`, `end` and `header_bytes` (up to the payload).
    """
    h, n = f.headers, min(f.length, HEADER_ROOM)
    f.header_bytes = 0
    gather(f, n, h)
    store64(h, f.head0)
    for k in range(8, ETHERNET_HEADER):
        _keep(f, k)
    f.header_bytes = ETHERNET_HEADER
    at = 12
    kind = net16(h + at)
    for _ in range(MOST_TAGS):
        if kind in (TAG, SERVICE_TAG):
            at += 4
            kind = net16(h + at)
    f.network = at + 2
    if kind == IPV4:
        found = _read_ipv4(f, h, n)
    elif kind == IPV6:
        found = _read_ipv6(f, h, n)
    else:
        found = False
    return found and _read_transport(f, h, n)


@compiled
def _keep(f: Any, k: int) -> None:
    """Byte `k` of the second header word as it was read."""
    store8(f.headers + k, (f.head1 >> (8 * (k - 8))) & 0xFF)


@compiled
def _read_ipv4(f: Any, h: int, n: int) -> bool:
    at = f.network
    if at + 20 > n:
        return False
    f.version, f.protocol = 4, load8(h + at + 9)
    words = load8(h + at)
    f.transport, f.end = at + 4 * (words & 15), at + net16(h + at + 2)
    is_fragment = net16(h + at + 6) & 0x3FFF != 0
    return words >> 4 == 4 and words & 15 >= 5 and not is_fragment


@compiled
def _read_ipv6(f: Any, h: int, n: int) -> bool:
    at = f.network
    if at + 40 > n or load8(h + at) >> 4 != 6:
        return False
    f.version, f.end = 6, at + 40 + net16(h + at + 4)
    following = load8(h + at + 6)
    at += 40
    for _ in range(MOST_EXTENSIONS):
        if following in (HOP_BY_HOP, ROUTING, DESTINATION):
            if at + 8 > n:
                return False
            following, at = load8(h + at), at + 8 * (load8(h + at + 1) + 1)
    f.protocol, f.transport = following, at
    return True


@compiled
def _read_transport(f: Any, h: int, n: int) -> bool:
    at = f.transport
    if f.protocol == TCP and at + 20 <= n:
        words = load8(h + at + 12) >> 4
        payload = at + 4 * words
        if words < 5:
            return False
    elif f.protocol == UDP and at + 8 <= n:
        payload = at + 8
    else:
        return False
    if payload > n or payload > f.end or f.end > f.length:
        return False
    f.header_bytes = payload
    return True
