"""Throughput of the paths side by side, with the machine's limit and peers in the same rounds.

``python -m bench throughput [--paths …] [--frames …] [--peers …] [--cores all|1|both]``

Every payload byte is written by the sender, copied by the device and checksummed by the receiver, on the floor as on the paths.
Peers that only touch headers are held against a stream that does the same ("bypass (header)").

``--traffic imix`` or ``--traffic FILE``: frames of the sizes of a mix (hyp/load/mix.py) in the place of one size; the paths alone.
"""

import functools
import math
import statistics
from collections.abc import Sequence

from bench.floor import Floor
from bench.method.claims import Claim
from bench.method.contenders import (
    DIRECTIONS,
    ETHERNET_HEADER,
    FROM_WIRE,
    TO_WIRE,
    LabBench,
    LivePeers,
    cpus_of,
    floor_stream,
    mtu_for,
    probe_of,
    who,
)
from bench.method.options import Options
from bench.method.progress import Part, Steps, parts
from bench.method.samples import Samples
from bench.method.slices import Contender, Probe, interleave
from bench.method.study import Point, Question, study
from bench.method.verdicts import MISSED
from bench.report.results import BenchmarkResult, Row, Series
from hyp.abi.sizes import FRAME_BUFFER
from lab.figures import short

RATES = ("mpps", "mframes_per_cpu_s")
HEADER = "bypass (header)"
NATIVE = {"median": 0.97, "bound": 0.93}
BEST = {64: 1.2, 512: 1.1, 1500: 1.1}
DPDK = {
    "vhost": {64: 1.5, 512: 1.1, 1500: 1.1}, "vhost-hugepages": {64: 1.2, 512: 1.0, 1500: 1.0},
    "vhost-packed": BEST, "memif": BEST,
}  # fmt: skip
"""What a bypass stream with equal work is to be, as a multiple of each of DPDK's pairs, by frame size."""
FLOOR, SPLIT_FLOOR, NOTIFICATIONS = {64: 0.85, 1500: 0.95}, 0.25, 0.02
NOTABLE_NS = 0.05
ENTRIES = (128, 256, 512, 1024)
WORKING_SET_FRAME = 1500

TITLE = "Throughput"
ABOUT = (
    "Verified frames per second at the receiver. Every byte is written, copied by the device and checksummed, on the floor (a bare "
    "ring between two processes) as on the paths. On one core the figure to look at is frames per CPU-second: no path gains from "
    "having another core for its work. Frames of 9000 B go in fragments, where the MTU is 9000; those of 64 KiB are TCP's, cut "
    "into segments by the device, or by a guest whose path has no offloads."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Measure every direction, frame size and core set, and 1500 B against the ring's depth."""
    await measure(result, options, progress, DIRECTIONS[:1] if options.quick else DIRECTIONS, sweep=not options.quick)


async def measure(result: BenchmarkResult, options: Options, progress: Steps, directions: Sequence[str], *, sweep: bool) -> None:
    """`run` for some directions, with or without the sweep over the ring's depth."""
    sweep = sweep and not options.traffic and "bypass" in options.paths and "all" in options.core_sets
    measured: list[Point] = []
    missing: list[str] = []
    async with LabBench("throughput", options.paths, mtu=(mtu := mtu_for(options.frames))) as lab, Floor(2) as floor:

        async def renew() -> None:
            await lab.renew()
            await floor.renew()

        part = parts(progress, [*options.core_sets, *(["working set"] if sweep else [])])
        for cores in options.core_sets:
            async with LivePeers(options.peers, cpus_of(cores)) as peers:
                with probe_of(cores) as probe:
                    places = [(cores, way, frame) for way in directions for frame in options.frames if can_go(way, frame, mtu)]
                    points = [_point(options, lab, floor, peers, place, probe) for place in places]
                    measured += points
                    await study(
                        points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s / len(options.core_sets),
                        progress=next(part), found=functools.partial(_report, result, measured), renew=renew,
                    )  # fmt: skip
                missing += [f"peer {name} (cores {cores}): left out: {why}" for name, why in peers.missing.items()]
    result.notes += missing
    if sweep:
        await _working_set(result, options, next(part))
    _scheduler_share(result, options)
    _plots(result, options, directions)


def can_go(way: str, frame: int, mtu: int) -> bool:
    """What is beyond the wire sends no frames that would have to be cut."""
    return way != FROM_WIRE or frame <= mtu + ETHERNET_HEADER


def _point(options: Options, lab: LabBench, floor: Floor, peers: LivePeers, place: tuple[str, str, int], probe: Probe) -> Point:
    """All contenders at one core set, direction and frame size."""
    cores, way, frame = place
    contenders = [lab.stream(path, way, frame, traffic=options.traffic) for path in options.paths]
    if way == TO_WIRE and frame <= FRAME_BUFFER and not options.traffic:
        contenders.append(floor_stream(floor, frame, cpus_of(cores)))
        if peers.live:
            contenders += peers.contenders()
            if "bypass" in options.paths:
                contenders.append(lab.stream("bypass", way, frame, "header", HEADER))

    async def arrange() -> None:
        lab.use(cores)
        if way == TO_WIRE and frame <= FRAME_BUFFER:
            await peers.set_frame(frame)

    where: Row = {"direction": way, "frame": frame, "cores": cores}
    title = f"{way}, {frame} B, cores {cores}"
    if options.traffic:
        where["traffic"] = options.traffic_name
        title = f"{way}, {options.traffic_name} (mean {frame} B), cores {cores}"
    again = "bypass" if "bypass" in options.paths else options.paths[0]
    return Point(title, where, contenders, again, probe, _questions([one.name for one in contenders], where), arrange)


def _report(result: BenchmarkResult, points: Sequence[Point]) -> None:
    """All that is known of the points so far."""
    result.forget()
    for point in points:
        if point.samples.taken:
            for contender in point.contenders:
                record(result, point.samples, contender, point.where)
            _ratios(result, point.samples, [one.name for one in point.contenders], point.where)
            _claims(result, point)


def record(result: BenchmarkResult, samples: Samples, contender: Contender, point: Row) -> None:
    """A contender's records, with what its last slice said of itself."""
    details = samples.details(contender.name)
    kept = (
        "per_frame",
        "checksummed",
        "processes",
        "trap_ns",
        "modelled",
        "placement",
        "touched",
        "copies",
        "frame_bytes",
        "pool_bytes",
    )
    more = {key: details[-1][key] for key in kept if details and details[-1].get(key) is not None}
    if contender.kind == "floor":
        more["checksummed"] = 1.0
    payload = {"payload": "header"} if contender.name.endswith("(header)") else {}
    result.take(samples, contender.name, who(contender), {**point, **payload}, **more)


def _ratios(result: BenchmarkResult, samples: Samples, names: Sequence[str], point: Row) -> None:
    rivals = [name for name in names if name != "bypass"]
    for metric in RATES:
        for rival in rivals if "bypass" in names else []:
            header = HEADER in names and rival in DPDK
            if rival != HEADER:
                result.compare(samples, HEADER if header else "bypass", rival, metric, point)
        if {"split", "floor"} <= set(names):
            result.compare(samples, "split", "floor", metric, point)


def _questions(names: Sequence[str], point: Row) -> list[Question]:
    """The targets that a point can say something about."""
    cores, frame = point["cores"], point["frame"]
    metric, steadier = ("mpps", "mframes_per_cpu_s") if cores == "all" else ("mframes_per_cpu_s", None)
    asked = [
        Question("bypass", "native", metric, NATIVE["median"], steadier=steadier),
        Question("bypass", "native", metric, NATIVE["bound"], judged="bound", steadier=steadier),
    ]
    if "traffic" in point:
        return [question for question in asked if {question.of, question.to} <= set(names)]
    if cores == "all":
        asked += [Question(HEADER, peer, metric, targets[frame]) for peer, targets in DPDK.items() if frame in targets]
    if frame in FLOOR:
        asked.append(Question("bypass", "floor", metric, FLOOR[frame]))
    if frame == 64 and cores == "1":
        asked.append(Question("split", "floor", metric, SPLIT_FLOOR))
    return [question for question in asked if {question.of, question.to} <= set(names)]


def _claims(result: BenchmarkResult, point: Point) -> None:
    samples, missed = point.samples, []
    for question in point.questions:
        claim = point.claim(question, f"{question.of} ÷ {question.to}, {point.title}")
        result.claims.append(claim)
        if claim.verdict == MISSED:
            missed += [question.of, question.to]
    for path in ("bypass", "split"):
        details = samples.details(path)
        if details:
            value = max(detail["per_frame"]["notifications"] for detail in details)
            result.claims.append(Claim.counted(f"notifications per frame, {path}, {point.title}", value, "≤", NOTIFICATIONS))
    if missed:
        shown = "; ".join(where_time_goes(samples, name) for name in dict.fromkeys(missed))
        result.notes.append(f"{point.title}: where the time goes, CPU ns per frame by process (spun): {shown}")


def where_time_goes(samples: Samples, name: str) -> str:
    """CPU ns per frame of each process that took part in a contender's last slices, and how much of it was spinning."""
    details = [detail for detail in samples.details(name) if detail.get("processes")]
    if not details:
        return f"{name}: not known"

    def middle(what: str, process: str) -> float:
        return float(statistics.median(detail.get(what, {}).get(process, 0.0) for detail in details))

    used = {process: (middle("processes", process), middle("spun", process)) for process in details[-1]["processes"]}
    busy = [f"{process} {short(cpu)} ({short(spun)})" for process, (cpu, spun) in used.items() if cpu >= NOTABLE_NS]
    return f"{name}: {', '.join(busy)}"


def _scheduler_share(result: BenchmarkResult, options: Options) -> None:
    """How much of bypass ÷ split on all cores is not there on one core, where neither has another core for its work."""
    for frame in options.frames:
        gain = {}
        for cores, metric in (("all", "mpps"), ("1", "mframes_per_cpu_s")):
            where = {"of": "bypass", "to": "split", "metric": metric, "direction": TO_WIRE, "frame": frame, "cores": cores}
            rows = [row for row in result.ratios if row["median"] and all(row.get(key) == value for key, value in where.items())]
            if rows:
                gain[cores] = rows[0]["median"]
        if len(gain) == 2 and gain["all"] > 1:
            share = 1 - math.log(gain["1"]) / math.log(gain["all"])
            relief = f"{share:.0%} of the gain (of its logarithm)" if share > 0 else "nothing of the gain"
            result.notes.append(
                f"{frame} B, {TO_WIRE}: bypass ÷ split is {gain['all']:.2f} on all cores, {gain['1']:.2f} per CPU-second on one: "
                f"{relief} is relief of the scheduler, the rest is work saved"
            )


async def _working_set(result: BenchmarkResult, options: Options, progress: Part) -> None:
    """1500 B against the depth of the ring, and so the memory that the frames go through: a test of the caches."""
    shown = [path for path in ("native", "bypass") if path in options.paths]
    lines: dict[str, list[Row | None]] = {name: [] for name in (*shown, "floor")}
    async with Floor(2) as floor:
        for entries, part in zip(ENTRIES, parts(progress, [f"ring of {entries}" for entries in ENTRIES]), strict=True):
            async with LabBench("depth", shown, guests=2, queue=entries) as lab:
                lab.use("all")
                contenders = [lab.stream(path, TO_WIRE, WORKING_SET_FRAME) for path in shown]
                contenders.append(floor_stream(floor, WORKING_SET_FRAME, cpus_of("all"), entries=entries))
                with probe_of("all") as probe:
                    samples = await interleave(
                        contenders, rounds=max(6, options.rounds // 2), seconds=options.slice_s, probe=probe, again=shown[-1],
                        progress=part,
                    )  # fmt: skip
                point: Row = {"direction": TO_WIRE, "frame": WORKING_SET_FRAME, "cores": "all", "ring": entries}
                for contender in contenders:
                    record(result, samples, contender, point)
                    figure = samples.figure(contender.name, "gbps")
                    lines[contender.name].append(figure.plain() if figure.n else None)
    series = Series(
        "working-set", f"{WORKING_SET_FRAME} B against the depth of the ring, {TO_WIRE}", "descriptors in the ring (2112 B each)",
        list(ENTRIES), "Gbit/s", log=True,
    )  # fmt: skip
    for name, figures in lines.items():
        _add(series, name, figures)
    result.series.append(series)


def _add(series: Series, name: str, figures: Sequence[Row | None]) -> None:
    series.add(name, *([figure[key] if figure else None for figure in figures] for key in ("median", "low", "high")))


def _plots(result: BenchmarkResult, options: Options, directions: Sequence[str]) -> None:
    """A plot for each direction and core set: Mframes/s, or frames per CPU-second on one core."""
    for cores in options.core_sets:
        for way in directions:
            metric = "mpps" if cores == "all" else "mframes_per_cpu_s"
            label = "Mframes/s" if cores == "all" else "Mframes per CPU-second"
            names: dict[str, dict[int, Row]] = {}
            for row in result.records:
                here = row.get("direction") == way and row.get("cores") == cores and "ring" not in row
                name = next(str(row[key]) for key in ("path", "peer", "floor") if key in row)
                if here and metric in row:
                    names.setdefault(name, {}).setdefault(row["frame"], row[metric])
            series = Series(
                f"throughput-{DIRECTIONS.index(way)}-{cores}", f"{way}, cores {cores}",
                f"mean frame of {options.traffic_name}, bytes" if options.traffic else "frame, bytes", list(options.frames), label,
                "line" if len(options.frames) > 2 else "bar", log=len(options.frames) > 2,
            )  # fmt: skip
            for name, by_frame in names.items():
                _add(series, name, [by_frame.get(frame) for frame in options.frames])
            result.series.append(series)
