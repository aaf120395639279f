"""Programs in TAP guests, on both paths: ping (where there is none, a round trip of our own) and an HTTP download."""

import asyncio
import os
import re
import secrets
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

from domu.netns import can_create
from lab.command.screen import Screen
from lab.command.session import heading, lab_up
from lab.owner import Lab
from lab.programs import run_in_guest

DOWNLOAD_MIB = 256
ECHO_PORT, HTTP_PORT = 7007, 8000


async def real_programs(topology: dict[str, Any], out: Screen, *, confined: bool) -> dict[str, Any]:
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
    async with lab_up(topology, out) as lab:
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
    return [python, "-I", "-c", Path(__file__).with_name(script).read_text()]


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
