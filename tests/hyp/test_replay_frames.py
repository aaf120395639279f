"""A capture file's frames in memory: addresses, times, what is left out; digests; mixes of sizes."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.capture.format import CaptureError, Frame
from hyp.capture.write import CaptureWriter
from hyp.kernels import entry, i64
from hyp.load.mix import SIMPLE_IMIX, sizes_of
from hyp.load.replay import ENTRY, MASK, Recording, Rewriting, _digest, frame_digest
from tests.support import captures

START = captures.START_NS
Record = Callable[..., tuple[Recording, list[tuple[bytes, int]]]]


@entry(i64(i64, i64))
def _compiled_digest(frame: int, length: int) -> int:
    return frame_digest(frame, length)


def bytes_at(address: int, length: int) -> bytes:
    """What is in memory there."""
    return ctypes.string_at(address, length)


@pytest.fixture
def recorded(tmp_path: Path) -> Record:
    def load(frames: list[Frame], **how: object) -> tuple[Recording, list[tuple[bytes, int]]]:
        """The frames of a file as they are to be sent, each with when it is due; b"" for one that is too long."""
        recording = Recording(str(captures.write(tmp_path / "x.pcapng", frames)), Rewriting(1518, **how))  # type: ignore[arg-type]
        entries = recording._entries.view(ENTRY)[:, 0]
        found = [(bytes_at(int(one["frame"]), int(one["length"])) if one["frame"] else b"", int(one["due_ns"])) for one in entries]
        return recording, found

    return load


def frame(length: int, us: int, captured: int | None = None) -> Frame:
    return Frame((captures.A + captures.B + bytes(range(256)) * 12)[:length][:captured], length, START + 1000 * us)


def test_times_are_the_files_times_speed_and_rounds_follow_each_other(recorded: Record) -> None:
    frames = [frame(60, 0), frame(60, 30), frame(60, 20), frame(60, 90)]  # the third one was captured late
    recording, found = recorded(frames)
    assert [due for _, due in found] == [0, 30_000, 30_000, 90_000]
    assert recording.round_ns == 120_000
    recording, found = recorded(frames, speed=2.0)
    assert ([due for _, due in found], recording.round_ns) == ([0, 15_000, 15_000, 45_000], 60_000)
    recording, found = recorded(frames, speed=0.0)
    assert ([due for _, due in found], recording.round_ns, recording.timed) == ([0] * 4, 0, False)


@pytest.mark.parametrize(("snapped", "lengths"), [("pad", [60, 200, 0]), ("cut", [60, 50, 80]), ("drop", [60])])
def test_frames_that_were_not_captured_whole(recorded: Record, snapped: str, lengths: list[int]) -> None:
    recording, found = recorded([frame(60, 0), frame(200, 1, 50), frame(3000, 2, 80), frame(9, 3)], snapped=snapped)
    if snapped == "pad":
        assert found[1][0] == frame(200, 1).data[:50] + bytes(150)
    assert [len(data) for data, _ in found] == lengths
    counts = recording.about()
    assert (counts["frames"], counts["snapped"], counts["too_short"]) == (len(lengths), 2, 1)
    assert counts["left_out"] == (2 if snapped == "drop" else 0)


def test_frames_that_are_too_long_are_in_their_place_and_not_sent(recorded: Record) -> None:
    recording, found = recorded([frame(60, 0), frame(3000, 1), frame(1518, 2)])
    assert [len(data) for data, _ in found] == [60, 0, 1518]
    assert [recording.not_sent(n) for n in range(7)] == [0, 0, 1, 1, 1, 2, 2]
    with pytest.raises(CaptureError, match="no frame in it that can be sent"):
        recorded([frame(3000, 0)])


def test_addresses(recorded: Record) -> None:
    one, other = bytes(range(6)), bytes(range(6, 12))
    _, found = recorded([frame(60, 0)], to=one, source=other)
    assert found[0][0] == one + other + frame(60, 0).data[12:]
    _, found = recorded([frame(60, 0)], map={captures.B: one})
    assert found[0][0][:12] == captures.A + one
    _, found = recorded([frame(60, 0)])
    assert found[0][0] == frame(60, 0).data


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=14, max_size=300))
def test_both_digests_are_one(data: bytes) -> None:
    memory = np.frombuffer(data + bytes(16), np.uint8)
    assert int(_compiled_digest(int(memory.ctypes.data), len(data))) & MASK == _digest(data)


def test_a_digest_is_of_all_frames_in_any_order(recorded: Record) -> None:
    recording, found = recorded(captures.traffic(count=60))
    digests = [_digest(data) if data else 0 for data, _ in found]
    for sent in (0, 1, 59, 60, 61, 150):
        assert recording.digest(sent) == sum(digests[k % 60] for k in range(sent)) & MASK


def test_sizes_of_a_mix(tmp_path: Path) -> None:
    assert sorted(SIMPLE_IMIX) == [60] * 7 + [590] * 4 + [1514]
    assert list(sizes_of("imix", 1514)) == list(SIMPLE_IMIX)
    path = captures.write(tmp_path / "x.pcapng", [frame(42, 0), frame(700, 1, 60), frame(9000, 2, 60)])
    assert list(sizes_of(str(path), 1514)) == [60, 700, 1514]
    with CaptureWriter(str(tmp_path / "empty.pcapng")):
        pass
    with pytest.raises(CaptureError, match="no frame in it"):
        sizes_of(str(tmp_path / "empty.pcapng"), 1514)


def test_what_is_before_a_cut_is_replayed(tmp_path: Path) -> None:
    path = captures.write(tmp_path / "x.pcapng", [frame(60, 0), frame(60, 1)])
    path.write_bytes(path.read_bytes()[:-5])
    recording = Recording(str(path), Rewriting(1518))
    assert recording.count == 1
    assert "is cut short" in recording.about()["cut"]
