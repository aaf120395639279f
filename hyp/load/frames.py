"""The lab's test frame (hyp/abi/frame.py): written by traffic programs and the wire's generator, verified by who receives it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyp.abi.counters import CHECKED, CORRUPT, DUPLICATED, FOREIGN, LOST
from hyp.abi.frame import CHECKSUM, COVERED, ETHERTYPE_WIRE, HEADER_ONLY, MIN_TEST_FRAME, PAYLOAD, SENT, SEQUENCE, STREAM
from hyp.abi.nic import MAC_MASK
from hyp.atomics import clock_ns, load8, load16, load64, memzero, record_view, store8, store64
from hyp.counters import count
from hyp.kernels import compiled
from hyp.load.histogram import BUCKETS, HISTOGRAM_BYTES, Counts, record, summary

GOOD, BAD, NO_TEST_FRAME = 1, 0, -1

TRACKER = np.dtype(
    [
        ("stream", "i8"),
        ("next", "i8"),  # one more than the highest sequence number seen
        ("window", "i8"),  # bit k: next − 1 − k has been seen
        ("frames", "i8"),
        ("bytes", "i8"),
        ("lost", "i8"),
        ("duplicated", "i8"),
        ("corrupt", "i8"),
        ("first_ns", "i8"),
        ("last_ns", "i8"),
        ("stamped", "i8"),  # good frames that carried the time at which they were due: their latency is in the histogram
        ("longest_ns", "i8"),  # the longest of them
        ("histogram", "i8"),  # address of the slot's; 0: this receiver keeps none
        ("source", "i8"),  # the MAC address that its stream comes from, if it is kept for that stream (`keep_for`); 0: anybody's
    ]
)
"""What a receiver knows of one stream. A frame of another stream starts it afresh, unless it is kept for one."""
_PRIVATE = ("stamped", "longest_ns", "histogram", "source")  # not in a report as they are
NOBODY = -1
"""A source that no frame has."""

TRACKER_BYTES = TRACKER.itemsize
TRACKERS = 64
TRACKER_ROWS = TRACKERS + 1
"""One more for frames of no stream, where they are waited for: replayed ones (hyp/load/replay.py)."""
AFRESH_NS = 1_000_000
ANYBODY = -2
"""As a source: whoever it is."""
tracker_at = record_view(TRACKER)


@compiled
def _weight(index: int) -> int:
    return 2 * index + 3


@compiled
def covered(length: int, stream: int) -> int:
    """How many of a frame's bytes its sender writes and its checksum covers."""
    return COVERED if stream & HEADER_ONLY and length > COVERED else length


@compiled
def write_test_frame(addr: int, length: int, head0: int, head1: int, stream: int, sequence: int, sent_ns: int) -> None:
    """Write a whole frame of `length` ≥ 48 bytes. `head0`, `head1`: the first 14 bytes as two little-endian words."""
    length = covered(length, stream)
    store64(addr, head0)
    store64(addr + 8, (head1 & 0xFFFF_FFFF_FFFF) | (stream << 48))
    store64(addr + SEQUENCE, sequence)
    store64(addr + SENT, sent_ns)
    total = sequence + sent_ns * _weight(0)
    seed = (sequence + stream + 1) * 0x2545F4914F6CDD1D
    words = (length - PAYLOAD) >> 3
    for i in range(words):
        word = seed + i * 0x1E3779B97F4A7C15
        store64(addr + PAYLOAD + 8 * i, word)
        total += word * _weight(i + 1)
    tail = length - PAYLOAD - 8 * words
    if tail > 0:
        word = 0
        for k in range(tail):
            byte = (seed >> (8 * k)) & 0xFF
            store8(addr + PAYLOAD + 8 * words + k, byte)
            word |= byte << (8 * k)
        total += word * _weight(words + 1)
    store64(addr + CHECKSUM, total)


@compiled
def checksum(addr: int, length: int) -> int:
    """Checksum of the frame at `addr`, computed over what is there."""
    total = load64(addr + SEQUENCE)
    words = (length - SENT) >> 3
    for i in range(words):
        total += load64(addr + SENT + 8 * i) * _weight(i)
    tail = length - SENT - 8 * words
    if tail > 0:
        word = 0
        for k in range(tail):
            word |= load8(addr + SENT + 8 * words + k) << (8 * k)
        total += word * _weight(words)
    return total


@compiled
def is_test_frame(addr: int, length: int) -> bool:
    """True for frames of this layout; everything else on the network is none of the test's business."""
    return length >= MIN_TEST_FRAME and load16(addr + 12) == ETHERTYPE_WIRE


@compiled
def is_strangers(trackers: int, addr: int, stream: int, now_ns: int) -> bool:
    """True if the frame's stream would get a tracker that is kept for another stream, or for the same from another source.

    Or that another one, whose latency was measured, has had just now: to begin it afresh takes as long as several frames, so that
    two streams of a hostile sender's would have it begun with each."""
    t = tracker_at(trackers + (stream % TRACKERS) * TRACKER_BYTES)
    if t.source != 0 and (t.stream != stream or t.source != load64(addr + 6) & MAC_MASK):
        return True
    too_early: bool = t.stamped > 0 and t.stream != stream and now_ns - t.last_ns < AFRESH_NS
    return too_early


@compiled
def stream_tracker(trackers: int, stream: int, now_ns: int) -> Any:
    """The TRACKER record of a stream of which something has arrived now; another stream's is begun afresh."""
    t = tracker_at(trackers + (stream % TRACKERS) * TRACKER_BYTES)
    if t.stream != stream or t.frames + t.corrupt == 0:
        t.stream, t.next, t.window, t.frames, t.bytes, t.lost, t.duplicated, t.corrupt = stream, 0, 0, 0, 0, 0, 0, 0
        t.first_ns = now_ns
        if t.stamped > 0:
            t.stamped, t.longest_ns = 0, 0
            memzero(t.histogram, HISTOGRAM_BYTES)
    t.last_ns = now_ns
    return t


@compiled
def account(t: Any, row: int, sequence: int, length: int) -> bool:
    """Account for number `sequence` of a stream, `length` bytes. False: it has been there before."""
    ahead = sequence - t.next
    if ahead >= 0:
        t.window = (t.window << (ahead + 1)) | 1 if ahead < 63 else 1
        t.next = sequence + 1
        if ahead > 0:
            t.lost += ahead
            count(row, LOST, ahead)
    else:
        behind = -ahead - 1
        if behind < 64 and not (t.window >> behind) & 1 and behind < t.next:
            t.window |= 1 << behind  # late, not lost
            t.lost -= 1
            count(row, LOST, -1)
        else:
            t.duplicated += 1
            count(row, DUPLICATED, 1)
            return False
    t.frames += 1
    t.bytes += length
    return True


@compiled
def verify(trackers: int, row: int, addr: int, length: int, now_ns: int) -> bool:
    """Check one received frame and account for it in its stream's tracker and in the counters row; True if it is a good one."""
    found = look_at(trackers, row, addr, length, now_ns)
    if found == NO_TEST_FRAME:
        count(row, FOREIGN, 1)
    return found == GOOD


@compiled
def look_at(trackers: int, row: int, addr: int, length: int, now_ns: int) -> int:
    """`verify` of what may be none of this layout, or a stranger's: GOOD, BAD, or NO_TEST_FRAME, which is accounted for nowhere."""
    if not is_test_frame(addr, length):
        return NO_TEST_FRAME
    stream = load16(addr + STREAM)
    if is_strangers(trackers, addr, stream, now_ns):
        return NO_TEST_FRAME
    checked = covered(length, stream)
    if checked == length:
        count(row, CHECKED, 1)
    t = stream_tracker(trackers, stream, now_ns)
    if checksum(addr, checked) != load64(addr + CHECKSUM):
        t.corrupt += 1
        count(row, CORRUPT, 1)
        return BAD
    if not account(t, row, load64(addr + SEQUENCE), length):
        return BAD
    due = load64(addr + SENT)
    if due != 0 and t.histogram != 0:
        _record_latency(t, clock_ns() - due)
    return GOOD


@compiled
def _record_latency(t, ns) -> None:
    t.stamped += 1
    t.longest_ns = max(t.longest_ns, ns)
    record(t.histogram, ns)


Trackers = np.ndarray[tuple[int], np.dtype[np.void]]
_SUMS = ("frames", "bytes", "lost", "duplicated", "corrupt")


def keep_for(trackers: Trackers, stream: int, source: int) -> None:
    """From now on the stream's tracker, afresh, is for frames of it from `source` alone; 0: for anybody's frames of any stream.

    So nobody else can spoil what is known of it, whatever stream he says his frames are of.
    """
    row = trackers[stream % TRACKERS]
    if source != 0:
        row["source"] = NOBODY  # while it is changed under the loop that uses it
        for name in ("next", "window", "frames", "bytes", "lost", "duplicated", "corrupt"):
            row[name] = 0
        row["stream"] = stream
    row["source"] = source


def attach_histograms(trackers: Trackers, histograms: Counts | None = None) -> Counts:
    """Give every tracker a histogram of latencies: (`TRACKERS`, `BUCKETS`) counts, `histograms` or new ones, kept by the caller."""
    histograms = np.zeros((TRACKERS, BUCKETS), np.int64) if histograms is None else histograms
    trackers["histogram"][:TRACKERS] = int(histograms.ctypes.data) + np.arange(TRACKERS) * HISTOGRAM_BYTES
    return histograms


def tracker_report(trackers: Trackers, stream: int, histograms: Counts | None = None) -> dict[str, Any]:
    """A stream's tracker as a plain dict; all zero if no frame of the stream was seen.

    With `histograms`, and if the stream's frames were stamped: ``latency``, as `hyp.load.histogram.summary` gives it.
    """
    row = trackers[stream % TRACKERS]
    names = [name for name in TRACKER.names or () if name not in _PRIVATE]
    if int(row["stream"]) != stream or (int(row["frames"]) == 0 and int(row["corrupt"]) == 0):
        return {**dict.fromkeys(names, 0), "stream": stream}
    report: dict[str, Any] = {name: int(row[name]) for name in names}
    if histograms is not None and int(row["stamped"]) > 0:
        report["latency"] = summary(histograms[stream % TRACKERS].copy(), int(row["longest_ns"]))  # its loop goes on counting
    return report


def report_of_all(receivers: Sequence[tuple[Trackers, Counts]], stream: int) -> dict[str, Any]:
    """`tracker_report` of a stream that any of several receivers may have got, each with its trackers and histograms.

    Only one does if frames are spread by their flow (hyp/offload/flow.py); of several, sums from the first frame to the last.
    """
    reports = [tracker_report(trackers, stream, histograms) for trackers, histograms in receivers]
    seen = [k for k, report in enumerate(reports) if report["frames"] + report["corrupt"] > 0]
    if len(seen) < 2:
        return reports[seen[0] if seen else 0]
    found = [reports[k] for k in seen]
    merged = {**found[0], **{name: sum(report[name] for report in found) for name in _SUMS}}
    merged |= {"next": max(report["next"] for report in found), "last_ns": max(report["last_ns"] for report in found)}
    merged["first_ns"] = min(report["first_ns"] for report in found)
    stamped = [k for k in seen if "latency" in reports[k]]
    if stamped:
        slot = stream % TRACKERS
        counts = sum(receivers[k][1][slot] for k in stamped)
        merged["latency"] = summary(counts, max(int(receivers[k][0][slot]["longest_ns"]) for k in stamped))
    return merged
