"""Writing capture files: what was written is read, by this repository's reader and by Wireshark's tools; a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.capture.format import CaptureError, Frame
from hyp.capture.read import CaptureReader
from hyp.capture.write import GATHERED, CaptureWriter
from tests.support.patience import patient

TIMES = st.integers(0, (1 << 63) - 1)
FRAMES = st.builds(
    lambda data, beyond, ns, interface, comments: Frame(data, len(data) + beyond, ns, interface, tuple(comments)),
    st.binary(max_size=200), st.sampled_from([0, 0, 1, 9000]), TIMES, st.integers(0, 1), st.lists(st.text(max_size=30).map(
        lambda text: text.replace("\0", "")), max_size=2),
)  # fmt: skip


def frames_of(path: Path) -> list[Frame]:
    with CaptureReader(path) as reader:
        return list(reader)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(FRAMES, max_size=8), min_size=1, max_size=3))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, sections: list[list[Frame]]) -> None:
    path = tmp_path_factory.mktemp("capture") / "written.pcapng"
    with CaptureWriter(str(path)) as writer:
        for number, frames in enumerate(sections):
            if number > 0:
                writer.section("another")
            for name in ("front", "back"):
                writer.interface(f"{name}{number}", "a hop")
            for frame in frames:
                writer.frame(frame)
    with CaptureReader(path) as reader:
        found = list(reader)
    expected = [
        Frame(frame.data, frame.length, frame.ns, 2 * number + frame.interface, frame.comments)
        for number, frames in enumerate(sections)
        for frame in frames
    ]
    assert found == expected
    assert [one.name for one in reader.interfaces] == [f"{name}{k}" for k in range(len(sections)) for name in ("front", "back")]
    assert reader.snapped == sum(frame.snapped for frame in expected)


def test_a_frame_needs_an_interface_and_a_time(tmp_path: Path) -> None:
    with CaptureWriter(str(tmp_path / "x")) as writer:
        with pytest.raises(ValueError, match="no interface 0"):
            writer.frame(Frame(b"", 0, 0))
        writer.interface("a")
        with pytest.raises(ValueError, match="from 1970 on"):
            writer.frame(Frame(b"", 0, None))
        writer.section()
        with pytest.raises(ValueError, match="no interface 0"):
            writer.frame(Frame(b"", 0, 0))


FULL = """
import resource, sys
from hyp.capture.format import CaptureError, Frame
from hyp.capture.write import CaptureWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = CaptureWriter(sys.argv[1])
writer.interface("a")
try:
    for number in range(4000):
        writer.frame(Frame(number.to_bytes(4, "big") * 40, 160, number))
except CaptureError as error:
    print(writer.frames, error)
    try:
        writer.frame(Frame(b"", 0, 0))
    except CaptureError as again:
        assert str(again) == str(error)
writer.close()
"""


@pytest.mark.parametrize("size", [10, GATHERED + 1000, 300_000, 300_001, 300_002, 300_003])
def test_on_a_full_disk_the_file_ends_with_its_last_whole_frame(tmp_path: Path, size: int) -> None:
    path = tmp_path / "full.pcapng"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(size)], capture_output=True, text=True, timeout=patient(30), check=True
    )
    frames, said = done.stdout.split(" ", 1)
    assert said == f"{path}: File too large: {frames} frames are in it, and no more will be\n"
    assert path.stat().st_size <= size
    if size == 10:
        assert path.stat().st_size == 0
        return
    assert path.stat().st_size > size - 300
    with CaptureReader(path) as reader:
        assert [frame.ns for frame in reader] == list(range(int(frames)))
    assert reader.cut is None


def test_a_device_that_is_full_is_named(tmp_path: Path) -> None:
    writer = CaptureWriter("/dev/full", os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(CaptureError, match="/dev/full: No space left on device: 0 frames are in it"):
        writer.flush()
    writer.close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"none/x\.pcapng: No such file"):
        CaptureWriter(str(tmp_path / "none" / "x.pcapng"))


def frames_to_show() -> list[Frame]:
    """Of whole microseconds, so that pcap's smaller cousin keeps them."""
    start = 1_700_000_000_000_000_000
    return [
        Frame(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xB6]) + bytes([k]) * 60, 74 if k % 3 else 900, start + 1000 * k)
        for k in range(30)
    ]


@pytest.mark.needs("tshark")
@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "pcapng"])
def test_what_editcap_makes_of_it_is_read_alike(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "ours.pcapng", tmp_path / "theirs"
    with CaptureWriter(str(path)) as writer:
        writer.interface("only")
        for frame in frames_to_show():
            writer.frame(frame)
    subprocess.run(["editcap", "-F", kind, str(path), str(other)], timeout=patient(30), check=True)
    assert frames_of(other) == frames_of(path) == frames_to_show()


@pytest.mark.needs("tshark")
def test_tshark_lists_frames_interfaces_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "ours.pcapng"
    with CaptureWriter(str(path), comment="a run") as writer:
        for number, name in enumerate(("alice/front", "dom0/vif1")):
            writer.interface(name)
            writer.frame(Frame(frames_to_show()[number].data, 74, 1_700_000_000_123_456_789 + number, number, (f"drop: {name}",)))
    fields = ["frame.interface_name", "frame.comment", "frame.time_epoch", "frame.len"]
    arguments = [part for name in fields for part in ("-e", name)]
    shown = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", *arguments], timeout=patient(60), check=True, capture_output=True, text=True
    )
    assert [line.split("\t") for line in shown.stdout.splitlines()] == [
        ["alice/front", "drop: alice/front", "1700000000.123456789", "74"],
        ["dom0/vif1", "drop: dom0/vif1", "1700000000.123456790", "74"],
    ]
    about = subprocess.run(["capinfos", "-c", "-k", str(path)], timeout=patient(60), check=True, capture_output=True, text=True)
    assert "Number of packets:   2" in about.stdout
    assert "a run" in about.stdout
