"""What it costs to register memory, against copying as much: after how many uses a registration has paid for itself."""

import math
import statistics

from bench.floor import Floor
from bench.method.contenders import LabBench, cpus_of, guest_names
from bench.method.progress import Steps
from bench.report.results import BenchmarkResult, Series
from lab.figures import short

PAGE = 4096
SIZES = tuple(PAGE << k for k in (0, 2, 4, 6, 8, 10))
REGISTRATIONS = 30


async def registration(result: BenchmarkResult, lab: LabBench, progress: Steps) -> None:
    """Time registrations of a bypass guest, and copies, of SIZES bytes."""
    guest = guest_names("bypass", 1)[0]
    medians: dict[str, list[float]] = {"register": [], "deregister": []}
    for number, size in enumerate(SIZES):
        progress.step(f"{size >> 10} KiB", number / len(SIZES))
        times = await lab.lab.call(guest, "time_registration", size=size, rounds=REGISTRATIONS)
        for what, found in times.items():
            medians[what].append(statistics.median(found) / 1000)
    async with Floor(2) as floor:
        rates = await floor.bandwidth([2 * size for size in SIZES], cpu=cpus_of("1")[0])
    copies = [size / rates[2 * size] / 1000 for size in SIZES]
    series = Series("registration", "Registration against copying", "bytes", list(SIZES), "µs", log=True)
    series.add("register", medians["register"])
    series.add("deregister", medians["deregister"])
    series.add("memcpy", copies)
    result.series.append(series)
    for size, on, off, copy in zip(SIZES, medians["register"], medians["deregister"], copies, strict=True):
        uses = math.ceil((on + off) / copy)
        result.notes.append(
            f"{size >> 10} KiB: register {short(on)} µs, deregister (with its shootdown) {short(off)} µs, copying as much "
            f"{short(copy)} µs: a registration pays from use {uses} on"
        )
