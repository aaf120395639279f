"""Writes pcapng: sections, several interfaces with names, nanoseconds, comments.

Blocks are gathered and written `GATHERED` bytes at a time, or by `flush`. If that fails (a full disk, say), the file ends with the
last block that has reached it whole, so that it can be read; the error says how many frames are in it, and it is the writer's last:
what comes later is refused with the same words. To a pipe blocks go as they are; one that breaks ends the writer.
"""

import os
import stat
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from hyp.capture.format import (
    BYTE_ORDER,
    COMMENT,
    ENHANCED_PACKET,
    ETHERNET,
    IF_DESCRIPTION,
    IF_NAME,
    IF_TSRESOL,
    INTERFACE,
    SECTION,
    SECTION_APPLICATION,
    CaptureError,
    Frame,
)

GATHERED: Final = 1 << 18
APPLICATION: Final = "xen-bypass-lab"
LONGEST_OPTION: Final = 0xFFFF


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _text(code: int, text: str) -> bytes:
    return _option(code, text.encode()[:LONGEST_OPTION].decode(errors="ignore").encode())


def _block(kind: int, body: bytes, options: Sequence[bytes] = ()) -> bytes:
    body += b"".join([*options, bytes(4)]) if options else b""
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def section_block(comment: str = "") -> bytes:
    """The block that begins a section, as this module writes it: little-endian."""
    comments = [_text(COMMENT, comment)] if comment else []
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1), [*comments, _text(SECTION_APPLICATION, APPLICATION)])


def interface_block(name: str, description: str = "") -> bytes:
    """An Ethernet interface whose timestamps are in nanoseconds."""
    described = [_text(IF_DESCRIPTION, description)] if description else []
    options = [_text(IF_NAME, name), *described, _option(IF_TSRESOL, bytes([9]))]
    return _block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, 0), options)


class CaptureWriter:
    """A pcapng file. It begins with a section; interfaces are entered before their frames."""

    def __init__(self, path: str, fd: int | None = None, *, comment: str = "") -> None:
        """`fd`: open already, and the writer's from now on; `path` is its name then. CaptureError if the file can't be made."""
        self.path, self.frames = path, 0
        self._waiting: list[bytes] = []
        self._bytes, self._interfaces = 0, 0
        self._error: CaptureError | None = None
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644) if fd is None else fd
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error
        self._seekable = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self.section(comment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def section(self, comment: str = "") -> None:
        """Begin another section: it has interfaces of its own."""
        self._interfaces = 0
        self._take(section_block(comment))

    def interface(self, name: str, description: str = "") -> int:
        """Enter an interface; returns its number in the section."""
        self._take(interface_block(name, description))
        self._interfaces += 1
        return self._interfaces - 1

    def frame(self, frame: Frame) -> None:
        """Write a frame of `frame.interface`, counted in this section. ValueError if that has not been entered."""
        if not 0 <= frame.interface < self._interfaces:
            raise ValueError(f"there is no interface {frame.interface} in this section")
        if frame.ns is None or not 0 <= frame.ns < 1 << 64:
            raise ValueError(f"a frame has a time from 1970 on, not {frame.ns}")
        head = struct.pack("<IIIII", frame.interface, frame.ns >> 32, frame.ns & 0xFFFF_FFFF, len(frame.data), frame.length)
        self._take(_block(ENHANCED_PACKET, head + _padded(frame.data), [_text(COMMENT, text) for text in frame.comments]), 1)

    def _take(self, block: bytes, frames: int = 0) -> None:
        if self._error is not None:
            raise self._error
        self._waiting.append(block)
        self._bytes += len(block)
        self.frames += frames
        if self._bytes >= GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered. CaptureError if that fails, now or before."""
        if self._error is not None:
            raise self._error
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        data = memoryview(b"".join(waiting))
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            self._failed(error, waiting, done)

    def _failed(self, error: OSError, waiting: list[bytes], done: int) -> None:
        """Let the file end with its last whole block; raises what every later call will."""
        end, whole = 0, 0
        while whole < len(waiting) and end + len(waiting[whole]) <= done:
            end += len(waiting[whole])
            whole += 1
        self.frames -= sum(block[:4] == struct.pack("<I", ENHANCED_PACKET) for block in waiting[whole:])
        if self._seekable:
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - (done - end))
        frames = "1 frame is" if self.frames == 1 else f"{self.frames} frames are"
        self._error = CaptureError(f"{self.path}: {error.strerror}: {frames} in it, and no more will be")
        raise self._error from error

    def close(self) -> None:
        """Write what has been gathered, and let go of the file. CaptureError if it isn't whole and nobody has been told yet."""
        if self._fd < 0:
            return
        try:
            if self._error is None:
                self.flush()
        finally:
            os.close(self._fd)
            self._fd = -1
