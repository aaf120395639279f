"""When the turn of a sender is over whose frames are passed on one by one. Compiled.

A turn has so many frames and bytes, and plain ones, which go many at a time, all take about as long. What one takes that goes by
itself depends on who sends it and on who receives it: a chain of descriptors, buffers of a few bytes, an address that is looked up
in vain. So such a turn ends by the clock, too, after about as long as one of plain frames takes, and as it takes to copy what has
been copied, which is limited by itself; the next one goes on.
"""

from typing import Any, Final

from hyp.atomics import clock_ns
from hyp.kernels import compiled

TURN_NS: Final = 10_000
BYTES_A_NS: Final = 8
"""That are copied."""
LOOK: Final = 4
"""Frames for each look at the clock."""


@compiled
def is_turn_spent(e: Any, frames: int, octets: int) -> bool:
    """Whether a turn is over in which so many frames have been passed on one by one, one more than when this was asked last.

    `octets`: what is in all that the turn has passed on.

    `e`: who serves, a record with a field `turn_until` (ns). It is measured from the end of the turn's first frame on.
    """
    if frames % LOOK != 1:
        return False
    now = clock_ns()
    if frames == 1:
        e.turn_until = now + TURN_NS
        return False
    spent: bool = now - octets // BYTES_A_NS >= e.turn_until
    return spent
