"""What to measure: the command line's choices, checked before anything is started."""

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

from bench.method.slices import LONGEST_SLICE_S
from hyp.paths import PATHS
from lab.schema.values import MAX_WORKLOAD_FRAME, MIN_WORKLOAD_FRAME

Cores = Literal["all", "1", "both"]

BENCHMARKS = {
    "throughput": "bench.benchmarks.throughput",
    "peers": "bench.peers.benchmark",
    "latency": "bench.benchmarks.latency",
    "scale": "bench.benchmarks.scale",
    "startup": "bench.benchmarks.startup",
    "cost": "bench.benchmarks.cost",
    "openloop": "bench.benchmarks.openloop",
    "price": "bench.benchmarks.price",
    "offloads": "bench.benchmarks.offloads",
    "netfront": "bench.benchmarks.netfront",
    "programs": "bench.benchmarks.programs",
    "tapcalls": "bench.benchmarks.tapcalls",
    "isolation": "bench.benchmarks.isolation",
    "chaos": "bench.benchmarks.chaos",
    "moves": "bench.benchmarks.moves",
    "downloads": "bench.benchmarks.downloads",
    "watching": "bench.benchmarks.watching",
    "tracing": "bench.benchmarks.tracing",
    "limit": "bench.benchmarks.limit",
}
"""Benchmarks by name, in the order of a run: a module that has TITLE, ABOUT and ``async def run(result, options, progress)``."""

PEERS = ("vhost", "vhost-hugepages", "vhost-packed", "memif", "veth", "unix")
FRAMES = (64, 512, 1500)
QUICK_FRAMES = (64, 1500)
SECONDS, QUICK_SECONDS = 3.0, 1.2
SLICE_S, QUICK_SLICE_S = 0.1, 0.1
BUDGET_S, QUICK_BUDGET_S, MOST_BUDGET_S = 420.0, 0.0, 36_000.0


class OptionsError(Exception):
    """An option will not do; the message says which, why, and what would."""


@dataclass(frozen=True, slots=True)
class Options:
    """What every benchmark is given.

    `seconds` is the time per contender and point, in slices of `slice_s`; `repeat`, if not 0, is the number of rounds instead.
    OptionsError for what cannot be measured.
    """

    paths: tuple[str, ...] = tuple(PATHS)
    frames: tuple[int, ...] = FRAMES
    cores: Cores = "all"
    seconds: float = SECONDS
    repeat: int = 0
    quick: bool = False
    peers: tuple[str, ...] = ()  # none but in the benchmark of that name, which takes all
    slice_s: float = SLICE_S
    seed: int = 1
    budget_s: float = 0.0  # for what is undecided when every point has had its time
    attacks: tuple[str, ...] = ()  # of the benchmark of that name; none: all
    traffic: str = ""  # a mix of sizes in the place of one: "imix", or a capture file (hyp/load/mix.py); `frames` has its mean

    def __post_init__(self) -> None:
        _known("path", self.paths, tuple(PATHS))
        _known("peer", self.peers, PEERS)
        _known("value for cores", (self.cores,), ("all", "1", "both"))
        if self.attacks:
            from bench.isolation.catalogue import ATTACKS

            _known("attack", self.attacks, tuple(ATTACKS))
        if not self.frames:
            raise OptionsError("no frame size is given")
        for frame in self.frames:
            if not MIN_WORKLOAD_FRAME <= frame <= MAX_WORKLOAD_FRAME:
                raise OptionsError(f"a frame of {frame} bytes: {MIN_WORKLOAD_FRAME} to {MAX_WORKLOAD_FRAME} are possible")
        if not (math.isfinite(self.seconds) and 0 < self.seconds <= 3600):
            raise OptionsError(f"--seconds {self.seconds:g}: more than 0 and at most 3600 s per contender and point")
        if not 0 < self.slice_s <= LONGEST_SLICE_S:
            raise OptionsError(f"a slice of {self.slice_s:g} s: more than 0 and at most {LONGEST_SLICE_S} s")
        if not (math.isfinite(self.budget_s) and 0 <= self.budget_s <= MOST_BUDGET_S):
            raise OptionsError(f"--budget {self.budget_s:g}: 0 to {MOST_BUDGET_S:g} s for what is undecided")
        if not 0 <= self.repeat <= 10_000:
            raise OptionsError(f"--repeat {self.repeat}: 0 to 10000 rounds")

    @property
    def traffic_name(self) -> str:
        """The mix in labels: a capture file by its name."""
        return os.path.basename(self.traffic)

    @property
    def rounds(self) -> int:
        """Of interleaved slices. An even number unless `repeat` says otherwise, so that each order occurs equally often."""
        if self.repeat:
            return self.repeat
        rounds = math.ceil(self.seconds / self.slice_s - 1e-9)
        return rounds + rounds % 2

    @property
    def core_sets(self) -> tuple[str, ...]:
        """ "all", "1", or the two of them."""
        return ("all", "1") if self.cores == "both" else (self.cores,)

    def plain(self) -> dict[str, Any]:
        """For JSON, with what follows from it."""
        names = (
            "paths",
            "frames",
            "cores",
            "seconds",
            "repeat",
            "quick",
            "peers",
            "slice_s",
            "seed",
            "rounds",
            "budget_s",
            "attacks",
            "traffic",
        )
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def _known(what: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionsError(f"unknown {what}: {', '.join(map(repr, unknown))} (known: {', '.join(known)})")
    if len(set(names)) < len(names):
        raise OptionsError(f"a {what} is named twice: {', '.join(names)}")
