"""Who takes part: the lab's paths, the floor and the peers, all live at once and all measured in slices (bench/method/slices.py).

One topology holds two guests for every path; the floor's workers and the peers' processes stand beside it. Whoever has no slice
sleeps. A slice of each says the same things: frames at the receiver, and CPU time of all processes that took part.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from bench.floor import Floor
from bench.method.estimate import median
from bench.method.probe import MachineProbe
from bench.method.samples import Slice
from bench.method.slices import Contender, Kind
from bench.peers import Peer, PeerError, peer_class
from bench.report.results import Row
from hyp.abi.nic import DEFAULT_MTU, MAX_MTU
from hyp.paths import PATHS
from lab.owner import Lab
from lab.placement import Placement
from lab.workloads import WIRE, Runner, Workload

TO_WIRE, FROM_WIRE, BETWEEN = "guest→wire", "wire→guest", "guest→guest"
DIRECTIONS = (TO_WIRE, FROM_WIRE, BETWEEN)
ETHERNET_HEADER = 14
GUEST_RAM = 8 << 20
FIRST_TRIALS, TRIALS, TRIAL_S = 2, 5, 0.05


def cpus_of(cores: str) -> list[int]:
    """The CPUs of a core set: "all" this process may use, or "1" of them, the last, which interrupts favour least."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed if cores == "all" else allowed[-1:]


def guest_names(path: str, guests: int) -> list[str]:
    """Of a path's guests in `topology`."""
    return [f"{path}{number}" for number in range(guests)]


def topology(
    name: str,
    paths: Iterable[str],
    guests: int = 2,
    queue: int = 256,
    others: Iterable[Row] = (),
    mtu: int = DEFAULT_MTU,
    **more: Any,
) -> dict[str, Any]:
    """A topology for measuring: `guests` guests on each path, queues of `queue` descriptors. `others`: more `[[guest]]` tables."""
    from lab.topology import parse

    named = [(path, guest) for path in paths for guest in guest_names(path, guests)]
    ram = max(GUEST_RAM, 8192 * queue)  # two pools of 2112 B buffers, and what goes with them
    tables = [{"name": guest, "path": path, "memory": ram, "mtu": mtu} for path, guest in named]
    tables += [{"memory": ram, **guest} for guest in others]
    dom0 = {"memory": max(32 << 20, 16384 * queue)}
    nic = {"queue": queue, "mtu": mtu, **more.pop("nic", {})}
    return parse({"name": name, "nic": nic, "dom0": dom0, "guest": tables, **more}).plain()


def mtu_for(frames: Iterable[int]) -> int:
    """The MTU at which frames of these sizes can be sent: the largest, if one is longer than usual and no longer than that."""
    jumbo = any(DEFAULT_MTU + ETHERNET_HEADER < frame <= MAX_MTU + ETHERNET_HEADER for frame in frames)
    return MAX_MTU if jumbo else DEFAULT_MTU


def run_name(purpose: str, pid: int) -> str:
    """A topology name of process `pid`'s own, so that two benches can run at a time."""
    return f"bench-{purpose}-{pid}"


class LabBench:
    """A live lab whose paths are contenders. ``async with LabBench("throughput", paths) as lab``."""

    def __init__(
        self,
        purpose: str,
        paths: Sequence[str],
        guests: int = 2,
        queue: int = 256,
        others: Iterable[Row] = (),
        kind: type[Lab] = Lab,
        **more: Any,
    ) -> None:
        self.paths, self.queue = paths, queue
        self._new: Callable[[], Lab] = lambda: kind(topology(run_name(purpose, os.getpid()), paths, guests, queue, others, **more))
        self.lab, self._is_up = self._new(), False
        self.runner: Runner
        self._suited: dict[tuple[Any, ...], Placement] = {}

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._end()

    async def renew(self) -> None:
        """Take it down, and start it again, for what its contenders run from now on."""
        cpus, spin_us = self.runner.cpus, self.runner.spin_us
        await self._end()
        self.lab = self._new()
        await self._begin()
        self.runner.cpus, self.runner.spin_us = cpus, spin_us

    async def _begin(self) -> None:
        await self.lab.start()  # what does not start is down again
        self._is_up = True
        try:
            self.runner = await Runner.open(self.lab)
        except BaseException:
            await self._end()
            raise

    async def _end(self) -> None:
        """Once, whatever interrupts a renewal."""
        if self._is_up:
            self._is_up = False
            await self.lab.stop()

    def use(self, cores: str, spin_us: int | None = None) -> None:
        """From now on slices run on these cores; `spin_us` takes the place of the rule by which loops spin."""
        self.runner.cpus, self.runner.spin_us = cpus_of(cores), spin_us

    def stream(
        self, path: str, direction: str, frame: int, payload: str = "full", name: str | None = None, traffic: str = ""
    ) -> Contender:
        """A stream of frames of `frame` bytes, or of the sizes of a mix, of which that is the mean."""
        one, other = guest_names(path, 2)
        ends = {TO_WIRE: (one, WIRE), FROM_WIRE: (WIRE, one), BETWEEN: (one, other)}[direction]
        load = {"kind": "stream", "from": ends[0], "to": ends[1], "frame": frame, "frames": None, "payload": payload}
        load["traffic"] = traffic

        return self.streams(name or path, path, [load], stream_slice)

    def streams(
        self,
        name: str,
        path: str,
        loads: Sequence[Workload],
        sliced: Callable[[Row], Slice],
        placement: Placement | None = None,
        *,
        suited: bool = True,
    ) -> Contender:
        """Workloads of one path that run at a time. `sliced`: a record as a slice.

        Without `placement` they are measured in the one in which they are fastest, if they are `suited` to be tried: streams are.
        """

        async def run(seconds: float) -> Slice:
            chosen = placement or self._suited.get(key())
            return sliced(await self.runner.run(*({**load, "seconds": seconds} for load in loads), placement=chosen))

        async def prepare() -> None:
            if suited and placement is None and key() not in self._suited and (choice := self.runner.placements(*loads)):
                self._suited[key()] = await self._fastest(loads, choice)

        def key() -> tuple[Any, ...]:
            one = loads[0]
            model = PATHS[path].placed_like
            return model, *self.runner.cpus, *(one[end] == WIRE for end in ("from", "to")), one["frame"], len(loads)

        return Contender(name, run, prepare=prepare)

    async def _fastest(self, loads: Sequence[Workload], choice: Sequence[Placement]) -> Placement:
        rates: dict[Placement, list[float]] = {placement: [] for placement in choice}
        for number in range(TRIALS):
            for placement in choice:
                record = await self.runner.run(*({**load, "seconds": TRIAL_S} for load in loads), placement=placement)
                rates[placement].append(record["mpps"] if not record["errors"] else 0.0)
            if number + 1 == FIRST_TRIALS:  # the better ones only, from here on
                choice = sorted(choice, key=lambda placement: -median(rates[placement]))[: max(2, len(choice) // 2)]
        return max(choice, key=lambda placement: median(rates[placement]))


def stream_slice(record: Row) -> Slice:
    """The slice of a stream's record (lab/workloads/record.py)."""
    kept = ("per_frame", "operations", "checksummed", "drops", "trap_ns", "modelled", "placement")
    detail: dict[str, Any] = {key: record[key] for key in kept if key in record}
    for key, what in (("processes", "cpu_ms"), ("spun", "spun_ms")):
        detail[key] = {name: use[what] * 1e6 / record["frames"] for name, use in record["processes"].items() if record["frames"]}
    if record["errors"]:
        return Slice(errors=record["errors"], detail=detail)
    cpu_ns = record["cpu_us_per_frame"] * 1e3
    figures = {"mpps": record["mpps"], "gbps": record["gbps"], **_cpu(cpu_ns)}
    device = detail["processes"].get("nic", 0.0)
    figures |= {"domain_ns_per_frame": sum(detail["processes"].values()) - device, "device_ns_per_frame": device}
    spun = record["spin_us_per_frame"] * 1e3
    figures |= {"spin_ns_per_frame": spun, "busy_ns_per_frame": max(cpu_ns - spun, 0.0)}
    return Slice(figures, detail=detail)


def _cpu(ns_per_frame: float) -> dict[str, float]:
    return {"cpu_ns_per_frame": ns_per_frame, "mframes_per_cpu_s": 1e3 / ns_per_frame} if ns_per_frame > 0 else {}


def floor_stream(floor: Floor, frame: int, cpus: Sequence[int], payload: str = "full", **ring: Any) -> Contender:
    """The bare ring with the same payload work."""

    async def run(seconds: float) -> Slice:
        found = await floor.stream(frame, seconds, payload == "full", cpus=[cpus[0], cpus[-1]], **ring)
        errors = [f"{found[what]} frames {what}" for what in ("lost", "corrupt", "duplicated") if found[what]]
        if not found["frames"]:
            errors.append("no frame arrived")
        if errors:
            return Slice(errors=errors)
        figures = {"mpps": found["mpps"], "gbps": found["gbps"], **_cpu(found["cpu_ns"] / found["frames"])}
        return Slice(figures, detail={"processes": {name: ns / found["frames"] for name, ns in found["processes"].items()}})

    return Contender("floor" if payload == "full" else "floor (header)", run, "floor")


class LivePeers:
    """The peers that can run here, started once; `missing` says why the others can't. ``async with LivePeers(names, cpus)``."""

    def __init__(self, names: Iterable[str], cpus: Sequence[int]) -> None:
        self._names, self._cpus = list(names), [cpus[0], cpus[-1]]
        self.missing: dict[str, str] = {}
        self.live: dict[str, Peer] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            for name in self._names:
                kind = peer_class(name)
                reason = kind.missing(len(set(self._cpus)))
                if reason is None:
                    peer = kind()
                    self._stack.push_async_callback(peer.stop)
                    try:
                        await peer.start(64, self._cpus)
                        self.live[name] = peer
                    except PeerError as error:
                        reason = str(error)
                if reason is not None:
                    self.missing[name] = reason
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def set_frame(self, frame: int) -> None:
        """Another frame size from the next slice on."""
        for peer in self.live.values():
            await peer.set_frame(frame)

    def contenders(self) -> list[Contender]:
        """Those that can run."""
        return [peer_stream(peer) for peer in self.live.values()]


def peer_stream(peer: Peer) -> Contender:
    """A peer's stream. What a peer lost without its own system's counting it, it calls an error itself."""

    async def run(seconds: float) -> Slice:
        found = await peer.slice(seconds)
        detail = {"lost": found.lost, **found.detail}
        if found.errors or not found.frames:
            return Slice(errors=found.errors or ["no frame arrived"], detail=detail)
        size = int(found.detail.get("frame_bytes", 0))
        figures = {"mpps": found.mpps, "gbps": found.mpps * size * 8e-3, **_cpu(found.cpu_ns / found.frames)}
        return Slice(figures, detail=detail)

    return Contender(peer.name, run, "peer")


def who(contender: Contender) -> dict[str, str]:
    """Under which key a record has its name, and the name without what the record says elsewhere."""
    kinds: dict[Kind, str] = {"path": "path", "peer": "peer", "floor": "floor"}
    return {kinds[contender.kind]: contender.name}


def probe_of(cores: str) -> MachineProbe:
    """A probe of a core set."""
    return MachineProbe(cpus_of(cores)[:2])
