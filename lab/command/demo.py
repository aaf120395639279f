"""`make demo`: both paths side by side, the proof that does not rest on our own counters, and real programs.

1. Two guests on split, two on bypass: the same verified streams and round trips, guest to guest and guest to wire, in turns.
2. The bypass stream with Dom0 *and* the hypervisor stopped (SIGSTOP), beside the undisturbed one, alternating.
3. The kernel's figures of CPU time and context switches of Dom0 and hyp, in a bypass stream and in a split stream.
4. ping (where there is none, a round trip of our own) and an HTTP download between TAP guests, on both paths, where the machine
   allows namespaces.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domu.netns import can_create
from lab.command.screen import Screen
from lab.command.session import FAILED, heading, lab_up, print_results, run_workloads, told, write_json
from lab.command.tables import against, processes, spread
from lab.fingerprint import stolen_ticks
from lab.owner import ROOT, Lab
from lab.programs import run_in_guest
from lab.topology import check_machine, load, shipped
from lab.workloads import Runner, Workload

REPEATS = 3
PROOF_REPEATS = 5
PROOF_SECONDS = 0.5
NOISY_SHARE, NOISY_FACTOR = 0.02, 1.3
DOWNLOAD_MIB = 256
ECHO_PORT, HTTP_PORT = 7007, 8000


async def run_demo(seconds: float, json_out: Path | None, *, confined: bool = False) -> int:
    """Run everything, with all guests confined or none; returns the exit status."""
    out = Screen()
    with told(out) as status:
        record = await _demo(seconds, out, confined=confined)
    if status:
        return status[0]
    failed = record["failed"]
    written = write_json(json_out, "demo", record.pop("workloads"), **record) if json_out is not None else 0
    return FAILED if failed or written else 0


async def _demo(seconds: float, out: Screen, *, confined: bool) -> dict[str, Any]:
    topology, stolen_before = _read("demo.toml", confined=confined), stolen_ticks()
    for workload in topology["workload"]:
        workload["seconds"] = seconds
    async with lab_up(topology, out) as lab:
        runner = await Runner.open(lab)
        records = await run_workloads(runner, topology["workload"], out, REPEATS)
        print_results(records, out)
        stopped = await _stopped_proof(runner, out)
        kernel = _kernel_proof(records, out)
        deaths = dict(lab.deaths)
    programs = await _real_programs(out, confined=confined)
    _against(records, programs, out)
    _noise(records, stolen_before, out)
    broken = [record for record in [*records, *stopped["records"]] if record["errors"]]
    return {
        "workloads": records, "stopped": stopped, "kernel": kernel, "programs": programs,
        "failed": bool(broken or deaths or programs["failed"]),
    }  # fmt: skip


def _read(name: str, *, confined: bool) -> dict[str, Any]:
    topology = load(shipped() / name, {"confined": True, "memory": {"backing": "sealed"}} if confined else {})
    check_machine(topology)
    return topology.plain()


# --- the proof --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT whatever happens."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _stopped_proof(runner: Runner, out: Screen) -> dict[str, Any]:
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
                with _stopped(both if kind == "stopped" else []):
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


def _kernel_proof(records: list[dict[str, Any]], out: Screen) -> list[dict[str, Any]]:
    """CPU time and context switches of Dom0 and hyp, as the kernel counts them, in one stream of each path."""
    streams = [r for r in records if r["workload"] == "stream" and r["to"] != "wire" and r["frame"] == 64]
    rows = [{"path": r["path"], "process": name, **r["processes"][name]} for r in streams for name in ("dom0", "hyp")]
    heading(out, "Proof 2.", " What the kernel says Dom0 and the hypervisor did during those streams (/proc/<pid>/task):")
    out.print(processes(streams, ("dom0", "hyp")))
    out.print("  (Hypercalls run on the thread of whoever makes them: what they cost split is in its guests' and Dom0's time.)")
    out.print()
    return rows


def _against(records: list[dict[str, Any]], programs: dict[str, Any], out: Screen) -> None:
    """What of all this does not speak for bypass: a demonstration that is silent about it is none."""
    lines = against(records)
    for what, of_path in (("round trip between TAP guests, average", "ping"), ("HTTP between TAP guests", "download")):
        figures = [programs.get(path, {}).get(of_path, {}).get("figure") for path in ("split", "bypass")]
        if None not in figures:
            split, bypass = figures
            unit, better = ("ms", bypass < split) if of_path == "ping" else ("Gbit/s", bypass > split)
            if not better:
                lines.append(f"{what}: split {split:g} {unit}, bypass {bypass:g} {unit} (one run each)")
    if lines:
        heading(
            out,
            "\nWhere bypass is not better here:",
            " between guests either path has one process in between, Dom0 or the NIC, and programs are\n"
            "  bound by wake-ups and TAPs; `python -m bench programs` has the same by the wire",
        )
        for line in lines:
            out.print(f"  {line}")


def _noise(records: list[dict[str, Any]], stolen_before: tuple[int, int], out: Screen) -> None:
    """What the machine did meanwhile, where that matters."""
    stolen, total = (after - before for after, before in zip(stolen_ticks(), stolen_before, strict=True))
    share, factor = stolen / total if total else 0.0, spread(records)
    if share > NOISY_SHARE or factor > NOISY_FACTOR:
        what = f" the host took {share:.1%} of the CPUs' time, and ratios of neighbouring runs differ up to {factor:.2g}-fold."
        heading(out, "\nThis machine was noisy:", what)
        out.print("  Read the ratios as orders of magnitude; `python -m bench` measures until it knows.")


# --- real programs ----------------------------------------------------------------------------------------------------


async def _real_programs(out: Screen, *, confined: bool) -> dict[str, Any]:
    """Round trips and a download between TAP guests, on both paths."""
    heading(out, "Real programs", " in network namespaces:")
    reason = can_create()
    if reason is not None:
        out.print(f"  left out: this machine does not let us make them ({reason})")
        return {"left_out": reason, "failed": False}
    python = _everybodys_python() if confined and os.geteuid() == 0 else sys.executable  # a user's guests are that user
    if python is None:
        reason = f"a confined guest is nobody outside, and {Path(sys.executable).resolve()} is where not everybody may run it"
        out.print(f"  left out: {reason}")
        return {"left_out": reason, "failed": False}
    found: dict[str, Any] = {"failed": False}
    async with lab_up(_read("tap.toml", confined=confined), out) as lab:
        addresses = {guest["name"]: guest["address"].partition("/")[0] for guest in lab.topology["guest"]}
        for path, client, server in (("split", "alice", "bob"), ("bypass", "carol", "dave")):
            ends = client, server, addresses[server]
            trip = await (_ping(lab, *ends) if shutil.which("ping") else _echo(lab, python, *ends))
            download = await _download(lab, python, *ends)
            out.print(f"  {path:<7} {client}→{server}: {trip['text']}")
            out.print(f"  {'':<7} {'':<{len(client) + len(server) + 1}}  HTTP {download['text']}")
            found[path] = {"ping": trip, "download": download}
            found["failed"] |= not (trip["ok"] and download["ok"])
    return found


async def _ping(lab: Lab, client: str, server: str, address: str) -> dict[str, Any]:
    status, text = await run_in_guest(lab, client, ["ping", "-q", "-c", "20", "-i", "0.02", address])
    return _round_trip("ping", status, text)


def _everybodys_python() -> str | None:
    """A Python that every user may run, guests that are nobody outside too; the one beneath the virtual environment, if that is."""
    for found in (sys.executable, shutil.which("python3", path=os.defpath)):
        if found is not None:
            python = Path(found).resolve()
            if all(place.stat().st_mode & stat.S_IXOTH for place in (python, *python.parents)):
                return str(python)
    return None


def _program(python: str, script: str) -> list[str]:
    """A program of this folder's, which its Python need not be able to read."""
    return [python, "-I", "-c", (ROOT / "lab" / "command" / script).read_text()]


async def _echo(lab: Lab, python: str, client: str, server: str, address: str) -> dict[str, Any]:
    """What ping measures, by a program of our own, where ping is not installed."""
    program = _program(python, "echo.py")
    serving = asyncio.create_task(run_in_guest(lab, server, [*program, "serve", str(ECHO_PORT)]))
    try:
        status, text = await run_in_guest(lab, client, [*program, "ask", address, str(ECHO_PORT)])
    finally:
        serving.cancel()
        await asyncio.wait({serving})
    return _round_trip("UDP echo (there is no ping here)", status, text)


def _round_trip(how: str, status: int, text: str) -> dict[str, Any]:
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", text)
    if status != 0 or times is None:
        return {"text": f"{how} failed: {text.strip()}", "ok": False}
    return {"text": f"{how} rtt min/avg/max {times[1]}/{times[2]}/{times[3]} ms", "ok": True, "figure": float(times[2])}


async def _download(lab: Lab, python: str, client: str, server: str, address: str) -> dict[str, Any]:
    """Serve bytes that a seed says with Python's own web server, fetch them, compare SHA-256."""
    program = _program(python, "fetch.py")
    what = [str(secrets.randbits(32)), str(DOWNLOAD_MIB)]
    serving = asyncio.create_task(run_in_guest(lab, server, [*program, "serve", str(HTTP_PORT), *what]))
    try:
        status, text = await run_in_guest(lab, client, [*program, "get", f"http://{address}:{HTTP_PORT}/", *what])
    finally:
        serving.cancel()
        await asyncio.wait({serving})
    rate = re.search(r"([\d.]+) Gbit/s", text)
    return {"text": text.strip(), "ok": status == 0, "figure": float(rate[1]) if rate else None}
