"""Reads capture files: pcap (micro- and nanoseconds, either byte order) and pcapng (`pcapng.py`), of Ethernet.

A reader goes through its file once, from front to back, a block at a time, so that memory does not grow with the file, and pipes
will do. What it makes of a file that is not as it should be:

    it ends in the middle of a block     what is before is used; `cut` says where, once the frames have been gone through
    a length can't be true               CaptureError, with the offset, as is anything else that the format rules out
    another link type than Ethernet      CaptureError, with the link type's name; in pcapng when a frame of it comes
    frames that were not captured whole  are given as they are (`Frame.snapped`), and counted: `snapped`
    a block of a kind that is not known  is skipped by its length
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hyp.capture.format import (
    COMPRESSED,
    ETHERNET,
    FCS_LENGTH_GIVEN,
    LONGEST_FRAME,
    NS,
    PCAP_BLOCK_US,
    PCAP_HEADER,
    PCAP_NS,
    PCAP_RECORD,
    PCAP_US,
    SECTION,
    CaptureError,
    Frame,
    link_name,
)
from hyp.capture.pcapng import Blocks, Interface

BUFFER = 1 << 18


class CaptureReader:
    """The frames of a capture file. Iterate over it, once; `frames`, `snapped` and `cut` are of what has been read."""

    def __init__(self, path: str | Path, file: IO[bytes] | None = None) -> None:
        """`file`: open already, `path` is its name then. CaptureError if it can't be read, or is no capture."""
        self.path = str(path)
        self.frames, self.snapped = 0, 0
        self.cut: str | None = None
        self.interfaces: list[Interface] = []
        """All there have been, of all sections; `Frame.interface` counts in it."""
        try:
            self._file = file or open(path, "rb", buffering=BUFFER)  # noqa: SIM115
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error
        self._at = 0
        try:
            self._magic = self._some(4)
            self._check_magic()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._pcapng() if self._is_pcapng else self._pcap():
            self.frames += 1
            self.snapped += frame.snapped
            yield frame

    # -- bytes --

    def _some(self, size: int) -> bytes:
        """The next `size` bytes, or fewer where the file ends."""
        try:
            data = self._file.read(size)
        except OSError as error:
            raise CaptureError(f"{self.path}: at byte {self._at}: {error.strerror}") from error
        while data and len(data) < size and (more := self._file.read(size - len(data))):  # a pipe gives what it has
            data += more
        self._at += len(data)
        return data

    def _whole(self, size: int, what: str) -> bytes | None:
        """The next `size` bytes; None, and `cut`, if the file ends before."""
        begin = self._at
        data = self._some(size)
        if len(data) == size:
            return data
        self.cut = f"{self.path} is cut short: {what} at byte {begin} wants {size} bytes, and {len(data)} are there"
        return None

    def _refuse(self, at: int, why: str) -> CaptureError:
        return CaptureError(f"{self.path}: at byte {at}: {why}")

    def _check_magic(self) -> None:
        magic = self._magic
        if len(magic) < 4:
            raise CaptureError(f"{self.path}: {'is empty' if not magic else 'is too short to be a capture'}")
        for mark, name in COMPRESSED.items():
            if magic.startswith(mark[:4]):
                raise CaptureError(f"{self.path}: is compressed ({name}): unpack it first")
        little, big = (int.from_bytes(magic, order) for order in ("little", "big"))
        self._is_pcapng = little == SECTION
        if self._is_pcapng:
            return
        if PCAP_BLOCK_US in (little, big):
            raise CaptureError(f"{self.path}: is of a modified pcap format (Kuznetzov's); editcap makes a usual one of it")
        if {little, big}.isdisjoint({PCAP_US, PCAP_NS}):
            raise CaptureError(f"{self.path}: is neither pcap nor pcapng: it begins with {magic.hex(' ')}")
        self._order = "<" if little in (PCAP_US, PCAP_NS) else ">"
        self._tick = 1000 if PCAP_US in (little, big) else 1

    # -- pcap --

    def _pcap(self) -> Iterator[Frame]:
        header = self._whole(PCAP_HEADER - 4, "the header")
        if header is None:
            return
        major, minor, _, _, snaplen, link = struct.unpack(self._order + "HHIIII", header)
        if major != 2:
            raise self._refuse(4, f"version {major}.{minor} of pcap is not known")
        if link & 0xFFFF != ETHERNET:
            raise self._refuse(20, f"frames are {link_name(link & 0xFFFF)}, not Ethernet")
        fcs = (link >> 28) * 2 if link & FCS_LENGTH_GIVEN else 0
        self.interfaces = [Interface(ETHERNET, fcs=fcs, snaplen=snaplen)]
        record = struct.Struct(self._order + "IIII")
        while True:
            begin = self._at
            head = self._some(PCAP_RECORD)
            if len(head) < PCAP_RECORD:
                if head:
                    self.cut = f"{self.path} is cut short: a record's header at byte {begin}, of which {len(head)} bytes are there"
                return
            seconds, parts, captured, length = record.unpack(head)
            if captured > LONGEST_FRAME or length > 0x7FFF_FFFF or captured > length:
                raise self._refuse(begin + 8, f"a frame can't be {length} bytes long of which {captured} have been captured")
            if parts * self._tick >= NS:
                raise self._refuse(begin + 4, f"{parts} is no part of a second")
            data = self._whole(captured, "a frame")
            if data is None:
                return
            yield self.interfaces[0].frame(data, length, seconds * NS + parts * self._tick, 0)

    # -- pcapng --

    def _pcapng(self) -> Iterator[Frame]:
        blocks, first = Blocks(self.path, self.interfaces), self._magic
        while True:
            begin = self._at - len(first)
            head = first + self._some(8 - len(first))
            first = b""
            if len(head) < 8:
                if head:
                    self.cut = f"{self.path} is cut short: a block at byte {begin}, of which {len(head)} bytes are there"
                return
            if head[:4] == SECTION.to_bytes(4, "little"):
                order = self._whole(4, "a section")
                if order is None:
                    return
                head += order
                blocks.begin_section(order, begin)
            kind, length = blocks.head(head, begin)
            rest = self._whole(length - len(head), f"a block of {length} bytes (type {kind:#x})")
            if rest is None:
                return
            body = (head + rest)[8:-4]
            blocks.check_trailer(rest[-4:], length, begin)
            frame = blocks.take(kind, body, begin)
            if frame is not None:
                yield frame
