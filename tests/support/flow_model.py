"""A slow model of the flow hash (hyp/offload/flow.py): from the frame's bytes, as its table says, apart from the lab's own."""

from typing import Final

MASK: Final = (1 << 64) - 1


def _mix(word: int) -> int:
    word = (word ^ (word >> 32)) * 0x2545F4914F6CDD1D & MASK
    return (word ^ (word >> 29)) * 0x1E3779B97F4A7C15 & MASK


def _little(part: bytes) -> int:
    return int.from_bytes(part, "little")


def _end(address: bytes, port: bytes) -> int:
    """One end of a flow of IP as a word: four bytes and the port behind them, or sixteen mixed down to eight, with the port."""
    if len(address) == 4:
        return _little(address + port)
    return ((_mix(_little(address[:8])) ^ _little(address[8:])) + (_little(port) << 16)) & MASK


def flow_hash(frame: bytes) -> int:
    """31 bits. `frame`: its first fragment."""
    kind, ip = frame[12:14], frame[14:]
    fragment = False
    if kind == b"\x08\x00" and len(ip) >= 20:
        protocol, ends, ports = ip[9], (ip[12:16], ip[16:20]), 4 * (ip[0] & 15)
        fragment = int.from_bytes(ip[6:8], "big") & 0x3FFF != 0
    elif kind == b"\x86\xdd" and len(ip) >= 40:
        protocol, ends, ports = ip[6], (ip[8:24], ip[24:40]), 40
    else:
        stream = frame[14:16] if kind == b"\x88\xb5" and len(frame) >= 16 else b""
        return _combined(_little(frame[:6]), _little(frame[6:12]), _little(kind + stream))
    if protocol not in (6, 17) or fragment or len(ip) < ports + 4:
        return _combined(_end(ends[0], b""), _end(ends[1], b""), protocol)
    return _combined(_end(ends[0], ip[ports : ports + 2]), _end(ends[1], ip[ports + 2 : ports + 4]), protocol)


def _combined(one: int, other: int, common: int) -> int:
    return (_mix((_mix(one) + _mix(other) + common) & MASK) >> 32) & 0x7FFF_FFFF
