"""Replay: the frames of a capture file, in memory, to be sent in their order by a compiled loop.

The loops are nic/wire/replay.py and domu/programs/replay.py. A file is read once, as a whole; frames get their new addresses then,
and their times are made those of this replay, so that nothing is left to be done for a frame but to send it. Round after round goes
on where the one before ended, a mean gap later.

Who receives replayed frames does not know them, as it knows test frames: it counts what comes from their sender in a tracker of its
own (`note_replayed`), with a digest of all that is behind their addresses: a sum over frames, the same in any order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from hyp.abi.nic import MIN_FRAME
from hyp.atomics import load8, load64, record_view
from hyp.capture.format import CaptureError, Frame
from hyp.capture.read import CaptureReader
from hyp.frames import source_of
from hyp.kernels import compiled
from hyp.load.frames import ANYBODY, TRACKER_BYTES, TRACKERS, tracker_at

ENTRY = np.dtype([("frame", "i8"), ("length", "i8"), ("due_ns", "i8")])
"""A frame: its address (0: it is longer than its way allows, and is not sent), its length, when it is due in its round."""
ENTRY_BYTES = ENTRY.itemsize
REPLAY = np.dtype(
    [
        ("entries", "i8"),  # ENTRY records
        ("count", "i8"),
        ("round_ns", "i8"),  # from a round's begin to the next one's
        ("at", "i8"),  # the next frame
        ("begun_ns", "i8"),  # when its round began
    ]
)
entry_at = record_view(ENTRY)
replay_at = record_view(REPLAY)

LINE: Final = 64
ADDRESSES = 12
"""Bytes of a frame before what the digest covers."""
MOST_BYTES: Final = 512 << 20
MASK: Final = (1 << 64) - 1

Snapped = Literal["pad", "cut", "drop"]


# --- in compiled loops -----------------------------------------------------------------------------------------------


@compiled
def begin_replay(r: Any, entries: int, count: int, round_ns: int, now_ns: int) -> None:
    """From the first frame on, which is due at `now_ns`."""
    r.entries, r.count, r.round_ns, r.at, r.begun_ns = entries, count, round_ns, 0, now_ns


@compiled
def next_entry(r: Any) -> Any:
    """The ENTRY record of the next frame; it is due at ``r.begun_ns + due_ns``."""
    return entry_at(r.entries + r.at * ENTRY_BYTES)


@compiled
def go_on(r: Any) -> None:
    """To the frame after the next."""
    r.at += 1
    if r.at == r.count:
        r.at = 0
        r.begun_ns += r.round_ns


@compiled
def frame_digest(addr: int, length: int) -> Any:
    """Of what a frame holds behind its addresses, and of its length."""
    total = length
    words = (length - ADDRESSES) >> 3
    for i in range(words):
        total += load64(addr + ADDRESSES + 8 * i) * (2 * i + 3)
    word = 0
    for k in range(length - ADDRESSES - 8 * words):
        word |= load8(addr + ADDRESSES + 8 * words + k) << (8 * k)
    return total + word * (2 * words + 3)


@compiled
def note_replayed(trackers: int, addr: int, length: int, now_ns: int) -> bool:
    """Account for a frame that is no test frame. False: nobody waits for frames from its sender."""
    t = tracker_at(trackers + TRACKERS * TRACKER_BYTES)
    if t.source == 0 or (t.source != ANYBODY and t.source != source_of(load64(addr), load64(addr + 8))):
        return False
    if t.frames == 0:
        t.first_ns = now_ns
    t.last_ns = now_ns
    t.frames += 1
    t.bytes += length
    t.window += frame_digest(addr, length)
    return True


# --- set-up ----------------------------------------------------------------------------------------------------------


def expect_replay(trackers: Any, source: int) -> None:
    """Count frames from `source` (`ANYBODY`) from now on, afresh; 0: that was it, what has been counted stays."""
    row = trackers[TRACKERS]
    if source != 0:
        row["source"] = 0
        for name in ("frames", "bytes", "window", "first_ns", "last_ns"):
            row[name] = 0
    row["source"] = source


def replay_report(all_trackers: Any) -> dict[str, int]:
    """What several receivers, of one guest's queues, have counted."""
    rows = [trackers[TRACKERS] for trackers in all_trackers]
    seen = [row for row in rows if int(row["frames"])]
    sums = {name: sum(int(row[name]) for row in rows) for name in ("frames", "bytes")}
    return {
        **sums,
        "digest": sum(int(row["window"]) for row in rows) & MASK,
        "first_ns": min((int(row["first_ns"]) for row in seen), default=0),
        "last_ns": max((int(row["last_ns"]) for row in seen), default=0),
    }


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What becomes of frames on their way into memory.

    `to`, `source`: MAC addresses that all get; `map`: else those found in a frame are replaced, destination and source. `speed`:
    of the recorded one; 0: as fast as they are taken. `longest`: bytes of a frame, longer ones are not sent. `snapped`: frames that
    were not captured whole are padded with zeros, sent as they are, or left out.
    """

    longest: int
    to: bytes | None = None
    source: bytes | None = None
    map: Mapping[bytes, bytes] = field(default_factory=dict)
    speed: float = 1.0
    snapped: Snapped = "pad"

    def addresses(self, frame: bytes) -> bytes:
        """The first 12 bytes of a frame, as they are sent."""
        old = frame[:6], frame[6:12]
        new = (own or self.map.get(one, one) for own, one in zip((self.to, self.source), old, strict=True))
        return b"".join(new)


class Recording:
    """A capture file's frames in memory. CaptureError says why there are none."""

    def __init__(self, path: str, rewriting: Rewriting) -> None:
        self.counts = dict.fromkeys(("frames", "snapped", "left_out", "too_long", "too_short"), 0)
        self._rewriting, self._path = rewriting, path
        rows: list[tuple[int, int, int]] = []
        sums: list[int] = [0]
        memory = bytearray()
        first, last = None, 0
        with CaptureReader(path) as reader:
            for frame in reader:
                data = self._sent(frame)
                if data is None:
                    continue
                if frame.ns is not None:
                    first = frame.ns if first is None else first
                    last = max(last, frame.ns - first)  # what has been captured out of order goes out at once
                due = round(last / rewriting.speed) if rewriting.speed else 0
                length = frame.length if rewriting.snapped == "pad" else len(data)
                too_long = length > rewriting.longest
                self.counts["too_long"] += too_long
                rows.append((-1 if too_long else len(memory), length, due))
                if not too_long:
                    data = data.ljust(length, b"\0")
                    memory += data
                    memory += bytes(-len(memory) % LINE)
                sums.append(sums[-1] + (0 if too_long else _digest(data)) & MASK)
                if len(memory) > MOST_BYTES:
                    raise CaptureError(f"{path}: more than {MOST_BYTES >> 20} MiB of frames: take a part of it (editcap -r)")
        self.counts["snapped"], self.cut = reader.snapped, reader.cut
        if all(at < 0 for at, _, _ in rows):
            raise CaptureError(f"{path}: there is no frame in it that can be sent{f': {self.cut}' if self.cut else ''}")
        self.counts["frames"] = len(rows)
        self._digests = sums
        self._memory = np.zeros(len(memory) + 2 * LINE, np.uint8)
        base = -int(self._memory.ctypes.data) % LINE
        self._memory[base : base + len(memory)] = memory
        self._entries = np.array(rows, np.int64)
        self._entries[:, 0] += np.where(self._entries[:, 0] < 0, 1, int(self._memory.ctypes.data) + base)
        self.address, self.count = int(self._entries.ctypes.data), len(rows)
        span = int(self._entries[-1, 2])
        self.round_ns = span + span // max(self.count - 1, 1)
        self.timed = span > 0

    def _sent(self, frame: Frame) -> bytes | None:
        """A frame as it is sent, but for padding; None: it isn't."""
        if frame.snapped and self._rewriting.snapped == "drop":
            self.counts["left_out"] += 1
            return None
        if len(frame.data) < MIN_FRAME:
            self.counts["too_short"] += 1
            return None
        return self._rewriting.addresses(frame.data) + frame.data[ADDRESSES:]

    def digest(self, sent: int) -> int:
        """Of the first `sent` frames, of all rounds."""
        rounds, rest = divmod(sent, self.count)
        return (rounds * self._digests[-1] + self._digests[rest]) & MASK

    def not_sent(self, passed: int) -> int:
        """How many of the first `passed` frames were too long."""
        rounds, rest = divmod(passed, self.count)
        return rounds * self.counts["too_long"] + int((self._entries[:rest, 0] == 0).sum())

    def about(self) -> dict[str, Any]:
        """Counts of the file's frames, for reports: all that are in a round, and which of them; `cut` if the file is cut short."""
        return {**self.counts, "cut": self.cut}


def _digest(data: bytes) -> int:
    """`frame_digest` of a frame."""
    rest = data[ADDRESSES:]
    words = np.frombuffer(rest + bytes(-len(rest) % 8), "<u8")
    weights = 2 * np.arange(len(words), dtype=np.uint64) + np.uint64(3)
    return (len(data) + int((words * weights).sum(dtype=np.uint64))) & MASK
