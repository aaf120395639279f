"""Latency: round trips one at a time, blocking and polling, beside the floor's ping-pong in the same rounds.

``python -m bench latency [--paths …] [--frames …] [--cores all|1|both]``

*Blocking*: nobody spins, every hop is an eventfd and a sleep. *Polling*: loops spin, where each of them has a core of its own. The
floor of both is a ping-pong between as many processes as the path has loops, pinned alike, which does nothing else. Beside the
shortest polled round trip stands that of UCX (bench/peers/ucx.py), if it is here.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np

from bench.floor import Floor
from bench.floor.layout import MAX_WORKERS
from bench.method.contenders import BETWEEN, TO_WIRE, LabBench, cpus_of, guest_names, probe_of, who
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Samples, Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.peers import PeerError
from bench.peers.ucx import PingPong
from bench.report.results import BenchmarkResult, Row, Series
from hyp.load.histogram import histogram_of, sparse
from hyp.paths import PATHS
from lab.workloads import WIRE

METRICS = ("p50_us", "p90_us", "p99_us", "p999_us")
POLLING, BLOCKING = "polling", "blocking"
POLLING_SPIN_US = 1000
UCX = PingPong.name
UCX_WORK = "one hop, copied into a ring that both have; nothing is checked, translated or switched, no payload written or summed"
WARM_UP = 0.1  # of a slice's round trips are left out: the first ones find loops asleep
TARGETS = {POLLING: 4.0, BLOCKING: 1.5}
TITLE = "Latency"
ABOUT = (
    "Round trips of one frame at a time, guest to the wire's reflector and back, and guest to guest and back. Blocking: every loop "
    "sleeps in the kernel until it is woken. Polling: loops spin, and each has a core. The floor is the machine's own price of as "
    "many hops between as many processes, pinned alike."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a set of contenders is measured."""

    direction: str
    mode: str
    cores: str
    frame: int

    @property
    def row(self) -> Row:
        """For records."""
        return {"direction": self.direction, "frame": self.frame, "cores": self.cores, "mode": self.mode}

    def __str__(self) -> str:
        return f"{self.direction}, {self.mode}, {self.frame} B, cores {self.cores}"


def loops(path: str, direction: str) -> int:
    """Data-plane loops that a frame of this path passes through."""
    return (2 if direction == TO_WIRE else 3) + (PATHS[path].shared_loop is not None)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Measure every direction, mode and core set that there are cores for."""
    places = list(_places(options, result))
    if any(_beside_ucx(place) for place in places) and (why := PingPong.missing()):
        result.notes.append(f"{UCX}: left out: {why}")
    async with LabBench("latency", options.paths) as lab, Floor() as floor, AsyncExitStack() as stack:

        async def renew() -> None:
            await lab.renew()
            await floor.renew()

        probes = {cores: stack.enter_context(probe_of(cores)) for cores in dict.fromkeys(place.cores for place in places)}
        points = [_point(options, lab, floor, place, probes[place.cores]) for place in places]
        await study(
            points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s, progress=progress,
            found=lambda: _report(result, options, places, points), renew=renew,
        )  # fmt: skip


def _places(options: Options, result: BenchmarkResult) -> list[Place]:
    cores = len(cpus_of("all"))
    found = []
    for frame in options.frames[:1] if options.quick else (options.frames[0], options.frames[-1]):
        for direction in (TO_WIRE, BETWEEN):
            able = [path for path in options.paths if loops(path, direction) <= cores]
            if able:
                found.append(Place(direction, POLLING, "all", frame))
            unable = [path for path in options.paths if path not in able]
            if unable:
                note = f"{direction}, polling: left out for {', '.join(unable)}: more loops than the {cores} cores"
                result.notes += [note] if note not in result.notes else []
            found += [Place(direction, BLOCKING, core_set, frame) for core_set in ("all", "1")]
    return list(dict.fromkeys(found))


def _paths(options: Options, place: Place) -> list[str]:
    """Those that have cores enough there."""
    cores = len(cpus_of("all"))
    return [path for path in options.paths if place.mode == BLOCKING or loops(path, place.direction) <= cores]


def _beside_ucx(place: Place) -> bool:
    """Two loops on two cores: as many as UCX's ping-pong has."""
    return place.mode == POLLING and place.direction == TO_WIRE


def _rival(path: str, place: Place) -> str:
    """The ping-pong that a path is held against."""
    return floor_name(min(loops(path, place.direction), MAX_WORKERS), place.mode)


def _point(options: Options, lab: LabBench, floor: Floor, place: Place, probe: Probe) -> Point:
    paths = _paths(options, place)
    contenders = [_round_trips(lab, path, place) for path in paths]
    counts = sorted({min(loops(path, place.direction), MAX_WORKERS) for path in paths})
    contenders += [ping_pong(floor, count, place.mode, place.cores) for count in counts]
    if _beside_ucx(place) and PingPong.missing() is None:
        contenders.append(_ucx(place))
    asked = []
    if "bypass" in paths and place.direction == TO_WIRE:
        asked.append(Question("bypass", floor_name(2, place.mode), "p50_us", TARGETS[place.mode], at_least=False))

    async def arrange() -> None:
        lab.use(place.cores, POLLING_SPIN_US if place.mode == POLLING else 0)

    return Point(str(place), place.row, contenders, "bypass" if "bypass" in paths else paths[0], probe, asked, arrange)


def _report(result: BenchmarkResult, options: Options, places: Sequence[Place], points: Sequence[Point]) -> None:
    """All that is known of the points so far."""
    notes = [note for note in result.notes if "left out" in note]
    result.forget()
    result.notes += notes
    for place, point in zip(places, points, strict=True):
        if not point.samples.taken:
            continue
        for contender in point.contenders:
            metrics, more = (("p50_us",), {"work": UCX_WORK}) if contender.name == UCX else (METRICS, {})
            result.take(point.samples, contender.name, who(contender), place.row, metrics, **more)
        paths = _paths(options, place)
        for path in paths:
            result.compare(point.samples, path, _rival(path, place), "p50_us", place.row)
            if any(contender.name == UCX for contender in point.contenders):
                result.compare(point.samples, path, UCX, "p50_us", place.row)
            if path != "bypass" and "bypass" in paths:
                result.compare(point.samples, path, "bypass", "p50_us", place.row)
        for question in point.questions:
            result.claims.append(point.claim(question, f"bypass ÷ {question.to}, p50 of round trips, {place}"))
        result.series.append(_cdf(point.samples, point.contenders, place))


def _round_trips(lab: LabBench, path: str, point: Place) -> Contender:
    one, other = guest_names(path, 2)
    peer = WIRE if point.direction == TO_WIRE else other
    load = {"kind": "rr", "from": one, "to": peer, "frame": point.frame, "frames": None, "payload": "full"}

    async def run(seconds: float) -> Slice:
        record = await lab.runner.run({**load, "seconds": seconds})
        if record["errors"] or not record["rtt_us"]:
            return Slice(errors=record["errors"] or ["no round trip was answered"])
        times = record["rtt_us"]
        figures = {f"{name}_us": times[name] for name in ("p50", "p90", "p99", "p999")}
        detail = {"histogram": record["latency"]["counts"], "per_frame": record["per_frame"]}
        return Slice({**figures, "transactions_per_s": record["frames"] / record["seconds"]}, detail=detail)

    return Contender(path, run)


def _ucx(place: Place) -> Contender:
    """UCX's ping-pong, pinned as the path's loops are."""
    peer, cpus = PingPong(), cpus_of(place.cores)

    async def run(seconds: float) -> Slice:
        try:
            return Slice({"p50_us": await peer.slice(place.frame, cpus, seconds)})
        except PeerError as error:
            return Slice(errors=[str(error)])

    return Contender(UCX, run, "peer")


def floor_name(processes: int, mode: str) -> str:
    """Of the ping-pong that stands beside a path of so many loops."""
    return f"{'spin' if mode == POLLING else 'eventfd'} ping-pong of {processes}"


def ping_pong(floor: Floor, processes: int, mode: str, cores: str) -> Contender:
    """`processes` in a cycle, for paths of as many loops. The path's frame makes the same number of hops there and back.

    Placed as a path's loops are: each on a CPU, or all on one if there are not enough.
    """
    cpus = cpus_of(cores)
    placed = cpus[:processes] if processes <= len(cpus) else cpus[-1:] * processes

    async def run(seconds: float) -> Slice:
        events = mode == BLOCKING
        trips = await floor.ping_pong(processes, events=events, cpus=placed, rounds=1 << 16, seconds=seconds)
        times = trips.ns[int(len(trips.ns) * WARM_UP) :]
        if not len(times):
            return Slice(errors=["no ping was answered"])
        names = ("p50_us", "p90_us", "p99_us", "p999_us")
        figures = dict(zip(names, map(float, np.percentile(times / 1000, [50, 90, 99, 99.9])), strict=True))
        return Slice(figures, detail={"histogram": sparse(histogram_of(times))})

    return Contender(floor_name(processes, mode), run, "floor")


def _cdf(samples: Samples, contenders: Sequence[Contender], point: Place) -> Series:
    """The distribution over the last slices of the headline's regime."""
    merged: dict[str, dict[int, int]] = {}
    for contender in contenders:
        bins: dict[int, int] = {}
        for detail in samples.details(contender.name, samples.figure(contender.name, "p50_us").regime):
            for upper, count in detail.get("histogram", []):
                bins[upper] = bins.get(upper, 0) + count
        merged[contender.name] = bins
    x = sorted({upper for bins in merged.values() for upper in bins})
    key = f"cdf-{'wire' if point.direction == TO_WIRE else 'guest'}-{point.mode}-{point.cores}-{point.frame}"
    series = Series(key, f"Round trips: {point}", "µs", [ns / 1000 for ns in x], "fraction of round trips", "cdf", log=True)
    for name, bins in merged.items():
        total, seen, line = sum(bins.values()), 0, list[float | None]()
        for upper in x:
            seen += bins.get(upper, 0)
            line.append(seen / total if total else None)
        if total:
            series.add(name, line)
    return series
