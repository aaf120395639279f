"""What is in pcapng's blocks: sections, interfaces and their options, packets of all three kinds."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hyp.capture.format import (
    BLOCK,
    BYTE_ORDER,
    COMMENT,
    END_OF_OPTIONS,
    ENHANCED_PACKET,
    ETHERNET,
    IF_FCSLEN,
    IF_NAME,
    IF_TSOFFSET,
    IF_TSRESOL,
    INTERFACE,
    LONGEST_BLOCK,
    LONGEST_FRAME,
    NS,
    PACKET,
    SECTION,
    SIMPLE_PACKET,
    CaptureError,
    Frame,
    link_name,
)


@dataclass(frozen=True, slots=True)
class Interface:
    """Where frames were captured. `per_second`: units of a timestamp in a second; `offset_s` is to be added; `snaplen` 0: none."""

    link: int
    name: str = ""
    per_second: int = 1_000_000
    offset_s: int = 0
    fcs: int = 0
    snaplen: int = 0

    def ns(self, ticks: int) -> int:
        """A timestamp in ns since 1970."""
        return ticks * NS // self.per_second + self.offset_s * NS

    def frame(self, data: bytes, length: int, ns: int | None, number: int, comments: tuple[str, ...] = ()) -> Frame:
        """A frame without the Ethernet checksum, which some captures have at its end."""
        length = max(length - self.fcs, 0)
        return Frame(data[:length], length, ns, number, comments)


class Blocks:
    """Takes the blocks of a file in their order. `interfaces` gets those of all sections."""

    def __init__(self, path: str, interfaces: list[Interface]) -> None:
        self._path, self._all, self._first = path, interfaces, 0
        self._order = "<"

    def _refuse(self, at: int, why: str) -> CaptureError:
        return CaptureError(f"{self._path}: at byte {at}: {why}")

    def begin_section(self, order: bytes, at: int) -> None:
        """From here on in this byte order, with interfaces of its own."""
        if order == BYTE_ORDER.to_bytes(4, "little"):
            self._order = "<"
        elif order == BYTE_ORDER.to_bytes(4, "big"):
            self._order = ">"
        else:
            raise self._refuse(at + 8, f"{order.hex(' ')} is no byte order of a section")
        self._first = len(self._all)

    def head(self, head: bytes, at: int) -> tuple[int, int]:
        """Type and length of a block that begins with `head`. CaptureError if it can't be that long."""
        kind, length = struct.unpack_from(self._order + "II", head)
        least = 28 if kind == SECTION else BLOCK
        if length < least or length % 4 or length > LONGEST_BLOCK:
            raise self._refuse(at + 4, f"a block can't be {length} bytes long")
        return kind, length

    def check_trailer(self, trailer: bytes, length: int, at: int) -> None:
        """A block ends with its length."""
        (again,) = struct.unpack(self._order + "I", trailer)
        if again != length:
            raise self._refuse(at + length - 4, f"a block that is {length} bytes long at its begin is {again} at its end")

    def take(self, kind: int, body: bytes, at: int) -> Frame | None:
        """A block: the frame, if it has one."""
        try:
            if kind == SECTION:
                self._section(body, at)
            elif kind == INTERFACE:
                self._interface(body, at)
            elif kind == ENHANCED_PACKET:
                return self._enhanced(body, at)
            elif kind == SIMPLE_PACKET:
                return self._simple(body, at)
            elif kind == PACKET:
                return self._old(body, at)
        except struct.error:
            raise self._refuse(at, f"a block of type {kind} can't be {len(body) + BLOCK} bytes long") from None
        return None

    def _section(self, body: bytes, at: int) -> None:
        major, minor = struct.unpack_from(self._order + "HH", body, 4)
        if major != 1:
            raise self._refuse(at + 12, f"version {major}.{minor} of pcapng is not known")

    def _options(self, body: bytes, begin: int, at: int) -> Iterator[tuple[int, bytes]]:
        """Code and value of each option from `begin` on."""
        while begin + 4 <= len(body):
            code, length = struct.unpack_from(self._order + "HH", body, begin)
            if code == END_OF_OPTIONS:
                return
            if begin + 4 + length > len(body):
                raise self._refuse(at + 8 + begin, f"an option of {length} bytes is longer than its block")
            yield code, body[begin + 4 : begin + 4 + length]
            begin += 4 + -(-length // 4) * 4

    def _interface(self, body: bytes, at: int) -> None:
        link, _, snaplen = struct.unpack_from(self._order + "HHI", body)
        name, per_second, offset, fcs = "", 1_000_000, 0, 0
        for code, value in self._options(body, 8, at):
            if code == IF_NAME:
                name = value.decode(errors="replace").rstrip("\0")
            elif code == IF_TSRESOL and value:
                per_second = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else int(10 ** value[0])
            elif code == IF_TSOFFSET and len(value) == 8:
                (offset,) = struct.unpack(self._order + "q", value)
            elif code == IF_FCSLEN and value:
                fcs = value[0]
        self._all.append(Interface(link, name, per_second, offset, fcs, snaplen))

    def _of(self, number: int, at: int) -> Interface:
        """The interface of a frame, by its number in the section."""
        if number >= len(self._all) - self._first:
            raise self._refuse(at + 8, f"a frame is of interface {number}, of which the section has said nothing")
        interface = self._all[self._first + number]
        if interface.link != ETHERNET:
            from hyp.control.words import printable  # who only reads a topology loads no numpy

            name = printable(interface.name, 60) or number
            raise self._refuse(at, f"frames of interface {name} are {link_name(interface.link)}, not Ethernet")
        return interface

    def _enhanced(self, body: bytes, at: int) -> Frame:
        number, high, low, captured, length = struct.unpack_from(self._order + "IIIII", body)
        return self._frame(body, at, number, high << 32 | low, captured, length)

    def _old(self, body: bytes, at: int) -> Frame:
        number, _, high, low, captured, length = struct.unpack_from(self._order + "HHIIII", body)
        return self._frame(body, at, number, high << 32 | low, captured, length)

    def _frame(self, body: bytes, at: int, number: int, ticks: int, captured: int, length: int) -> Frame:
        interface = self._of(number, at)
        self._check_lengths(captured, length, len(body) - 20, at + 20)
        comments = tuple(
            value.decode(errors="replace").rstrip("\0")
            for code, value in self._options(body, 20 + -(-captured // 4) * 4, at)
            if code == COMMENT
        )
        return interface.frame(body[20 : 20 + captured], length, interface.ns(ticks), self._first + number, comments)

    def _simple(self, body: bytes, at: int) -> Frame:
        (length,) = struct.unpack_from(self._order + "I", body)
        interface = self._of(0, at)
        captured = min(length, interface.snaplen) if interface.snaplen else length
        self._check_lengths(captured, length, len(body) - 4, at + 8)
        return interface.frame(body[4 : 4 + captured], length, None, self._first)

    def _check_lengths(self, captured: int, length: int, room: int, at: int) -> None:
        if captured > room or captured > LONGEST_FRAME:
            raise self._refuse(at, f"a frame of which {captured} bytes have been captured is longer than its block")
        if captured > length:
            raise self._refuse(at, f"a frame can't be {length} bytes long of which {captured} have been captured")
