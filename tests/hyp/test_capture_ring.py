"""What compiled loops record gets into the file as it was: rings that wrap, that are full, a full disk, a process after another."""

import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from hyp.capture.format import CaptureError
from hyp.capture.read import CaptureReader
from hyp.capture.recorder import Recorder
from hyp.capture.ring import RING, record_frame, tell_recorder
from hyp.events import new_eventfd
from hyp.kernels import entry, i64, void
from tests.support.children import in_child
from tests.support.labs import wait_until

SEED, NAMES, SMALL = 5, ("wire0",), 1 << 14


@entry(void(i64, i64, i64, i64))
def _record(ring: int, frame: int, length: int, now: int) -> None:
    record_frame(ring, frame, length, now)
    tell_recorder(ring)


class Loop:
    """A ring of `size` bytes, and what is recorded in it."""

    def __init__(self, size: int) -> None:
        self.ring, self.memory = np.zeros(1, RING), np.zeros(size, np.uint8)
        self.wake = new_eventfd()

    def recorder(self, path: Path, *, resume: bool = False) -> Recorder:
        return Recorder(str(path), [(self.ring, self.memory)], NAMES, self.wake, resume=resume)

    def record(self, data: bytes, now: int = 0) -> None:
        frame = np.frombuffer(data, np.uint8)
        _record(int(self.ring.ctypes.data), int(frame.ctypes.data), len(data), now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.wake)

    @property
    def empty(self) -> bool:
        return int(self.ring[0]["prod"]) == int(self.ring[0]["cons"])


@pytest.fixture
def small() -> Iterator[Loop]:
    with Loop(SMALL) as loop:
        yield loop


@pytest.fixture
def large() -> Iterator[Loop]:
    with Loop(1 << 20) as loop:
        yield loop


def frames_of(path: Path) -> list[bytes]:
    with CaptureReader(path) as reader:
        found = [frame.data for frame in reader]
    assert reader.cut is None
    return found


def some(count: int) -> list[bytes]:
    print("seed", SEED)
    rng = random.Random(SEED)
    return [rng.randbytes(rng.choice([14, 60, 61, 62, 63, 1514, rng.randrange(14, 9000)])) for _ in range(count)]


def test_frames_of_every_length_wrap_around_the_ring(tmp_path: Path, small: Loop) -> None:
    loop, frames = small, some(150)
    recorder = loop.recorder(tmp_path / "x.pcapng")
    for number, data in enumerate(frames):
        loop.record(data, number)
        wait_until(lambda: loop.empty, "the thread to have written a frame")
    assert recorder.close() == {"file": recorder.path, "frames": 150, "missed": 0, "written": True, "error": ""}
    assert frames_of(tmp_path / "x.pcapng") == frames
    with CaptureReader(tmp_path / "x.pcapng") as reader:
        times = [frame.ns or 0 for frame in reader]
    assert [ns - times[0] for ns in times] == list(range(150))
    assert reader.interfaces[0].name == "wire0"


def test_what_finds_no_room_is_missed_and_counted(tmp_path: Path, small: Loop) -> None:
    loop, frames = small, some(300)
    recorder = loop.recorder(tmp_path / "x.pcapng")
    for data in frames:
        loop.record(data)
    done = recorder.close()
    loop.record(frames[0])
    assert done["frames"] + done["missed"] == 300
    assert recorder.report()["missed"] == done["missed"] + 1
    left = iter(frames)
    found = frames_of(tmp_path / "x.pcapng")
    assert len(found) == done["frames"]
    assert all(data in left for data in found)  # in their order


def test_a_process_after_another_goes_on_behind_what_was_written(tmp_path: Path, large: Loop) -> None:
    loop, frames, path = large, some(60), tmp_path / "x.pcapng"
    before = loop.recorder(path)
    for data in frames[:20]:
        loop.record(data)
    wait_until(lambda: loop.empty, "the thread to have written")
    before.close()  # as if it had died: rings stay open, half a block is in the file, and what it did not write is in the ring
    loop.ring[0]["open"] = 1
    for data in frames[20:40]:
        loop.record(data)
    with path.open("ab") as file:
        file.write(bytes(loop.memory[int(loop.ring[0]["cons"]) :][:33]))
    after = loop.recorder(path, resume=True)
    for data in frames[40:]:
        loop.record(data)
    assert after.close()["frames"] == 60
    assert frames_of(path) == frames
    with pytest.raises(CaptureError, match="had ended already"):
        loop.recorder(path, resume=True)


def _fill_the_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    loop, frames = Loop(1 << 20), some(400)
    recorder = loop.recorder(path)
    for data in frames:
        loop.record(data)
        wait_until(lambda: loop.empty, "the thread to go on")
    done = recorder.close()
    found = frames_of(path)
    assert found == frames[: len(found)]
    assert 0 < len(found) < 400
    assert (done["frames"], done["missed"]) == (len(found), 400 - len(found))
    assert done["error"] == f"{path}: File too large: {len(found)} frames are in it, and no more will be"


def test_a_full_disk_ends_the_file_with_a_whole_frame_and_nothing_else(tmp_path: Path) -> None:
    in_child(lambda: _fill_the_disk(tmp_path / "x.pcapng"))


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path, small: Loop) -> None:
    with pytest.raises(CaptureError, match=r"none/x\.pcapng: No such file"):
        small.recorder(tmp_path / "none" / "x.pcapng")
    with pytest.raises(CaptureError, match="/dev/full: No space left"):
        small.recorder(Path("/dev/full"))
