"""What an attack is. All that there are: catalogue.py.

An attack is a function that is handed the `Attacker` (bench/isolation/attacker.py) and goes on until it is told to be calm. It runs
in a thread of the hostile guest. What an honest guest does that takes as much of the machine is its *control*: the bystanders'
rate beside the attack is held against their rate beside that, so that what is measured is what the attack does, and not that one
more process wants a CPU.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from hyp.paths import PATHS

Run = Callable[[Any], None]
"""``run(attacker)``, with an `Attacker` (attacker.py)."""


class Door(StrEnum):
    """What is abused."""

    RINGS = "rings and descriptors"
    FRAMES = "frames"
    CALLS = "hypercalls, store, console"
    MEMORY = "memory and descriptors of files"


class Control(StrEnum):
    """What an honest guest does meanwhile that takes as much of the machine as the attack."""

    QUIET = "quiet"
    BUSY = "computes"
    NOTIFIED = "computes, and is notified of what it is sent"
    SENDS = "sends frames as fast as it can"
    TAKES = "takes frames as fast as they come, in the smallest buffers that there are"
    POOL = "sends as many frames, as fast, from its driver's pages"
    POOL_BUFFERS = "takes frames as fast as they come, in its driver's pages"
    POSTS = "posts as many frames to the wire, and sound"
    ADDRESSES = "sends a neighbour as many frames, as long, and sound"
    SEGMENTS = "sends as long frames, to be cut as an MTU of 1500 asks"
    CHAINS = "sends as long chains, to be cut as an MTU of 1500 asks"
    CALLS = "makes calls"
    READS = "reads from the store"


@dataclass(frozen=True, slots=True)
class Attack:
    """One row. `paths`: on which it can be tried at all."""

    name: str
    about: str
    door: Door
    control: Control
    """But on a path in `controls`; see `control_on`."""
    run: Run
    paths: frozenset[str]
    sent_to: bool
    """Somebody honest sends frames to the attacker meanwhile,"""
    fast: bool
    """as fast as he can."""
    controls: Mapping[str, Control]
    guest: Mapping[str, Any]
    """What its guest has in the topology beside its path."""

    def control_on(self, path: str) -> Control:
        """What it is held against on a path. What is done to a ring of an emulated device traps, as an honest sender's sends do."""
        if path in self.controls:
            return self.controls[path]
        traps = path == "trapped" and (self.door is Door.RINGS or self.sent_to)
        return Control.SENDS if traps and self.control is Control.BUSY else self.control


ATTACKS: Final[dict[str, Attack]] = {}
"""By name: what has entered itself so far."""


def attack(
    about: str,
    door: Door,
    control: Control = Control.BUSY,
    *,
    paths: Collection[str] = tuple(PATHS),
    sent_to: bool = False,
    fast: bool = False,
    guest: Mapping[str, Any] | None = None,
    **controls: Control,
) -> Callable[[Run], Run]:
    """Enter a function into the catalogue, under its own name in words. `controls`: others than `control`, by path."""

    def enter(run: Run) -> Run:
        name = run.__name__.replace("_", " ")
        assert name not in ATTACKS, name
        ATTACKS[name] = Attack(name, about, door, control, run, frozenset(paths), sent_to, fast, controls, guest or {})
        return run

    return enter
