"""A viewer's connection to a running topology, which any number of processes may have at a time.

    async with Watch.of("demo") as watch:
        async for sample in watch.samples(1.0):
            ...  # watch.picture, watch.status, watch.log

The viewer asks the keeper for its status, for read-only descriptors of the counter pages and for the processes' pidfds, once,
and again when the keeper has news (lab/keeper/news.py). From then on a sample is one pread of each counters page and of
``/proc/PID/stat``: nobody in the topology does anything for it.

States: *attached* → *ended*, when the keeper closes the socket, which is the topology's end; `Ended` says so from then on. What
fails: a keeper that does not answer (stopped) is asked again later, and what was known stays; a process that has gone has no CPU
time; a viewer that goes away is a client that closes its socket.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from hyp.control import Channel, ControlError, close_all
from hyp.linux import pid_of
from lab.command.clients import ClientError, port_of, silent, the_one
from lab.command.clients import connect as connect_to
from lab.counters import CounterReader
from lab.ledger import Snapshot
from lab.rundir import RunDir
from lab.view.ends import Ends
from lab.view.events import EventLog, event
from lab.view.picture import Picture, picture
from lab.view.samples import Sample, Sampler, Use

LEAST_S = 0.1
"""Between two samples: looking more often shows no more, and would cost."""
ANSWER_S = 5.0
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_NOBODY: Picture = {"name": "", "nodes": [], "hops": [], "paths": []}


class Ended(ClientError):
    """The topology that was looked at has ended."""


class Watch:
    """Of one topology. `picture` and `status` (as the keeper has it) are those of the last sample, `log` what has happened."""

    def __init__(self, run: RunDir) -> None:
        self.name = run.name
        self.status: dict[str, Any] = {"name": run.name, "state": "starting", "guests": [], "processes": []}
        self.log = EventLog()
        self.counts: Snapshot = {}
        """What the last sample was made of: the counters, and what the kernel said of each process."""
        self.use: dict[str, Use] = {}
        self._run = run
        self._sampler = Sampler(_NOBODY)
        self._keeper: Channel | None = None
        self._stale = True
        self._reader: CounterReader | None = None
        self._pids: dict[str, tuple[int, bytes]] = {}  # with when each was started, as a pid may be another's one day
        self._restarts: dict[str, int] = {}
        self._asked_at = 0.0
        self._ends = Ends()

    @classmethod
    def of(cls, name: str | None) -> "Watch":
        """Of the topology of that name, or of the only one that is running. ClientError, saying which there are, otherwise."""
        return cls(the_one(name, "by its name"))

    async def __aenter__(self) -> "Watch":
        self._keeper = await connect_to(self._run, {"news": self._news})
        try:
            await self._refresh()
            async with asyncio.timeout(ANSWER_S):
                for piece in (await self._keeper.call("watch")).value:
                    self._news(**piece)
        except (ControlError, TimeoutError) as error:
            self.close()
            raise silent(self.name, error) from error
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Go away."""
        if self._keeper is not None:
            self._keeper.close()
        self._reader = None

    @property
    def up_s(self) -> float | None:
        """For how long it has been up; None: it is not, yet."""
        up_s = self.status.get("up_s")
        return None if up_s is None else up_s + time.monotonic() - self._asked_at

    @property
    def picture(self) -> Picture:
        """Of the topology as it is now."""
        return self._sampler.picture

    async def sample(self) -> Sample:
        """Look. `Ended` if there is nothing to look at any more."""
        assert self._keeper is not None
        if self._stale or self.status["state"] == "starting":
            try:
                await self._refresh()
            except (ControlError, TimeoutError):
                self._stale = True  # it is stopped, or going: which is seen below, or the next time
        if self._keeper.closed.done():
            raise Ended(f"topology {self.name} has ended")
        self.counts = self._reader.read() if self._reader is not None else {}
        self.use = self._use()
        pairs = self._ends.read(self._reader, self.picture, self.counts) if self._reader is not None else {}
        sample = self._sampler.take(time.monotonic(), time.time(), self.counts, self.use, pairs)
        self.log.ports(sample["time"], {one["name"]: port_of(one["name"], self.counts) for one in self.status["guests"]})
        self.log.compare(self.picture, sample)
        return sample

    async def samples(self, interval_s: float = 1.0) -> AsyncIterator[Sample]:
        """A sample now and one each interval (`LEAST_S` at least), until the topology ends, which is `Ended`."""
        assert self._keeper is not None
        loop = asyncio.get_running_loop()
        interval_s, due = max(interval_s, LEAST_S), loop.time()
        while True:
            yield await self.sample()
            due = max(due + interval_s, loop.time())  # what came too late is left out, not caught up with
            await asyncio.wait([self._keeper.closed], timeout=due - loop.time())

    # -- what the keeper says --

    def _news(self, time: float, kind: str, who: str, what: str) -> None:
        self.log.add(event(time, kind, who, what))
        self._stale = True

    async def _refresh(self) -> None:
        """Learn what there is: guests and paths, pages, processes."""
        assert self._keeper is not None
        self._stale = False
        async with asyncio.timeout(ANSWER_S):
            status: dict[str, Any] = (await self._keeper.call("status")).value
            held = await self._keeper.call("held", suffix=".counters")
            self._reader = CounterReader.adopt(held.value, held.fds)
            pidfds = await self._keeper.call("pidfds")
        pids = {name: pid_of(fd) for name, fd in zip(pidfds.value, pidfds.fds, strict=True)}
        close_all(pidfds.fds)
        self._pids = {name: (pid, found[2]) for name, pid in pids.items() if pid > 0 and (found := _stat(pid)) is not None}
        self.status, self._asked_at = status, time.monotonic()
        if "nic" in status:  # the plan has come
            self._sampler.picture = picture(self.name, status["guests"], status["nic"])
        restarts = {process["name"]: process["restarts"] for process in status["processes"]}
        self._sampler.begun_again(name for name, n in restarts.items() if n != self._restarts.get(name, 0))
        self._restarts = restarts

    # -- what the kernel says --

    def _use(self) -> dict[str, Use]:
        found = {}
        for name, (pid, started) in self._pids.items():
            stat = _stat(pid)
            found[name] = Use(pid, stat[0], stat[1]) if stat is not None and stat[2] == started else Use(pid, 0, "")
        return found


def _stat(pid: int) -> tuple[int, str, bytes] | None:
    """CPU time of all of a process's threads in ns, its state, and when it was started; None if there is none such."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return (int(fields[11]) + int(fields[12])) * _TICK_NS, fields[0].decode(), fields[19]
