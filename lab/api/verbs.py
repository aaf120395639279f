"""The API's verbs, as coroutines: what `async with Lab(...)` gives. docs/api.md has an example of each.

Records are plain dicts of numbers, strings, lists and dicts, as JSON has them; so is what the counters and the ledger give. What
cannot be done is a `LabError` that names the offender, whichever part of the lab found it out.
"""

import asyncio
import contextlib
import operator
import os
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Literal, SupportsFloat, SupportsIndex

from domu.programs.table import program_of, those
from hyp import linux
from hyp.control import ControlError, close_all
from hyp.model.ablation import SWITCHES
from hyp.model.operations import OPERATIONS
from lab import ledger
from lab.counters import CounterReader
from lab.errors import LabError
from lab.owner import Event, Lab
from lab.programs import Argv, AsyncProgram
from lab.reach import consequences
from lab.schema.words import suggest
from lab.stopping import standing_still
from lab.topology import Topology, TopologyError, check_machine, check_workload
from lab.workloads import HYPERVISOR, Runner, Workload, WorkloadError, describe

Record = dict[str, Any]
Payload = Literal["full", "header"]
USUAL_SECONDS = 1.0
KEPT = ("path", "workload", "from", "to", "frame", "frames", "mpps", "gbps", "cpu_us_per_frame")  # of a record, in the ledger


class AsyncLab:
    """A topology that is up, and what can be done with it. Made by ``async with Lab(...)``."""

    def __init__(self, topology: Topology, on_event: Event | None = None) -> None:
        self._topology = topology
        self._plain = topology.plain()
        self._lab = Lab(self._plain, on_event)
        self._turn = asyncio.Lock()  # a workload has the lab to itself
        self._stopped: set[str] = set()
        self._programs: list[AsyncProgram] = []
        self._counters: CounterReader
        self._runner: Runner
        self._records: list[Record] = []

    # -- life --

    async def open(self) -> None:
        """Start the topology. LabError names what could not start, or what the machine has too little of; then nothing is left."""
        check_machine(self._topology)
        with _told():
            await self._lab.start()
            try:
                self._counters = await self._lab.counters()
                self._runner = Runner(self._lab, self._counters, await self._lab.pids())
                if not self._plain["workload"]:
                    await self._lab.start_generator()
            except BaseException:
                await self._lab.stop()
                raise

    async def close(self) -> None:
        """Take the topology down, programs in guests too, and wait until nothing of it is left."""
        for program in self._programs:
            await program.kill()
        await self._lab.stop()
        for program in self._programs:
            await program.end()

    @property
    def name(self) -> str:
        """What the topology is called, on the command line too (``launch.py status``)."""
        return self._lab.name

    @property
    def topology(self) -> Record:
        """The topology as a file has it, every default filled in."""
        return self._topology.plain()

    @property
    def records(self) -> list[Record]:
        """The records of all workloads so far, in order."""
        return list(self._records)

    # -- workloads --

    async def stream(
        self,
        sender: str,
        receiver: str,
        frame: SupportsIndex = 64,
        *,
        seconds: SupportsFloat | None = None,
        frames: SupportsIndex | None = None,
        payload: Payload = "full",
        pps: SupportsIndex | None = None,
    ) -> Record:
        """Send verified frames of `frame` bytes one way, for `seconds` (1, if nothing is said) or until `frames` have been sent.

        One end may be "wire". With `pps` frames are due at that rate and the record has their `latency`; without, they are sent as
        fast as they are taken. `payload` "header": only the first 64 bytes of each are written and verified. Returns the record;
        WorkloadError if the stream could not be run to its end.
        """
        return await self._measure([self._load("stream", sender, receiver, frame, seconds, frames, payload, pps)])

    async def streams(
        self,
        pairs: Iterable[tuple[str, str]],
        frame: SupportsIndex = 64,
        *,
        seconds: SupportsFloat | None = None,
        frames: SupportsIndex | None = None,
        payload: Payload = "full",
    ) -> Record:
        """Several streams at a time, alike but for their (sender, receiver) `pairs`: one record, of sums.

        Its `shares` are the frames that arrived of each.
        """
        loads = [self._load("stream", *pair, frame, seconds, frames, payload) for pair in pairs]
        if not loads:
            raise WorkloadError("streams: there are no pairs")
        busy = [name for name in dict.fromkeys(load["from"] for load in loads) if [one["from"] for one in loads].count(name) > 1]
        if busy:
            raise WorkloadError(f"streams: {busy[0]} sends one stream at a time")
        return await self._measure(loads)

    async def round_trips(
        self,
        sender: str,
        receiver: str,
        frame: SupportsIndex = 64,
        *,
        seconds: SupportsFloat | None = None,
        frames: SupportsIndex | None = None,
        payload: Payload = "full",
    ) -> Record:
        """Send requests of `frame` bytes and wait for each answer, for `seconds` (1, if nothing is said) or `frames` times.

        `receiver` may be "wire", which reflects them. Returns the record; its `rtt_us` has p50, p90, p99, p999, mean and max.
        """
        return await self._measure([self._load("rr", sender, receiver, frame, seconds, frames, payload)])

    async def replay(
        self,
        sender: str,
        receiver: str,
        file: str | os.PathLike[str],
        *,
        speed: float | str = "recorded",
        times: SupportsIndex = 1,
        seconds: SupportsFloat | None = None,
        snapped: str = "pad",
    ) -> Record:
        """Send the frames of a capture file one way, `times` times over or for `seconds` (docs/replay.md).

        One end may be "wire". `speed`: "recorded", "max", or how much faster than recorded. Returns the record, of which ``replay``
        is about the file; WorkloadError if the replay could not be run to its end.
        """
        table: Workload = {"kind": "replay", "from": sender, "to": receiver, "file": os.fspath(file), "speed": speed}
        table |= {"times": operator.index(times), "snapped": snapped}
        return await self._measure([self._checked(table if seconds is None else {**table, "seconds": float(seconds)})])

    async def run_workloads(self) -> list[Record]:
        """Run the topology's own workloads, in order; returns their records."""
        return [await self._measure([load]) for load in self._plain["workload"]]

    def _load(
        self,
        kind: str,
        sender: str,
        receiver: str,
        frame: SupportsIndex,
        seconds: SupportsFloat | None,
        frames: SupportsIndex | None,
        payload: Payload,
        pps: SupportsIndex | None = None,
    ) -> Workload:
        """A workload, checked as one of a topology file is."""
        table: Workload = {"kind": kind, "from": sender, "to": receiver, "frame": operator.index(frame), "payload": payload}
        if seconds is None and frames is None:
            seconds = USUAL_SECONDS
        table |= {} if seconds is None else {"seconds": float(seconds)}
        table |= {} if frames is None else {"frames": operator.index(frames)}
        load = self._checked(table)
        return load if pps is None else {**load, "pps": operator.index(pps)}

    def _checked(self, table: Workload) -> Workload:
        try:
            return check_workload(self._topology, table)
        except TopologyError as error:
            found = "; ".join(f"{key}: {reason}" for key, reason in error.problems)
            raise WorkloadError(f"{table['kind']} {table['from']} → {table['to']}: {found}") from None

    async def _measure(self, loads: Sequence[Workload]) -> Record:
        what = describe(loads[0])
        async with self._turn:
            needed = self._runner.needed(loads)
            for name in sorted(needed):
                if name in self._lab.deaths:
                    raise WorkloadError(f"{what}: {name} {self._lab.deaths[name]}")
                if name in self._stopped:
                    raise WorkloadError(f"{what}: {name} is stopped")
            try:
                with _told(what):
                    await self._prepare(loads)
                    record = await self._runner.measure(*loads)
            except BaseException:
                await self._runner.end(*loads)
                raise
            self._records.append(record)
            return record

    async def _prepare(self, loads: Sequence[Workload]) -> None:
        """Who is stopped may be needed for that; it goes on meanwhile."""
        held = sorted(self._stopped - self._lab.deaths.keys())
        await self._signal(held, signal.SIGCONT)
        try:
            await self._runner.prepare(*loads)
        finally:
            await standing_still(*await self._signal(held, signal.SIGSTOP))

    # -- programs in guests --

    async def run(self, guest: str, argv: Argv, *, stdin: str = "", timeout: float | None = None) -> Record:
        """Run a program in an addressed guest; returns ``{"guest", "argv", "status", "output"}`` when it has ended.

        It has this process's folder and environment, and the guest's network; `stdin` is what it reads. A `timeout` in seconds
        kills it, and is a LabError.
        """
        program = await self.start(guest, argv, stdin=stdin)
        try:
            async with asyncio.timeout(timeout):
                return await program.wait()
        except TimeoutError:
            raise LabError(f"{guest}: {program.argv[0]} has not ended after {timeout:g} s, and was killed") from None
        finally:
            await program.end()
            self._programs.remove(program)

    async def start(self, guest: str, argv: Argv, *, stdin: str = "") -> AsyncProgram:
        """Start a program in an addressed guest, and do not wait for it; returns its handle. It ends with the lab at the latest."""
        self._check_addressed(guest)
        program = await AsyncProgram.start(self._lab, guest, argv, stdin)
        self._programs = [one for one in self._programs if one.running] + [program]
        return program

    def _check_guest(self, guest: str) -> dict[str, Record]:
        guests = {one["name"]: one for one in self._plain["guest"]}
        if guest not in guests:
            raise LabError(f"{guest!r} is not a guest{suggest(guest, guests)}; there are {', '.join(guests)}")
        return guests

    def _check_addressed(self, guest: str) -> None:
        guests = self._check_guest(guest)
        program = program_of(guests[guest]["program"])
        if not program.addressed:
            wanted = those("addressed")
            raise LabError(f'{guest} has program = "{program.name}"; programs are run in guests with program = {wanted}')
        self._check_goes_on(guest)

    def _check_goes_on(self, part: str) -> None:
        if part in self._lab.deaths:
            raise LabError(f"{part} {self._lab.deaths[part]}")
        if part in self._stopped:
            raise LabError(f"{part} is stopped")

    # -- looking --

    async def counters(self) -> list[Record]:
        """All counters: a dict for each row, with its `process`, `row` and a column for each count (hyp/abi/counters.py)."""
        rows = []
        for name, counts in self._counters.read().items():
            process, _, row = name.partition("/")
            rows.append({"process": process, "row": row, **counts})
        return rows

    async def ledger(self, records: Iterable[Record] | None = None) -> list[Record]:
        """What a frame cost in each of the records (all so far): a flat dict for each, of what was counted per frame."""
        chosen = self._records if records is None else records
        return [{**{key: record[key] for key in KEPT}, **record["per_frame"]} for record in chosen]

    async def balance(self) -> list[Record]:
        """Conservation at every hop, as counted until now: ``{"hop", "frames_in", "frames_out", "balances"}``.

        At rest all balance: what went in has come out, or was dropped under a name.
        """
        equations = ledger.equations(self._counters.read())
        return [
            {"hop": e.hop, "frames_in": e.frames_in, "frames_out": e.frames_out, "balances": e.frames_in == e.frames_out}
            for e in equations
        ]

    async def status(self) -> Record:
        """State, what has died and whom that cuts off, guests, and processes with their state and pid."""
        with _told():
            found: Record = (await self._lab.keeper("status")).value
            pids = await self._lab.pids()
        for process in found["processes"]:
            process["pid"] = pids.get(process["name"])
        found["cut_off"] = consequences(found["guests"], found["processes"])
        return found

    async def pids(self) -> dict[str, int]:
        """Process ids of the parts that live, by name: hyp, xenstored, nic, dom0 and the guests."""
        with _told():
            return await self._lab.pids()

    # -- parts --

    async def stop(self, *parts: str) -> None:
        """Stop processes (SIGSTOP), by name. They go on after `cont`, and while a workload is prepared (not measured)."""
        pids = await self._signal(parts, signal.SIGSTOP)
        self._stopped |= set(parts)
        await standing_still(*pids)

    async def cont(self, *parts: str) -> None:
        """Let processes that were stopped go on (SIGCONT)."""
        await self._signal(parts, signal.SIGCONT)
        self._stopped -= set(parts)

    @contextlib.asynccontextmanager
    async def stopped(self, *parts: str) -> AsyncIterator[None]:
        """A context in which these processes are stopped."""
        await self.stop(*parts)
        try:
            yield
        finally:
            self._stopped -= self._lab.deaths.keys()
            await self.cont(*(part for part in parts if part in self._stopped))

    async def kill(self, part: str) -> Record:
        """Kill a process (SIGKILL); returns its `name`, the `cause` and `restarts` once the lab has noticed.

        Where it is started again (docs/faults.md), that is when it is ready, and `restarts` says how often there was one before.
        Where it isn't, what needs it is cut off.
        """
        before = self._lab.restarts(part)
        await self._signal([part], signal.SIGKILL)
        cause = await self._lab.end_of(part, before)
        self._stopped.discard(part)
        return {"name": part, "cause": cause, "restarts": self._lab.restarts(part)}

    async def move(self, guest: str, path: str) -> Record:
        """Move a running guest to path "split" or "bypass", whatever traffic it has; `pause_s`: for how long it sent nothing."""
        self._check_guest(guest)
        with _told():
            pause_s = await self._lab.move(guest, path)
        return {"name": guest, "path": path, "pause_s": pause_s}

    async def _signal(self, parts: Sequence[str], number: int) -> list[int]:
        """Their pids. LabError, and no signal to any, if one is not there."""
        if not parts:
            return []
        with _told():
            reply = await self._lab.keeper("pidfds")
        try:
            living = dict(zip(reply.value, reply.fds, strict=True))
            for part in parts:
                if part in self._lab.deaths:
                    raise LabError(f"{part} {self._lab.deaths[part]}")
                if part not in living:
                    raise LabError(f"{part!r} is not a part of the lab{suggest(part, living)}; there are {', '.join(living)}")
            for part in parts:
                with contextlib.suppress(ProcessLookupError):  # it died just now, which is told soon
                    signal.pidfd_send_signal(living[part], number)
            return [linux.pid_of(living[part]) for part in parts]
        finally:
            close_all(reply.fds)

    # -- settings --

    async def price(self, /, **prices: int) -> dict[str, int]:
        """Set prices of the model (hyp/model/operations.py), such as hypercall_ns; returns all as they are now."""
        self._check_known("price", prices, OPERATIONS)
        self._check_goes_on(HYPERVISOR)
        with _told():
            found: dict[str, int] = await self._lab.call(HYPERVISOR, "price", **prices)
        return found

    async def ablate(self, /, **switches: int) -> None:
        """Take parts of the paths away: keep_armed, copy_limit, bounce (hyp/model/ablation.py). Those not named are as usual."""
        self._check_known("ablate", switches, SWITCHES)
        self._check_goes_on(HYPERVISOR)
        with _told():
            await self._lab.call(HYPERVISOR, "ablate", **{name: int(value) for name, value in switches.items()})

    async def spin(self, limit_us: int | None = None) -> None:
        """How long loops look for work before they sleep, in µs, in workloads from now on. None: as the topology says."""
        if limit_us is not None and not 0 <= operator.index(limit_us) <= 1000:
            raise LabError(f"spin: {limit_us} µs is not in [0, 1000]")
        self._runner.spin_us = limit_us

    @staticmethod
    def _check_known(verb: str, given: Iterable[str], known: Iterable[str]) -> None:
        for name in given:
            if name not in known:
                raise LabError(f"{verb}: there is no {name!r}{suggest(name, known)}; there are {', '.join(known)}")


@contextlib.contextmanager
def _told(what: str | None = None) -> Iterator[None]:
    """What a process of the lab refuses, and that it is gone, as the API's errors."""
    try:
        yield
    except ControlError as error:
        if what is None:
            raise LabError(str(error)) from error
        raise WorkloadError(f"{what}: {error}") from error
