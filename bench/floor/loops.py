"""The floor's compiled loops, all of them: what a worker loads before it serves."""

from bench.floor.bandwidth import copy_times
from bench.floor.pingpong import follow, lead
from bench.floor.ring import consume, produce

LOOPS = (produce, consume, lead, follow, copy_times)


def load_loops() -> None:
    """Compile them, or load them from the cache."""
    for loop in LOOPS:
        loop.load()
