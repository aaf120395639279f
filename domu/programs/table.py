"""The programs that a guest can run upon its device: one row each, read by the schema, the plan and the command line.

Plain Python only: read by processes that must not import numpy. docs/adding.md adds one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One kind of program."""

    name: str
    about: str
    module: str
    """The guest process's role: it has ``async def main(process, config)``, mostly by way of `domu.boot`."""
    addressed: bool
    """It has an IPv4 address in a network namespace, in which `launch.py exec` runs what the user wants."""
    workloads: bool
    """It can be an end of a workload: sends, receives and verifies test frames."""
    offloads: bool
    """It knows what to do with frames of several fragments and with offloads: its front end accepts what it is offered of them."""
    queues: bool
    """It can drive several queues, or agrees on them by itself."""


_ROWS = (
    ProgramSpec(
        "traffic", "the lab's own traffic", "domu.programs.traffic", addressed=False, workloads=True, offloads=True, queues=True
    ),
    ProgramSpec(
        "tap",
        "a TAP device for unmodified programs",
        "domu.programs.tap",
        addressed=True,
        workloads=False,
        offloads=True,
        queues=False,
    ),
    ProgramSpec(
        "own",
        "a program that is the guest itself",
        "domu.programs.own",
        addressed=False,
        workloads=False,
        offloads=False,
        queues=True,
    ),
)
PROGRAMS: Final = {spec.name: spec for spec in _ROWS}
NAMED: Final = tuple(name for name in PROGRAMS if name != "own")
"""Those that a topology file calls by name; the user's own is ``{ argv = [...] }``."""


def program_of(value: str | Mapping[str, Any]) -> ProgramSpec:
    """The row of a guest's `program` as a topology has it. KeyError for a name that is none."""
    return PROGRAMS[value if isinstance(value, str) else "own"]


def those(column: str) -> str:
    """The names of the programs that have what `column` says, for a message: ``"tap"``."""
    return " or ".join(f'"{name}"' for name in NAMED if getattr(PROGRAMS[name], column))
