"""Who has somebody else cut frames for him: he waits for as long as it takes. Compiled.

A frame to be segmented that Dom0 or a device model passes on is one piece of work there, and over a thousand for the NIC. They
would come round again before the NIC has done it: with all that waits for it in front of what others have sent meanwhile. So each
of the frames that it is cut into counts for PART_NS, twice what the NIC takes for the shortest, and who is ahead of that by more
than CREDIT_NS sends nothing more until he no longer is. Frames as long as there are, cut for an MTU of 1500, come to 57 Gbit/s
before that. `x`: who sends, a record with the field `cut_until` (ns).

A wire that leads to the host (nic/wire/tap.py) takes a frame whole. Where it goes on from there by an interface that has none cut,
the host's kernel cuts it, in the system call by which the NIC hands it over: so the NIC's own senders wait for that, too. Up to
HOST_PARTS are any driver's; each of more counts for HOST_PART_NS, three times what a kernel takes.
"""

from typing import Any, Final

from hyp.kernels import compiled

PART_NS: Final = 200
CREDIT_NS: Final = 200_000
"""More than a queue to the NIC full of the longest frames, cut for an MTU of 1500: who sends these is not to sleep between them."""
HOST_PARTS: Final = 48
"""More than the longest frame is cut into for an MTU of 1500."""
HOST_PART_NS: Final = 2_000


@compiled
def cuts_again_at(x: Any) -> int:
    """When frames of his may be cut again (ns)."""
    at: int = x.cut_until - CREDIT_NS
    return at


@compiled
def is_cut(x: Any, parts: int, now: int, to_host: int) -> None:
    """A frame of his goes to who makes so many of it. `to_host`: that may be the host's kernel; else 0."""
    if parts > 1:
        beyond = max(parts - HOST_PARTS, 0) if to_host != 0 else 0
        x.cut_until = max(x.cut_until, now) + parts * PART_NS + beyond * HOST_PART_NS
