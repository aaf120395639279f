"""All attacks, by name, in the order of the table: what the bench, the tests and the fuzzing read."""

from typing import Final

from bench.isolation import calls, control_ring, descriptors, frames, many_queues, memory, nowhere, scattered, units
from bench.isolation.attack import ATTACKS as ENTERED
from bench.isolation.attack import Attack

MODULES: Final = (descriptors, many_queues, frames, control_ring, calls, memory, scattered, units, nowhere)
"""Where they have entered themselves from."""
ATTACKS: Final[dict[str, Attack]] = {
    name: one for module in MODULES for name, one in ENTERED.items() if one.run.__module__ == module.__name__
}


def on(path: str) -> list[Attack]:
    """Those that can be tried on a path."""
    return [one for one in ATTACKS.values() if path in one.paths]
