"""The proof that does not rest on our own counters: Dom0 and the hypervisor stopped, and what the kernel says that they did."""

import contextlib
import os
import signal
import statistics
from collections.abc import AsyncIterator
from typing import Any

from lab.command.screen import Screen
from lab.command.session import heading
from lab.command.tables import processes
from lab.stopping import stop
from lab.workloads import Runner, Workload

PROOF_REPEATS = 5
PROOF_SECONDS = 0.5


@contextlib.asynccontextmanager
async def _stopped(pids: list[int]) -> AsyncIterator[None]:
    """They stand still, and go on whatever happens."""
    try:
        await stop(*pids)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def stopped_proof(runner: Runner, out: Screen) -> dict[str, Any]:
    """The bypass stream undisturbed, then with Dom0 and hyp stopped, alternating."""
    load_: Workload = {
        "kind": "stream",
        "from": "carl",
        "to": "dora",
        "frame": 64,
        "seconds": PROOF_SECONDS,
        "frames": None,
    }
    both = [runner.pids["dom0"], runner.pids["hyp"]]
    rates: dict[str, list[float]] = {"undisturbed": [], "stopped": []}
    records = []
    await runner.prepare(load_)
    with out.status("bypass stream with Dom0 and hyp stopped …"):
        for _ in range(PROOF_REPEATS):
            for kind in rates:
                async with _stopped(both if kind == "stopped" else []):
                    record = await runner.measure(load_)
                rates[kind].append(record["mpps"])
                records.append({**record, "kind": kind})
    free, held = (statistics.median(rates[kind]) for kind in rates)
    ratios = [b / a for a, b in zip(rates["undisturbed"], rates["stopped"], strict=True)]
    heading(out, "\nProof 1.", " The bypass stream carl→dora, 64 B, with Dom0 and the hypervisor stopped (SIGSTOP):")
    out.print(f"  undisturbed {free:.2f} Mframes/s, stopped {held:.2f} Mframes/s (medians of {PROOF_REPEATS}, alternating)")
    pairs = f"median of the {len(ratios)} ratios of neighbouring runs, which are {min(ratios):.2f} to {max(ratios):.2f}"
    out.print(f"  stopped ÷ undisturbed: {statistics.median(ratios):.2f} ({pairs})\n")
    return {"rates": rates, "ratio": statistics.median(ratios), "records": records}


def kernel_proof(records: list[dict[str, Any]], out: Screen) -> list[dict[str, Any]]:
    """CPU time and context switches of Dom0 and hyp, as the kernel counts them, in one stream of each path."""
    streams = [r for r in records if r["workload"] == "stream" and r["to"] != "wire" and r["frame"] == 64]
    rows = [{"path": r["path"], "process": name, **r["processes"][name]} for r in streams for name in ("dom0", "hyp")]
    heading(out, "Proof 2.", " What the kernel says Dom0 and the hypervisor did during those streams (/proc/<pid>/task):")
    out.print(processes(streams, ("dom0", "hyp")))
    out.print("  (Hypercalls run on the thread of whoever makes them: what they cost split is in its guests' and Dom0's time.)")
    out.print()
    return rows
