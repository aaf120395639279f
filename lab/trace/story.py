"""A frame's way, made of the sightings of it: step by step, how long each took, and whether anybody had to be woken for it.

A step ends with a sighting. It begins where the one before ended, or, if that was by another loop which slept then, has two parts:
until that loop was *woken*, and its *work*, in which a frame may have waited its turn behind others. The first sighting begins the
way. So the steps' times add up to the way's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hyp.abi.trace import FLOODED, NOWHERE, WIRE, Moment
from lab.trace.viewer import Sighting

NIC, DOM0, HYP = "nic", "dom0", "hyp"
LONGEST_NS: Final = 1_000_000_000
"""Between two sightings of one frame: later it is another one that looks the same."""
MOST_STEPS: Final = 256
"""Of a way; who tells of more has made them up."""

PLACES: Final = {
    (NIC, Moment.TAKEN): ("NIC: descriptor fetched and checked, frame crosses to its receiver's engine", "nic/crossing.py"),
    (NIC, Moment.PASSED): ("NIC: descriptor fetched and checked, frame copied on", "nic/send.py"),
    (DOM0, Moment.TAKEN): ("netback: request taken, frame copied from the guest", "dom0/netback_tx.py"),
    (DOM0, Moment.PASSED): ("bridge: passed on", "dom0/forward.py"),
    (HYP, Moment.PASSED): ("device model: frame copied on", "hyp/monitor/machine.py"),
}
"""What a step is, and the file that does it."""
FROM_WIRE: Final = ("wire: frame handed in, copied on", "nic/wire/inward.py")
CROSSED: Final = ("NIC: frame that another engine has fetched, copied into its receiver's buffer", "nic/engine.py")
FROM_NIC: Final = ("uplink: frame taken from the NIC", "dom0/uplink.py")
POSTED: Final = ("program sends: posted by its front end", "domu/device.py")
RECEIVED: Final = ("program receives: frame taken", "domu/device.py")


@dataclass(frozen=True, slots=True)
class Step:
    """`asleep_ns`: until the loop was woken; `work_ns`: from then on. `sighting`: what it ends with."""

    what: str
    file: str
    asleep_ns: int
    work_ns: int
    sighting: Sighting

    @property
    def begin_ns(self) -> int:
        """When it began (CLOCK_MONOTONIC)."""
        return self.sighting.time_ns - self.asleep_ns - self.work_ns


@dataclass(frozen=True, slots=True)
class Way:
    """One frame's."""

    steps: list[Step]

    @property
    def total_ns(self) -> int:
        """From its first sighting to its last one."""
        return self.steps[-1].sighting.time_ns - self.steps[0].sighting.time_ns

    @property
    def route(self) -> str:
        """By whom it went: "anna → dom0 → bert"."""
        names: list[str] = []
        for step in self.steps:
            if step.sighting.port == WIRE and not names:
                names.append("wire")
            if not names or names[-1] != step.sighting.process:
                names.append(step.sighting.process)
        last = self.steps[-1].sighting
        if last.moment == Moment.DROPPED:
            names.append(f"dropped ({last.drop})")
        elif last.process == NIC and last.other == WIRE:
            names.append("wire")
        return " → ".join(names)

    @property
    def is_whole(self) -> bool:
        """It begins at a program or at the wire, and ends at one of these, or in a drop."""
        first, last = self.steps[0].sighting, self.steps[-1].sighting
        begins = first.moment == Moment.POSTED or (first.process == NIC and first.port == WIRE)
        ends = last.moment in (Moment.RECEIVED, Moment.DROPPED) or (last.process == NIC and last.other == WIRE)
        return begins and ends


def place_of(one: Sighting) -> tuple[str, str]:
    """What the step is that ends with a sighting, and the file that does it."""
    if one.moment == Moment.POSTED:
        return POSTED
    if one.moment == Moment.RECEIVED:
        return RECEIVED
    if one.process == NIC and one.port == WIRE:
        return FROM_WIRE
    if one.process == NIC and one.moment == Moment.PASSED and one.port == one.other:
        return CROSSED
    if one.process == DOM0 and one.moment == Moment.TAKEN and one.port == 0:
        return FROM_NIC
    moment = Moment.PASSED if one.moment == Moment.DROPPED else one.moment
    what, file = PLACES.get((one.process, moment), (one.moment.name.lower(), ""))
    if one.moment == Moment.DROPPED:
        what = f"dropped: {one.drop}"
    elif one.process == DOM0 and one.moment == Moment.PASSED:
        what += {0: " to the NIC", FLOODED: " to several ports", NOWHERE: ""}.get(one.other, ", copied to the receiving guest")
    return what, file


def way_of(sightings: Iterable[Sighting]) -> Way:
    """The way of one frame, of all the sightings of it in the order of time."""
    steps: list[Step] = []
    before: Sighting | None = None
    for one in sightings:
        asleep = work = 0
        if before is not None:
            gap = max(one.time_ns - before.time_ns, 0)
            slept_until = one.woken_ns if (one.process, one.loop) != (before.process, before.loop) else 0
            asleep = min(max(slept_until - before.time_ns, 0), gap)
            work = gap - asleep
        steps.append(Step(*place_of(one), asleep, work, one))
        before = one
    return Way(steps)


class Ways:
    """Sorts sightings into ways, as they come. A frame that has not been seen for `longest_ns` is over."""

    def __init__(self, longest_ns: int = LONGEST_NS) -> None:
        self._longest_ns = longest_ns
        self._open: dict[int, list[Sighting]] = {}

    def add(self, sightings: Iterable[Sighting]) -> Iterator[Way]:
        """Take sightings in the order of time; the ways that have ended."""
        now = 0
        for one in sightings:
            now = max(now, one.time_ns)
            seen = self._open.setdefault(one.key, [])
            if seen and (_begins_anew(one) or one.time_ns - seen[-1].time_ns > self._longest_ns):
                yield way_of(seen)
                seen = self._open[one.key] = []
            seen.append(one)
            if (
                len(seen) >= MOST_STEPS
                or one.moment in (Moment.RECEIVED, Moment.DROPPED)
                or (one.process == NIC and one.other == WIRE)
            ):
                yield way_of(self._open.pop(one.key))
        for key in [key for key, seen in self._open.items() if now - seen[-1].time_ns > self._longest_ns]:
            yield way_of(self._open.pop(key))

    def rest(self) -> Iterator[Way]:
        """Those that have not ended: on their way, or seen in part."""
        for seen in self._open.values():
            yield way_of(seen)
        self._open = {}


def _begins_anew(one: Sighting) -> bool:
    return one.moment == Moment.POSTED or (one.process == NIC and one.port == WIRE)
