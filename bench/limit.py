"""The machine's limit: what the bare ring, ping-pongs and memcpy reach here, before any path of the lab is looked at.

``python -m bench.limit [--frames 64,1500] [--seconds 0.3] [--repeat 6] [--json OUT]``

Slices alternate between frame sizes and placements and are bracketed by the probe (bench/probe.py); each regime has its own row.
"""

import asyncio
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench.fingerprint import fingerprint
from bench.floor import Floor
from bench.floor.layout import MAX_WORKERS
from bench.probe import MachineProbe

PROCESSES = (2, 3, 4)
WIDE = 100


class LimitOptions(Protocol):
    """What `run` reads of its options: frame sizes in bytes, seconds a slice, slices of each kind."""

    @property
    def frames(self) -> Sequence[int]: ...

    @property
    def seconds(self) -> float: ...

    @property
    def repeat(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``python -m bench.limit``."""

    frames: tuple[int, ...] = (64, 1500)
    seconds: float = 0.3
    repeat: int = 6


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the floor's processes run, and the probe of those CPUs."""

    cores: str
    cpus: tuple[int, ...]
    probe: MachineProbe


async def run(options: LimitOptions) -> dict[str, Any]:
    """Measure, print one table, return ``{"machine", "streams", "ping_pongs", "memcpy"}``.

    A stream has one record per frame size, cores and regime, with medians over its slices; a ping-pong one per kind, number
    of processes and cores; memcpy one per working set. RuntimeError if the floor itself lost or broke a frame.
    """
    machine = fingerprint()
    cpus = sorted(os.sched_getaffinity(0))[:MAX_WORKERS]  # no process of the floor goes further
    with MachineProbe(cpus) as every, MachineProbe(cpus[:1]) as single:
        placements = [Placement("all", tuple(cpus), every), Placement("1", tuple(cpus[:1]), single)]
        async with Floor() as floor:
            streams = await _streams(floor, placements, options)
            ping_pongs = await _ping_pongs(floor, placements, options.seconds)
            memcpy = [{"bytes": size, "gb_s": rate} for size, rate in (await floor.bandwidth(cpu=cpus[0])).items()]
    found = {"machine": machine, "streams": streams, "ping_pongs": ping_pongs, "memcpy": memcpy}
    out = Console()
    (out if out.is_terminal else Console(width=WIDE)).print(table(found))
    return found


async def _streams(floor: Floor, placements: Sequence[Placement], options: LimitOptions) -> list[dict[str, Any]]:
    slices: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for _ in range(options.repeat):
        for frame in options.frames:
            for place in placements:
                before = place.probe.read()
                figures = await floor.stream(frame, options.seconds, cpus=place.cpus)
                regime = place.probe.regime(before, place.probe.read())
                if figures["lost"] or figures["corrupt"] or figures["duplicated"]:
                    raise RuntimeError(f"the floor lost or broke frames: {figures}")
                slices.setdefault((frame, place.cores, regime), []).append(figures)
    return [{"frame": key[0], "cores": key[1], "regime": key[2], **_summary(found)} for key, found in sorted(slices.items())]


def _summary(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    per_cpu = [figures["frames"] / figures["cpu_ns"] * 1e9 for figures in slices if figures["cpu_ns"]]
    rates = {name: statistics.median(figures[name] for figures in slices) for name in ("mpps", "gbps")}
    return {"n": len(slices), **rates, "frames_per_cpu_s": statistics.median(per_cpu) if per_cpu else None}


async def _ping_pongs(floor: Floor, placements: Sequence[Placement], seconds: float) -> list[dict[str, Any]]:
    records = []
    for events in (False, True):
        for processes in PROCESSES:
            for place in placements:
                before = place.probe.read()
                times = await floor.ping_pong(processes, events=events, cpus=place.cpus, seconds=seconds)
                regime = place.probe.regime(before, place.probe.read())
                kind = {"kind": "eventfd" if events else "spin", "processes": processes, "cores": place.cores, "regime": regime}
                records.append({**kind, "n": len(times.ns), "p50_ns": times.p50, "p99_ns": times.p99, "p999_ns": times.p999})
    return records


def table(found: dict[str, Any]) -> Table:
    """One table of what `run` returns."""
    result = Table(title="The machine's limit", box=None, pad_edge=False, show_header=False)
    for column in range(7):
        result.add_column(justify="left" if column in (0, 1, 2) else "right")
    for section in (_stream_rows(found["streams"]), _ping_pong_rows(found["ping_pongs"]), _memcpy_rows(found["memcpy"])):
        heading, *rows = section
        result.add_row(*heading, style="bold")
        for row in rows:
            result.add_row(*row)
        result.add_row()
    return result


def _stream_rows(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "ring", "cores", "regime", "slices", "Mframes/s", "Gbit/s", "Mframes/CPU s"
    for r in records:
        per_cpu = "–" if r["frames_per_cpu_s"] is None else f"{r['frames_per_cpu_s'] / 1e6:.2f}"
        yield f"{r['frame']} B", r["cores"], r["regime"], str(r["n"]), f"{r['mpps']:.2f}", f"{r['gbps']:.1f}", per_cpu


def _ping_pong_rows(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "round trip, processes", "cores", "regime", "trips", "p50 µs", "p99 µs", "p99.9 µs"
    for r in records:
        times = (f"{r[name] / 1e3:.2f}" for name in ("p50_ns", "p99_ns", "p999_ns"))
        yield f"{r['kind']}, {r['processes']}", r["cores"], r["regime"], str(r["n"]), *times


def _memcpy_rows(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "memcpy, working set", "", "", "", "GB/s"
    for r in records:
        size = f"{r['bytes'] >> 20} MiB" if r["bytes"] >= 1 << 20 else f"{r['bytes'] >> 10} KiB"
        yield size, "1", "", "", f"{r['gb_s']:.1f}"


def main(
    frames: Annotated[str, typer.Option(help="Frame sizes in bytes, separated by commas.")] = "64,1500",
    seconds: Annotated[float, typer.Option(min=0.01, max=0.5, help="Length of a slice.")] = 0.3,
    repeat: Annotated[int, typer.Option(min=1, help="Slices of each kind.")] = 6,
    json_out: Annotated[Path | None, typer.Option("--json", dir_okay=False, help="Write the figures to this file.")] = None,
) -> None:
    """Measure what this machine can do at best."""
    try:
        options = Options(tuple(int(size) for size in frames.split(",")), seconds, repeat)
    except ValueError:
        raise typer.BadParameter(f"{frames!r} is not a list of frame sizes", param_hint="--frames") from None
    if json_out is not None and not os.access(json_out.absolute().parent, os.W_OK):
        raise typer.BadParameter(f"{json_out.absolute().parent} is not a folder that can be written to", param_hint="--json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(options))
    if json_out is not None:
        json_out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
