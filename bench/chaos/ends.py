"""Deaths that a topology does not outlive: of its owner, or of its keeper. How long until nothing is left of it."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.method.contenders import run_name
from hyp.shm import objects
from lab.errors import LabError
from lab.owner import ROOT
from lab.rundir import RunDir

OWNER, KEEPER = "launch.py", "keeper"
UP_S, END_S, LOOK_S = 60.0, 15.0, 0.01
TOPOLOGY = """
name = "{name}"
[[guest]]
name = "anna"
path = "split"
[[guest]]
name = "carl"
path = "bypass"
"""


async def end_of(victim: str) -> tuple[float, list[str]]:
    """Kill `victim` of a topology: seconds until everything had ended, and what is left after `END_S`, which is to be nothing."""
    name = run_name("ends", os.getpid())
    with TemporaryDirectory(prefix="xbl-chaos-") as folder:
        file = Path(folder) / "ends.toml"
        file.write_text(TOPOLOGY.format(name=name))
        command = [sys.executable, "-u", str(ROOT / "launch.py"), "run", str(file)]
        owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        try:
            async with asyncio.timeout(UP_S):
                await _is_up(owner)
            all_of_it = _descendants(owner.pid)
            begin = time.monotonic()
            os.kill(owner.pid if victim == OWNER else _keeper(all_of_it), signal.SIGKILL)
            while (left := _left(name, all_of_it)) and time.monotonic() - begin < END_S:
                await asyncio.sleep(LOOK_S)
            return time.monotonic() - begin, left
        finally:
            with contextlib.suppress(ProcessLookupError):
                owner.kill()
            await owner.communicate()


async def _is_up(owner: asyncio.subprocess.Process) -> None:
    assert owner.stdout is not None
    said = b""
    while b"Ctrl-C" not in said:
        line = await owner.stdout.readline()
        if not line:
            raise LabError(f"the topology did not start: {said.decode(errors='replace')}")
        said += line


def _descendants(pid: int) -> dict[int, str]:
    """Names by pid of who comes from a process, without itself."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
            for child in (task / "children").read_text().split():
                found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
                waiting.append(int(child))
    return found


def _keeper(processes: dict[int, str]) -> int:
    """The keeper's pid, not its stand-in's outside of its PID namespace."""
    return next(pid for pid, name in processes.items() if name == "keeper")


def _is_there(pid: int) -> bool:
    """It has not ended; one that has may wait for long until this machine's init reaps it, which is not ours to hasten."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _left(name: str, processes: dict[int, str]) -> list[str]:
    """What there still is: processes, shared memory, the run folder."""
    run = RunDir.of(name)
    found = [f"process {what}" for pid, what in processes.items() if _is_there(pid)]
    return found + objects(name) + ([str(run.path)] if run.path.exists() else [])
