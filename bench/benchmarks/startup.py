"""How long a topology takes to be ready, and what it burns when nothing happens.

``python -m bench startup``
"""

import asyncio
import time

from bench.method.claims import Claim
from bench.method.contenders import LabBench, probe_of
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Slice
from bench.method.slices import Contender, interleave
from bench.report.results import BenchmarkResult, Row
from lab.accounting import spent, usages

READY_S, AFTER_WARM_S = 1.5, 0.3
IDLE_GUESTS, IDLE_CORES = 24, 0.01
PATHS = ("bypass", "split")
TITLE = "Start and idling"
ABOUT = (
    "Four guests, two on bypass and two on split: from nothing to all of them connected, with the compiled code in its cache, and "
    "the part of it after the fork server is warm. Then the CPU of all processes of 24 guests to whom nothing happens."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Start and stop topologies in turns with slices of an idle one."""
    async with LabBench("idle", PATHS, guests=IDLE_GUESTS // len(PATHS)) as idle:
        contenders = [Contender("four guests", _start), _idle(idle)]
        with probe_of("all") as probe:
            samples = await interleave(
                contenders, rounds=max(6, options.rounds), seconds=options.slice_s, probe=probe, again="four guests",
                progress=progress,
            )  # fmt: skip
    point: Row = {"cores": "all"}
    result.take(samples, "four guests", {"path": "four guests"}, {**point, "guests": 4})
    result.take(samples, "idle", {"path": "idle"}, {**point, "guests": IDLE_GUESTS})
    for metric, target, text in (
        ("ready_s", READY_S, "four guests ready, seconds"),
        ("after_warm_s", AFTER_WARM_S, "of which after the fork server is warm, seconds"),
    ):
        figure = samples.figure("four guests", metric)
        result.claims.append(Claim.about(text, figure, target, at_least=False, errors=samples.errors("four guests")))
    burnt = samples.figure("idle", "cores_used").median
    result.claims.append(Claim.counted(f"CPU of {IDLE_GUESTS} idle guests and all else, cores", burnt, "≤", IDLE_CORES))


async def _start(_: float) -> Slice:
    start = time.monotonic()
    async with LabBench("start", PATHS) as lab:
        ready = time.monotonic() - start
        return Slice({"ready_s": ready, "after_warm_s": lab.lab.timings["boot_s"], "warm_s": lab.lab.timings["warm_s"]})


def _idle(lab: LabBench) -> Contender:
    async def run(seconds: float) -> Slice:
        before, start = usages(lab.runner.pids), time.monotonic()
        await asyncio.sleep(seconds)
        used = spent(usages(lab.runner.pids), before)
        elapsed = time.monotonic() - start
        cpu = sum(use.cpu_ns for use in used.values()) / 1e9
        return Slice({"cores_used": cpu / elapsed, "switches": float(sum(use.switches for use in used.values()))})

    return Contender("idle", run)
