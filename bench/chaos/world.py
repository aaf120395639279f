"""The topology that faults happen to: on every path a verified stream from one guest to another, and a guest that is to be killed.

Streams are open loop: `PPS` frames a second are due, and what was held up is sent as soon as it can be. A *round* sends `SECONDS`
of them on every path at a time, does something to somebody at a moment that the seed says, and waits until every stream has been
sent and has come to rest. Per path it says

    lost, duplicated, corrupt    frames: sent and never received, received more than once, or changed
    recovery_s                   the longest time in which no frame of the stream arrived, from the fault on
    rate                         frames that arrived in the second after the fault, of those that were due

A guest that is killed takes part in none of them. It has come back once frames that are sent to it arrive.
"""

import asyncio
import itertools
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from bench.chaos.faults import STOP, VICTIM, Fault, commit
from bench.method.contenders import guest_names, run_name, topology
from hyp.abi.frame import HEADER_ONLY
from hyp.control import ControlError
from lab.counters import Follower
from lab.owner import Lab

PPS, FRAME = 10_000, 200
SECONDS, STOP_S, QUICK_STOP_S = 2.0, 5.0, 1.0
EARLIEST_S, LATEST_S = 0.3, 0.8
WINDOW_S = 1.0
LOOK_S = 0.002
REST_S, HANG_S = 1.0, 15.0
PAUSE_US = 200_000
"""How long a sender waits for a receiver that has no buffers, before its frame is dropped by that name: where there are fewer CPUs
than loops a receiver can be without one for longer than the usual 20 ms."""


@dataclass(slots=True)
class Outcome:
    """What became of one path's stream in one round."""

    path: str
    sent: int
    received: int
    duplicated: int
    corrupt: int
    recovery_s: float
    rate: float
    hung: bool
    failure: str
    """Of the sender: why it has given up."""

    @property
    def lost(self) -> int:
        return self.sent - self.received


class World:
    """A topology with a pair of guests on each path. ``async with World(paths) as world``."""

    def __init__(self, paths: Sequence[str], seed: int, stop_s: float = STOP_S) -> None:
        self.paths, self._random, self._stop_s = tuple(paths), random.Random(seed), stop_s
        victims = [{"name": f"{VICTIM}-{path}", "path": path, "restart": True} for path in paths]
        self._plain = topology(run_name("chaos", os.getpid()), paths, others=victims, nic={"pause_us": PAUSE_US})
        self._macs = {guest["name"]: str(guest["mac"]) for guest in self._plain["guest"]}
        self._streams = itertools.cycle(range(1, HEADER_ONLY))
        self.restart_s: list[float] = []
        self.back_s = 0.0
        self.lab: Lab

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.lab.stop()

    async def _begin(self) -> None:
        self.lab = Lab(self._plain, self._told)
        await self.lab.start()
        self._reader = await self.lab.counters()

    async def begin_anew(self) -> None:
        """Another topology: somebody is dead for good in this one, or does not answer."""
        await self.lab.stop()
        await self._begin()

    def _told(self, kind: str, details: dict[str, Any]) -> None:
        if kind == "restarted":
            self.restart_s.append(float(details["seconds"]))

    async def round(self, fault: Fault, instead: Callable[[], None] | None = None) -> list[Outcome]:
        """One round. LabError if somebody died for good. `instead`: how the fault is committed, if not by `commit`."""
        seconds = SECONDS + (self._stop_s if fault.action == STOP else 0.0)
        numbers = {path: next(self._streams) for path in self.paths}
        jobs = {path: asyncio.ensure_future(self._send(path, numbers[path], seconds)) for path in self.paths}
        followed = {path: Progress(self._reader.follow(guest_names(path, 2)[1], "traffic", "checked")) for path in self.paths}
        return await self._watched(fault, instead, numbers, jobs, followed)

    async def _watched(
        self,
        fault: Fault,
        instead: Callable[[], None] | None,
        numbers: dict[str, int],
        jobs: "dict[str, asyncio.Task[int]]",
        followed: "dict[str, Progress]",
    ) -> list[Outcome]:
        watching = asyncio.ensure_future(_watch(list(followed.values())))
        try:
            await asyncio.sleep(self._random.uniform(EARLIEST_S, LATEST_S))
            since = time.monotonic()
            if instead is not None:
                instead()
            else:
                await commit(fault, self.lab, self._stop_s)
            if fault.path:
                self.back_s = await self._reached(fault, since)
            await asyncio.wait(jobs.values(), timeout=HANG_S)
            until = time.monotonic()
        finally:
            watching.cancel()
        return [await self._outcome(path, numbers[path], jobs[path], followed[path], since, until) for path in self.paths]

    async def _reached(self, fault: Fault, since: float) -> float:
        """How long after `since` frames arrive at a guest that was killed."""
        sender, stream = guest_names(fault.path, 2)[1], next(self._streams)
        async with asyncio.timeout(HANG_S):
            while True:
                job = {"frame": FRAME, "stream": stream, "frames": 1}
                await self.lab.call(sender, "send_stream", mac=self._macs[fault.process], **job)
                if (await self.lab.call(fault.process, "received", stream=stream))["frames"]:
                    return time.monotonic() - since

    async def _send(self, path: str, stream: int, seconds: float) -> int:
        one, other = guest_names(path, 2)
        job = {"frame": FRAME, "stream": stream, "frames": int(PPS * seconds), "pps": PPS}
        return int((await self.lab.call(one, "send_stream", mac=self._macs[other], **job))["sent"])

    async def _outcome(
        self, path: str, stream: int, job: "asyncio.Future[int]", progress: "Progress", since: float, until: float
    ) -> Outcome:
        one, other = guest_names(path, 2)
        hung, failure = not job.done(), None
        if hung:
            job.cancel()
            sent = int((await self.lab.call(one, "sent"))["sent"])
        else:
            failure = job.exception()
            if failure is not None and not isinstance(failure, ControlError):
                raise failure
            sent = job.result() if failure is None else 0
        report = await self._at_rest(other, stream, sent)
        return Outcome(
            path,
            sent,
            int(report["frames"]),
            int(report["duplicated"]),
            int(report["corrupt"]),
            progress.longest(since, until),
            progress.arrived(since, since + WINDOW_S) / (PPS * WINDOW_S),
            hung,
            "" if failure is None else str(failure),
        )

    async def _at_rest(self, receiver: str, stream: int, sent: int) -> dict[str, Any]:
        """What was received once all of it was, or nothing has come for `REST_S`."""
        report, seen, last = await self.lab.call(receiver, "received", stream=stream), -1, time.monotonic()
        while report["frames"] < sent and time.monotonic() - last < REST_S:
            if report["frames"] != seen:
                seen, last = report["frames"], time.monotonic()
            await asyncio.sleep(0.01)
            report = await self.lab.call(receiver, "received", stream=stream)
        return dict(report)


class Progress:
    """When a counter moved, as it was looked at."""

    def __init__(self, read: Follower) -> None:
        self._read = read
        self._first = read()
        self._moves: list[tuple[float, int]] = [(time.monotonic(), self._first)]

    def look(self, now: float) -> None:
        """Note it, if it has moved."""
        if (count := self._read()) != self._moves[-1][1]:
            self._moves.append((now, count))

    def longest(self, since: float, until: float) -> float:
        """The longest time without a move, of what lies after `since`; `until`: when it was over."""
        times = [since, *(at for at, _ in self._moves if since < at <= until)]
        return max((after - before for before, after in itertools.pairwise(times)), default=until - since)

    def arrived(self, since: float, until: float) -> int:
        """By how much it moved in between."""
        return self._at(until) - self._at(since)

    def _at(self, when: float) -> int:
        return next((count for at, count in reversed(self._moves) if at <= when), self._first)


async def _watch(followed: Sequence[Progress]) -> None:
    while True:
        now = time.monotonic()
        for one in followed:
            one.look(now)
        await asyncio.sleep(LOOK_S)
