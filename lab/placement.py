"""Which loop runs on which CPU, when there are more loops than CPUs.

The scheduler cannot know that a loop which went to sleep will be needed in two microseconds. Left to itself it wakes it on a
CPU that idles, which on a virtual machine costs more than all the work on a frame. A placement by hand is up to four times
faster, and which one is best depends on the model. So that no model is measured at its worst, all of these are tried on each
contender of a comparison of streams, and it is measured in the one that suits it best (`bench/method/contenders.py`).
"""

from collections.abc import Sequence
from enum import StrEnum


class Placement(StrEnum):
    """Anywhere, all on one CPU, or those of one role on the last CPU and all others on the rest."""

    ANYWHERE = "anywhere"
    TOGETHER = "all on one CPU"
    DEVICE = "NIC apart"
    BACK_END = "back end apart"
    SENDERS = "senders apart"
    RECEIVERS = "receivers apart"

    def cpus(self, role: "Placement", cpus: Sequence[int]) -> list[int]:
        """Where a loop may run, of the CPUs at hand. `role`: the placement in which it would be apart."""
        if self is Placement.TOGETHER:
            return [cpus[-1]]
        if self is Placement.ANYWHERE or len(cpus) < 2:
            return list(cpus)
        return [cpus[-1]] if role is self else list(cpus[:-1])


def usual(to_wire: bool) -> Placement:
    """What suits most: a stream to or from the wire keeps the device busy; between guests, hand-overs cost most."""
    return Placement.DEVICE if to_wire else Placement.TOGETHER
