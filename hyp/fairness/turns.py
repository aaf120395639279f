"""When the turn of a sender is over whose frames are passed on one by one. Compiled.

A turn has so many frames and bytes, and plain ones, which go many at a time, all take about as long. What one takes that goes by
itself depends on who sends it and on who receives it: a chain of descriptors, buffers of a few bytes, an address that is looked up
in vain. So such a turn ends by the clock, too, after about as long as one of short plain frames takes, and as it takes to copy what
has been copied, which is limited by itself; the next one goes on.
"""

from typing import Any, Final

from hyp.atomics import clock_ns
from hyp.kernels import compiled

TURN_NS: Final = 3_000
BYTES_A_NS: Final = 16
"""That are copied."""
LOOK: Final = 4
"""Of the work for each look at the clock, a frame being one."""
PIECES: Final = 8
"""Descriptors or buffers of a frame that are as much work as a frame."""


@compiled
def begin_turn(e: Any) -> None:
    """A sender's turn begins. `e`: who serves, a record with the fields `look_at` (work), and `turn_until` (ns)."""
    e.look_at = 1


@compiled
def is_turn_spent(e: Any, work: int, octets: int) -> bool:
    """Whether the turn is over, after so much work: frames that have been passed on one by one, and as many for their pieces.

    `octets`: what is in all that the turn has passed on. It is measured from the end of its first such frame on.
    """
    if work < e.look_at:
        return False
    now = clock_ns()
    if e.look_at == 1:
        e.turn_until = now + TURN_NS
    e.look_at = work + LOOK
    spent: bool = now - octets // BYTES_A_NS >= e.turn_until
    return spent
