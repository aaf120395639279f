"""Who has the NIC cut frames for him by way of somebody who serves others, too: he waits for as long as it takes. Compiled.

A frame to be segmented that Dom0 or a device model passes on is one piece of work there, and over a thousand for the NIC. They
would come round again before the NIC has done it: with all that waits for it in front of what others have sent meanwhile. So each
of the frames that it is cut into counts for PART_NS, twice what the NIC takes for the shortest, and who is ahead of that by more
than CREDIT_NS sends nothing more until he no longer is. Frames as long as there are, cut for an MTU of 1500, come to 57 Gbit/s
before that. `x`: who sends, a record with the field `cut_until` (ns).
"""

from typing import Any, Final

from hyp.kernels import compiled

PART_NS: Final = 200
CREDIT_NS: Final = 200_000
"""More than a queue to the NIC full of the longest frames, cut for an MTU of 1500: who sends these is not to sleep between them."""


@compiled
def cuts_again_at(x: Any) -> int:
    """When frames of his may be cut again (ns)."""
    at: int = x.cut_until - CREDIT_NS
    return at


@compiled
def is_cut(x: Any, parts: int, now: int) -> None:
    """A frame of his goes to the NIC, which makes so many of it."""
    if parts > 1:
        x.cut_until = max(x.cut_until, now) + parts * PART_NS
