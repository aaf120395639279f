"""The numbers of pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), and what goes wrong with files of them."""

from dataclasses import dataclass
from typing import Final

ETHERNET: Final = 1
LINK_TYPES: Final = {
    0: "NULL (BSD loopback)", 1: "Ethernet", 6: "IEEE 802.5 Token Ring", 9: "PPP", 10: "FDDI", 12: "raw IP", 14: "raw IP",
    50: "PPP", 51: "PPPoE", 101: "raw IP", 104: "Cisco HDLC", 105: "IEEE 802.11", 107: "Frame Relay", 108: "OpenBSD loopback",
    113: "Linux cooked v1", 119: "IEEE 802.11 with Prism header", 127: "IEEE 802.11 with radiotap header", 187: "Bluetooth HCI H4",
    189: "USB, Linux", 195: "IEEE 802.15.4", 201: "Bluetooth HCI H4 with pseudo-header", 220: "USB, Linux, memory-mapped",
    227: "CAN", 228: "raw IPv4", 229: "raw IPv6", 239: "netfilter log", 247: "InfiniBand", 249: "USBPcap", 253: "netlink",
    274: "Ethernet mPackets", 276: "Linux cooked v2",
}  # fmt: skip
"""Those that people have, by LINKTYPE number."""

PCAP_US, PCAP_NS = 0xA1B2C3D4, 0xA1B23C4D
PCAP_BLOCK_US: Final = 0xA1B2CD34
PCAP_HEADER, PCAP_RECORD = 24, 16
FCS_LENGTH_GIVEN: Final = 1 << 26  # in pcap's link type; its length in 16-bit words is in the four bits above bit 27

SECTION, INTERFACE, PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
BYTE_ORDER: Final = 0x1A2B3C4D
BLOCK = 12
"""Bytes of a block without a body: type, length, length."""

COMMENT, END_OF_OPTIONS = 1, 0
SECTION_APPLICATION = 4
IF_NAME, IF_DESCRIPTION, IF_TSRESOL, IF_FCSLEN, IF_TSOFFSET = 2, 3, 9, 13, 14

LONGEST_FRAME: Final = 1 << 18
"""Bytes of a frame: as many as libpcap's own limit. A length beyond it is a lie."""
LONGEST_BLOCK: Final = 1 << 24
"""The same of a block, options included: Wireshark's limit."""
NS: Final = 10**9

COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}


def link_name(number: int) -> str:
    """A link type in words."""
    return f"{LINK_TYPES[number]} (link type {number})" if number in LINK_TYPES else f"link type {number}"


class CaptureError(Exception):
    """A file that is no capture, or lies about itself, or can't be read or written. Names file and offset, or the cause."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured frame. `ns`: since 1970; None: not known. `length`: on the wire; less is in `data` if it was snapped."""

    data: bytes
    length: int
    ns: int | None
    interface: int = 0
    comments: tuple[str, ...] = ()

    @property
    def snapped(self) -> bool:
        """True if not all of it was captured."""
        return len(self.data) < self.length
