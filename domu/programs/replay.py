"""Replay in a guest: frames of a capture file (hyp/load/replay.py), sent when they are due by the traffic program's loop.

A job like a stream (domu/programs/traffic_loop.py), whose schedule says when the next frame is due. A frame that a send buffer does
not hold goes in fragments, where the device takes them.
"""

from typing import Any

import numpy as np

from domu.device import BURST, FAILED, Device, frame_addr, set_word, tx_commit, tx_reserve, whole_buffer
from hyp.abi.features import SG
from hyp.abi.fragment import MORE
from hyp.abi.nic import LINK_HEADER
from hyp.atomics import memcpy
from hyp.capture.format import CaptureError
from hyp.control import Refused
from hyp.kernels import compiled, outlined
from hyp.load.replay import ENTRY_BYTES, REPLAY, Recording, Rewriting, begin_replay, entry_at, go_on, next_entry, replay_at
from hyp.load.schedule import note_lag, schedule_at

REPLAY_FIELDS = [
    ("replay", "i8"),  # a REPLAY record
    ("replays", "i8"),  # 1: the stream's frames are those that it names
]
"""What a program's record has for it, beside those that a stream has."""


@compiled
def begin_replaying(p: Any, m: Any) -> None:
    """The stream that begins now sends a file's frames: ENTRY records at `m.entries`, `m.length` of them."""
    begin_replay(replay_at(p.replay), m.entries, m.length, m.round_ns, p.started_ns)
    p.replays, p.units = 1, 1  # as a frame of several buffers is: not in the stream's own loop
    s = schedule_at(p.schedule)
    s.due_ns = p.started_ns + next_entry(replay_at(p.replay)).due_ns


@compiled
def _slots(d: Any, length: int) -> Any:
    """Buffers that a frame takes."""
    return 1 if length <= d.room else (length + d.fragment_room - 1) // d.fragment_room


@compiled
def _due(r: Any, d: Any, left: int, now: int) -> Any:
    """How many frames may go out now, and buffers that they take, in one burst."""
    at, begun, frames, slots = r.at, r.begun_ns, 0, 0
    while frames < left and frames < BURST:
        entry = entry_at(r.entries + at * ENTRY_BYTES)
        more = _slots(d, entry.length) if entry.frame != 0 else 0
        if begun + entry.due_ns > now or slots + more > BURST:
            break
        frames, slots, at = frames + 1, slots + more, at + 1
        if at == r.count:
            at, begun = 0, begun + r.round_ns
    return frames, slots


@outlined
def send_replay(p: Any, d: Any) -> Any:
    """Send what is due, a burst at most. Returns the number of frames, or FAILED. Those that are too long are passed over."""
    r, s = replay_at(p.replay), schedule_at(p.schedule)
    frames, slots = _due(r, d, p.left, p.now)
    if frames == 0:
        return 0
    there = tx_reserve(p.device, slots) if slots > 0 else 0
    if there < slots:
        return min(there, 0)
    at = 0
    for _ in range(frames):
        entry = next_entry(r)
        s.due_ns = r.begun_ns + entry.due_ns
        if s.pps != 0:
            note_lag(s, p.now)
        if entry.frame != 0:
            at = _write(d, at, entry.frame, entry.length)
        go_on(r)
    p.sequence += frames
    p.left -= frames
    s.due_ns = r.begun_ns + next_entry(r).due_ns
    if slots > 0 and tx_commit(p.device, slots) != slots:
        return FAILED
    return frames


@compiled
def _write(d: Any, at: int, frame: int, length: int) -> Any:
    """Write a frame to the burst's buffers from number `at` on. Returns the number of the next one."""
    if length <= d.room:
        memcpy(frame_addr(d.tx, at), frame, length)
        set_word(d.tx, at, length)
        return at + 1
    room, done = d.fragment_room, 0
    while done < length:
        octets = min(room, length - done)
        memcpy(whole_buffer(d, at), frame + done, octets)
        done += octets
        set_word(d.tx, at, octets | (MORE if done < length else 0))
        at += 1
    return at


class Replay:
    """What REPLAY_FIELDS point at, and the frames."""

    def __init__(self, device: Device, mtu: int) -> None:
        self._device, self._mtu = device.record[0], mtu
        self._record = np.zeros(1, REPLAY)
        self.recording: Recording | None = None

    def attach(self, row: Any) -> None:
        """Enter it into a program's record."""
        row["replay"] = self._record.ctypes.data

    def load(self, file: str, source: bytes | None, to: bytes | None, speed: float, snapped: Any) -> Recording:
        """The frames of a file as this guest sends them. Refused (EINVAL) if there are none."""
        longest = self._mtu + LINK_HEADER
        if int(self._device["features"]) & SG == 0:
            longest = min(longest, int(self._device["room"]))
        try:
            return Recording(file, Rewriting(longest, to, source, {}, speed, snapped))
        except CaptureError as error:
            raise Refused("EINVAL", str(error)) from None
