"""The Toeplitz hash against Microsoft's published vectors and a slow model; what of a frame is hashed, and where it stops."""

import ipaddress
import random
import struct

import numpy as np
import pytest

from hyp.atomics import load64
from hyp.kernels import entry, i64
from hyp.offload.checksum import swap16
from hyp.offload.toeplitz import HASHING, KEY_BYTES, hashing_at, key_table, steer, toeplitz_hash
from tests.hyp.test_flow import KINDS, packet
from tests.support import toeplitz_model
from tests.support.toeplitz_model import IPV4, IPV4_TCP, IPV6, IPV6_TCP, KEY

ALL = IPV4 | IPV4_TCP | IPV6 | IPV6_TCP

VECTORS = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4B61E985, 0x02D1FEEF),
]
"""Source, its port, destination, its port, hash of the addresses, hash with the ports (Microsoft, "Verifying the RSS Hash")."""


@entry(i64(i64, i64, i64))
def _hash(hashing: int, addr: int, length: int) -> int:
    value, kind = toeplitz_hash(hashing_at(hashing), swap16((load64(addr + 8) >> 32) & 0xFFFF), addr, length)
    return value | (kind << 32)


@entry(i64(i64, i64, i64, i64))
def _steered(hashing: int, addr: int, length: int, queues: int) -> int:
    queue, info = steer(hashing_at(hashing), load64(addr + 8), addr, length, queues)
    return queue if info == 0 else queue | (info & 0xFFFF_FFFF) << 8


class Hashing:
    """What a front end has asked for."""

    def __init__(self, types: int = ALL, key: bytes = KEY, mapping: tuple[int, ...] = ()) -> None:
        self._table, self._mapping = key_table(key), np.array(mapping, np.uint32)
        self.record = np.zeros(1, HASHING)
        self.record[0] = types, self._table.ctypes.data, len(mapping), self._mapping.ctypes.data
        self.address = int(self.record.ctypes.data)

    def of(self, frame: bytes, behind: bytes = bytes(64)) -> tuple[int, int]:
        """(hash, number of its type); `behind`: what lies after it in memory."""
        memory = np.frombuffer(frame + behind, np.uint8).copy()
        found = int(_hash(self.address, int(memory.ctypes.data), len(frame)))
        return found & 0xFFFF_FFFF, found >> 32

    def steered(self, frame: bytes, queues: int) -> tuple[int, int]:
        """(queue, the first half of the extra info or 0)."""
        memory = np.frombuffer(frame + bytes(64), np.uint8).copy()
        found = int(_steered(self.address, int(memory.ctypes.data), len(frame), queues))
        return found & 0xFF, found >> 8


def tcp_packet(source: str, source_port: int, destination: str, port: int) -> bytes:
    """A TCP packet of these, over IPv4 or IPv6."""
    one, other = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    ports = struct.pack(">HH", source_port, port) + bytes(16)
    if one.version == 4:
        return bytes(12) + b"\x08\x00" + b"\x45" + bytes(8) + b"\x06" + bytes(2) + one.packed + other.packed + ports
    return bytes(12) + b"\x86\xdd" + b"\x60" + bytes(5) + b"\x06\x40" + one.packed + other.packed + ports


@pytest.mark.parametrize(("source", "source_port", "destination", "port", "addresses", "with_ports"), VECTORS)
def test_microsofts_vectors(source: str, source_port: int, destination: str, port: int, addresses: int, with_ports: int) -> None:
    frame = tcp_packet(source, source_port, destination, port)
    sixth = ":" in source
    for hashed in (lambda types: Hashing(types).of(frame), lambda types: toeplitz_model.frame_hash(frame, types)):
        assert hashed(IPV6 if sixth else IPV4) == (addresses, 2 if sixth else 0)
        assert hashed(ALL) == (with_ports, 3 if sixth else 1)
        assert hashed(IPV4 | IPV4_TCP if sixth else IPV6 | IPV6_TCP) == (0, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_every_length_of_it_is_as_the_model_says(kind: str) -> None:
    frame = KINDS[kind]
    for types in range(16):
        hashing = Hashing(types)
        for length in range(14, len(frame) + 1):
            expected = toeplitz_model.frame_hash(frame[:length], types)
            assert hashing.of(frame[:length]) == hashing.of(frame[:length], b"\xff" * 64) == expected, (types, length)


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_and_any_key_are_as_the_model_says(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(60):
        key = chance.randbytes(chance.choice([0, 1, 4, 16, 39, KEY_BYTES]))
        hashing, types = Hashing(ALL, key), chance.randrange(16)
        hashing.record[0]["types"] = types
        for _ in range(20):
            version = chance.choice([b"\x08\x00\x45", b"\x08\x00\x4f", b"\x08\x00\x44", b"\x86\xdd\x60", chance.randbytes(3)])
            frame = bytearray(chance.randbytes(12) + version + chance.randbytes(chance.randrange(2, 100)))
            if chance.random() < 0.7 and len(frame) > 23:
                frame[20:22], frame[23] = bytes(2), 6
                frame[20] = 6 if frame[12] == 0x86 else 0
            assert hashing.of(bytes(frame)) == toeplitz_model.frame_hash(bytes(frame), types, key)


def test_an_empty_key_hashes_everything_to_zero() -> None:
    assert Hashing(key=b"").of(packet(4, 6)) == (0, 1)


def test_the_queue_is_by_the_mapping_else_by_the_remainder() -> None:
    frame = packet(4, 6)
    value, kind = toeplitz_model.frame_hash(frame, ALL)
    info = 4 | kind << 16 | 1 << 24
    assert Hashing().steered(frame, 3) == (value % 3, info)
    mapping = tuple(k % 4 for k in range(7))
    assert Hashing(mapping=mapping).steered(frame, 4) == (mapping[value % 7], info)
    no_ip = bytes(12) + b"\x08\x06" + bytes(40)
    assert Hashing(mapping=(2, 1)).steered(no_ip, 4) == (2, 0)
    assert Hashing().steered(no_ip, 4) == (0, 0)
