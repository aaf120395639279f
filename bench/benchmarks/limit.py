"""The machine's limit: what the bare ring, ping-pongs and memcpy reach here, before any path of the lab is looked at.

``python -m bench limit [--frames 64,1500]``
"""

from bench.benchmarks.latency import BLOCKING, POLLING, floor_name, ping_pong
from bench.floor import Floor
from bench.floor.layout import MAX_WORKERS
from bench.method.contenders import cpus_of, floor_stream, probe_of, who
from bench.method.options import Options
from bench.method.progress import Steps, parts
from bench.method.slices import interleave
from bench.report.results import BenchmarkResult, Row, Series

CORES = ("all", "1")
METRICS = ("mpps", "gbps", "mframes_per_cpu_s")
TITLE = "The machine's limit"
ABOUT = (
    "A bare single-producer ring between two processes: frames written, copied and checksummed as on the paths, and nothing else; "
    "round trips through 2, 3 and 4 processes; memcpy against the working set (source and destination together)."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Measure the ring, ping-pongs and memcpy, on all cores and on one."""
    whole = iter(parts(progress, [f"cores {cores}" for cores in CORES] + ["memcpy"]))
    async with Floor() as floor:
        for cores in CORES:
            steps = parts(next(whole), [*(f"{frame} B" for frame in options.frames), "ping-pong"])
            for frame in options.frames:
                contender = floor_stream(floor, frame, cpus_of(cores))
                with probe_of(cores) as probe:
                    samples = await interleave(
                        [contender], rounds=options.rounds, seconds=options.slice_s, probe=probe, again=contender.name,
                        progress=next(steps),
                    )  # fmt: skip
                result.take(samples, "floor", who(contender), {"frame": frame, "cores": cores}, METRICS, checksummed=1.0)
            available = len(cpus_of(cores))
            trips = [
                (count, mode) for count in range(2, MAX_WORKERS + 1) for mode in (POLLING, BLOCKING)
                if mode == BLOCKING or count <= available
            ]  # fmt: skip
            contenders = [ping_pong(floor, count, mode, cores) for count, mode in trips]
            with probe_of(cores) as probe:
                samples = await interleave(
                    contenders, rounds=options.rounds, seconds=options.slice_s / 2, probe=probe, again=contenders[0].name,
                    progress=next(steps),
                )  # fmt: skip
            for count, mode in trips:
                point: Row = {"mode": mode, "cores": cores}
                result.take(samples, floor_name(count, mode), {"floor": floor_name(count, mode)}, point)
        next(whole).step("memcpy", 0.0)
        rates = await floor.bandwidth(cpu=cpus_of("1")[0])
    series = Series("memcpy", "memcpy against the working set", "bytes, source and destination", list(rates), "GB/s", log=True)
    series.add("memcpy", list(rates.values()))
    result.series.append(series)
