"""A workload as the topology file has it, and in words."""

import os
from collections.abc import Iterable
from typing import Any

from lab.figures import plural

WIRE = "wire"

Workload = dict[str, Any]
"""``{"kind", "from", "to", "frame", "seconds" or None, "frames" or None}``, as in the topology file."""


def guests_in(loads: Iterable[Workload]) -> set[str]:
    return {load[end] for load in loads for end in ("from", "to")} - {WIRE}


def describe(load: Workload, times: str = "") -> str:
    """A workload in words; `times` ("3 × ") stands before how long it is."""
    if load["kind"] == "replay":
        amount = f"{load['seconds']:g} s" if load["seconds"] else plural(load["times"], "time")
        return f"replay {load['from']} → {load['to']}, {os.path.basename(load['file'])}, {times}{amount}"
    unit = "frame" if load["kind"] == "stream" else "round trip"
    amount = plural(load["frames"], unit) if load["frames"] else f"{load['seconds']:g} s"
    return f"{load['kind']} {load['from']} → {load['to']}, {load['frame']} B, {times}{amount}"
