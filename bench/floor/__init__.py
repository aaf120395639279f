"""The machine's floor: a bare ring, ping-pongs and memcpy between processes that do nothing else."""

from bench.floor.floor import Floor, RoundTrips

__all__ = ["Floor", "RoundTrips"]
