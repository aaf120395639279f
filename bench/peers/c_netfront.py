"""examples/c_netfront, the front end in C on Xen's own headers, as an end of workloads: built, told what to do, asked what it has.

It has no console: what it is to do the store tells it, in ``data/job`` of its home, and it answers in ``data/report`` (README.md
there). `CLab` makes of that the operations that a traffic program has on its console (domu/programs/traffic.py), so that whoever
runs workloads on a lab runs them with it as well. Its counters are its report's: of the lab's own it keeps none.
"""

import asyncio
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.peers.base import PeerError
from hyp.abi.sizes import JUMBO_BUFFER
from hyp.load.tcp import tcp_frame_bytes, unit_for, units_for
from hyp.offload.frame import ETHERNET_HEADER
from hyp.xenstore.client import XenstoreClient, XenstoreError
from lab.owner import ROOT, Lab

EXAMPLE = ROOT / "examples" / "c_netfront"
HEADER = Path("/usr/include/xen/io/netif.h")
BUILD_S, ANSWER_S = 120.0, 30.0
Report = dict[str, Any]


def missing() -> str | None:
    """None if it can be built here; else what is missing, and how to install it."""
    for program in ("gcc", "make"):
        if shutil.which(program) is None:
            return f"the command {program} is not here: apt install {program} libc6-dev"
    if not HEADER.exists():
        return "Xen's headers are not here: apt install libxen-dev"
    return None if (EXAMPLE / "Makefile").exists() else f"{EXAMPLE} is not here: an installed lab has no examples"


def build(folder: Path, limit_s: float = BUILD_S) -> Path:
    """Make the program in `folder`; where it is. PeerError with what the compiler says, if it cannot be made."""
    command = ["make", "-C", str(EXAMPLE), f"OUT={folder}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("CFLAGS", "MAKEFLAGS", "MFLAGS")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{EXAMPLE}: building takes longer than {limit_s:g} s") from None
    if done.returncode:
        raise PeerError(f"{EXAMPLE}: {(done.stderr.strip().splitlines() or ['it cannot be built'])[-1]}")
    return folder / "c_netfront"


class Jobs:
    """Jobs for guests that `serve`, by way of a topology's store. Each has a number, by which its report is known."""

    def __init__(self, store: XenstoreClient) -> None:
        self._store, self._numbers = store, itertools.count(1)

    @classmethod
    async def of(cls, lab: Lab) -> "Jobs":
        """With a connection of its own to the store of a lab that is up."""
        with lab._rundir.socket_address(lab.store_path) as address:
            return cls(await XenstoreClient.connect(address))

    async def close(self) -> None:
        """End the connection."""
        await self._store.close()

    async def tell(self, domid: int, words: str) -> int:
        """Give a guest a job, which ends the one before; its number."""
        number = next(self._numbers)
        await self._store.write(f"/local/domain/{domid}/data/job", f"{words} --id {number}")
        return number

    async def report(self, domid: int, number: int, limit_s: float = ANSWER_S) -> Report:
        """Wait for a job's report. PeerError if it does not come."""
        node = f"/local/domain/{domid}/data/report"
        watch = await self._store.watch(node, f"report-{domid}-{number}")
        try:
            async with asyncio.timeout(limit_s):
                async for _ in watch:
                    if (found := await self._read(node)) is not None and found["id"] == number:
                        return found
        except TimeoutError:
            pass
        finally:
            self._store.forget(watch)
        raise PeerError(f"c_netfront in domain {domid} has not reported job {number} in {limit_s:g} s")

    async def run(self, domid: int, words: str, limit_s: float = ANSWER_S) -> Report:
        """A job, and its report."""
        return await self.report(domid, await self.tell(domid, words), limit_s)

    async def _read(self, node: str) -> Report | None:
        try:
            return dict(json.loads(await self._store.read(node)))
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            return None


class CLab(Lab):
    """A lab in which guests whose program is this one take the traffic programs' operations."""

    async def start(self) -> None:
        """See `Lab.start`."""
        await super().start()
        guests = enumerate(self.topology["guest"], 1)
        self._own = {str(guest["name"]): domid for domid, guest in guests if isinstance(guest["program"], dict)}
        self._jobs = await Jobs.of(self)

    async def stop(self) -> None:
        """See `Lab.stop`."""
        if hasattr(self, "_jobs"):
            await self._jobs.close()
        await super().stop()

    async def pids(self) -> dict[str, int]:
        """The program's, in the place of the process that stands between it and the keeper."""
        found = await super().pids()
        return {name: _child(pid) if name in self._own else pid for name, pid in found.items()}

    async def call(self, process: str, op: str, /, **args: Any) -> Any:
        """See `Lab.call`. PeerError for what a job has failed for."""
        if process not in self._own:
            return await super().call(process, op, **args)
        domid = self._own[process]
        if op == "send_stream":
            return await self._send(domid, **args)
        if op == "received":
            return (await self._jobs.run(domid, f"report --stream {args['stream']}"))["received"]
        if op == "expect":  # it takes frames for what they say they are
            return None
        if op == "pin":
            return os.sched_setaffinity((await self.pids())[process], args["cpus"])
        if op == "end_job":
            return await self._jobs.run(domid, "report")
        raise PeerError(f"c_netfront has no operation {op}")

    async def _send(self, domid: int, mac: str, frame: int, stream: int, frames: int = 0, seconds: float = 0.0) -> Report:
        words = f"send --to {mac} --stream {stream} --frames {frames} --seconds {seconds:.9f} "
        report = await self._jobs.run(domid, words + self._shape(frame), seconds + ANSWER_S)
        if report["error"] is not None:
            raise PeerError(f"c_netfront in domain {domid}: {report['error']}")
        return {"sent": report["sent"] * report["units"], "units": report["units"]}

    def _shape(self, frame: int) -> str:
        """The words for frames of so many bytes: beyond the MTU TCP's, as the lab's own are (hyp/load/tcp.py)."""
        mtu = int(self.topology["nic"]["mtu"])
        if frame <= min(mtu + ETHERNET_HEADER, JUMBO_BUFFER):
            return f"--length {frame}"
        unit = unit_for(mtu)
        return f"--frame tcp4 --unit {unit} --length {tcp_frame_bytes(units_for(frame, unit), unit)}"


def _child(pid: int) -> int:
    """The only child of a process; the process itself, if it has none any more."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = file.read().split()
    return int(children[0]) if children else pid
