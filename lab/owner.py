"""A running topology as its owner sees it: start, consoles, counters, end. No data path in it.

`Lab` is what launch.py, the benchmarks and the tests use. It starts the keeper, hands it the plan of processes, and
from then on talks to single processes over consoles that the keeper opens for it.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from domu.confinement.environment import kept
from hyp import limits
from hyp.control import Channel, ControlError, Handler, PeerGone, Reply, close_all, socketpair
from hyp.linux import pid_of
from hyp.process import adopt_socket
from lab.counters import CounterReader
from lab.cpus import seats
from lab.errors import LabError
from lab.move import Moved, move
from lab.plan import MODULES, plan
from lab.rundir import RunDir, clean
from lab.schema.words import speed_factor

ROOT = Path(__file__).resolve().parent.parent
"""Where the packages lie: the repository, or what pip made of it."""
START_TIMEOUT_S = 180.0
"""From the time when all compiled code is there, which on a slow machine may take as long as it takes."""
END_TIMEOUT_S = 10.0
"""How long the kernel may take to end what was killed."""


Event = Callable[[str, dict[str, Any]], None]
"""``event(kind, details)``: kinds ``compiling`` (so many kernels; are they kept?), ``progress`` (a kernel was compiled), ``notice``
(a text), ``warm``, ``died`` (is it ``restarting``?), ``restarted``, ``asked_to_stop`` (by a client)."""


def compiling(details: Mapping[str, Any]) -> str:
    """The line for the event ``compiling``: its user waits for a minute or so."""
    often = "once for this version; it is cached" if details["kept"] else "each time, as its cache can't be written"
    return f"compiling the data path ({often}) …"


class Lab:
    """One topology, up as long as this object is open: ``async with Lab(topology) as lab``."""

    def __init__(self, topology: dict[str, Any], on_event: Event | None = None) -> None:
        self.topology, self.name = topology, str(topology["name"])
        self.seats = seats(topology, sorted(os.sched_getaffinity(0)))
        self._on_event = on_event or (lambda kind, details: None)
        self._start_limit: asyncio.Timeout
        self._rundir = RunDir(self.name)
        self._consoles: dict[str, Channel] = {}
        self.deaths: dict[str, str] = {}  # process → cause; for good, and not of those that are restarted
        self._death = asyncio.Event()
        self._restarted_times: dict[str, int] = {}
        self._ends: dict[str, str] = {}  # the same of all that have died
        self._restart = asyncio.Event()
        self.timings: dict[str, float] = {}

    async def __aenter__(self) -> "Lab":
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    def modules(self) -> Sequence[str]:
        """What its fork server is to load."""
        return MODULES

    def processes(self) -> list[dict[str, Any]]:
        """What the keeper is to start: `lab.plan.plan` of the topology."""
        return plan(self.topology)

    async def start(self) -> None:
        """Start the keeper and boot everything. LabError names what could not start; then nothing is left behind."""
        limits.raise_descriptor_limit()
        lock = self._rundir.acquire()
        try:
            self._start_keeper(lock)
        except limits.TooFew as error:
            self._rundir.remove()
            raise LabError(f"topology {self.name}: {error}") from error
        except BaseException:
            self._rundir.remove()
            raise
        finally:
            os.close(lock)
        try:
            info = {"guests": self.topology["guest"], "cpu": self.seats.plain(), "nic": self.topology["nic"]}
            async with asyncio.timeout(None) as self._start_limit:
                self.timings = (await self.channel.call("boot", plan=self.processes(), info=info)).value
        except BaseException as error:
            log_text = self._rundir.log_tail()
            await self.stop()
            if isinstance(error, (ControlError, TimeoutError)):
                reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
                hint = f"\nThe log's end:\n{log_text}" if isinstance(error, PeerGone) and log_text else ""
                raise LabError(f"topology {self.name}: {reason}{hint}") from error
            raise

    def _environment(self) -> dict[str, str]:
        """The keeper's, and so that of all processes."""
        confined = any(guest["confined"] for guest in self.topology["guest"])
        return {**(kept(os.environ) if confined else os.environ), "OPENBLAS_NUM_THREADS": "1"}

    def _start_keeper(self, lock: int) -> None:
        ours, theirs = socketpair()
        with theirs, open(self._rundir.log_path, "wb") as log:
            theirs.setblocking(True)
            command = [sys.executable, "-m", "lab.keeper", self.name, str(theirs.fileno()), *self.modules()]
            with limits.told_of_processes("the keeper"):
                self._keeper = subprocess.Popen(
                    command, pass_fds=[theirs.fileno(), lock], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, cwd=ROOT, env=self._environment(),
                )  # fmt: skip
        handlers: dict[str, Handler] = {
            **{kind: self._passed_on(kind) for kind in ("compiling", "progress", "notice")},
            "warm": self._warm,
            "died": self._died,
            "restarted": self._restarted,
            "asked_to_stop": lambda: self._on_event("asked_to_stop", {}),
        }
        self.channel = Channel(ours, handlers, name="the keeper")

    def _warm(self, **details: Any) -> None:
        self._start_limit.reschedule(asyncio.get_running_loop().time() + START_TIMEOUT_S)
        self._on_event("warm", details)

    def _passed_on(self, kind: str) -> Handler:
        return lambda **details: self._on_event(kind, details)

    async def stop(self) -> None:
        """Take the topology down and wait until nothing of it is left."""
        for console in self._consoles.values():
            console.close()
        self._consoles.clear()
        self.channel.close()  # the keeper takes that for the order to go down
        try:
            await finished(self._keeper_end())
        finally:
            try:
                await self._lock_let_go()
            finally:
                clean(self.name)  # the keeper was killed: what it would have removed is left to us

    async def _lock_let_go(self) -> None:
        """Wait, at most `END_TIMEOUT_S`, until the topology's lock is free.

        The process that was waited for is the keeper's parent where the keeper has a PID namespace. Killed together, the parent
        may be reaped while the kernel still takes the keeper apart, and nothing but the lock tells when that is done.
        """
        deadline = time.monotonic() + END_TIMEOUT_S
        while self._rundir.is_held_for_us() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _keeper_end(self) -> "asyncio.Future[None]":
        """Done when the keeper has ended. No thread, which there may be no more of."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        pidfd = os.pidfd_open(self._keeper.pid)

        def reap() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._keeper.wait()
            ended.set_result(None)

        loop.add_reader(pidfd, reap)
        return ended

    async def ended(self) -> str:
        """Wait until the keeper is gone, which nothing but its death brings about while this object is open."""
        return str(await asyncio.shield(self.channel.closed))

    async def death_of(self, names: set[str]) -> str:
        """Wait until one of the named processes dies; returns its name and the cause."""
        while not (dead := [f"{name} {cause}" for name, cause in self.deaths.items() if name in names]):
            self._death.clear()
            await self._death.wait()
        return dead[0]

    async def any_death(self, timeout: float = 2.0) -> dict[str, str]:
        """What died, as the keeper says; waits for its word, which may come after a socket's end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.deaths:
                    await self._death.wait()
        return self.deaths

    async def start_generator(self) -> None:
        """Let the wire generate what the topology file says, if it says so."""
        wire = self.topology["nic"]["wire"]
        if wire["mode"] == "generate":
            mac = next(guest["mac"] for guest in self.topology["guest"] if guest["name"] == wire["to"])
            await self.call("nic", "wire_generate", mac=mac, frame=wire["frame"], pps=wire["pps"], stream=0)
        elif wire["mode"] == "replay":
            macs = {guest["name"]: guest["mac"] for guest in self.topology["guest"]} | {"wire": wire["mac"]}
            rewrite = {old: macs.get(new, new.lower()) for old, new in wire["rewrite"].items()}
            job = {"speed": speed_factor(wire["speed"]), "times": wire["times"], "snapped": wire["snapped"], "stream": 0}
            await self.call("nic", "wire_replay", file=wire["file"], to=macs.get(wire["to"]), rewrite=rewrite, **job)

    def _died(self, name: str, role: str, cause: str, restarting: bool = False) -> None:
        self._ends[name] = cause
        if not restarting:
            self.deaths[name] = cause
            self._death.set()
        self._on_event("died", {"name": name, "role": role, "cause": cause, "restarting": restarting})

    def _restarted(self, name: str, role: str, restarts: int, seconds: float) -> None:
        self._restarted_times[name] = restarts
        self._restart.set()
        self._on_event("restarted", {"name": name, "role": role, "restarts": restarts, "seconds": seconds})

    async def end_of(self, name: str, before: int) -> str:
        """Wait until a process that was restarted `before` times has died, and its successor is ready if there is to be one.

        Returns the cause.
        """
        with contextlib.suppress(LabError):
            await self.restarted(name, before + 1)
        return self._ends[name]

    def restarts(self, name: str) -> int:
        """How often process `name` has been restarted."""
        return self._restarted_times.get(name, 0)

    async def restarted(self, name: str, times: int = 1) -> None:
        """Wait until process `name` has been restarted so many times, and is ready again. LabError if it is dead for good."""
        while self.restarts(name) < times:
            if name in self.deaths:
                raise LabError(f"{name} {self.deaths[name]}")
            self._restart.clear()
            self._death.clear()
            waits = [asyncio.ensure_future(event.wait()) for event in (self._restart, self._death)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    # -- talking to processes --

    async def call(self, process: str, op: str, /, **args: Any) -> Any:
        """An operation of one process's console; its value."""
        console = self._consoles.get(process)
        if console is None or console.closed.done():
            console = self._consoles[process] = await open_console(self.channel, process)
        return (await console.call(op, **args)).value

    async def move(self, guest: str, path: str) -> float:
        """Move a guest to another path while it runs; for how many seconds it sent nothing. ControlError if it stays; `Moved`."""
        domid = next(k for k, one in enumerate(self.topology["guest"], 1) if one["name"] == guest)
        wrong = None
        try:
            pause_s = await move(self.call, guest, domid, path)
        except Moved as error:
            wrong = error
        await self.keeper("moved", guest=guest, path=path)
        self.topology["guest"][domid - 1]["path"] = path
        if wrong is not None:
            raise wrong
        return pause_s

    async def keeper(self, op: str, /, **args: Any) -> Reply:
        """An operation of the keeper."""
        return await self.channel.call(op, **args)

    async def pids(self) -> dict[str, int]:
        """Process ids, as this process's /proc numbers them, by name."""
        reply = await self.keeper("pidfds")
        try:
            found = {name: pid_of(fd) for name, fd in zip(reply.value, reply.fds, strict=True)}
            return {name: pid for name, pid in found.items() if pid > 0}  # -1 has just ended; kill(-1) is everybody
        finally:
            close_all(reply.fds)

    @property
    def store_path(self) -> Path:
        """Where xenstored listens; who connects acts as Domain 0."""
        return self._rundir.store_path

    async def counters(self) -> CounterReader:
        """A reader of every process's counters."""
        reply = await self.keeper("held", suffix=".counters")
        return CounterReader.adopt(reply.value, reply.fds)


async def open_console(keeper: Channel, process: str) -> Channel:
    """A control channel of our own to a process, by way of the keeper."""
    reply = await keeper.call("console", name=process)
    return Channel(adopt_socket(reply.fds[0]), name=process, untrusted=reply.value["role"] == "domu")


async def finished(future: "asyncio.Future[Any]") -> None:
    """Wait for `future` whatever happens; being cancelled meanwhile takes effect when it is done."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
