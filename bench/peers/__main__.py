"""``python -m bench.peers``: all peers on this machine, one table. Slices of all that can run alternate in one live set-up."""

import asyncio
import json
import os
import statistics
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table

from bench.peers import PEERS, Peer, PeerError, PeerSlice, peer_class
from bench.peers.base import MAX_SLICE_S
from lab.command.encoding import speak_any_encoding
from lab.command.screen import Screen
from lab.figures import number

FAILED, USAGE = 1, 2


def _cpus() -> list[int]:
    """The first and the last core that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return [allowed[0], allowed[-1]]


def summary(name: str, frame: int, slices: list[PeerSlice]) -> dict[str, Any]:
    """Medians over the slices that gave a figure; `errors` of those that did not."""
    good = [one for one in slices if not one.errors and one.frames]
    last = slices[-1].detail
    found: dict[str, Any] = {"peer": name, "frame": frame, "n": len(good), "detail": last}
    found["mpps"] = statistics.median(one.mpps for one in good) if good else None
    found["cpu_us_per_frame"] = statistics.median(one.cpu_ns / one.frames / 1e3 for one in good) if good else None
    found["gbps"] = found["mpps"] * last["frame_bytes"] * 8e-3 if good else None
    found["lost_share"] = sum(one.lost for one in good) / max(1, sum(one.sent for one in good))
    found["errors"] = sorted({error for one in slices for error in one.errors})
    return {**found, "slices": [one.plain() for one in slices]}


async def measure(names: list[str], frames: list[int], seconds: float, repeat: int, cpus: list[int]) -> dict[str, Any]:
    """All peers live, their slices alternating: ``{"missing": {name: why}, "records": [summary, …]}``."""
    missing: dict[str, str] = {}
    live: dict[str, Peer] = {}
    records = []
    async with AsyncExitStack() as stack:
        for name in names:
            kind = peer_class(name)
            reason = kind.missing(len(set(cpus)))
            if reason is not None:
                missing[name] = reason
                continue
            peer = kind()
            stack.push_async_callback(peer.stop)
            await peer.start(frames[0], cpus)
            live[name] = peer
        for frame in frames:
            slices: dict[str, list[PeerSlice]] = {name: [] for name in live}
            for peer in live.values():
                await peer.set_frame(frame)
            for turn in range(repeat):
                for name, peer in list(live.items())[:: -1 if turn % 2 else 1]:
                    slices[name].append(await peer.slice(seconds))
            records += [summary(name, frame, found) for name, found in slices.items() if found]
    return {"missing": missing, "records": records}


def table(results: dict[str, Any]) -> Table:
    """One row for each peer and frame size; a row with the reason for each peer that cannot run."""
    shown = Table(header_style="bold", pad_edge=False, box=None)
    for column in ("peer", "B", "B sent", "touched", "Mfr/s", "Gbit/s", "CPU µs", "lost"):
        shown.add_column(column, justify="left" if column in ("peer", "touched") else "right", no_wrap=True)
    for record in results["records"]:
        detail = record["detail"]
        figures = [number(record["mpps"]), number(record["gbps"]), number(record["cpu_us_per_frame"], 3)]
        lost = f"{record['lost_share']:.1%}"
        shown.add_row(record["peer"], str(record["frame"]), str(detail["frame_bytes"]), detail["touched"], *figures, lost)
    return shown


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"sizes in bytes with commas between, not {text!r}") from None
    if any(not 60 <= size <= 1514 for size in found):
        raise typer.BadParameter("a frame has 60 to 1514 bytes")
    return found


def run(
    peers: Annotated[str, typer.Option(help="Which, with commas between.")] = ",".join(PEERS),
    frames: Annotated[str, typer.Option(help="Frame sizes in bytes, with commas between.")] = "64,1500",
    seconds: Annotated[float, typer.Option(min=0.01, max=MAX_SLICE_S, help="Length of a slice.")] = 0.4,
    repeat: Annotated[int, typer.Option(min=1, help="Slices for each peer and frame size.")] = 6,
    cores: Annotated[int, typer.Option(min=1, max=2, help="Sender and receiver on one core, or on two.")] = 2,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all slices to this file.")] = None,
) -> None:
    """Measure the systems that the lab is held against, those that can run here."""
    console = Screen()
    names, sizes = peers.split(","), _numbers(frames)
    try:
        for name in names:
            peer_class(name)
    except PeerError as error:
        raise typer.BadParameter(str(error)) from None
    if json_out is not None:
        try:
            json_out.touch()
        except OSError as error:
            raise typer.BadParameter(f"{json_out} cannot be written: {error.strerror}") from None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(measure(names, sizes, seconds, repeat, _cpus()[:cores]))
    except PeerError as error:
        console.print(f"FAILED {error}")
        raise typer.Exit(FAILED) from None
    if json_out is not None:
        json_out.write_text(json.dumps(results, indent=1))
    console.print(table(results))
    for name, reason in results["missing"].items():
        console.print(f"{name}: not here. {reason}")
    errors = [f"ERROR {one['peer']}, {one['frame']} B: {what}" for one in results["records"] for what in one["errors"]]
    for line in errors:
        console.print(line)
    raise typer.Exit(FAILED if errors else 0)


if __name__ == "__main__":
    speak_any_encoding()
    typer.run(run)
