"""Runs a topology's workloads, one after the other.

The receiver is counted, never the sender. A workload ends when everything is at rest: then every frame sent was received or dropped
under a name, or the record has an error.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from hyp.abi.frame import HEADER_ONLY
from hyp.control import ControlError, PeerGone
from hyp.paths import PATHS
from lab.accounting import spent, usages
from lab.counters import CounterReader
from lab.errors import LabError
from lab.ledger import Snapshot, difference, guest_of, unbalanced
from lab.owner import Lab
from lab.placement import Placement, usual
from lab.plan import spin_limit_us
from lab.schema.words import speed_factor
from lab.workloads.load import WIRE, Workload, describe, guests_in
from lab.workloads.record import merged, record_of
from lab.workloads.report import judged

HYPERVISOR = "hyp"
BROADCAST = "ff:ff:ff:ff:ff:ff"
ANNOUNCEMENT = 64
REST_TIMEOUT_S = 10.0
MARGIN_S = 30.0
DEATH_TOLD_S = 2.0
END_TIMEOUT_S = 2.0

MOST_SAID = 300
"""Characters of what is wrong with a report."""


class WorkloadError(LabError):
    """A workload could not be run to its end; the message says which and why."""


class PeerDied(WorkloadError):
    """A process that the workload needs died, which the lab has told already."""


class Runner:
    """Runs workloads on a lab. Each gets a stream number of its own, so that a late frame is never taken for another's."""

    def __init__(self, lab: Lab, counters: CounterReader, pids: dict[str, int]) -> None:
        self.lab, self._counters, self.pids = lab, counters, pids
        self.cpus = sorted(os.sched_getaffinity(0))
        self.spin_us: int | None = None  # None: by the number of loops
        self._pinned: dict[str, list[int]] = {}
        self._placement = ""  # as of the last `prepare`
        self._streams = itertools.cycle(range(1, HEADER_ONLY))
        self._price: dict[str, int] = {}  # as of the last `prepare`
        self._polls = False  # whether loops spin before they sleep, as of the last `prepare`
        self._guests = {guest["name"]: guest for guest in lab.topology["guest"]}
        self._wire_mac = str(lab.topology["nic"]["wire"]["mac"])
        self._others: set[str] = set()  # guests that are no end of what was prepared last: their counters are what they like

    @classmethod
    async def open(cls, lab: Lab) -> "Runner":
        """A runner on a lab that is up."""
        return cls(lab, await lab.counters(), await lab.pids())

    def path(self, load: Workload) -> str:
        """The path that a workload's frames take; if its ends differ, both, in the direction of the frames: "split→bypass"."""
        return "→".join(dict.fromkeys(self._guests[peer]["path"] for peer in (load["from"], load["to"]) if peer != WIRE))

    async def run(self, *loads: Workload, placement: Placement | None = None) -> dict[str, Any]:
        """Prepare and measure a workload, or several streams at a time; returns the record. WorkloadError if that fails."""
        await self.prepare(*loads, placement=placement)
        return await self.measure(*loads)

    async def measure(self, *loads: Workload) -> dict[str, Any]:
        """Run what was prepared. Neither Dom0 nor the hypervisor is asked for anything."""
        load, name = loads[0], describe(loads[0])
        before, used, start = await self._settled(), usages(self.pids), time.monotonic()
        endless = load["kind"] == "replay" and not load["seconds"]  # it takes the time that the file says
        limit = None if endless else (load["seconds"] or 60.0) + MARGIN_S
        try:
            async with asyncio.timeout(limit):
                reports = await self._unless_death(loads)
            after = await self._settled()
            elapsed = time.monotonic() - start
            cpu = spent(usages(self.pids), used)
            counted, at_rest = self._of_workload(difference(after, before)), self._believed(after)
            return {
                **record_of(load, self.path(load), merged([judged(one) for one in reports]), counted, at_rest, cpu, elapsed),
                **self._circumstances(),
            }
        except TimeoutError:
            raise WorkloadError(f"{name}: not done after {limit:g} s") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:  # a guest says what it likes
            raise WorkloadError(f"{name}: what its ends report makes no sense: {error!r}"[:MOST_SAID]) from error

    def needed(self, loads: Sequence[Workload]) -> set[str]:
        """The processes without which these streams cannot be."""
        return guests_in(loads) | {"nic"} | self._between(guests_in(loads))

    async def _unless_death(self, loads: Sequence[Workload]) -> list[dict[str, Any]]:
        """The jobs' reports; WorkloadError as soon as a process dies that they need."""
        needed = self.needed(loads)
        death = asyncio.ensure_future(self.lab.death_of(needed))
        work = asyncio.ensure_future(self._all(loads))
        try:
            await asyncio.wait({death, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and isinstance(work.exception(), PeerGone):  # of what, the keeper says a little later
                await asyncio.wait({death}, timeout=DEATH_TOLD_S)
            if death.done():
                raise PeerDied(f"{describe(loads[0])}: {death.result()}")
            return work.result()
        finally:
            death.cancel()
            work.cancel()
            await asyncio.wait({death, work})

    async def _all(self, loads: Sequence[Workload]) -> list[dict[str, Any]]:
        """Run them at a time; when everything is at rest, what was received of each."""
        numbered = await self._numbered(loads)
        await self._expect(numbered, expected=True)
        jobs = [self._trips(load, stream) if load["kind"] == "rr" else self._send(load, stream) for load, stream in numbered]
        sent = await asyncio.gather(*jobs)
        await self._settled()
        reports = [
            report if load["kind"] == "rr" else await self._received(load, stream, report)
            for (load, stream), report in zip(numbered, sent, strict=True)
        ]
        await self._expect(numbered, expected=False)
        return reports

    async def _expect(self, numbered: Sequence[tuple[Workload, int]], *, expected: bool) -> None:
        """Tell each stream's receiver whom it comes from, so that nobody else's frames are taken for it; or that it is over."""
        for load, stream in numbered:
            if load["kind"] == "replay":
                await self._expect_replay(load, expected=expected)
            elif load["kind"] != "rr":
                process, op = ("nic", "wire_expect") if load["to"] == WIRE else (load["to"], "expect")
                await self.lab.call(process, op, stream=stream, mac=self._mac(load["from"]) if expected else None)

    async def _expect_replay(self, load: Workload, *, expected: bool) -> None:
        source = "" if self._keeps_source(load) else self._mac(load["from"])
        process, op = ("nic", "wire_expect_replay") if load["to"] == WIRE else (load["to"], "expect_replay")
        await self.lab.call(process, op, mac=source if expected else None)

    def _keeps_source(self, load: Workload) -> bool:
        """True if a replay's frames have the sources that the file has: a trunk's."""
        return load["from"] != WIRE and bool(self._guests[load["from"]]["trunk"])

    async def _numbered(self, loads: Sequence[Workload]) -> list[tuple[Workload, int]]:
        """A stream number for each: such that those of one sender have a queue each, if it has so many."""
        numbered, taken = [], dict[str, set[int]]()
        for load in loads:
            stream, sender = self._next_stream(load), load["from"]
            queues, used = self._queues({sender}), taken.setdefault(sender, set())
            while len(used) < queues and queues > 1 and load["kind"] != "replay":
                job = {"mac": self._mac(load["to"]), "frame": load["frame"], "stream": stream}
                if (queue := await self.lab.call(sender, "queue", **job)) not in used:
                    used.add(queue)
                    break
                stream = self._next_stream(load)
            numbered.append((load, stream))
        return numbered

    def _queues(self, peers: Iterable[str]) -> int:
        """How many queues, each with a loop, these have; the wire has none."""
        return sum(int(self._guests[peer]["queues"]) for peer in peers if peer != WIRE)

    def _next_stream(self, load: Workload) -> int:
        return next(self._streams) | (HEADER_ONLY if load.get("payload") == "header" else 0)

    async def end(self, *loads: Workload) -> None:
        """End what may still be going on of streams that were given up, so that the next find their senders free.

        Within END_TIMEOUT_S: a sender that is stopped, or waits for somebody who is, stays as it is.
        """
        senders = dict.fromkeys(load["from"] for load in loads)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                await asyncio.gather(*map(self._end, senders))

    async def _end(self, sender: str) -> None:
        with contextlib.suppress(ControlError):  # it is dead
            if sender == WIRE:  # what it generates is replaced by what is over at once
                over = {"frame": ANNOUNCEMENT, "stream": next(self._streams), "seconds": 1e-9}
                await self.lab.call("nic", "wire_generate", mac=BROADCAST, **over)
            else:
                await self.lab.call(sender, "end_job")

    # -- steps --

    async def prepare(self, *loads: Workload, placement: Placement | None = None) -> None:
        """Wire mode, spinning and CPUs that fit the loops in use, and announcements, so that bridges know where the receivers are.

        `placement` is heeded if there are more loops than CPUs; the usual one otherwise. WorkloadError if somebody does not answer.
        """
        try:
            async with asyncio.timeout(MARGIN_S):
                await self._prepare(loads, placement)
        except TimeoutError:
            raise WorkloadError(
                f"{describe(loads[0])}: its ends, and whoever is between them, are not ready after {MARGIN_S:g} s"
            ) from None

    async def _prepare(self, loads: Sequence[Workload], placement: Placement | None) -> None:
        lab, ends = self.lab, list(dict.fromkeys(load[end] for load in loads for end in ("from", "to")))
        peers = [peer for peer in ends if peer != WIRE]
        self._others = self._guests.keys() - set(peers)
        between = sorted(self._between(peers))
        loops = self._loops(loads)
        if HYPERVISOR not in lab.deaths:  # else prices and spinning stay as they are, for whoever goes on without it
            self._price = await lab.call(HYPERVISOR, "price")
            setting = lab.topology["spin"]["limit_us"] if self.spin_us is None else self.spin_us
            limit_us = spin_limit_us(setting, 0 if lab.seats.spinning else loops, len(self.cpus))
            await lab.call(HYPERVISOR, "spin_limit", limit_us=limit_us)
            self._polls = limit_us > 0
        await self._place(loads, [*peers[:1], *between, "nic", *peers[1:]], placement)
        if WIRE in ends:
            await lab.call("nic", "wire_mode", mode="reflect" if loads[0]["kind"] == "rr" else "sink")
        for peer in reversed(ends):
            stream = next(self._streams)
            if peer == WIRE:
                await lab.call("nic", "wire_generate", mac=BROADCAST, frame=ANNOUNCEMENT, stream=stream, frames=1)
            else:
                await lab.call(peer, "send_stream", mac=BROADCAST, frame=ANNOUNCEMENT, stream=stream, frames=1)
        await self._settled()  # Dom0 too has got them, and may be stopped

    def _between(self, peers: Iterable[str]) -> set[str]:
        """Processes with a loop between these guests and the NIC."""
        loops = {PATHS[self._guests[peer]["path"]].shared_loop for peer in peers}
        return {loop for loop in loops if loop is not None}

    def _loops(self, loads: Sequence[Workload]) -> int:
        guests = guests_in(loads)
        return self._queues(guests) + int(self.lab.topology["nic"]["engines"]) + len(self._between(guests))

    def _several_in_one(self, guests: Collection[str]) -> bool:
        """True if a process among them has several loops, so that nothing is known of what suits them."""
        return int(self.lab.topology["nic"]["engines"]) > 1 or self._queues(guests) > len(guests)

    def placements(self, *loads: Workload) -> list[Placement]:
        """What can be chosen for these streams; nothing, if each loop has a CPU or all have but one, or `[cpu]` has said it."""
        if (
            self.lab.seats.said
            or self._loops(loads) <= len(self.cpus)
            or len(self.cpus) < 2
            or self._several_in_one(guests_in(loads))
        ):
            return []
        roles = set(self._roles(loads).values())
        return [one for one in Placement if one in roles or one in (Placement.ANYWHERE, Placement.TOGETHER)]

    def _roles(self, loads: Sequence[Workload]) -> dict[str, Placement]:
        guests = guests_in(loads)
        senders = {load["from"] for load in loads}
        roles = {guest: Placement.SENDERS if guest in senders else Placement.RECEIVERS for guest in guests}
        return {**roles, **dict.fromkeys(self._between(guests), Placement.BACK_END), "nic": Placement.DEVICE}

    async def _place(self, loads: Sequence[Workload], processes: list[str], placement: Placement | None) -> None:
        """A CPU for each of the loops if there are enough, else by `placement`, else as suits most.

        The scheduler at times puts loops that spin on one CPU, where each waits for the other's time slice to end.
        """
        if self.lab.seats.said:
            self._placement = self.lab.seats.text
            return
        roles = self._roles(loads)
        if self._several_in_one(guests_in(loads)):
            chosen = Placement.ANYWHERE
        elif self._loops(loads) <= len(self.cpus):
            chosen = None
        elif placement is not None:
            chosen = placement
        else:
            chosen = usual(to_wire=loads[0]["kind"] == "stream" and any(WIRE in (load["from"], load["to"]) for load in loads))
        self._placement = str(chosen or "each on a CPU")
        for k, process in enumerate(processes):
            cpus = chosen.cpus(roles[process], self.cpus) if chosen else [self.cpus[k]]
            if self._pinned.get(process) != cpus:
                await self._pin(process, cpus)
                self._pinned[process] = cpus

    async def _pin(self, process: str, cpus: list[int]) -> None:
        """Let a process's loops run on these CPUs only; all threads of a confined guest's, which chooses no CPUs itself."""
        if not self._guests.get(process, {}).get("confined"):
            await self.lab.call(process, "pin", cpus=cpus)
            return
        pid = (await self.lab.pids()).get(process)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended, or a thread of its has
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cpus)

    async def _settled(self) -> Snapshot:
        """Counters once everything is at rest; what does not balance after REST_TIMEOUT_S is left for the record to name."""
        deadline = time.monotonic() + REST_TIMEOUT_S
        last: list[bytes] = []
        while True:
            now, late = self._counters.raw(self._strangers()), time.monotonic() > deadline
            if now == last or late:
                snapshot = self._counters.read()
                if late or not unbalanced(self._believed(snapshot)):
                    return snapshot
            last = now
            await asyncio.sleep(0.002)

    def _believed(self, snapshot: Snapshot) -> Snapshot:
        """The rows of processes that live and have to do with the workload."""
        strangers = self._strangers()
        return {row: counts for row, counts in snapshot.items() if row.partition("/")[0] not in strangers}

    def _of_workload(self, counted: Snapshot) -> Snapshot:
        """Of what is believed what isn't about other guests: what is refused or dropped of theirs is nothing of ours."""
        return {row: counts for row, counts in self._believed(counted).items() if guest_of(row) not in self._others}

    def _strangers(self) -> set[str]:
        """Processes whose counters say nothing of the workload.

        What a dead one had in its hands is nobody's any more, and balances nowhere; and a guest's rows are its own to write, at any
        time, which is to spoil nobody's record but its own, and to hold up none.
        """
        return self.lab.deaths.keys() | self._others

    def _mac(self, peer: str) -> str:
        return self._wire_mac if peer == WIRE else str(self._guests[peer]["mac"])

    def _amount(self, load: Workload) -> dict[str, Any]:
        return {"frames": load["frames"]} if load["frames"] else {"seconds": load["seconds"]}

    async def _send(self, load: Workload, stream: int) -> dict[str, Any]:
        """A stream, until its sender has sent all; its report."""
        lab = self.lab
        if load["kind"] == "replay":
            return await self._replay(load, stream)
        job = {"mac": self._mac(load["to"]), "frame": load["frame"], "stream": stream, **self._amount(load)}
        if load.get("pps"):
            job["pps"] = load["pps"]  # open loop: frames are due by the clock, and stamped
        if load.get("traffic"):
            job["traffic"] = load["traffic"]  # a mix of sizes (hyp/load/mix.py)
        if load["from"] == WIRE:
            await lab.call("nic", "wire_generate", **job)
            while (report := await lab.call("nic", "wire_report", stream=stream))["left"] > 0:
                await asyncio.sleep(0.01)
        else:
            report = await lab.call(load["from"], "send_stream", **job)
        return dict(report)

    async def _replay(self, load: Workload, stream: int) -> dict[str, Any]:
        """A capture file's frames, until its sender has sent all; its report."""
        job = {"file": load["file"], "to": self._mac(load["to"]), "speed": speed_factor(load["speed"])}
        job |= {"times": load["times"], "seconds": load["seconds"] or 0.0, "snapped": load["snapped"]}
        if load["from"] != WIRE:
            return dict(await self.lab.call(load["from"], "send_replay", keep_source=self._keeps_source(load), **job))
        await self.lab.call("nic", "wire_replay", stream=stream, **job)
        while (report := await self.lab.call("nic", "wire_report", stream=stream))["left"] > 0:
            await asyncio.sleep(0.01)
        return dict(report)

    async def _replayed(self, load: Workload, report: dict[str, Any]) -> dict[str, Any]:
        """What the receiver says of a replay, added to the sender's report. If no frame is missing, all are as they were sent."""
        process, op = ("nic", "wire_replayed") if load["to"] == WIRE else (load["to"], "replayed")
        found = await self.lab.call(process, op)
        sent = report["sent"] - report["oversize"]
        received = {**found, "corrupt": int(found["frames"] == sent and found["digest"] != report["digest"]), "duplicated": 0}
        lag: dict[str, Any] = {name: report[name] for name in ("lag_ns", "max_lag_ns") if name in report}
        return {"sent": sent, "received": received, "replay": {**report["file"], "oversize": report["oversize"]}, **lag}

    async def _received(self, load: Workload, stream: int, report: dict[str, Any]) -> dict[str, Any]:
        """What the receiver says of a stream, added to the sender's report."""
        if load["kind"] == "replay":
            return await self._replayed(load, report)
        if load["to"] == WIRE:
            received = (await self.lab.call("nic", "wire_report", stream=stream))["received"]
        else:
            received = await self.lab.call(load["to"], "received", stream=stream)
        lag: dict[str, Any] = {name: report[name] for name in ("lag_ns", "max_lag_ns") if name in report}
        units = report.get("units", 1)  # of a frame, where its receiver accounts for parts (hyp/load/tcp.py)
        return {"sent": report["sent"], "units": units, "received": received, "latency": received.get("latency"), **lag}

    async def _trips(self, load: Workload, stream: int) -> dict[str, Any]:
        job = {"mac": self._mac(load["to"]), "frame": load["frame"], "stream": stream, **self._amount(load)}
        report = await self.lab.call(load["from"], "round_trips", **job)
        received = await self.lab.call(load["from"], "received", stream=stream | 0x8000)
        return {**report, "received": received}

    def _circumstances(self) -> dict[str, Any]:
        """What a record says of what its workload ran in: prices, where loops ran, whether they spun."""
        found: dict[str, Any] = {"placement": self._placement, "polls": self._polls}
        if any(self._price.values()):
            found["modelled"] = dict(self._price)
            model = self.lab.topology["model"]
            if model["profile"] is not None and model["price"] == self._price:
                found["profile"] = model["profile"]
        return found
