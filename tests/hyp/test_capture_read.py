"""Reading capture files: files made by hand of either byte order and of every kind of block, and what is wrong with others."""

import struct
from pathlib import Path

import pytest

from hyp.capture.format import CaptureError, Frame
from hyp.capture.read import CaptureReader

DATA = bytes(range(64))
SECONDS, NS = 1_700_000_000, 10**9
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def pcap(order: str, magic: int = 0xA1B2C3D4, link: int = 1) -> bytes:
    return struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 262144, link)


def record(order: str, parts: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(order + "IIII", SECONDS, parts, len(data), len(data) if length is None else length) + data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, options: bytes = b"", link: int = 1, snaplen: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, snaplen) + options)


def enhanced(order: str, number: int, ticks: int, data: bytes, length: int | None = None, options: bytes = b"") -> bytes:
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), length or len(data))
    return block(order, 6, head + data + bytes(-len(data) % 4) + options)


def read(tmp_path: Path, content: bytes) -> tuple[list[Frame], CaptureReader]:
    path = tmp_path / "some.cap"
    path.write_bytes(content)
    with CaptureReader(path) as reader:
        return list(reader), reader


def refused(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(CaptureError) as error:
        read(tmp_path, content)
    return str(error.value).partition("some.cap: ")[2]


@ORDERS
@pytest.mark.parametrize(("magic", "tick"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap(tmp_path: Path, order: str, magic: int, tick: int) -> None:
    frames, reader = read(tmp_path, pcap(order, magic) + record(order, 5, DATA) + record(order, 6, DATA[:20], 1500))
    assert frames == [Frame(DATA, 64, SECONDS * NS + 5 * tick), Frame(DATA[:20], 1500, SECONDS * NS + 6 * tick)]
    assert (reader.frames, reader.snapped, reader.cut) == (2, 1, None)


def test_a_checksum_at_the_end_of_frames_is_none_of_a_frame(tmp_path: Path) -> None:
    frames, _ = read(tmp_path, pcap("<", link=1 | 1 << 26 | 2 << 28) + record("<", 0, DATA) + record("<", 0, DATA[:63], 66))
    assert [(frame.data, frame.length) for frame in frames] == [(DATA[:60], 60), (DATA[:62], 62)]
    content = section("<") + interface("<", option("<", 13, b"\4")) + enhanced("<", 0, 0, DATA)
    assert read(tmp_path, content)[0][0].data == DATA[:60]


@ORDERS
def test_pcapng_has_every_kind_of_packet_block(tmp_path: Path, order: str) -> None:
    old = struct.pack(order + "HHIIII", 0, 7, 0, 12, 20, 99) + DATA[:20]
    simple = struct.pack(order + "I", 64) + DATA[:40]
    comments = option(order, 1, b"first") + option(order, 2988, b"?") + option(order, 1, "zweitens ü".encode()) + bytes(4)
    content = (
        section(order) + interface(order, snaplen=40) + enhanced(order, 0, 11, DATA[:33], options=comments)
        + block(order, 0x0BAD, b"nobody knows") + block(order, 2, old) + block(order, 3, simple)
    )  # fmt: skip
    frames, reader = read(tmp_path, content)
    assert frames == [
        Frame(DATA[:33], 33, 11_000, 0, ("first", "zweitens ü")),
        Frame(DATA[:20], 99, 12_000),
        Frame(DATA[:40], 64, None),
    ]
    assert (reader.frames, reader.snapped) == (3, 2)


@ORDERS
@pytest.mark.parametrize(
    ("resolution", "offset", "ticks", "ns"),
    [
        (None, 0, 1_000_001, 1_000_001_000),
        (9, 0, 1_000_000_001, 1_000_000_001),
        (3, 100, 7, 100_007_000_000),
        (0x80 | 10, -1, 2560, 1_500_000_000),
        (12, 0, 5_999, 5),
    ],
)
def test_timestamps_are_of_the_interfaces_resolution(
    tmp_path: Path, order: str, resolution: int | None, offset: int, ticks: int, ns: int
) -> None:
    options = option(order, 9, bytes([resolution])) if resolution is not None else b""
    options += option(order, 14, struct.pack(order + "q", offset)) + bytes(4)
    frames, _ = read(tmp_path, section(order) + interface(order, options) + enhanced(order, 0, ticks, DATA))
    assert frames[0].ns == ns


def test_sections_have_interfaces_and_a_byte_order_each(tmp_path: Path) -> None:
    content = section("<") + interface("<", option("<", 2, b"eth0")) + enhanced("<", 0, 1, DATA)
    content += section(">") + interface(">", option(">", 2, b"eth1")) + interface(">", option(">", 2, b"eth2"))
    frames, reader = read(tmp_path, content + enhanced(">", 1, 2, DATA))
    assert [reader.interfaces[frame.interface].name for frame in frames] == ["eth0", "eth2"]


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_of_a_file_that_is_cut_all_before_the_cut_is_used(tmp_path: Path, kind: str) -> None:
    if kind == "pcap":
        head, each = pcap("<"), record("<", 0, DATA)
    else:
        head, each = section("<") + interface("<"), enhanced("<", 0, 0, DATA)
    whole = head + 3 * each
    for end in range(4, len(whole)):
        frames, reader = read(tmp_path, whole[:end])
        assert len(frames) == max(end - len(head), 0) // len(each)
        ends = {len(head) + k * len(each) for k in range(3)} | ({len(section("<"))} if kind == "pcapng" else set())
        assert (reader.cut is None) == (end in ends), end
        assert reader.cut is None or "is cut short: " in reader.cut


@ORDERS
def test_lengths_that_cannot_be_true_are_refused_with_their_place(tmp_path: Path, order: str) -> None:
    head = section(order) + interface(order)
    at = len(head)
    for length in (0, 8, 13, 1 << 25):
        lie = struct.pack(order + "II", 6, length) + bytes(40)
        assert refused(tmp_path, head + lie) == f"at byte {at + 4}: a block can't be {length} bytes long"
    good = enhanced(order, 0, 0, DATA)
    assert f"at byte {at + len(good) - 4}: " in refused(tmp_path, head + good[:-4] + struct.pack(order + "I", 96 + 4))
    for captured, length in ((65, 64), (68, 200), (1 << 30, 1 << 30)):
        lie = good[:20] + struct.pack(order + "II", captured, length) + good[28:]
        assert refused(tmp_path, head + lie).startswith(f"at byte {at + 20}: a frame")
    assert "interface 3" in refused(tmp_path, head + enhanced(order, 3, 0, DATA))
    long_option = struct.pack(order + "HH", 1, 999) + bytes(8)
    assert "an option of 999 bytes" in refused(tmp_path, head + enhanced(order, 0, 0, DATA, options=long_option))
    lie = struct.pack(order + "IIII", SECONDS, 0, 1 << 20, 1 << 20)
    assert refused(tmp_path, pcap(order) + lie).startswith("at byte 32: a frame can't be")
    assert refused(tmp_path, pcap(order) + struct.pack(order + "IIII", SECONDS, 10**6, 4, 4)).startswith("at byte 28: ")
    assert refused(tmp_path, head + block(order, 6, b"")).startswith(f"at byte {at}: a block of type 6")


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    assert refused(tmp_path, pcap("<", link=113)) == "at byte 20: frames are Linux cooked v1 (link type 113), not Ethernet"
    content = section("<") + interface("<", option("<", 2, b"wlan0"), link=127) + interface("<")
    assert len(read(tmp_path, content + enhanced("<", 1, 0, DATA))[0]) == 1
    assert "wlan0 are IEEE 802.11 with radiotap header (link type 127)" in refused(tmp_path, content + enhanced("<", 0, 0, DATA))
    assert refused(tmp_path, b"") == "is empty"
    assert refused(tmp_path, b"\x1f\x8b\x08\x00\x00\x00") == "is compressed (gzip): unpack it first"
    assert "neither pcap nor pcapng" in refused(tmp_path, b"hello, world")
    assert "Kuznetzov" in refused(tmp_path, struct.pack("<I", 0xA1B2CD34) + bytes(40))
    with pytest.raises(CaptureError, match="No such file"):
        CaptureReader(tmp_path / "none")
    with pytest.raises(CaptureError, match="Is a directory"):
        CaptureReader(tmp_path)
