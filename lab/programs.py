"""Running programs in the TAP guests of a lab, their output captured."""

import asyncio
import sys
from collections.abc import Sequence
from subprocess import DEVNULL, PIPE, STDOUT

from lab.owner import ROOT, Lab


async def run_in_guest(lab: Lab, guest: str, argv: Sequence[str]) -> tuple[int, str]:
    """Run a program in a guest; returns its exit status and what it printed. Cancelling kills it."""
    command = [sys.executable, "-m", "lab.execute", lab.name, guest, *argv]
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, cwd=ROOT)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return int(process.returncode or 0), output.decode(errors="replace")
