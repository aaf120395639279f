"""A TAP's virtio_net_hdr and the fragment word: each says what the other says, against packets made the slow way."""

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from domu.device import FRAME_BYTES
from domu.programs.tap import frame_of
from hyp.abi.fragment import CSUM_BLANK, CSUM_VALID, GSO_TCPV4, GSO_TCPV6, MORE, SEGMENT_SHIFT
from hyp.abi.vnet import DATA_VALID, NEEDS_CSUM, TYPE_ECN, TYPE_TCPV4, TYPE_TCPV6, VNET_BYTES
from hyp.kernels import entry, i64
from hyp.offload.frame import FrameMemory, frame_at
from hyp.offload.vnet import BAD, TOO_LONG, header_of, word_of
from tests.support.fuzz import SEED, TIERS, fuzz
from tests.support.packets import Packet, ones_sum

HEADER = struct.Struct("=BBHHHH")
ONE, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02"
TAG, SERVICE = (0x8100, 5), (0x88A8, 7)
UNLIMITED = 1 << 17


@entry(i64(i64, i64, i64, i64, i64, i64))
def _word_of(frame: int, header: int, burst: int, n: int, length: int, longest: int) -> Any:
    f = frame_at(frame)
    frame_of(f, burst, 0, n, length, 0)
    return word_of(f, header, longest)


@entry(i64(i64, i64, i64, i64, i64, i64))
def _header_of(frame: int, header: int, burst: int, n: int, length: int, word: int) -> Any:
    f = frame_at(frame)
    frame_of(f, burst, 0, n, length, word)
    return 1 if header_of(f, header) else 0


class Fragments:
    """A frame in fragments with a virtio_net_hdr. `at`: where it is cut."""

    def __init__(self, content: bytes, at: list[int], header: bytes = bytes(VNET_BYTES)) -> None:
        self._frame = FrameMemory()
        self._header = np.frombuffer(bytearray(header.ljust(16, b"\0")), np.uint8)
        bounds = [0, *at, len(content)]
        pieces = [content[low:high] for low, high in itertools.pairwise(bounds)]
        self._pieces = [np.frombuffer(bytearray(piece.ljust(16, b"\0")), np.uint8) for piece in pieces]
        self.sizes = [len(piece) for piece in pieces]
        self._burst = np.zeros((len(pieces), FRAME_BYTES // 8), np.int64)
        for k, piece in enumerate(self._pieces):
            more = MORE if k < len(pieces) - 1 else 0
            self._burst[k] = piece.ctypes.data, self.sizes[k] | more

    @property
    def content(self) -> bytes:
        return b"".join(bytes(piece[:size]) for piece, size in zip(self._pieces, self.sizes, strict=True))

    @property
    def header(self) -> tuple[int, ...]:
        return HEADER.unpack(bytes(self._header[:VNET_BYTES]))

    def word(self, longest: int = UNLIMITED) -> int:
        addresses = self._frame.address, self._header.ctypes.data, self._burst.ctypes.data
        return int(_word_of(*map(int, addresses), len(self.sizes), sum(self.sizes), longest))

    def tell(self, word: int) -> bool:
        addresses = self._frame.address, self._header.ctypes.data, self._burst.ctypes.data
        return bool(_header_of(*map(int, addresses), len(self.sizes), sum(self.sizes), word))


def header_of_packet(packet: Packet, segment: int = 0, ecn: bool = False) -> bytes:
    """What the kernel says of a packet that it leaves unfinished."""
    content = bytes(packet)
    transport = len(content) - len(packet.payload) - (8 if packet.protocol == "udp" else 20 + len(packet.tcp_options))
    kind = (TYPE_TCPV4 if packet.version == 4 else TYPE_TCPV6) | (TYPE_ECN if ecn else 0) if segment else 0
    told = len(content) - len(packet.payload) if segment else 0
    return HEADER.pack(NEEDS_CSUM, kind, told, segment, transport, 6 if packet.protocol == "udp" else 16)


PACKETS = [
    Packet(ONE, OTHER, version, protocol, payload=bytes(range(200)), tags=tags, ip_options=options, blank=True)
    for version in (4, 6)
    for protocol in ("tcp", "udp")
    for tags in ((), (TAG,), (SERVICE, TAG))
    for options in (b"", b"\x01" * 8)
]


@pytest.mark.parametrize("packet", PACKETS, ids=repr)
def test_a_checksum_to_be_filled_in_is_told_of_both_ways(packet: Packet) -> None:
    header = header_of_packet(packet)
    frame = Fragments(bytes(packet), [60, 100], header)
    assert frame.word() == CSUM_BLANK
    assert frame.content == bytes(packet)
    back = Fragments(bytes(packet), [60, 100])
    assert back.tell(CSUM_BLANK)
    assert back.header == HEADER.unpack(header)


@pytest.mark.parametrize("ecn", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_segmentation_is_told_of_both_ways(version: int, ecn: bool) -> None:
    packet = Packet(ONE, OTHER, version, payload=bytes(5000), tcp_options=b"\x01" * 12, blank=True)
    word = CSUM_BLANK | (GSO_TCPV4 if version == 4 else GSO_TCPV6) | 1000 << SEGMENT_SHIFT
    frame = Fragments(bytes(packet), [2112, 4224], header_of_packet(packet, 1000, ecn))
    signed = word - (1 << 64) if word >= 1 << 63 else word
    assert frame.word() == signed
    headers = len(bytes(packet)) - 5000
    assert frame.word(headers + 1000) == signed
    assert frame.word(headers + 999) == TOO_LONG, "a segment may be no longer than the MTU allows"
    back = Fragments(bytes(packet), [2112, 4224])
    assert back.tell(signed)
    assert back.header == HEADER.unpack(header_of_packet(packet, 1000))


def test_a_known_good_checksum() -> None:
    frame = Fragments(bytes(Packet(ONE, OTHER)), [])
    assert frame.tell(CSUM_VALID)
    assert frame.header == (DATA_VALID, 0, 0, 0, 0, 0)
    assert frame.tell(0)
    assert frame.header == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "header",
    [
        (0, TYPE_TCPV4, 54, 1000, 34, 16),  # to be cut, but not to be summed up
        (NEEDS_CSUM, TYPE_TCPV6, 54, 1000, 34, 16),  # not what it is
        (NEEDS_CSUM, 3, 54, 1000, 34, 16),  # UDP fragmentation, which nobody has been offered
        (NEEDS_CSUM, 5, 54, 1000, 34, 16),
        (NEEDS_CSUM, 0x7F, 54, 1000, 34, 16),
        (NEEDS_CSUM, TYPE_TCPV4, 54, 0, 34, 16),  # segments of nothing
        (NEEDS_CSUM, TYPE_TCPV4, 54, 1000, 35, 16),  # the checksum elsewhere than TCP's
        (NEEDS_CSUM, TYPE_TCPV4, 54, 1000, 34, 6),
        (NEEDS_CSUM, 0, 0, 0, 65535, 65535),  # beyond the frame
        (NEEDS_CSUM, 0, 0, 0, 5054, 0),
        (NEEDS_CSUM, 0, 0, 0, 5053, 0),
    ],
)
def test_nonsense_is_refused(header: tuple[int, ...]) -> None:
    packet = Packet(ONE, OTHER, payload=bytes(5000), blank=True)
    frame = Fragments(bytes(packet), [2112], HEADER.pack(*header))
    assert frame.word() == BAD
    assert frame.content == bytes(packet)


@pytest.mark.parametrize("word", [CSUM_BLANK, CSUM_BLANK | GSO_TCPV4 | 1000 << SEGMENT_SHIFT])
def test_a_word_that_does_not_fit_the_frame_is_not_passed_on(word: int) -> None:
    assert not Fragments(b"\x02" * 12 + b"\x88\xb5" + bytes(3000), [2112]).tell(word)


@st.composite
def _elsewhere(draw: st.DrawFn) -> tuple[bytes, int, int, list[int]]:
    """A frame, from where it is summed up, where the sum goes, and where it is cut."""
    content = draw(st.binary(min_size=20, max_size=300))
    start = draw(st.integers(14, len(content) - 2))
    offset = draw(st.integers(0, len(content) - start - 2))
    cuts = sorted(draw(st.sets(st.integers(15, len(content) - 1), max_size=6)))
    return b"\x02" * 12 + b"\x88\xb5" + content[14:], start, offset, cuts


@TIERS
def test_a_checksum_of_any_other_kind_is_filled_in(examples: int) -> None:
    filled = 0

    def body(case: tuple[bytes, int, int, list[int]]) -> None:
        nonlocal filled
        content, start, offset, cuts = case
        frame = Fragments(content, cuts, HEADER.pack(NEEDS_CSUM, 0, 0, 0, start, offset))
        assert frame.word() == 0, "nothing is left to be done"
        value = (ones_sum(content[start:]) ^ 0xFFFF) or 0xFFFF
        at = start + offset
        assert frame.content == content[:at] + struct.pack("!H", value) + content[at + 2 :]
        filled += 1

    fuzz(body, _elsewhere(), 60 * examples)
    assert filled, SEED
