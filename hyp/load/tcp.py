"""The lab's TCP test frame: for streams of frames that are longer than any link takes, to be cut into segments on their way.

It looks like TCP over IPv4, so that segmentation and checksum offload work on it, and says in its headers where each segment's
payload belongs: whoever receives the segments, or the frame as a whole, can verify every byte and account for it in *units*::

     0  14 B  Ethernet
    14  20 B  IPv4: 198.18.0.1 → 198.18.0.2 (RFC 2544's benchmark range), don't fragment, its checksum right
    34  20 B  TCP: source port: the stream; destination port TCP_PORT; sequence number: that of its first byte, modulo 2^32;
              acknowledgment number: the frame's number k, modulo 2^32; window: units in the frame; urgent pointer: bytes in a unit
    54  ...   payload: n units, each the words of a function of stream and unit number k × n + i

A unit is what a segment carries: of several, each has LEAST_UNIT bytes at least. Checksums: as a sender with checksum offload
leaves them; who gets a frame that has been segmented, or whose checksum was filled in, checks TCP's.
"""

from typing import Any

from hyp.abi.counters import CHECKED, CORRUPT, FOREIGN
from hyp.abi.fragment import CSUM_BLANK, GSO_TCPV4, SEGMENT_SHIFT
from hyp.abi.frame import HEADER_ONLY
from hyp.atomics import load8, load16, load64, store8, store16, store64
from hyp.counters import count
from hyp.kernels import compiled, outlined
from hyp.load.frames import account, is_strangers, is_test_frame, stream_tracker, verify
from hyp.load.replay import note_replayed
from hyp.offload.checksum import folded, sum_bytes, swap16

ETHERTYPE_IPV4 = 0x0008  # 0x0800 as a little-endian load sees it
IP, TCP, PAYLOAD = 14, 34, 54
TCP_PORT = 0x88B5
ADDRESSES = (198 | 18 << 8 | 1 << 24) | (198 | 18 << 8 | 2 << 24) << 32
ACK_PUSH = 0x18
UNIT = 1448
"""Bytes of payload in a unit, where the link's MTU is 1500: as Linux has with timestamps. A multiple of 8."""
LEAST_UNIT = 256
"""Bytes in a unit of a frame that has several: each is accounted for by itself, by whoever receives it."""
LARGEST = 0xFFFF


def unit_for(mtu: int) -> int:
    """Bytes in a unit for links of this MTU: a multiple of 8."""
    return min(UNIT, (mtu - 40) // 8 * 8) if mtu <= 1500 else (mtu - 40) // 8 * 8


def units_for(frame: int, unit: int) -> int:
    """Units of a frame that is to have `frame` bytes, at most `LARGEST`: as many as fit, at least one."""
    if unit < LEAST_UNIT:
        return 1
    return max((min(frame, LARGEST) - PAYLOAD) // unit, 1)


@compiled
def tcp_frame_bytes(units: int, unit: int) -> int:
    """Length of a frame of so many units."""
    return PAYLOAD + units * unit


@compiled
def tcp_offload(unit: int) -> int:
    """The offload word of a TCP test frame that is to be segmented."""
    return CSUM_BLANK | GSO_TCPV4 | (unit << SEGMENT_SHIFT)


@compiled
def _seed(number: int, stream: int) -> int:
    return (number + stream + 1) * 0x2545F4914F6CDD1D


@compiled
def _net16(addr: int, value: int) -> None:
    store16(addr, swap16(value & 0xFFFF))


@compiled
def _net32(addr: int, value: int) -> None:
    _net16(addr, value >> 16)
    _net16(addr + 2, value)


@outlined
def write_tcp_frame(addr: int, head0: int, head1: int, stream: int, frame: int, units: int, unit: int) -> None:
    """Write frame number `frame` of a stream. `head0`, `head1`: as of a test frame; the EtherType is IPv4's."""
    store64(addr, head0)
    store64(addr + 8, (head1 & 0xFFFF_FFFF) | (ETHERTYPE_IPV4 << 32))
    length = units * unit + PAYLOAD - IP
    _net16(addr + IP, 0x4500)
    _net16(addr + IP + 2, length)
    _net16(addr + IP + 4, frame)
    _net16(addr + IP + 6, 0x4000)
    _net16(addr + IP + 8, 64 << 8 | 6)
    store16(addr + IP + 10, 0)
    store64(addr + IP + 12, ADDRESSES)
    store16(addr + IP + 10, folded(sum_bytes(addr + IP, 20)) ^ 0xFFFF)
    _net16(addr + TCP, stream)
    _net16(addr + TCP + 2, TCP_PORT)
    _net32(addr + TCP + 4, frame * units * unit)
    _net32(addr + TCP + 8, frame)
    store8(addr + TCP + 12, 5 << 4)
    store8(addr + TCP + 13, ACK_PUSH)
    _net16(addr + TCP + 14, units)
    store16(addr + TCP + 16, folded(sum_bytes(addr + IP + 12, 8) + (6 << 8) + swap16(length - 20)))
    _net16(addr + TCP + 18, unit)
    words = unit >> 3
    for i in range(units):
        if stream & HEADER_ONLY:
            break
        at, seed = addr + PAYLOAD + i * unit, _seed(frame * units + i, stream)
        for k in range(words):
            store64(at + 8 * k, seed + k * 0x1E3779B97F4A7C15)


@compiled
def is_tcp_frame(addr: int, length: int) -> Any:
    """True for a TCP test frame, or a segment of one."""
    return length > PAYLOAD and load16(addr + 12) == ETHERTYPE_IPV4 and load16(addr + TCP + 2) == swap16(TCP_PORT)


@compiled
def _host16(addr: int) -> Any:
    return swap16(load16(addr))


@compiled
def _host32(addr: int) -> Any:
    return (_host16(addr) << 16) | _host16(addr + 2)


@outlined
def _verify_other(trackers: int, row: int, addr: int, length: int, blank: int, now_ns: int) -> Any:
    if note_replayed(trackers, addr, length, now_ns):
        return True
    if is_tcp_frame(addr, length):
        return verify_tcp(trackers, row, addr, length, blank, now_ns)
    count(row, FOREIGN, 1)
    return False


@compiled
def verify_frame(trackers: int, row: int, addr: int, length: int, blank: int, now_ns: int) -> Any:
    """`verify` of a test frame of either kind."""
    if not is_test_frame(addr, length):
        return _verify_other(trackers, row, addr, length, blank, now_ns)
    return verify(trackers, row, addr, length, now_ns)


@compiled
def _compare(addr: int, units: int, unit: int, first: int, stream: int) -> int:
    """0 if all of so many units at `addr`, from number `first` on, is as `write_tcp_frame` writes it."""
    wrong, words = 0, unit >> 3
    for i in range(units):
        at, seed = addr + i * unit, _seed(first + i, stream)
        for k in range(words):
            wrong |= load64(at + 8 * k) ^ (seed + k * 0x1E3779B97F4A7C15)
    return wrong


@compiled
def _sum_and_compare(addr: int, units: int, unit: int, first: int, stream: int) -> Any:
    """(sum for TCP's checksum, what `_compare` says).

    In one pass, so that who sends such frames has a receiver do no more than who sends test frames of the other kind.
    """
    total, wrong, words = 0, 0, unit >> 3
    for i in range(units):
        at, seed = addr + i * unit, _seed(first + i, stream)
        for k in range(words):
            word = load64(at + 8 * k)
            total += (word & 0xFFFF_FFFF) + ((word >> 32) & 0xFFFF_FFFF)
            wrong |= word ^ (seed + k * 0x1E3779B97F4A7C15)
    return total, wrong


@compiled
def verify_tcp(trackers: int, row: int, addr: int, length: int, blank: int, now_ns: int) -> bool:
    """Check a frame or segment (`is_tcp_frame`) in one place; account for its units. `blank`: TCP's checksum is not filled in.

    True if it is a good one. What is wrong in any unit makes all of it corrupt.
    """
    stream, units, unit = _host16(addr + TCP), _host16(addr + TCP + 14), _host16(addr + TCP + 18)
    frame, payload = _host32(addr + TCP + 8), length - PAYLOAD
    if is_strangers(trackers, addr, stream, now_ns):
        count(row, FOREIGN, 1)
        return False
    t = stream_tracker(trackers, stream, now_ns)
    offset = (_host32(addr + TCP + 4) - frame * units * unit) & 0xFFFF_FFFF
    sound = unit >= 8 and unit & 7 == 0 and units > 0 and load8(addr + IP) == 0x45 and load8(addr + TCP + 12) == 5 << 4
    sound = sound and _host16(addr + IP + 2) == length - IP and folded(sum_bytes(addr + IP, 20)) == 0xFFFF
    sound = sound and payload % unit == 0 and offset % unit == 0 and offset + payload <= units * unit
    sound = sound and (unit >= LEAST_UNIT or payload == unit)
    first = frame * units + offset // max(unit, 1)
    at, here, total, wrong = addr + PAYLOAD, payload // max(unit, 1), 0, 0
    if sound and blank == 0:
        if stream & HEADER_ONLY:
            total = sum_bytes(at, payload)
        else:
            total, wrong = _sum_and_compare(at, here, unit, first, stream)
        total += sum_bytes(addr + IP + 12, 8) + (6 << 8) + swap16(length - TCP) + sum_bytes(addr + TCP, PAYLOAD - TCP)
        sound = folded(total) == 0xFFFF
    elif sound and stream & HEADER_ONLY == 0:
        wrong = _compare(at, here, unit, first, stream)
    if not sound or wrong != 0:
        t.corrupt += 1
        count(row, CORRUPT, 1)
        return False
    good = True
    for i in range(here):
        if stream & HEADER_ONLY == 0:
            count(row, CHECKED, 1)
        good = account(t, row, first + i, unit + (PAYLOAD if i == 0 else 0)) and good
    return good
