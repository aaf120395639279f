"""Topologies for tests, and running labs and commands from synchronous tests."""

import asyncio
import os
import random
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from lab.keeper import TITLE
from lab.rundir import place
from lab.topology import load
from tests.support.patience import patient

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = [sys.executable, str(ROOT / "launch.py")]
RUN_S, WAIT_S = 90.0, 60.0
T = TypeVar("T")

GUESTS = """
[[guest]]
name = "anna"
path = "split"
[[guest]]
name = "bert"
path = "split"
[[guest]]
name = "carl"
path = "bypass"
[[guest]]
name = "dora"
path = "bypass"
"""


def topology(tmp_path: Path, name: str, text: str) -> dict[str, Any]:
    """A topology from TOML, under a name that no other test run uses."""
    return load(topology_file(tmp_path, name, text)).plain()


def topology_file(tmp_path: Path, name: str, text: str) -> Path:
    """The same as a file."""
    file = tmp_path / f"{unique(name)}.toml"
    file.write_text(text)
    return file


def unique(name: str) -> str:
    """A topology name of this test process's own."""
    return f"t{os.getpid()}-{name}"


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, for RUN_S at most: a signal handler of pytest's does not get through to uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main, patient(RUN_S)))


def workload(
    kind: str, sender: str, receiver: str, frame: int = 64, seconds: float | None = 0.3, frames: int | None = None
) -> dict[str, Any]:
    """A workload as a topology file gives it."""
    seconds = None if frames else seconds
    return {"kind": kind, "from": sender, "to": receiver, "frame": frame, "seconds": seconds, "frames": frames}


def launch(*arguments: str | Path, within: Sequence[str] = (), **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run launch.py to its end; `within`: see `machine_of_its_own`."""
    command = [*within, *LAUNCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=patient(RUN_S), cwd=ROOT, **options)


def start(*arguments: str | Path, within: Sequence[str] = (), **options: Any) -> "subprocess.Popen[str]":
    """Start launch.py."""
    return subprocess.Popen(
        [*within, *LAUNCH, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


@contextmanager
def staying_up(file: Path, *arguments: str, **options: Any) -> "Iterator[tuple[subprocess.Popen[str], list[str]]]":
    """A topology without workloads, up, and the lines that it prints; killed at the end if it still runs."""
    process = start("run", file, *arguments, **options)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        wait_until(lambda: any("Ctrl-C" in line for line in lines) or process.poll() is not None, "the topology to be up")
        assert process.poll() is None, "".join(lines)
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(patient(30))
        reader.join(patient(10))
        process.stdout.close()  # type: ignore[union-attr]


@contextmanager
def machine_of_its_own() -> Iterator[list[str]]:
    """A /dev/shm and a place for run folders of one's own, hence no topologies but one's own: for what is about all that there are.

    Yields what a command line must begin with to be run there. Such commands see the same files and processes otherwise. Were the
    place everybody's, `clean` there would take the folders of those that live here for what dead ones have left.
    """
    place().mkdir(mode=0o700, parents=True, exist_ok=True)
    own_place = f"mount -t tmpfs -o mode=700 tmpfs {shlex.quote(str(place()))}"
    with _namespace("--mount", f"mount -t tmpfs -o mode=1777 tmpfs /dev/shm && {own_place}") as within:
        yield within


@contextmanager
def network_of_its_own() -> Iterator[list[str]]:
    """A network namespace with nothing but a loopback in it, where a topology may make an interface.

    Yields what a command line must begin with to be run there. Such commands see the same files and processes otherwise.
    """
    with _namespace("--net", "ip link set lo up") as within:
        yield within


@contextmanager
def _namespace(kind: str, prepare: str) -> Iterator[list[str]]:
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    entering = [] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
    command = ["unshare", kind, *user, "sh", "-c", f"{prepare} && echo there && exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:  # ends with its input
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "there\n"
        yield ["nsenter", "--target", str(holder.pid), kind, *entering]
        holder.stdin.close()


def wait_until(condition: Callable[[], T], what: str) -> T:
    """Wait for a condition to be true; returns its value. AssertionError, saying what was waited for, where that takes too long."""
    deadline = time.monotonic() + patient(WAIT_S)
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """`wait_until` for coroutines."""
    deadline = time.monotonic() + patient(WAIT_S)
    while not await condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


async def a_moment(rng: random.Random) -> None:
    """Let some of 50 ms pass: what comes then is to come at any moment."""
    await asyncio.sleep(rng.uniform(0.0, 0.05))


def left_behind(name: str) -> list[str]:
    """What is still there of a topology: shared memory, run folder, processes."""
    uid = os.getuid()
    found = [str(path) for path in Path("/dev/shm").glob(f"xbl.{uid}.{name}.*")]
    found += [str(path) for path in [place() / name] if path.exists()]
    return found + [f"process {pid}: {line}" for pid, line in processes(name).items()]


SAY_PROCESS = 'echo "is $$ in $(readlink /proc/self/ns/pid)."; '
"""For a shell script in a guest, in single quotes: it says which process it is (`process_said`)."""
SAID_PROCESS = r"is (\d+) in pid:\[(\d+)\]\."


def process_said(text: str) -> int:
    """The living process, as this test's /proc numbers it, that has said `text` in a PID namespace where it has another number."""
    said = re.search(SAID_PROCESS, text)
    assert said is not None, text
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "pid") == f"pid:[{said[2]}]":
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                if status["NSpid"].split()[-1] == said[1]:
                    return int(folder.name)
        except OSError:  # gone, or not ours
            continue
    raise AssertionError(f"no process {text}")


def processes(name: str) -> dict[int, str]:
    """Living processes of topology `name`: their command lines name it."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if line[:2] == [TITLE, name] or ("lab.keeper" in line and name in line):
                found[int(folder.name)] = " ".join(line)
    return found
