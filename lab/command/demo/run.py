"""`make demo`: both paths side by side, the proof that does not rest on our own counters, real programs, and a page of all that.

1. Two guests on split, two on bypass: the same verified streams and round trips, guest to guest and guest to wire, in turns.
2. What a frame costs at each hop, on either path, out and in.
3. The bypass stream with Dom0 *and* the hypervisor stopped (SIGSTOP), beside the undisturbed one, alternating.
4. The kernel's figures of CPU time and context switches of Dom0 and hyp, in a bypass stream and in a split stream.
5. ping (where there is none, a round trip of our own) and an HTTP download between TAP guests, on both paths, where the machine
   allows namespaces.
"""

import time
from pathlib import Path
from typing import Any

from lab.command.demo.hops import each_hop
from lab.command.demo.page import write_page
from lab.command.demo.programs import real_programs
from lab.command.demo.proofs import kernel_proof, stopped_proof
from lab.command.screen import Screen
from lab.command.session import FAILED, heading, lab_up, print_results, run_workloads, told, write_json
from lab.command.tables import against, spread
from lab.fingerprint import fingerprint, stolen_ticks
from lab.topology import check_machine, load, shipped
from lab.workloads import Runner

REPEATS = 3
PAGE = Path("demo.html")
NOISY_SHARE, NOISY_FACTOR = 0.02, 1.3
WHY_NOT_BETTER = (
    "between guests either path has one process in between, Dom0 or the NIC, and programs are\n"
    "  bound by wake-ups and TAPs; `python -m bench programs` has the same by the wire"
)


async def run_demo(seconds: float, json_out: Path | None, page_out: Path | None, *, confined: bool = False) -> int:
    """Run everything, with all guests confined or none; returns the exit status."""
    out = Screen()
    with told(out) as status:
        record = await _demo(seconds, out, confined=confined)
    if status:
        return status[0]
    shown = {**record, "machine": fingerprint(), "time": time.time()}
    unwritten = write_page(page_out or PAGE, shown, out)
    written = unwritten if page_out is not None else 0  # a folder in which nothing can be written makes no demo fail
    if json_out is not None:
        written |= write_json(json_out, "demo", record.pop("workloads"), **record)
    return FAILED if record["failed"] or written else 0


async def _demo(seconds: float, out: Screen, *, confined: bool) -> dict[str, Any]:
    topology, stolen_before = _read("demo.toml", confined=confined), stolen_ticks()
    for workload in topology["workload"]:
        workload["seconds"] = seconds
    async with lab_up(topology, out) as lab:
        runner = await Runner.open(lab)
        records = await run_workloads(runner, topology["workload"], out, REPEATS)
        print_results(records, out)
        hops = await each_hop(runner, seconds, out)
        stopped = await stopped_proof(runner, out)
        kernel = kernel_proof(records, out)
        deaths = dict(lab.deaths)
    programs = await real_programs(_read("tap.toml", confined=confined), out, confined=confined)
    not_better = _not_better(records, programs)
    if not_better:
        heading(out, "\nWhere bypass is not better here:", f" {WHY_NOT_BETTER}")
        for line in not_better:
            out.print(f"  {line}")
    noise = _noise(records, stolen_before)
    if noise is not None:
        heading(out, "\nThis machine was noisy:", f" {noise}")
        out.print("  Read the ratios as orders of magnitude; `python -m bench` measures until it knows.")
    broken = [record for record in [*records, *stopped["records"], *hops["records"]] if record["errors"]]
    return {
        "workloads": records, "hops": hops, "stopped": stopped, "kernel": kernel, "programs": programs, "not_better": not_better,
        "noise": noise, "failed": bool(broken or deaths or programs["failed"]),
    }  # fmt: skip


def _read(name: str, *, confined: bool) -> dict[str, Any]:
    topology = load(shipped() / name, {"confined": True, "memory": {"backing": "sealed"}} if confined else {})
    check_machine(topology)
    return topology.plain()


def _not_better(records: list[dict[str, Any]], programs: dict[str, Any]) -> list[str]:
    """What of all this does not speak for bypass: a demonstration that is silent about it is none."""
    lines = against(records)
    for what, of_path in (("round trip between TAP guests, average", "ping"), ("HTTP between TAP guests", "download")):
        figures = [programs.get(path, {}).get(of_path, {}).get("figure") for path in ("split", "bypass")]
        if None not in figures:
            split, bypass = figures
            unit, better = ("ms", bypass < split) if of_path == "ping" else ("Gbit/s", bypass > split)
            if not better:
                lines.append(f"{what}: split {split:g} {unit}, bypass {bypass:g} {unit} (one run each)")
    return lines


def _noise(records: list[dict[str, Any]], stolen_before: tuple[int, int]) -> str | None:
    """What the machine did meanwhile, where that matters."""
    stolen, total = (after - before for after, before in zip(stolen_ticks(), stolen_before, strict=True))
    share, factor = stolen / total if total else 0.0, spread(records)
    if share > NOISY_SHARE or factor > NOISY_FACTOR:
        return f"the host took {share:.1%} of the CPUs' time, and ratios of neighbouring runs differ up to {factor:.2g}-fold."
    return None
