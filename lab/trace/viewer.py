"""Looks at all loops of a running topology: gives each a trace ring, and reads what they tell, in the order of time.

    async with Viewer(keeper, every=1024) as viewer:
        told = viewer.read()        # now and then

`keeper`: a channel to the topology's keeper, as its owner has it or any client (lab/command/clients.py). The viewer owns the rings.
What fails: a process that does not answer, or knows nothing of traces (a guest's own program), is left out, and `left_out` says so;
one that dies has told what it has told; who is started again is looked at after `look_again`. A viewer that goes away without
ending leaves loops that write into rings which nobody reads, until somebody else looks.
"""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from hyp.abi.counters import Count
from hyp.abi.trace import BLOCK, DEFAULT_CAPACITY, RECORD, Moment
from hyp.control import Channel, ControlError, Refused
from lab.owner import open_console
from lab.plan import ROLES
from lab.trace.ring import Copied, Told, TraceRing

ANSWER_S = 10.0
LEAST_SNAP = 64
MOST_LOOPS = 32
"""Of one process. So many rings of the least size have together the room of one of the usual size."""
SETTLED_NS = 5_000_000
"""How old a sighting is when it is surely in its ring, though its loop may have lost the CPU since it looked at the clock."""
_SERVICES = frozenset(ROLES)
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Sighting:
    """A frame, as one loop had it: what was done with it, and when. `port`, `other` as in RECORD."""

    time_ns: int
    process: str
    loop: str
    moment: Moment
    key: int
    length: int
    port: int
    other: int
    drop: str
    offload: int
    woken_ns: int
    frame: bytes = field(repr=False)
    """Its first bytes."""


@dataclass(slots=True)
class _Loop:
    process: str
    name: str
    ring: TraceRing
    console: Channel
    waiting: int = 0  # bytes that were copied and not taken apart
    since_ns: int = 0  # others have been told of up to then, without it: what is older comes too late

    @property
    def shown(self) -> str:
        """Its name where all loops' are: a guest, which may call its loops anything, calls them after itself."""
        own = self.process in _SERVICES or self.name == self.process or self.name.startswith(f"{self.process}.")
        return self.name if own else f"{self.process}.{self.name}"


@dataclass(slots=True)
class _Batch:
    """Of all rings but those of `without` at one moment, `size` bytes; `until_ns`: what is older is there whole."""

    until_ns: int
    copied: list[tuple[_Loop, Copied]]
    without: list[_Loop]
    size: int


class Viewer:
    """Of one topology. ``every``: one in so many frames, a power of two; ``snap``: bytes of each."""

    def __init__(self, keeper: Channel, every: int = 1, snap: int = LEAST_SNAP, capacity: int = DEFAULT_CAPACITY) -> None:
        self._keeper, self._every, self._snap, self._capacity = keeper, every, snap, capacity
        self._loops: list[_Loop] = []
        self._restarts: dict[str, int] = {}
        self._early: list[Sighting] = []
        self._began_ns = time.monotonic_ns()
        self._backlog: deque[_Batch] = deque()
        self.left_out: dict[str, str] = {}
        self.missed: dict[str, int] = {}
        """By loop: what was told and not read in time."""

    async def __aenter__(self) -> Self:
        try:
            await self.look_again()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def look_again(self) -> None:
        """Look at whoever is not looked at yet: processes that have been started, or started again."""
        status = (await self._keeper.call("status")).value
        new = [one for one in status["processes"] if one["state"] == "ready" and self._restarts.get(one["name"]) != one["restarts"]]
        self._restarts |= {one["name"]: one["restarts"] for one in new}
        await asyncio.gather(*(self._try(one["name"]) for one in new))

    async def _try(self, process: str) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._look_at(process)
            self.left_out.pop(process, None)
        except (ControlError, TimeoutError) as error:
            self.left_out[process] = str(error) or "it does not answer"

    async def _look_at(self, process: str) -> None:
        console = await open_console(self._keeper, process)
        try:
            await self._have_told(process, console)
        finally:
            if not any(one.console is console for one in self._loops):
                console.close()

    async def _have_told(self, process: str, console: Channel) -> None:
        """Give each loop that the process says it has a ring."""
        loops = (await console.call("trace_points")).value
        if not isinstance(loops, list) or len(loops) > MOST_LOOPS or not all(_NAME.fullmatch(str(loop)) for loop in loops):
            raise Refused("EPROTO", "what it says of its loops makes no sense")
        for loop in loops:
            ring = TraceRing(f"{process}.{loop}", self._room(process, len(loops)))
            try:
                await console.call("trace_begin", fds=[ring.fd], loop=loop, every=self._every, snap=self._snap)
            except BaseException:
                ring.close()
                raise
            self._loops = [one for one in self._loops if (one.process, one.name) != (process, loop) or self._let_go(one)]
            self._loops.append(_Loop(process, str(loop), ring, console))

    def _room(self, process: str, loops: int) -> int:
        """Bytes of each ring: a guest says itself how many loops it has, so that all of them have the room of one."""
        return self._capacity if process in _SERVICES else max(self._capacity >> (loops - 1).bit_length(), 2 * BLOCK)

    @staticmethod
    def _let_go(loop: _Loop) -> bool:
        loop.ring.close()
        return False

    async def close(self) -> None:
        """Tell all loops to tell nothing more, and let go of the rings."""

        async def end(loop: _Loop) -> None:
            with contextlib.suppress(ControlError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await loop.console.call("trace_end", loop=loop.name)

        await asyncio.gather(*map(end, self._loops))
        for loop in self._loops:
            loop.ring.close()
        for console in {id(loop.console): loop.console for loop in self._loops}.values():
            console.close()
        self._loops = []

    def read(self, *, last: bool = False) -> list[Sighting]:
        """What has been told since the last call, by time; what is so new that older may follow only if this is the `last`."""
        self.copy()
        found = []
        while self._backlog:
            found += self.take_apart()
        return [*found, *self.rest()] if last else found

    def copy(self, most: int | None = None) -> None:
        """Take out of the rings what there is, for `take_apart`: whoever must not cost anything does that later.

        `most`: bytes that may wait for that, of which each loop has an equal share. One that has used its share up is passed over,
        and what its ring has no room for is missed: a guest that tells without end takes nobody else's.
        """
        until = time.monotonic_ns() - SETTLED_NS
        have_room = [loop for loop in self._loops if most is None or loop.waiting * len(self._loops) < most]
        if not have_room:
            return
        copied = [(loop, loop.ring.copy()) for loop in have_room]
        for loop, one in copied:
            loop.waiting += len(one.data)
        without = [loop for loop in self._loops if loop not in have_room]
        self._backlog.append(_Batch(until, copied, without, sum(len(one.data) for _, one in copied)))

    @property
    def backlog(self) -> list[int]:
        """Bytes of what was copied and not taken apart, the oldest first."""
        return [batch.size for batch in self._backlog]

    def take_apart(self) -> list[Sighting]:
        """The oldest of what was copied, by time.

        Rings are copied one after the other, so what is newer than the first copy is kept for the next one.
        """
        batch, now_ns = self._backlog.popleft(), time.monotonic_ns()
        found, self._early = self._early, []
        for loop, copied in batch.copied:
            told = loop.ring.take_apart(copied)
            loop.waiting -= len(copied.data)
            times, since_ns = told.heads["time_ns"], max(self._began_ns, loop.since_ns)
            seen = np.flatnonzero((times >= since_ns) & (times <= now_ns))  # a guest may say any time
            if missed := told.missed + len(times) - len(seen):
                self.missed[loop.shown] = self.missed.get(loop.shown, 0) + missed
            found.extend(_sightings(loop, told, seen.tolist()))
        for loop in batch.without:
            loop.since_ns = batch.until_ns
        self._early = [one for one in found if one.time_ns > batch.until_ns]
        return sorted((one for one in found if one.time_ns <= batch.until_ns), key=lambda one: one.time_ns)

    def rest(self) -> list[Sighting]:
        """What was kept for a next one that there won't be."""
        found, self._early = self._early, []
        return sorted(found, key=lambda one: one.time_ns)


def _sightings(loop: _Loop, told: Told, which: Iterable[int]) -> Iterator[Sighting]:
    columns: dict[str, list[Any]] = {name: told.heads[name].tolist() for name in RECORD.names or ()}
    for k in which:
        yield Sighting(
            columns["time_ns"][k], loop.process, loop.shown, Moment(columns["moment"][k]), columns["key"][k], columns["length"][k],
            columns["port"][k], columns["other"][k], _drop(columns["drop"][k]), columns["offload"][k], columns["woken_ns"][k],
            told.frame(k),
        )  # fmt: skip


def _drop(number: int) -> str:
    """The drop's name, without "drop_"; what a guest has made up is "unknown"."""
    if number == 0:
        return ""
    name = Count(number).name.lower() if number in Count._value2member_map_ else ""
    return name.removeprefix("drop_") if name.startswith("drop_") else "unknown"
