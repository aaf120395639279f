"""TCP and UDP packets, made and taken apart the slow way: what checksum and segmentation offload are held against."""

import itertools
import struct
from dataclasses import dataclass, replace

FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80


def ones_sum(content: bytes) -> int:
    """The one's complement sum of 16-bit words in network order, folded."""
    total = sum(struct.unpack(f"!{(len(content) + 1) // 2}H", content + bytes(len(content) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet on Ethernet. `tags`: VLAN tags (EtherType, tag); `options`: of IPv4 or TCP, multiples of 4 bytes."""

    destination: str
    source: str
    version: int = 4
    protocol: str = "tcp"
    payload: bytes = b""
    tags: tuple[tuple[int, int], ...] = ()
    ip_options: bytes = b""  # IPv6: extension headers, destination options each 8 bytes long
    tcp_options: bytes = b""
    identification: int = 0x1234
    sequence: int = 0xFFFF_FF00
    flags: int = ACK | PSH
    blank: bool = False  # the checksum field holds the pseudo-header's sum

    def _network(self, length: int) -> bytes:
        number = 6 if self.protocol == "tcp" else 17
        if self.version == 4:
            words = 5 + len(self.ip_options) // 4
            head = struct.pack(
                "!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + length, self.identification, 0x4000, 64, number, 0,
                bytes((198, 18, 0, 1)), bytes((198, 18, 0, 2)),
            )  # fmt: skip
            head += self.ip_options
            return head[:10] + struct.pack("!H", ones_sum(head) ^ 0xFFFF) + head[12:]
        kinds = [60] * (len(self.ip_options) // 8) + [number]
        extensions = b"".join(bytes((kinds[k + 1], 0, 1, 4, 0, 0, 0, 0)) for k in range(len(kinds) - 1))
        fixed = struct.pack("!IHBB", 6 << 28, len(extensions) + length, kinds[0], 64)
        return fixed + bytes(range(16)) + bytes(range(16, 32)) + extensions

    def _pseudo(self, length: int) -> bytes:
        number = 6 if self.protocol == "tcp" else 17
        if self.version == 4:
            return bytes((198, 18, 0, 1, 198, 18, 0, 2)) + struct.pack("!BBH", 0, number, length)
        return bytes(range(32)) + struct.pack("!II", length, number)

    def __bytes__(self) -> bytes:
        ethernet = bytes.fromhex(self.destination.replace(":", "") + self.source.replace(":", ""))
        for kind, tag in self.tags:
            ethernet += struct.pack("!HH", kind, tag)
        ethernet += struct.pack("!H", 0x0800 if self.version == 4 else 0x86DD)
        return ethernet + self.packet()

    def packet(self) -> bytes:
        """From the IP header on."""
        if self.protocol == "tcp":
            words = 5 + len(self.tcp_options) // 4
            head = struct.pack("!HHIIBBHHH", 1234, 80, self.sequence & 0xFFFF_FFFF, 7, words << 4, self.flags, 500, 0, 0)
            head, field = head + self.tcp_options, 16
        else:
            head, field = struct.pack("!HHHH", 1234, 53, 8 + len(self.payload), 0), 6
        whole = head + self.payload
        pseudo = self._pseudo(len(whole))
        checksum = ones_sum(pseudo) if self.blank else (ones_sum(pseudo + whole) ^ 0xFFFF)
        if not self.blank and self.protocol == "udp" and checksum == 0:
            checksum = 0xFFFF
        whole = whole[:field] + struct.pack("!H", checksum) + whole[field + 2 :]
        return self._network(len(whole)) + whole

    def segments(self, size: int) -> list[bytes]:
        """The frames that this one is cut into, checksums and all."""
        pieces = [self.payload[at : at + size] for at in range(0, len(self.payload), size)]
        found = []
        for k, piece in enumerate(pieces):
            flags = self.flags & ~(FIN | PSH) if k < len(pieces) - 1 else self.flags
            flags = flags & ~CWR if k else flags
            number, sequence = (self.identification + k) & 0xFFFF, self.sequence + k * size
            found.append(bytes(replace(self, payload=piece, flags=flags, identification=number, sequence=sequence, blank=False)))
        return found

    def filled(self) -> bytes:
        """The same frame with its checksum."""
        return bytes(replace(self, blank=False))


def cut(content: bytes, at: list[int]) -> list[bytes]:
    """Content in pieces that begin at 0 and at each of these places, as far as they are within."""
    places = [0, *sorted({place for place in at if 0 < place < len(content)}), len(content)]
    return [content[one:other] for one, other in itertools.pairwise(places)]
