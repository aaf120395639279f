"""What this machine can do at best: the figures that every path of the lab, and every peer, is held against."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from bench.floor.layout import MAX_ENTRIES, MAX_SAMPLES, MAX_WORKERS, SAMPLES, WORDS
from bench.floor.ring import BURST, CONS, CONS_EVENT, PLATFORM, PROD, PROD_EVENT
from bench.floor.workers import Workers
from hyp.abi.frame import HEADER_ONLY, MIN_TEST_FRAME
from hyp.abi.nic import PAGE
from hyp.abi.platform import SPIN_LIMIT_NS
from hyp.abi.sizes import FRAME_BUFFER
from lab.accounting import usage

ENTRIES = 256
STREAM = 1
SPIN_NS = 50_000
NO_LIMIT = 1 << 61
ROUND_TRIPS = 2000
WORKING_SETS = tuple(1 << exponent for exponent in range(15, 27))
"""32 KiB to 64 MiB."""


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Times of round trips in ns; `ns` has each one, in the order in which they took place."""

    ns: "np.ndarray[tuple[int], np.dtype[np.int64]]"

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    @property
    def p999(self) -> float:
        return self.percentile(99.9)

    def percentile(self, q: float) -> float:
        """The q-th percentile in ns; NaN if there was no round trip at all."""
        return float(np.percentile(self.ns, q)) if len(self.ns) else float("nan")


class Floor:
    """The floor's measurements on worker processes of its own: ``async with Floor() as floor``.

    `cpus` has a CPU per process, in order (repeated if too short); None leaves the placing to the scheduler. One measurement at
    a time. A measurement whose other side dies or stands still for 10 s raises `ControlError`; the floor has ended then.
    """

    def __init__(self, workers: int = MAX_WORKERS) -> None:
        self._number = workers
        self.workers = Workers(workers)

    async def __aenter__(self) -> "Floor":
        await self.workers.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.workers.stop()

    async def renew(self) -> None:
        """End the worker processes, and start others: their rings lie elsewhere in memory."""
        await self.workers.stop()
        self.workers = Workers(self._number)
        await self.workers.__aenter__()

    async def stream(
        self,
        frame: int,
        seconds: float,
        full: bool = True,
        *,
        cpus: Sequence[int] | None = None,
        entries: int = ENTRIES,
        spin_ns: int | None = None,
        frames: int | None = None,
    ) -> dict[str, Any]:
        """Stream test frames of `frame` bytes from worker 0 to worker 1 for `seconds`, or `frames` of them if that is sooner.

        `full`: every byte is written and checksummed, else the first 64. `entries`: buffers in the ring, a power of two.
        `spin_ns`: longest spin before sleeping; None is the lab's own rule (50 µs where each process has a core, else 0).

        Returns ``frames`` received in good order, ``seconds`` from the first to the last of them, ``mpps``, ``gbps``,
        ``cpu_ns`` of all threads of both processes (schedstat; of each in ``processes``), ``lost``, ``corrupt``, ``duplicated``. A
        corrupt frame is lost too.
        """
        _check_stream(frame, entries)
        await self.workers.pin(cpus)
        self._prepare(_spin_limit(cpus) if spin_ns is None else spin_ns)
        stream = STREAM if full else STREAM | HEADER_ONLY
        ring = {"entries": entries, "frame": frame, "stream": stream}
        limits = {"frames": NO_LIMIT if frames is None else frames, "nanoseconds": round(seconds * 1e9)}
        pids = self.workers.pids[:2]
        before = [usage(pid).cpu_ns for pid in pids]
        report, sent = await self.workers.together((1, "consume", {**ring, "to": 0}), (0, "produce", {**ring, **limits, "to": 1}))
        spent = [usage(pid).cpu_ns - burnt for pid, burnt in zip(pids, before, strict=True)]
        took = (report["last_ns"] - report["first_ns"]) / 1e9
        rate = report["frames"] / took if took > 0 else 0.0
        return {
            "frames": report["frames"], "seconds": took, "mpps": rate / 1e6, "gbps": rate * frame * 8 / 1e9, "cpu_ns": sum(spent),
            "processes": dict(zip(("producer", "consumer"), spent, strict=True)),
            "lost": report["lost"] + sent["sent"] - report["next"], "corrupt": report["corrupt"],
            "duplicated": report["duplicated"],
        }  # fmt: skip

    async def ping_pong(
        self,
        processes: int,
        *,
        events: bool,
        cpus: Sequence[int] | None = None,
        rounds: int = ROUND_TRIPS,
        seconds: float = 0.5,
    ) -> RoundTrips:
        """Round trips through `processes` workers in a cycle: 2 there and back, 3 A→B→C→A, and so on.

        `events`: each hop is an eventfd write and an epoll wait; else all of them spin. Up to `rounds`, for `seconds` at most.
        """
        if not 2 <= processes <= self.workers.number:
            raise ValueError(f"a ping-pong is among 2 to {self.workers.number} processes, not {processes}")
        if not 1 <= rounds <= MAX_SAMPLES:
            raise ValueError(f"1 to {MAX_SAMPLES} round trips can be recorded, not {rounds}")
        await self.workers.pin(cpus)
        self.workers.region.array[WORDS : WORDS + PAGE] = 0
        follow = [
            (number, "follow", {"number": number, "to": (number + 1) % processes, "events": events})
            for number in range(1, processes)
        ]
        limits = {"rounds": rounds, "nanoseconds": round(seconds * 1e9)}
        done, *_ = await self.workers.together((0, "lead", {"number": 0, "to": 1, "events": events, **limits}), *follow)
        return RoundTrips(self.workers.region.words("<i8", SAMPLES, done).astype(np.int64))

    async def bandwidth(self, working_sets: Sequence[int] = WORKING_SETS, *, cpu: int | None = None) -> dict[int, float]:
        """GB/s of memcpy (bytes copied, counted once) by working set, source and destination together, in bytes."""
        await self.workers.pin(None if cpu is None else [cpu])
        return {size: float(await self.workers.call(0, "bandwidth", working_set=size)) for size in working_sets}

    def _prepare(self, spin_ns: int) -> None:
        words = self.workers.region.words("<i8", 0, 2 * PAGE // 8)
        for word in (PROD, PROD_EVENT, CONS, CONS_EVENT):
            words[word // 8] = 0
        words[(PLATFORM + SPIN_LIMIT_NS) // 8] = spin_ns


def _check_stream(frame: int, entries: int) -> None:
    if not MIN_TEST_FRAME <= frame <= FRAME_BUFFER:
        raise ValueError(f"frames are {MIN_TEST_FRAME} to {FRAME_BUFFER} bytes long, not {frame}")
    if not 2 * BURST <= entries <= MAX_ENTRIES or entries & (entries - 1):
        raise ValueError(f"entries are a power of two from {2 * BURST} to {MAX_ENTRIES}, not {entries}")


def _spin_limit(cpus: Sequence[int] | None) -> int:
    cores = os.sched_getaffinity(0) if cpus is None else set(cpus[:2])
    return SPIN_NS if len(cores) >= 2 else 0
