"""A process's trace points: its loops by name, and who looks at them. Control plane.

The viewer makes the ring, and hands it over the process's console. Who looks last is told: a loop has one ring.

A ring that nobody looks at any more may still be the one in which its loop is in the middle of a record. It stays mapped until the
loop does not run, has been seen asleep, or to have slept, since it could see that it has another one (`naps` of WAIT,
hyp/events.py). That is looked at in a later call than the one that has taken the ring from the loop: a call ends with a system
call, which is a barrier, as the start of a loop's thread is.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyp.abi.trace import BLOCK, CAPACITY_AT, DATA_AT, MAGIC, MAGIC_AT, MOST_SNAP
from hyp.control import Refused, close_all
from hyp.engine import Engine
from hyp.events import Wait
from hyp.memory import Mapping
from hyp.process import Process
from hyp.trace.ring import LOOKED_AT, TRACER

MOST_EVERY = 1 << 40
MOST_RINGS = 64
"""Of one loop that are mapped at a time."""


@dataclass(frozen=True, slots=True)
class _Loop:
    engine: Engine
    wait: Wait

    def may_hold(self) -> bool:
        """It may be in the middle of something."""
        return self.engine.running and int(self.wait[0]["naps"]) % 2 == 0


@dataclass(slots=True)
class _Given:
    """A ring that a loop was given; `naps`: the loop's when we first looked whether it has let go of it."""

    ring: Mapping
    tracer: Any
    naps: int | None = None


class TracePoints:
    """The loops of one process; serves `trace_points`, `trace_begin` and `trace_end` on its consoles."""

    def __init__(self, process: Process) -> None:
        self._loops: dict[str, _Loop] = {}
        self._given: dict[str, list[_Given]] = {}
        process.serve("trace_points", self._names)
        process.serve("trace_begin", self._begin, takes_fds=True)
        process.serve("trace_end", self._end)

    def add(self, engine: Engine, wait: Wait) -> None:
        """This engine's loop, which has the WAIT record (hyp/events.py), under the engine's name."""
        self._loops[engine.name] = _Loop(engine, wait)

    def _names(self) -> list[str]:
        return list(self._loops)

    def _begin(self, loop: str, every: int, snap: int, fds: list[int]) -> None:
        """Tell of one in `every` frames, of each up to `snap` bytes, in the ring of which fds is the memory."""
        try:
            if len(fds) != 1 or loop not in self._loops:
                raise Refused("EINVAL", f"there is no loop {loop!r}, or not one ring for it")
            if not 1 <= every <= MOST_EVERY or every & (every - 1):
                raise Refused("EINVAL", f"one in {every}: a power of two, of 1 to {MOST_EVERY}")
            if not LOOKED_AT <= snap <= MOST_SNAP:
                raise Refused("EINVAL", f"{snap} bytes of a frame: {LOOKED_AT} to {MOST_SNAP} are possible")
            if len(self._still_mapped(loop)) >= MOST_RINGS:
                raise Refused("ENOSPC", f"loop {loop} has not slept since it was looked at, {MOST_RINGS} times")
            ring = Mapping(fds[0], os.fstat(fds[0]).st_size)
        finally:
            close_all(fds)
        capacity = int(ring.words("<u8", CAPACITY_AT, 1)[0]) if ring.size > DATA_AT else 0
        if capacity < 2 * BLOCK or capacity & (capacity - 1) or ring.size != DATA_AT + capacity:
            raise Refused("EINVAL", "that is no trace ring")
        if int(ring.words("<u8", MAGIC_AT, 1)[0]) != MAGIC:
            raise Refused("EINVAL", "that is no trace ring")
        tracer = np.zeros(1, TRACER)
        row, wait = tracer[0], self._loops[loop].wait
        row["ring"], row["mask"], row["every"], row["snap"] = ring.address, capacity - 1, every - 1, snap
        row["wait"] = wait.ctypes.data
        self._given[loop].append(_Given(ring, tracer))
        wait[0]["trace"] = tracer.ctypes.data

    def _end(self, loop: str) -> None:
        """Tell nobody any more."""
        if loop in self._loops:
            self._still_mapped(loop)
            self._loops[loop].wait[0]["trace"] = 0

    def _still_mapped(self, loop: str) -> list[_Given]:
        """The loop's rings, but those that it has surely let go of, which are unmapped."""
        wait, given = self._loops[loop].wait[0], self._given.setdefault(loop, [])
        naps, present, may_hold = int(wait["naps"]), int(wait["trace"]), self._loops[loop].may_hold()
        kept = []
        for one in given:
            if one.tracer.ctypes.data != present:
                if not may_hold or one.naps not in (None, naps):
                    continue
                one.naps = naps
            kept.append(one)
        given[:] = kept
        return given
