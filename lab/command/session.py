"""`launch.py run`: bring a topology up, run its workloads with progress, print and write what came out, take it down."""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from rich.status import Status
from rich.text import Text

from domu.programs.table import program_of
from hyp.control import ControlError, PeerGone
from lab.command.clients import ClientError, living
from lab.command.doing import PATIENT_S
from lab.command.repeats import in_turns, summary
from lab.command.screen import Screen
from lab.command.tables import comparison, ledger, losses, not_compared, notes, rates, runs, with_spread
from lab.errors import LabError
from lab.fingerprint import fingerprint
from lab.owner import ROOT, Lab, compiling
from lab.workloads import PeerDied, Runner, WorkloadError, describe

FAILED, NOT_STARTED = 1, 3
REPEATED = "medians (min–max); ratios of neighbouring runs; `python -m bench` gives intervals"
SINGLE = "single runs, which can differ by a factor from one second to the next"


class Progress:
    """Says what is going on while a topology starts, and what dies later, each death once."""

    def __init__(self, out: Screen, name: str) -> None:
        self._out = out
        self._line = out.status(Text(f"starting {name} …"))
        self._compiles = False
        self.compiled_s = 0.0

    def event(self, kind: str, details: dict[str, Any]) -> None:
        """An event of the lab."""
        if kind == "compiling":
            self._compiles = True
            self._out.print(compiling(details))
        elif kind == "progress":
            self._line.update(Text(f"compiling {details['index']} of {details['total']}: {details['kernel']} …"))
            if details["seconds"] >= 0.5:
                self._out.print(f"  [{details['index']}/{details['total']}] {details['kernel']}  {details['seconds']:.1f} s")
        elif kind == "warm":
            self.compiled_s = details["seconds"] if self._compiles else 0.0
            self._line.update(Text("starting its processes …"))
        elif kind == "notice":
            self._out.print(details["text"])
        elif kind == "died":
            more = ": it is started again" if details["restarting"] else ""
            self._out.print(f"{details['name']} {details['cause']}{more}", style="bold red")
        elif kind == "restarted":
            self._out.print(f"{details['name']} is there again, after {details['seconds']:.2f} s")
        elif kind == "asked_to_stop":  # by `launch.py stop`: as if it had been told so itself
            signal.raise_signal(signal.SIGTERM)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """What takes long has a line that moves, on a terminal."""
        with _if_it_takes_long(self._out, self._line):
            yield


@contextlib.contextmanager
def _if_it_takes_long(out: Screen, line: Status) -> Iterator[None]:
    """After `PATIENT_S` a line that moves, on a terminal, until the block's end."""
    later = asyncio.get_running_loop().call_later(PATIENT_S, line.start) if out.is_terminal else None
    try:
        yield
    finally:
        if later is not None:
            later.cancel()
            line.stop()


@contextlib.asynccontextmanager
async def lab_up(topology: dict[str, Any], out: Screen) -> AsyncIterator[Lab]:
    """A lab that is up, with a line that says so."""
    start, progress = time.monotonic(), Progress(out, str(topology["name"]))
    async with contextlib.AsyncExitStack() as stack:
        with progress.shown():
            lab = await stack.enter_async_context(Lab(topology, progress.event))
        compiled = f"compiled in {progress.compiled_s:.1f} s; " if progress.compiled_s else ""
        ready = time.monotonic() - start - progress.compiled_s
        guests = ", ".join(f"{guest['name']} ({guest['path']})" for guest in topology["guest"])
        out.print(Text.assemble("topology ", (lab.name, "bold"), f": {compiled}up in {ready:.2f} s: {guests}"))
        if lab.seats.processes:
            out.print(f"  placement: {lab.seats.text}")
        try:
            yield lab
        except PeerGone:
            if await lab.any_death():  # which is told when it is known
                raise PeerDied("what it needs is gone") from None
            raise


async def run_workloads(
    runner: Runner, workloads: list[dict[str, Any]], out: Screen, repeats: int = 1, failed: list[WorkloadError] | None = None
) -> list[dict[str, Any]]:
    """Run them in order, or in turns; a line each as they end. Of several `repeats` the record sums up (lab/command/repeats.py).

    `failed`: takes the errors of those that fail, without a record, while the others go on; without it the first one is raised.
    """
    done: dict[int, list[dict[str, Any]]] = {}
    for index, load in in_turns(workloads, repeats):
        what = f"[{index + 1}/{len(workloads)}]"
        try:
            with out.status(Text(f"{what} {describe(load)} …")):
                done.setdefault(index, []).append(await runner.run(load))
        except WorkloadError as error:
            if failed is None:
                raise
            failed.append(error)
            out.print(f"{what} cannot go on without it" if isinstance(error, PeerDied) else str(error), style="red")
            await runner.end(load)
            continue
        if len(done[index]) == repeats:
            records = done[index]
            rate = f"{with_spread([r['mpps'] for r in records])} Mframes/s"
            if records[0]["rtt_us"]:
                rate = f"p50 {with_spread([r['rtt_us']['p50'] for r in records])} µs"
            times = f"{repeats} × " if repeats > 1 else ""
            out.print(f"  {what:<7} {records[0]['path']:<7} {describe(load, times)}: {rate}")
    whole = [records for _, records in sorted(done.items()) if len(records) == repeats]
    return [summary(records) if repeats > 1 else records[0] for records in whole]


def heading(out: Screen, title: str, rest: str) -> None:
    """A line that begins with its title."""
    out.print(Text.assemble((title, "bold"), rest))


def print_results(records: list[dict[str, Any]], out: Screen) -> None:
    """The tables of a series of workloads, and what was dropped or went wrong."""
    what = "medians; " if any(len(runs(record)) > 1 for record in records) else ""
    heading(out, "\nRates", f" ({what}frames at the receiver; CPU µs per frame, all processes; a round trip is two frames)")
    out.print(rates(records))
    heading(out, "\nLedger", " (per frame: handled by Dom0, by the VMM, copies, eventfd writes, hypercalls, traps, wake-ups)")
    out.print(ledger(records))
    beside = comparison(records)
    if beside is not None:
        how = REPEATED if what else SINGLE
        heading(out, "\nSide by side", f" ({how})")
        out.print(beside)
        for line in not_compared(records):
            out.print(line)
    for line in [*notes(records), *losses(records)]:
        out.print(line)


def write_json(path: Path, lab_name: str, records: list[dict[str, Any]], **more: Any) -> int:
    """The records and what they were measured on; returns the exit status, having said why they could not be written."""
    data = json.dumps({"topology": lab_name, "machine": fingerprint(), "workloads": records, **more}, indent=2)
    try:
        path.write_text(data + "\n")
    except OSError as error:
        print(f"--json {path}: {error.strerror}", file=sys.stderr)
        return FAILED
    return 0


@contextlib.contextmanager
def told(out: Screen) -> Iterator[list[int]]:
    """What can go wrong with a lab, told on `out`: the list then has the exit status. A death was told when it happened."""
    status: list[int] = []
    try:
        yield status
    except PeerDied:
        out.print("the workloads cannot go on without it", style="red")
        status.append(FAILED)
    except (WorkloadError, ControlError) as error:
        out.print(str(error), style="red")
        status.append(FAILED)
    except LabError as error:
        out.print(str(error), style="red")
        status.append(NOT_STARTED)


@contextlib.asynccontextmanager
async def _page_of(name: str, port: int | None, out: Screen) -> AsyncIterator[None]:
    """The page of a topology that is up, at that port; None: no page."""
    if port is None:
        yield
        return
    from lab.web.serve import page

    try:
        async with page(name, port) as shown:
            out.print(f"{shown.address} shows it")
            yield
    except ClientError as error:
        raise LabError(str(error)) from error


async def run_topology(
    topology: dict[str, Any],
    json_out: Path | None,
    *,
    trace: Path | None = None,
    capture: Path | None = None,
    every: int = 1,
    page_port: int | None = None,
) -> int:
    """Run a topology; returns the exit status.

    `trace`, `capture`: files for what is seen of one in `every` frames meanwhile. `page_port`: where its page is, if it has one.
    """
    out, failed = Screen(), list[WorkloadError]()
    with told(out) as status:
        async with lab_up(topology, out) as lab, _page_of(lab.name, page_port, out), _recorded(lab, out, trace, capture, every):
            if not topology["workload"]:
                return await _stay_up(lab, out)
            records = await run_workloads(await Runner.open(lab), topology["workload"], out, failed=failed)
            deaths = dict(lab.deaths)
    if status:
        return status[0]
    written = write_json(json_out, lab.name, records, ready=lab.timings) if json_out is not None else 0  # first: it may be all
    print_results(records, out)
    return FAILED if written or deaths or failed or any(record["errors"] for record in records) else 0


@contextlib.asynccontextmanager
async def _recorded(lab: Lab, out: Screen, trace: Path | None, capture: Path | None, every: int) -> AsyncIterator[None]:
    """What happens inside goes to these files, if there are any."""
    if trace is None and capture is None:
        yield
        return
    from hyp.capture.format import CaptureError
    from lab.command.trace import said_of
    from lab.trace.recording import recorded

    try:
        with contextlib.ExitStack() as stack:
            async with recorded(lab.channel, trace, capture, every) as seen:
                yield
                stack.enter_context(_if_it_takes_long(out, out.status(Text("writing what was seen …"))))
    except (OSError, CaptureError) as error:
        raise LabError(str(error)) from error
    for line in (line for one in seen for line in said_of(one)):
        out.print(line)


async def _stay_up(lab: Lab, out: Screen) -> int:
    """No workloads: serve `launch.py exec` and others until Ctrl-C, or until nothing is left to serve."""
    await lab.start_generator()
    elsewhere = {guest["name"] for other in await living() if other["name"] != lab.name for guest in other["guests"]}
    for guest in lab.topology["guest"]:
        if program_of(guest["program"]).addressed:
            hint = try_command(guest["name"], lab.name if guest["name"] in elsewhere else None)
            out.print(f"  {guest['name']:<12} {guest['address']:<18} try: {hint}")
    out.print("Ctrl-C takes it down")
    cause = await lab.ended()
    out.print(f"the topology ended: {cause}", style="red")
    return FAILED


def try_command(guest: str, topology: str | None) -> str:
    """A command that shows a guest's network, as it can be typed here; with `topology` if the guest's name alone does not do."""
    launch, finds_venv = sys.argv[0], (ROOT / ".venv").exists()  # launch.py finds it by itself; what pip has installed needs none
    is_command = "/" in launch and os.access(launch, os.X_OK) and (finds_venv or not launch.endswith(".py"))
    launcher = [launch] if is_command else ["python3" if finds_venv else sys.executable, launch]
    program = ["ip", "addr"] if shutil.which("ip") else ["cat", "/proc/net/dev"]
    return shlex.join([*launcher, "exec", *(["--topology", topology] if topology else []), guest, "--", *program])
