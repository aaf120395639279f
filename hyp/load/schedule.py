"""The schedule of an open-loop sender: frame k is due at start + k / rate, whether or not those before it have been taken.

A frame goes out when it is due, or, if the sender is late, at once; either way it is stamped with the time at which it was due,
so that what it waited in front of the sender counts as latency too (no coordinated omission).
"""

from typing import Any

import numpy as np

from hyp.atomics import record_view
from hyp.kernels import compiled

SECOND = 1_000_000_000
MAX_RATE = SECOND

SCHEDULE = np.dtype(
    [
        ("pps", "i8"),  # frames per second; 0: there is no schedule, every frame is due at once
        ("due_ns", "i8"),  # when the next frame is, rounded down; `rest` / pps ns later exactly
        ("rest", "i8"),
        ("lag_ns", "i8"),  # how late the last frame went out, or how long the next is overdue
        ("max_lag_ns", "i8"),
    ]
)
schedule_at = record_view(SCHEDULE)


@compiled
def begin_schedule(s: Any, pps: int, start_ns: int) -> None:
    """The first frame is due at `start_ns`."""
    s.pps, s.due_ns, s.rest, s.lag_ns, s.max_lag_ns = pps, start_ns, 0, 0, 0


@compiled
def frames_due(s: Any, now_ns: int, most: int) -> Any:
    """How many frames may go out now, at most `most`. Rather one too few than one too many: the next call finds it."""
    if s.pps == 0:
        return most
    late = now_ns - s.due_ns
    return 0 if late < 0 else min(late // (SECOND // s.pps + 1) + 1, most)


@compiled
def stamp(s: Any) -> Any:
    """What the next frame is stamped with: when it is due, or 0 where there is no schedule."""
    return s.due_ns if s.pps != 0 else 0


@compiled
def note_lag(s: Any, now_ns: int) -> None:
    """The next frame goes out now, or would if it could."""
    s.lag_ns = max(now_ns - s.due_ns, 0)
    s.max_lag_ns = max(s.max_lag_ns, s.lag_ns)


@compiled
def frame_sent(s: Any, now_ns: int) -> None:
    """Go on to the frame after the next."""
    if s.pps == 0:
        return
    note_lag(s, now_ns)
    s.due_ns += SECOND // s.pps
    s.rest += SECOND % s.pps
    if s.rest >= s.pps:
        s.rest -= s.pps
        s.due_ns += 1
