"""Frames that a send buffer doesn't hold: how the traffic program sends and receives them (domu/programs/traffic_loop.py).

They are written to memory of the program's own, as an application's data is, and copied into the device's buffers, fragment by
fragment; what arrives in fragments is put together before it is verified. Those that are longer than the MTU allows are TCP test
frames (hyp/load/tcp.py): the device cuts them, or, where it is not asked to, the program.
"""

from typing import Any

import numpy as np

from domu.device import BURST, FAILED, Device, frame_addr, frame_length, frame_word, set_word, tx_commit, tx_reserve, whole_buffer
from hyp.abi.features import CSUM, SG, TSO4
from hyp.abi.fragment import CSUM_BLANK, MORE
from hyp.abi.frame import ETHERTYPE_WIRE, MIN_TEST_FRAME
from hyp.atomics import load64, memcpy
from hyp.control import Refused
from hyp.frames import head_words
from hyp.kernels import compiled, outlined
from hyp.load.frames import write_test_frame
from hyp.load.tcp import LARGEST as LONGEST
from hyp.load.tcp import tcp_frame_bytes, tcp_offload, unit_for, units_for, verify_frame, write_tcp_frame
from hyp.offload.frame import ETHERNET_HEADER, PIECES_BYTES, FrameMemory, frame_at, one_piece, set_piece
from hyp.offload.segments import needed_features, part_length, prepare, write_part

LONG_FIELDS = [
    ("units", "i8"),  # of a TCP test frame, and bytes in each; 0: the frames are not TCP's
    ("unit", "i8"),
    ("frame", "i8"),  # a FRAME record (hyp/offload/frame.py): the long frame that is being sent,
    ("to", "i8"),  # a table of pieces to write a segment of it to,
    ("part", "i8"),  # and how many of its segments have been sent
    ("out", "i8"),  # LONGEST bytes each: a long frame to send, and one that has arrived
    ("back", "i8"),
]
"""What a program's record has for them, beside device, trackers, counts, destination, length, stream, sequence, left and now."""


@outlined
def receive_long(p: Any, d: Any, first: int) -> Any:
    """Verify a frame of several fragments, or with an offload. Returns the number of fragments."""
    blank = frame_word(d.rx, first) & CSUM_BLANK
    length, n = put_together(p, d, first)
    if length <= LONGEST:
        verify_frame(p.trackers, p.counts, p.back, length, blank, p.now)
    return n


@compiled
def put_together(p: Any, d: Any, first: int) -> Any:
    """Copy a frame's fragments to `p.back`, as far as it has room. Returns the frame's length, and how many fragments there are."""
    length, n, more = 0, 0, MORE
    while more != 0:
        octets = frame_length(d.rx, first + n)
        if length + octets <= LONGEST:
            memcpy(p.back + length, frame_addr(d.rx, first + n), octets)
        length += octets
        more = frame_word(d.rx, first + n) & MORE
        n += 1
    return length, n


@outlined
def send_long(p: Any, d: Any) -> Any:
    """Send the stream's next frames, which a send buffer doesn't hold, a burst of them. Returns the number of frames, or FAILED."""
    room = d.fragment_room
    n = (p.length + room - 1) // room
    offload = tcp_offload(p.unit) if p.units != 0 else 0
    if p.part > 0 or d.features & needed_features(offload) != needed_features(offload):
        return _send_segments(p, d, offload)
    each = n + 1 if offload != 0 else n  # with an offload netif has a slot more
    there = tx_reserve(p.device, each * max(min(BURST // each, p.left), 1))
    if there < each:
        return min(there, 0)
    frames = there // each
    for number in range(frames):
        _write_long(p, d)
        for k in range(n):
            octets, at = min(room, p.length - k * room), number * n + k
            memcpy(whole_buffer(d, at), p.out + k * room, octets)
            set_word(d.tx, at, octets | (MORE if k < n - 1 else 0) | (offload if k == 0 else 0))
        p.sequence += 1
    p.left -= frames
    return frames if tx_commit(p.device, frames * n) == frames * n else FAILED


@compiled
def _write_long(p: Any, d: Any) -> None:
    head0, head1 = head_words(p.destination, d.mac, ETHERTYPE_WIRE << 32)
    if p.units != 0:
        write_tcp_frame(p.out, head0, head1, p.stream, p.sequence, p.units, p.unit)
    else:
        write_test_frame(p.out, p.length, head0, head1, p.stream, p.sequence, 0)


@compiled
def _send_segments(p: Any, d: Any, offload: int) -> Any:
    """Send the next segments of the frame, made here: the device does not. Returns 1, 0 (no room), or FAILED."""
    f = frame_at(p.frame)
    if p.part == 0:
        _write_long(p, d)
        one_piece(f, p.out, p.length, offload, load64(p.out), load64(p.out + 8))
        prepare(f)
    n = tx_reserve(p.device, min(BURST, f.parts - p.part))
    if n <= 0:
        return n
    blank = CSUM_BLANK if d.features & CSUM else 0
    for k in range(n):
        length = part_length(f, p.part)
        set_piece(p.to, 0, frame_addr(d.tx, k), length)
        write_part(f, p.part, p.to, 1 if blank == 0 else 0)
        set_word(d.tx, k, length | blank)
        p.part += 1
    if p.part == f.parts:
        p.part = 0
        p.sequence += 1
        p.left -= 1
    return 1 if tx_commit(p.device, n) == n else FAILED


class LongFrames:
    """What LONG_FIELDS point at, and what a device can be asked for."""

    def __init__(self, device: Device, mtu: int) -> None:
        self._device, self._mtu = device.record[0], mtu
        self._memory, self._frame = np.zeros((2, LONGEST + 1), np.uint8), FrameMemory()
        self._to = np.zeros(PIECES_BYTES // 8, np.int64)

    def attach(self, row: Any) -> None:
        """Enter it into a program's record."""
        row["out"], row["back"] = (int(self._memory[k].ctypes.data) for k in range(2))
        row["frame"], row["to"] = self._frame.address, self._to.ctypes.data

    def size(self, frame: int, *, stream: bool) -> tuple[int, int, int]:
        """The length of frames that are asked for with `frame` bytes, and a TCP test frame's units and their size, or zeros.

        Refused (EINVAL) if they can't be sent; only a `stream` may have long ones.
        """
        room, features = int(self._device["room"]), int(self._device["features"])
        longest = room
        if stream and features & SG:
            longest = max(room, self._mtu + ETHERNET_HEADER)
        if MIN_TEST_FRAME <= frame <= longest:
            return frame, 0, 0
        if stream and self._mtu + ETHERNET_HEADER < frame <= LONGEST + 1:
            unit = unit_for(self._mtu)
            if features & TSO4 == 0 or features & SG == 0:  # the program cuts, and a segment has one buffer
                unit = min(unit, unit_for(room - ETHERNET_HEADER))
            units = units_for(frame, unit)
            return int(tcp_frame_bytes(units, unit)), units, unit
        raise Refused("EINVAL", f"frame is {frame}, not in [{MIN_TEST_FRAME}, {longest}]")
