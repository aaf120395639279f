"""TCP and UDP over IPv4 and IPv6, byte by byte: a slow model of checksum and segmentation offload, apart from the lab's own.

A packet here is whole, Ethernet header and all. "Blank": its TCP or UDP checksum field holds the pseudo-header's sum.
"""

import struct
from dataclasses import dataclass, replace
from typing import Final

ETHERNET: Final = 14
TCP, UDP = 6, 17
FIN, PSH, CWR = 0x01, 0x08, 0x80


def ones_sum(data: bytes) -> int:
    """The one's complement sum of 16-bit words in network order (RFC 1071), not inverted."""
    total = sum(struct.unpack(f">{len(data + bytes(len(data) % 2)) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Packet:
    """What a packet is made of."""

    to: bytes
    sender: bytes
    version: int  # of IP
    protocol: int
    payload: bytes
    sequence: int = 0
    ident: int = 0
    flags: int = 0x10
    options: int = 0  # bytes of TCP options, a multiple of 4

    def pseudo(self, length: int) -> int:
        """Sum over the pseudo-header of a packet with `length` bytes from its TCP or UDP header on."""
        return ones_sum(self.addresses() + struct.pack(">HH", self.protocol, length))

    def addresses(self) -> bytes:
        return bytes([10, 0, 0, 1, 10, 0, 0, 2]) if self.version == 4 else b"\xfd" + bytes(14) + b"\x01\xfd" + bytes(14) + b"\x02"

    def transport(self, checksum: int) -> bytes:
        """Its TCP or UDP header with this in the checksum field."""
        if self.protocol == UDP:
            return struct.pack(">HHHH", 1000, 2000, 8 + len(self.payload), checksum)
        words = 5 + self.options // 4
        fixed = struct.pack(">HHIIBBHHH", 1000, 2000, self.sequence, 77, words << 4, self.flags, 512, checksum, 0)
        return fixed + bytes([1]) * self.options

    def headers(self, checksum: int) -> bytes:
        transport = self.transport(checksum)
        length = len(transport) + len(self.payload)
        if self.version == 6:
            ip = struct.pack(">IHBB", 6 << 28, length, self.protocol, 64) + self.addresses()
            return self.to + self.sender + b"\x86\xdd" + ip + transport
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, self.ident, 0x4000, 64, self.protocol, 0) + self.addresses()
        ip = ip[:10] + struct.pack(">H", ones_sum(ip) ^ 0xFFFF) + ip[12:]
        return self.to + self.sender + b"\x08\x00" + ip + transport

    def blank(self) -> bytes:
        """The packet with a blank checksum."""
        return self.headers(self.pseudo(len(self.transport(0)) + len(self.payload))) + self.payload

    def filled(self) -> bytes:
        """The packet with its checksum."""
        rest = self.transport(0) + self.payload
        checksum = ones_sum(self.addresses() + struct.pack(">HH", self.protocol, len(rest)) + rest) ^ 0xFFFF
        return self.headers(0xFFFF if checksum == 0 and self.protocol == UDP else checksum) + self.payload

    def segments(self, size: int) -> "list[Packet]":
        """What TCP segmentation makes of it, `size` bytes of payload each."""
        parts = range(0, len(self.payload), size)
        return [
            replace(
                self,
                payload=self.payload[at : at + size],
                sequence=(self.sequence + at) % (1 << 32),
                ident=(self.ident + k) % (1 << 16),
                flags=self.flags & ~(CWR if k else 0) & ~(FIN | PSH if k < len(parts) - 1 else 0),
            )
            for k, at in enumerate(parts)
        ]


def read(frame: bytes) -> Packet | None:
    """The packet of a frame that `Packet` could have made, and padded; None if it is no whole TCP or UDP packet."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34:
        version, protocol, at, end = 4, frame[23], 34, 14 + int.from_bytes(frame[16:18], "big")
    elif frame[12:14] == b"\x86\xdd" and len(frame) >= 54:
        version, protocol, at, end = 6, frame[20], 54, 54 + int.from_bytes(frame[18:20], "big")
    else:
        return None
    if end > len(frame) or protocol not in (TCP, UDP) or end < at + (8 if protocol == UDP else 20):
        return None
    to, sender = frame[:6], frame[6:12]
    ident = int.from_bytes(frame[18:20], "big") if version == 4 else 0
    if protocol == UDP:
        return Packet(to, sender, version, protocol, frame[at + 8 : end], 0, ident)
    length = frame[at + 12] // 16 * 4
    if length < 20 or at + length > end:
        return None
    sequence = int.from_bytes(frame[at + 4 : at + 8], "big")
    return Packet(to, sender, version, protocol, frame[at + length : end], sequence, ident, frame[at + 13], length - 20)
