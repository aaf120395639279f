"""A slow model of the Toeplitz hash (hyp/offload/toeplitz.py): bit by bit, as Xen's io/netif.h says; what is hashed."""

from typing import Final

KEY: Final = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip
"""Of Microsoft's "Verifying the RSS Hash Calculation"."""
IPV4, IPV4_TCP, IPV6, IPV6_TCP = 1, 2, 4, 8


def toeplitz(key: bytes, data: bytes) -> int:
    """The 32 bits; the key is followed by zeros."""
    bits = int.from_bytes(key.ljust(4 + len(data), b"\0"), "big")
    width = 8 * max(len(key), 4 + len(data))
    value = 0
    for k in range(8 * len(data)):
        if data[k // 8] & 0x80 >> k % 8:
            value ^= bits >> (width - 32 - k) & 0xFFFF_FFFF
    return value


def hashed(frame: bytes, types: int) -> tuple[int, bytes] | None:
    """(number of the type, what is hashed) of a frame, of whose first fragment these are the bytes; None: nothing is."""
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and len(ip) >= 20 and ip[0] >> 4 == 4 and ip[0] & 15 >= 5:
        at = 4 * (ip[0] & 15)
        fragment = int.from_bytes(ip[6:8], "big") & 0x3FFF != 0
        if types & IPV4_TCP and ip[9] == 6 and not fragment and len(ip) >= at + 4:
            return 1, ip[12:20] + ip[at : at + 4]
        return (0, ip[12:20]) if types & IPV4 else None
    if kind == b"\x86\xdd" and len(ip) >= 40 and ip[0] >> 4 == 6:
        if types & IPV6_TCP and ip[6] == 6 and len(ip) >= 44:
            return 3, ip[8:44]
        return (2, ip[8:40]) if types & IPV6 else None
    return None


def frame_hash(frame: bytes, types: int, key: bytes = KEY) -> tuple[int, int]:
    """(hash, number of its type), or (0, −1)."""
    found = hashed(frame, types)
    return (0, -1) if found is None else (toeplitz(key, found[1]), found[0])
