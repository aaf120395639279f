"""What a guest still has at a loop that serves it (an engine of the NIC, Dom0's bridge), all its queues together. Compiled.

A guest that has several queues has as much of it as one that has one: `patience` and `shared_patience`, for how long its receivers
may hold others up (patience.py, ns), `storm_at`, when its next broadcast is due (storm.py, ns), and `owed`, for turns that took
longer than others' (timing.py, ns). It outlives the contexts and
vifs of the guest: who opens another one goes on with what was left, and who is a new guest begins with all.
"""

from typing import Any

import numpy as np

from hyp.atomics import record_view
from hyp.kernels import compiled

STANDING = np.dtype([("patience", "i8"), ("shared_patience", "i8"), ("storm_at", "i8"), ("owed", "i8")])

_standing_at = record_view(STANDING)


def of_a_new_guest(pause_ns: int) -> tuple[int, int, int, int]:
    """The STANDING that a guest begins with, where a full receiver may hold others up for `pause_ns`."""
    return pause_ns, pause_ns, 0, 0


@compiled
def standing_of(queue: Any) -> Any:
    """The STANDING of the guest whose `queue` this is, a record with a field `standing`, its address."""
    return _standing_at(queue.standing)
