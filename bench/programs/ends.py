"""Pairs of ends between which programs talk, a client's and a server's: two guests of a lab, a machine beyond the NIC's wire and a
guest, a veth pair, the two TAPs of pump and relay.

Whatever carries the frames is up as long as the pair is; `processes` names who that is. `enter` takes a child of one thread to an
end, where it becomes the program.

Each gets the best of its placements for each program (placement.py), lest a comparison be won by the scheduler's luck.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from bench.method.contenders import run_name
from bench.method.slices import Kind
from bench.peers import PeerError
from bench.peers.namespaces import ADDRESSES
from bench.peers.veth import Pair, Veth, make_pair
from bench.programs.placement import ANYWHERE, CLIENT_END, SERVER_END, cpus_in, place_threads, placements
from bench.programs.pump import pump
from bench.programs.relay import relay_end, relay_middle
from domu.netns import can_create
from hyp import linux
from hyp.control import close_all
from hyp.kernels import Entry
from hyp.paths import PATHS
from lab.owner import ROOT, Lab
from lab.topology import parse

CLIENT, SERVER = 0, 1
GUESTS = ("alice", "bob")
ADDRESS = ("10.97.0.1/24", "10.97.0.2/24")
START_S = 30.0


class Ends(Protocol):
    """A contender. `name` and `kind` as of a contender (bench/method/slices.py)."""

    name: str
    kind: Kind
    address: str
    """The server's."""
    placements: tuple[str, ...]
    """What there is to choose from."""

    def place(self, placement: str, server: int) -> None:
        """Let the server, a process, and what carries the frames run where `placement` says, and clients from now on."""

    @staticmethod
    def missing() -> str | None:
        """None if it can be had here; else why not."""

    async def start(self) -> None:
        """Set up. PeerError or LabError, with the reason, if that can't be done."""

    def enter(self, end: int) -> None:
        """In a child of one thread: go to CLIENT or SERVER."""

    def processes(self) -> dict[str, int]:
        """Process ids, by name, of what carries frames between the ends; the kernel does where there are none."""

    async def stop(self) -> None:
        """Everything is gone. May be called at any time, more than once."""


class GuestEnds:
    """Two guests of a lab on one path, with nobody else in it; started as `launch.py run` starts it."""

    kind: Kind = "path"
    address = ADDRESS[SERVER].split("/")[0]
    guests: tuple[str, ...] = GUESTS
    wire: ClassVar[dict[str, str]] = {}
    """`[nic.wire]` of the topology."""

    def __init__(self, path: str, **nic: Any) -> None:
        """`nic`: more of the topology's `[nic]`."""
        self.name = path
        tables = [{"name": name, "path": path, "program": "tap", "address": ADDRESS[GUESTS.index(name)]} for name in self.guests]
        if self.wire:
            nic["wire"] = self.wire
        name = run_name(path + "-wire" if self.wire else path, os.getpid())
        self.lab = Lab(parse({"name": name, "guest": tables, "nic": nic}).plain())
        loops = [name for name in ("nic", PATHS[path].shared_loop) if name]
        self.placements: tuple[str, ...] = placements(self.lab.seats.text, loops)
        self._seated: dict[int, set[int]] = {}  # thread → CPUs, as the lab's start has it
        self._client: set[int] | None = None
        self._pids: dict[str, int] = {}
        self._pidfds: list[int] = []

    @staticmethod
    def missing() -> str | None:
        """See `Ends`."""
        return can_create()

    async def start(self) -> None:
        """See `Ends`."""
        await self.lab.start()
        self._pids = await self.lab.pids()
        self._pidfds = [os.pidfd_open(self._pids[name]) for name in self.guests]
        for thread in (int(thread) for pid in self._pids.values() for thread in os.listdir(f"/proc/{pid}/task")):
            with suppress(ProcessLookupError):  # it has ended
                self._seated[thread] = os.sched_getaffinity(thread)

    def enter(self, end: int) -> None:
        """See `Ends`."""
        guest = self.guests.index(GUESTS[end])
        usual = self.lab.seats.programs.get(GUESTS[end])
        cpus = (self._client if end == CLIENT else None) or usual
        if cpus is not None:  # as launch.py exec does
            os.sched_setaffinity(0, cpus)
        linux.enter_namespaces(self._pidfds[guest], without={"pid"})  # else the program could start no thread

    def place(self, placement: str, server: int) -> None:
        """See `Ends`."""
        self._client = cpus_in(placement, CLIENT_END)
        servers = set(self.lab.seats.programs.get(GUESTS[SERVER], os.sched_getaffinity(0)))

        def usual(name: str, thread: int) -> set[int]:
            return servers if name == SERVER_END else self._seated.get(thread) or self._seated[self._pids[name]]

        place_threads(placement, {**self._pids, SERVER_END: server}, usual)

    def processes(self) -> dict[str, int]:
        """See `Ends`."""
        return self._pids

    async def stop(self) -> None:
        """See `Ends`."""
        while self._pidfds:
            os.close(self._pidfds.pop())
        if self._pids:
            self._pids = {}
            await self.lab.stop()


class WireEnds(GuestEnds):
    """A guest of a lab on one path, which serves, and a machine beyond the NIC's wire, which asks.

    That machine is the network namespace that the lab is started in, one of its own. Programs there run on any CPU, unless a
    placement says more.
    """

    guests = (GUESTS[SERVER],)
    wire: ClassVar[dict[str, str]] = {"mode": "tap", "address": ADDRESS[CLIENT]}

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._network = -1

    @staticmethod
    def missing() -> str | None:
        """See `Ends`."""
        return can_create() or (None if os.geteuid() == 0 else "a machine beyond the wire takes root")

    async def start(self) -> None:
        """See `Ends`. Whatever this thread starts meanwhile is in the namespace, too."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.unshare(linux.CLONE_NEWNET)
            self._network = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            await super().start()
        finally:
            linux.enter([home])
            os.close(home)

    def enter(self, end: int) -> None:
        """See `Ends`."""
        if end == SERVER:
            super().enter(end)
        else:
            if self._client is not None:
                os.sched_setaffinity(0, self._client)
            linux.enter([self._network])

    async def stop(self) -> None:
        """See `Ends`."""
        await super().stop()
        if self._network >= 0:
            os.close(self._network)
            self._network = -1


class _Free(ABC):
    """Ends that nobody else places."""

    placements: tuple[str, ...] = placements(ANYWHERE, [])

    def __init__(self) -> None:
        self._client: set[int] | None = None

    @abstractmethod
    def processes(self) -> dict[str, int]:
        """See `Ends`."""

    def place(self, placement: str, server: int) -> None:
        """See `Ends`."""
        self._client = cpus_in(placement, CLIENT_END)
        everywhere = os.sched_getaffinity(0)
        place_threads(placement, {**self.processes(), SERVER_END: server}, lambda name, thread: everywhere)

    def _seat(self, end: int) -> None:
        if end == CLIENT and self._client is not None:
            os.sched_setaffinity(0, self._client)


class VethEnds(_Free):
    """A veth pair: what containers on one machine get. The kernel carries the frames, in the programs' own time."""

    name, address = "veth", ADDRESSES[SERVER]
    kind: Kind = "peer"

    def __init__(self) -> None:
        super().__init__()
        self._pair: Pair | None = None

    @staticmethod
    def missing() -> str | None:
        """See `Ends`."""
        return Veth.missing()

    async def start(self) -> None:
        """See `Ends`."""
        self._pair = await asyncio.to_thread(make_pair)

    def enter(self, end: int) -> None:
        """See `Ends`."""
        assert self._pair is not None
        self._seat(end)
        linux.enter([self._pair.user, self._pair.networks[end]])

    def processes(self) -> dict[str, int]:
        """See `Ends`."""
        return {}

    async def stop(self) -> None:
        """See `Ends`."""
        if self._pair is not None:
            self._pair.close()
            self._pair = None


class _TapEnds(_Free):
    """Two TAPs with the offloads of guests', and a worker's processes between them."""

    kind: Kind = "peer"
    address = "10.98.0.2"
    name: str
    worker: ClassVar[str]
    """Its module."""
    loops: ClassVar[tuple[Entry, ...]]

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None
        self._namespaces: list[list[int]] = []
        self._carriers: dict[str, int] = {}

    @staticmethod
    def missing() -> str | None:
        """See `Ends`."""
        return can_create()

    async def start(self) -> None:
        """See `Ends`."""
        for loop in self.loops:
            loop.load()  # else the worker compiles it, in its own time
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        carriers, fds = b"", list[int]()
        with ours:
            ours.settimeout(START_S)
            with theirs:
                command = [sys.executable, "-m", self.worker, str(theirs.fileno()), "10.98.0.1/24", f"{self.address}/24"]
                self._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    start_new_session=True,
                )  # fmt: skip
            with suppress(OSError):
                carriers, fds, _, _ = socket.recv_fds(ours, 4096, 4)
        self._namespaces = [fds[:2], fds[2:]]
        if len(fds) != 4:
            self._process.kill()
            raise PeerError(f"the {self.name} did not start: {self._process.communicate()[1].strip() or 'not a word'}")
        self._carriers = json.loads(carriers)

    def enter(self, end: int) -> None:
        """See `Ends`."""
        self._seat(end)
        linux.enter(self._namespaces[end])

    def processes(self) -> dict[str, int]:
        """See `Ends`."""
        return self._carriers

    async def stop(self) -> None:
        """See `Ends`."""
        while self._namespaces:
            close_all(self._namespaces.pop())
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class PumpEnds(_TapEnds):
    """One process between two TAPs (pump_worker.py): what TAP guests are bound by."""

    name, worker, loops = "pump", "bench.programs.pump_worker", (pump,)
    placements = placements(ANYWHERE, ["pump"])


class RelayEnds(_TapEnds):
    """Three processes between two TAPs (relay_worker.py): what TAP guests that are processes of their own are bound by."""

    name, worker, loops = "relay", "bench.programs.relay_worker", (relay_end, relay_middle)
    placements = placements(ANYWHERE, ["relay"])


def ends(paths: Sequence[str]) -> list[Ends]:
    """All contenders, not started: these paths, relay, pump and veth."""
    return [*(GuestEnds(path) for path in paths), RelayEnds(), PumpEnds(), VethEnds()]
