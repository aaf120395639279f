"""The lab's TCP test frame: what is changed in it is seen, wherever, and nobody is made to account for more than its bytes are."""

import random

import numpy as np
import pytest

from bench.isolation.units import tcp_test_frame
from hyp.abi.counters import COLUMNS, CORRUPT, DUPLICATED, FOREIGN
from hyp.abi.frame import HEADER_ONLY
from hyp.kernels import entry, i64
from hyp.load.frames import TRACKER, TRACKER_ROWS
from hyp.load.tcp import LEAST_UNIT, PAYLOAD, UNIT, tcp_frame_bytes, unit_for, units_for, verify_frame, write_tcp_frame

SEED = 20126
STREAM = 3
ETHERNET = bytes(range(12)) + b"\x08\x00"


@entry(i64(i64, i64, i64, i64, i64))
def write(addr: int, stream: int, frame: int, units: int, unit: int) -> int:
    """Write a frame, whose checksum is left blank."""
    write_tcp_frame(addr, 0x0706050403020100, 0x0B0A0908, stream, frame, units, unit)
    return 0


@entry(i64(i64, i64, i64, i64, i64))
def judge(trackers: int, row: int, addr: int, length: int, blank: int) -> int:
    """1 if a receiver takes it for a good one."""
    return 1 if verify_frame(trackers, row, addr, length, blank, 1) else 0


class Receiver:
    def __init__(self) -> None:
        self.trackers, self.row = np.zeros(TRACKER_ROWS, TRACKER), np.zeros(COLUMNS, np.int64)

    def takes(self, frame: bytes, *, blank: bool = False) -> bool:
        self._memory = np.frombuffer(frame, np.uint8).copy()
        return bool(judge(*(int(one.ctypes.data) for one in (self.trackers, self.row, self._memory)), len(frame), int(blank)))


def written(units: int, unit: int, stream: int = STREAM) -> bytes:
    memory = np.zeros(tcp_frame_bytes(units, unit), np.uint8)
    write(int(memory.ctypes.data), stream, 0, units, unit)
    return memory.tobytes()


@pytest.mark.parametrize(("units", "unit"), [(1, UNIT), (1, 8), (1, 248), (4, LEAST_UNIT), (44, UNIT), (3, 536)])
def test_a_sound_frame_is_good_with_its_checksum_and_without(units: int, unit: int) -> None:
    whole, blank = tcp_test_frame(ETHERNET, units, unit, STREAM), written(units, unit)
    assert whole[:50] + whole[52:] == blank[:50] + blank[52:], "they differ in TCP's checksum alone"
    for frame, is_blank in ((whole, False), (blank, True), (whole, True)):
        receiver = Receiver()
        assert receiver.takes(frame, blank=is_blank)
        row = receiver.trackers[STREAM]
        assert (int(row["frames"]), int(row["bytes"]), int(row["next"])) == (units, len(frame), units)
    assert not Receiver().takes(blank), "a checksum that is not filled in is none"
    again = Receiver()
    assert again.takes(whole)
    assert not again.takes(whole)
    assert int(again.row[DUPLICATED]) == units


def test_whatever_is_changed_in_a_frame_is_seen() -> None:
    draw = random.Random(SEED)
    frame = tcp_test_frame(ETHERNET, 4, LEAST_UNIT, STREAM)
    for at in [*range(14, PAYLOAD), *(draw.randrange(PAYLOAD, len(frame)) for _ in range(200)), len(frame) - 1]:
        changed = bytearray(frame)
        changed[at] ^= 1 << draw.randrange(8)
        receiver = Receiver()
        assert not receiver.takes(bytes(changed)), at
        assert int(receiver.row[CORRUPT]) + int(receiver.row[FOREIGN]) == 1


def test_what_is_changed_behind_a_right_checksum_is_seen_too() -> None:
    """Two words that have changed places have the same sum."""
    frame = bytearray(tcp_test_frame(ETHERNET, 4, LEAST_UNIT, STREAM))
    one, other = slice(PAYLOAD + 8, PAYLOAD + 16), slice(PAYLOAD + 512, PAYLOAD + 520)
    frame[one], frame[other] = frame[other], frame[one]
    receiver = Receiver()
    assert not receiver.takes(bytes(frame))
    assert int(receiver.row[CORRUPT]) == 1


@pytest.mark.parametrize("unit", [8, 16, 128, LEAST_UNIT - 8])
def test_a_frame_of_many_small_units_is_none_that_the_lab_writes(unit: int) -> None:
    receiver = Receiver()
    assert not receiver.takes(tcp_test_frame(ETHERNET, 2, unit, STREAM))
    assert int(receiver.row[CORRUPT]) == 1
    assert int(receiver.trackers[STREAM]["next"]) == 0, "none of its units is accounted for"
    assert units_for(65_535, unit) == 1


def test_a_stream_of_headers_has_its_checksum_verified_alone() -> None:
    stream = STREAM | HEADER_ONLY
    frame = bytearray(tcp_test_frame(ETHERNET, 2, LEAST_UNIT, stream))
    one, other = slice(PAYLOAD, PAYLOAD + 4), slice(PAYLOAD + 4, PAYLOAD + 8)
    frame[one], frame[other] = frame[other], frame[one]
    assert Receiver().takes(bytes(frame))
    frame[PAYLOAD] ^= 1
    assert not Receiver().takes(bytes(frame))


@pytest.mark.parametrize("mtu", [576, 1280, 1500, 4000, 9000])
def test_streams_on_any_link_have_units_that_are_large_enough(mtu: int) -> None:
    assert unit_for(mtu) >= LEAST_UNIT
    assert units_for(65_535, unit_for(mtu)) * unit_for(mtu) > 56_000
