"""A benchmark that measures a simulated machine, and ends as it is told to: for tests of the bench's command and report."""

import asyncio
import os
import random
import signal
from collections.abc import Callable
from typing import Any

from bench.method.claims import Claim
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Slice
from bench.method.slices import Contender, interleave
from bench.report.results import BenchmarkResult, Series

HOSTILE = "<script>alert('&')</script> \x1b[31m\x00"
TITLE, ABOUT = "Throughput <stub>", f"A simulated machine. {HOSTILE}"


class Machine:
    """Always in one regime."""

    def read(self) -> int:
        return 0

    def regime(self, before: Any, after: Any) -> str:
        return "apart"


def contender(name: str, rate: float, noise: random.Random, broken: bool = False) -> Contender:
    async def run(seconds: float) -> Slice:
        value = rate * noise.uniform(0.97, 1.03)
        return Slice(errors=["7 frames lost, 0 of them under a name"]) if broken else Slice({"mpps": value, "p50_us": 5 / value})

    return Contender(name, run)


async def measure(found: BenchmarkResult, options: Options, progress: Steps, rates: dict[str, float], broken: str = "") -> None:
    """Rates by path, for each frame size."""
    noise = random.Random(options.seed)
    found.notes.append(HOSTILE)
    plot = Series(f"../rates{HOSTILE}", f"Rates {HOSTILE}", "frame, B", list(options.frames), "Mframes/s", "bar")
    lines: dict[str, list[Any]] = {name: [] for name in rates}
    for frame in options.frames:
        contenders = [contender(name, rate, noise, name == broken) for name, rate in rates.items()]
        samples = await interleave(
            contenders, rounds=options.rounds, seconds=options.slice_s, probe=Machine(), again="bypass", progress=progress
        )
        point = {"direction": "guest→wire", "frame": frame, "cores": "all"}
        for name in rates:
            found.take(samples, name, {"path": name}, point, checksummed=1.0, per_frame={"copies": 1.0})
            lines[name].append(samples.figure(name, "mpps"))
        found.compare(samples, "bypass", "split", "mpps", point)
        ratio = samples.ratio("bypass", "split", "mpps")
        found.claims.append(Claim.about(f"bypass beats split, {frame} B {HOSTILE}", ratio, 1.5, errors=samples.errors("split")))
    for name, figures in lines.items():
        plot.add(name, [f.median for f in figures], [f.low for f in figures], [f.high for f in figures])
    found.series.append(plot)


RATES: dict[str, float] = {"bypass": 4.0, "split": 2.0}
BROKEN: Callable[[Options], str] = lambda options: "split" if options.seed == 13 else ""  # noqa: E731


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """A seed of 13 is bad luck: split loses frames; 14 is a bug; 15 is a user who has seen enough."""
    await measure(result, options, progress, RATES, BROKEN(options))
    if options.seed == 14:
        raise RuntimeError("the benchmark is at fault")
    if options.seed == 15:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
