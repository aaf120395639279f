"""Attacks by what the lab itself does with its test frames: whoever receives one verifies it, the wire's sink with the rest."""

from typing import Final

from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.frames import NOBODY
from bench.isolation.scattered import LENGTH, PATHS, use_pool
from hyp.load.tcp import IP, PAYLOAD, TCP, TCP_PORT

WORD: Final = 8
STREAM: Final = 58
_ADDRESSES: Final = bytes((198, 18, 0, 1, 198, 18, 0, 2))
_MASK: Final = (1 << 64) - 1


def _checksum(data: bytes) -> bytes:
    """RFC 1071's, in network order."""
    total = sum(int.from_bytes(data[k : k + 2].ljust(2, b"\0")) for k in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (total ^ 0xFFFF).to_bytes(2)


def tcp_test_frame(ethernet: bytes, units: int, unit: int, stream: int) -> bytes:
    """The first frame of a stream of TCP test frames (hyp/load/tcp.py), with all checksums filled in. `ethernet`: its header."""
    payload = b""
    for number in range(units):
        seed = (number + stream + 1) * 0x2545F4914F6CDD1D
        payload += b"".join(((seed + k * 0x1E3779B97F4A7C15) & _MASK).to_bytes(8, "little") for k in range(unit // WORD))
    length = PAYLOAD - IP + len(payload)
    ip = bytearray(b"\x45\0" + length.to_bytes(2) + bytes.fromhex("0000400040060000") + _ADDRESSES)
    ip[10:12] = _checksum(bytes(ip))
    ports = stream.to_bytes(2) + TCP_PORT.to_bytes(2)
    tcp = bytearray(ports + bytes(8) + b"\x50\x18" + units.to_bytes(2) + bytes(2) + unit.to_bytes(2))
    pseudo = _ADDRESSES + b"\0\x06" + (length - (TCP - IP)).to_bytes(2)
    tcp[16:18] = _checksum(pseudo + bytes(tcp) + payload)
    return ethernet + bytes(ip) + bytes(tcp) + payload


@attack("sound test frames to the wire that have as many units as there are words, as fast as can be", Door.FRAMES,
        Control.POOL, paths=PATHS)  # fmt: skip
def many_units(a: Attacker) -> None:
    use_pool(a, frame=tcp_test_frame(a.header(NOBODY, kind=b"\x08\x00"), (LENGTH - PAYLOAD) // WORD, WORD, STREAM))
