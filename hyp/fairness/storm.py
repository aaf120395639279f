"""Storm control: how many broadcasts and multicasts a guest may send. Compiled.

Each is copied to all, so that what it costs is the others'; one to be segmented counts as what it becomes. With a rate (``[nic]
storm_pps``) a guest may have so many passed on in a second, and BURST at once; more drop by name. The generic cell rate algorithm
(ITU-T I.371): `storm_at` is when a guest's next one is due by its rate (standing.py), `storm_ns` of a loop the time from one to
the next; 0: as many as anybody likes.
"""

from typing import Any

from hyp.fairness.standing import standing_of
from hyp.kernels import compiled

BURST = 64


def storm_ns(pps: int) -> int:
    """The time between two, at so many a second; 0: any number."""
    return 1_000_000_000 // pps if pps > 0 else 0


@compiled
def may_flood(e: Any, sender: Any, frames: int) -> bool:
    """Whether the guest of `sender` may have a frame, or what becomes so many, passed on to all, now; it has had it then."""
    if e.storm_ns == 0:
        return True
    guest = standing_of(sender)
    at = max(guest.storm_at, e.now - (BURST - 1) * e.storm_ns)
    if at > e.now or frames > BURST:
        return False
    guest.storm_at = at + frames * e.storm_ns
    return True
