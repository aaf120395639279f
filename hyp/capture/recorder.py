"""Writes what compiled loops record (ring.py) to a pcapng file, in a thread of its own: no loop waits for a disk.

The file has one section, and an interface for each loop. What loops record at a time is in the file in the order of the thread's
writes: frames of one interface in their order, those of several not sorted by time (reordercap sorts).

If writing fails, the file ends with its last whole frame, the log says so, once, and what comes from then on is missed. A process
that takes rings over from one that died (`resume`) goes on in the same file, behind what that one had written for certain.
"""

import errno
import logging
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyp import limits
from hyp.capture.format import CaptureError
from hyp.capture.ring import LONGEST, RING, attach_ring
from hyp.capture.write import interface_block, section_block

log = logging.getLogger(__name__)

RING_BYTES = 1 << 22


class Recorder:
    """Records into `path`. `rings`: a RING record (array of one) and its memory for each loop, named by `names`."""

    def __init__(
        self, path: str, rings: Sequence[tuple[Any, Any]], names: Sequence[str], wake: int, *, resume: bool = False
    ) -> None:
        """`wake`: an eventfd for this, which stays open as long as there are loops. CaptureError if the file can't be made."""
        self.path, self.error = path, ""
        self._rings = [record for record, _ in rings]
        self._views = [memoryview(buffer) for _, buffer in rings]
        self._scratch = np.zeros((len(rings), LONGEST), np.uint8)
        self._fd = self._open(names, resume)
        self._wake = wake
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._stopping = False
        since = time.time_ns() - time.monotonic_ns()
        for number, (record, buffer) in enumerate(rings):
            row = record[0]
            attach_ring(row, buffer, self._scratch[number])
            row["fd"], row["interface"] = self._wake, number
            if not resume:
                row["since_1970"], row["open"] = since, 1
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        with limits.told_of_threads("the thread that writes a capture"):
            self._thread.start()

    def _open(self, names: Sequence[str], resume: bool) -> int:
        first, fd = self._rings[0][0], -1
        try:
            if resume and int(first["open"]) == 0:
                raise CaptureError(f"{self.path}: that of the process before had ended already")
            if resume:
                fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
                os.ftruncate(fd, int(first["lead"]) + sum(int(record[0]["cons"]) for record in self._rings))
                os.lseek(fd, 0, os.SEEK_END)
                return fd
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            lead = section_block() + b"".join(interface_block(name) for name in names)
            for record in self._rings:
                record[:] = np.zeros(1, RING)
            first["lead"] = len(lead)
            if os.write(fd, lead) < len(lead):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise CaptureError(f"{self.path}: {error.strerror}") from error
        return fd

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            if sum([self._drain(number) for number in range(len(self._rings))]) > 0:
                continue
            if stopping:
                return
            for record in self._rings:
                record[0]["asked"] = 1
            if any(int(record[0]["prod"]) != int(record[0]["cons"]) for record in self._rings) or self._stopping:
                continue
            self._poll.poll()
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass

    def _drain(self, number: int) -> int:
        """Write what a loop has recorded, up to the ring's end at most. Returns how many bytes."""
        row, view = self._rings[number][0], self._views[number]
        prod, cons = int(row["prod"]), int(row["cons"])
        at = cons % len(view)
        chunk = view[at : min(at + prod - cons, len(view))]
        if len(chunk) and not self.error:
            self._write(row, chunk, cons)
        elif len(chunk):
            row["cons"] = cons + len(chunk)
        return len(chunk)

    def _write(self, row: Any, chunk: memoryview, cons: int) -> None:
        done = 0
        try:
            while done < len(chunk):
                done += os.write(self._fd, chunk[done:])
        except OSError as error:
            self._failed(error)
        row["cons"] = cons + len(chunk)

    def _failed(self, error: OSError) -> None:
        """Let the file end with its last whole block, and record no more."""
        for record in self._rings:
            record[0]["open"] = 0
        frames = 0
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            frames = cut_to_whole(self.path, int(self._rings[0][0]["lead"]))
        missed = sum(int(record[0]["frames"]) for record in self._rings) - frames
        self._rings[0][0]["missed"] += missed
        self._rings[0][0]["frames"] -= missed
        self.error = f"{self.path}: {error.strerror}: {frames} frames are in it, and no more will be"
        log.warning("recording has ended: %s", self.error)

    def report(self) -> dict[str, Any]:
        """Frames recorded and missed so far; whether all of them are in the file; what has ended it, or nothing."""
        sums = {name: sum(int(record[0][name]) for record in self._rings) for name in ("frames", "missed")}
        written = all(int(record[0]["prod"]) == int(record[0]["cons"]) for record in self._rings)
        return {"file": self.path, **sums, "written": written, "error": self.error}

    def close(self) -> dict[str, Any]:
        """Write what has been recorded, and end; the last report. No loop records any more, or into closed rings."""
        for record in self._rings:
            record[0]["open"] = 0
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._fd)
        return self.report()


def cut_to_whole(path: str, lead: int) -> int:
    """Let a file of this module's, whose blocks begin at `lead`, end with the last whole one; returns how many there are."""
    frames, at = 0, lead
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        while at + 12 <= size:
            file.seek(at + 4)
            (length,) = struct.unpack("<I", file.read(4))
            if at + length > size:
                break
            at, frames = at + length, frames + 1
        file.truncate(min(at, size))
    return frames
