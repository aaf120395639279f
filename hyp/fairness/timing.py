"""How long turns of plain frames take, and what who takes longer than others owes for it. Compiled.

Plain frames go many at a time, and nobody looks at the clock in between (turns.py has frames that go one by one). Most turns of so
many frames and bytes take about as long. But a frame in a page that is in no cache, and of which the processor has no translation,
takes ten times as long as one whose page was used just now, and so does a buffer there: who has his lie scattered over a large
memory would have as much more of the loop than others.

So one turn in EVERY, drawn at random, is timed. What is *plain* on this machine just now is what the fastest quarter of them takes
for its work, whoever sends. What a turn takes beyond half as much again its sender owes, EVERY times, as its other turns are like
it. Who owes has short turns, a SHORT-th of a whole one, until what is left out of these has made up for it: so he has about as much
time as others have. A sender who is alone is plain himself, and owes nothing; nor does anybody before ENOUGH turns have been timed.

`t`: what a loop knows, a TIMING. `x`: who sends, a record with the field `owed` (ns): of a guest with several queues one for all.
Work is counted in ns of a fast machine, as the loop that does it says: so much for a frame, for a copy, for so many bytes. What is
plain is learnt from turns of half a whole one's work or more, in which nothing else was done: small ones, and those that end in
frames that go one by one, look quicker than any whole one, and who sends may make as many of these as he likes.
"""

import random
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hyp.atomics import clock_ns, record_view
from hyp.kernels import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

TURN_NS: Final = 50
"""Of work that comes with any turn."""
LEAST_WORK: Final = 50
"""A turn of less is not timed: it is short by itself."""
EVERY: Final = 4
"""To look at the clock twice is a hundredth of a turn of short frames."""
SHORT: Final = 16
ENOUGH: Final = 64
"""Turns timed before which nothing is known: `plain` moves by larger steps then."""
MOST_TURNS: Final = 64
"""Whole ones for which is owed at most: a machine that stood still is nobody's doing."""
ONE: Final = 1024
"""`plain` of a machine on which work takes as long as it counts for."""
LEAST_PLAIN, MOST_PLAIN = ONE // 8, ONE * 16

TIMING = np.dtype([("draw", "i8"), ("plain", "i8"), ("timed", "i8")])
timing_at = record_view(TIMING)


def new_timing() -> "NDArray[np.void]":
    """A loop's TIMING, with nothing timed."""
    return np.array([(random.getrandbits(31), ONE, 0)], TIMING)


@compiled
def begin_timing(t: Any) -> int:
    """A turn begins: when (ns), or 0 if it is not one that is timed."""
    t.draw = (t.draw * 1103515245 + 12345) & 0x7FFFFFFF
    if (t.draw >> 16) & (EVERY - 1) != 0:
        return 0
    began: int = clock_ns()
    return began


@compiled
def end_timing(t: Any, x: Any, began: int, work: int, whole: int, is_all: int) -> None:
    """So much work of a turn that is timed is done; a `whole` one has so much. `is_all`: 1 if that was all of it, and plain."""
    if work < LEAST_WORK:
        return
    took = clock_ns() - began
    work += TURN_NS
    allowed = (work * t.plain // ONE) * 3 // 2
    if took > allowed and t.timed > ENOUGH:
        x.owed = min(x.owed + EVERY * (took - allowed), MOST_TURNS * (whole * t.plain // ONE))
    if is_all == 0 or work < whole // 2:
        return
    t.timed += 1
    step = t.plain // (128 if t.timed > ENOUGH else 16)
    if took * ONE > work * t.plain:
        t.plain = min(t.plain + step, MOST_PLAIN)
    else:
        t.plain = max(t.plain - 3 * step, LEAST_PLAIN)


@compiled
def is_short(t: Any, x: Any, whole: int) -> bool:
    """Whether the turn that begins is a short one, which makes up for what is owed."""
    if x.owed <= 0:
        return False
    x.owed -= (whole * t.plain // ONE) * (SHORT - 1) // SHORT
    return True
