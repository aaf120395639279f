"""`launch.py run`: bring a topology up, run its workloads with progress, print and write what came out, take it down."""

import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.fingerprint import fingerprint
from bench.lab import Lab, LabError
from bench.tables import comparison, ledger, losses, notes, rates
from bench.workloads import Runner, WorkloadError, describe
from hyp.control import ControlError, PeerGone
from hyp.rundir import TopologyExists

FAILED, NOT_STARTED = 1, 3
WIDE = 100  # columns: a pipe has no width, and tables are not to be cut off in it


def console() -> Console:
    """Standard output, wide enough for the tables when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


class Progress:
    """Says what is going on while a topology starts."""

    def __init__(self, out: Console) -> None:
        self._out, self._compiling = out, False

    def event(self, kind: str, details: dict[str, Any]) -> None:
        """An event of the lab."""
        if kind == "progress":
            if not self._compiling:
                self._compiling = True
                self._out.print("compiling the data path (once for this version; it is cached) …")
            if details["seconds"] >= 0.5:
                self._out.print(f"  [{details['index']}/{details['total']}] {details['kernel']}  {details['seconds']:.1f} s")
        elif kind == "died":
            self._out.print(f"[bold red]{details['name']} died: {details['cause']}[/]")


@contextlib.asynccontextmanager
async def lab_up(topology: dict[str, Any], out: Console) -> AsyncIterator[Lab]:
    """A lab that is up, with a line that says so."""
    start = time.monotonic()
    async with Lab(topology, Progress(out).event) as lab:
        ready = time.monotonic() - start
        guests = ", ".join(f"{guest['name']} ({guest['path']})" for guest in topology["guest"])
        out.print(f"topology [bold]{lab.name}[/] is up in {ready:.2f} s: {guests}")
        try:
            yield lab
        except PeerGone:
            await lab.any_death()  # which is told when it is known
            raise


async def run_workloads(runner: Runner, workloads: list[dict[str, Any]], out: Console) -> list[dict[str, Any]]:
    """Run them in order; a line each as they end."""
    records = []
    for index, load in enumerate(workloads, 1):
        with out.status(f"[{index}/{len(workloads)}] {describe(load)} …"):
            record = await runner.run(load)
        rate = f"{record['mpps']:.2f} Mframes/s, {record['gbps']:.1f} Gbit/s"
        if record["rtt_us"]:
            rate = f"p50 {record['rtt_us']['p50']:.1f} µs, p99 {record['rtt_us']['p99']:.1f} µs"
        out.print(f"  [{index}/{len(workloads)}] {record['path']:<7} {describe(load)}: {rate}")
        records.append(record)
    return records


def print_results(records: list[dict[str, Any]], out: Console) -> None:
    """The tables of a series of workloads, and what was dropped or went wrong."""
    out.print("\n[bold]Rates[/] (frames at the receiver; CPU µs per frame of all processes; a round trip is two frames)")
    out.print(rates(records))
    out.print("\n[bold]Ledger[/] (per frame: handled by Dom0, by the VMM, copies, eventfd writes, hypercalls, traps, wake-ups)")
    out.print(ledger(records))
    beside = comparison(records)
    if beside is not None:
        out.print("\n[bold]Side by side[/]")
        out.print(beside)
    for line in [*notes(records), *losses(records)]:
        out.print(line)


def write_json(path: Path, lab_name: str, records: list[dict[str, Any]], **more: Any) -> None:
    """The records and what they were measured on."""
    path.write_text(json.dumps({"topology": lab_name, "machine": fingerprint(), "workloads": records, **more}, indent=2) + "\n")


async def run_topology(topology: dict[str, Any], json_out: Path | None) -> int:
    """Run a topology; returns the exit status."""
    out = console()
    try:
        async with lab_up(topology, out) as lab:
            if not topology["workload"]:
                return await _stay_up(lab, out)
            records = await run_workloads(await Runner.open(lab), topology["workload"], out)
            deaths = dict(lab.deaths)
    except (LabError, TopologyExists) as error:
        out.print(f"[red]{error}[/]", markup=True)
        return NOT_STARTED
    except (WorkloadError, ControlError) as error:
        out.print(f"[red]{error}[/]")
        return FAILED
    print_results(records, out)
    if json_out is not None:
        write_json(json_out, lab.name, records, ready=lab.timings)
    return FAILED if deaths or any(record["errors"] for record in records) else 0


async def _stay_up(lab: Lab, out: Console) -> int:
    """No workloads: serve `launch.py exec` and others until Ctrl-C, or until nothing is left to serve."""
    await lab.start_generator()
    taps = [guest for guest in lab.topology["guest"] if guest["program"] == "tap"]
    for guest in taps:
        out.print(f"  {guest['name']:<12} {guest['address']:<18} try: launch.py exec {guest['name']} -- ip addr")
    out.print("Ctrl-C takes it down")
    cause = await lab.ended()
    out.print(f"[red]the topology ended: {cause}[/]")
    return FAILED
