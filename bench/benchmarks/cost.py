"""What a frame costs on each path, and what each part of that is worth: ledger, CPU by process, ablations, registration.

``python -m bench cost [--paths …] [--frames …]``

Ablations run on one core, where no path gains from another core for its work, and in "header" payload, so that Dom0's hop can be
had without its copy (hyp/model/ablation.py).
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.benchmarks.registration import registration
from bench.method.claims import Claim
from bench.method.contenders import TO_WIRE, LabBench, guest_names, probe_of, stream_slice
from bench.method.options import Options
from bench.method.progress import Steps, parts
from bench.method.samples import Figure, Samples, Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.method.verdicts import sign
from bench.report.results import BenchmarkResult, Row, Series
from hyp.abi.frame import COVERED
from hyp.paths import PATHS
from lab.figures import short
from lab.instructions import Counting, why_not
from lab.workloads import WIRE

METRICS = ("mpps", "cpu_ns_per_frame", "mframes_per_cpu_s")
INSTRUCTIONS = 1.1  # bypass ÷ native, at most
NOTIFICATIONS = 0.02
LINE_GBPS, LINE_FRAME = 10.0, 1500
TITLE = "Cost of a frame"
ABOUT = (
    "One core, guest to wire. The ledger says what a frame met on its way; CPU of each process is the kernel's figure. The 2 × 2 "
    "ablation takes Dom0's hop and the grant copy apart: a bypass guest that copies once more, and a split path whose netback "
    "copies the header only. Hold-off off: every consumer asks for a notification of every batch. Persistent grants: pages are "
    "granted once and stay mapped in Dom0, so that what is left of split is the hop and its copy."
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A path with something changed."""

    name: str
    path: str
    switches: dict[str, int] = field(default_factory=dict)
    guest: str = ""  # the path's first, by default

    @property
    def sender(self) -> str:
        """The guest that sends."""
        return self.guest or guest_names(self.path, 1)[0]


HOP_AND_COPY = (
    Variant("bypass", "bypass"),
    Variant("bypass + copy", "bypass", {"bounce": 1}),
    Variant("split − copy", "split", {"copy_limit": COVERED}),
    Variant("split", "split"),
)
HOLD_OFF = (
    Variant("bypass", "bypass"),
    Variant("bypass, no hold-off", "bypass", {"keep_armed": 1}),
    Variant("split", "split"),
    Variant("split, no hold-off", "split", {"keep_armed": 1}),
)
PERSISTENT = {"name": "persistent0", "path": "split", "grants": "persistent"}
GRANTS = (
    Variant("bypass", "bypass"),
    Variant("split", "split"),
    Variant("split, persistent grants", "split", guest="persistent0"),
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """The ledger of every path asked for, then the ablations and the cost of registration."""
    streams, registrations = parts(progress, ["streams", "registration"])
    paths = list(dict.fromkeys([*options.paths, "bypass", "split"]))
    async with LabBench("cost", paths, others=[PERSISTENT]) as lab:
        with probe_of("1") as one, probe_of("all") as every:
            places = [place for frame in options.frames for place in _places(options, lab, frame, one)]
            line_rate = _line_rate_point(lab, options.paths, every)
            await study(
                [*(place.point for place in places), line_rate], rounds=options.rounds, seconds=options.slice_s,
                budget_s=options.budget_s, progress=streams, renew=lab.renew,
            )  # fmt: skip
        for place in places:
            _records(result, place)
            place.report(result, place.point.samples, int(place.point.where["frame"]))
        _line_rate(result, options.paths, line_rate)
        await registration(result, lab, registrations)


@dataclass(frozen=True, slots=True)
class Place:
    """Variants that are measured side by side, and what is said of them at a frame size."""

    point: Point
    variants: Sequence[Variant]
    report: Callable[[BenchmarkResult, Samples, int], None]


def _places(options: Options, lab: LabBench, frame: int, probe: Probe) -> list[Place]:
    """The ledger and the ablations at one frame size, on one core."""
    paths = [Variant(path, path) for path in options.paths]

    async def arrange() -> None:
        lab.use("1")

    def place(
        what: str, variants: Sequence[Variant], payload: str, report: Callable[[BenchmarkResult, Samples, int], None]
    ) -> Place:  # fmt: skip
        names = [variant.name for variant in variants]
        asked = [Question(name, names[0], "cpu_ns_per_frame") for name in names[1:]]
        contenders = [_stream(lab, variant, frame, payload) for variant in variants]
        again = "bypass" if "bypass" in names else names[0]
        point = Point(f"{what}, {frame} B", _point(frame, payload), contenders, again, probe, asked, arrange)
        return Place(point, variants, report)

    return [
        place("ledger", paths, "full", _ledger),
        place("hop × copy", HOP_AND_COPY, "header", _shares),
        place("hold-off", HOLD_OFF, "full", _hold_off),
        place("grants", GRANTS, "full", _persistent),
    ]


def _records(result: BenchmarkResult, place: Place) -> None:
    """What each variant did, and what it takes more than the first; once, if several places have it."""
    samples, where = place.point.samples, place.point.where
    seen = {(row.get("path"), row.get("frame"), row.get("payload")) for row in result.records}
    for variant in place.variants:
        details = samples.details(variant.name)
        more = {key: details[-1][key] for key in ("per_frame", "processes", "trap_ns") if details and key in details[-1]}
        if (variant.name, where["frame"], where.get("payload")) not in seen:
            counted = [name for name in samples.metrics(variant.name) if name == "instructions_per_frame"]
            result.take(samples, variant.name, {"path": variant.name}, where, [*METRICS, *counted], **more)
    compared = {(row["of"], row["to"], row["metric"], row["frame"], row.get("payload")) for row in result.ratios}
    for question in place.point.questions:  # what the ledger's slices have said is not said again, a little differently
        if (question.of, question.to, question.metric, where["frame"], where.get("payload")) not in compared:
            result.compare(samples, question.of, question.to, question.metric, where)


def _point(frame: int, payload: str) -> Row:
    return {"direction": TO_WIRE, "frame": frame, "cores": "1", **({"payload": payload} if payload != "full" else {})}


def _stream(lab: LabBench, variant: Variant, frame: int, payload: str) -> Contender:
    load = {"kind": "stream", "from": variant.sender, "to": WIRE, "frame": frame, "frames": None, "payload": payload}

    async def run(seconds: float) -> Slice:
        await lab.lab.call("hyp", "ablate", **variant.switches)
        try:
            if variant.path in ("native", "bypass") and why_not() is None:
                with Counting([lab.runner.pids[process] for process in (variant.sender, "nic")]) as counting:
                    record = await lab.runner.run({**load, "seconds": seconds})
                    instructions = counting.total()
            else:
                record, instructions = await lab.runner.run({**load, "seconds": seconds}), 0
        finally:
            await lab.lab.call("hyp", "ablate")
        found = stream_slice(record)
        if not found.errors:
            found.figures["notifications_per_frame"] = record["per_frame"]["notifications"]
        if instructions and not found.errors:
            found.figures["instructions_per_frame"] = instructions / record["frames"]
        return found

    return Contender(variant.name, run)


def _ledger(result: BenchmarkResult, samples: Samples, frame: int) -> None:
    _processes(result, samples, frame)
    _validation(result, samples, frame)


def _validation(result: BenchmarkResult, samples: Samples, frame: int) -> None:
    """What it is worth that the device looks every address up: native is bypass without that."""
    where = f"{frame} B, one core"
    cost = {path: samples.figure(path, "cpu_ns_per_frame").median for path in ("native", "bypass")}
    if cost["native"] is None or cost["bypass"] is None:
        return
    ratio = samples.ratio("bypass", "native", "cpu_ns_per_frame")
    result.notes.append(
        f"{where}: validation (every address through the IOMMU table) on, bypass, {short(cost['bypass'])} ns per frame; "
        f"off, native, {short(cost['native'])} ns ({ratio.verdict} 1, {ratio.count})"
    )
    reason = why_not()
    if reason is not None:
        note = f"instructions per frame: not counted, {reason}"
        result.notes += [note] if note not in result.notes else []
        return
    ratio = samples.ratio("bypass", "native", "instructions_per_frame")
    result.claims.append(Claim.about(f"instructions per frame, bypass ÷ native, {where}", ratio, INSTRUCTIONS, at_least=False))


def _processes(result: BenchmarkResult, samples: Samples, frame: int) -> None:
    """Which process a frame's CPU time goes to; the hypervisor's part in `trapped`'s trap."""
    series = Series(f"processes-{frame}", f"CPU of each process, {frame} B to the wire, one core", "process",
                    ["guest", "dom0", "hyp", "nic"], "ns per frame", "bar")  # fmt: skip
    for path in PATHS:
        details = [detail["processes"] for detail in samples.details(path)]
        if not details:
            continue
        names = {"guest": guest_names(path, 1)[0], "dom0": "dom0", "hyp": "hyp", "nic": "nic"}
        values = {what: statistics.median(detail[name] for detail in details) for what, name in names.items()}
        series.add(path, list(values.values()))
        if path == "bypass":
            for name in ("dom0", "hyp"):
                text = f"CPU of {name}, ns per frame on bypass, {frame} B"
                result.claims.append(Claim.counted(text, round(values[name], 1), "≤", 1.0))
        if path == "trapped":
            waits = [detail["trap_ns"] for detail in samples.details(path) if detail.get("trap_ns")]
            if waits:
                wait = f"{statistics.median(waits) / 1000:.1f} µs"
                result.notes.append(
                    f"{frame} B: an emulated trap cost the guest {wait} (one core; a hand-over to the hypervisor's process and "
                    "back, not a VM exit, which takes about 1 µs on today's CPUs: set [model] price to add to it)"
                )
    result.series.append(series)


def _shares(result: BenchmarkResult, samples: Samples, frame: int) -> None:
    """Of the CPU that split takes more than bypass: what the hop is worth and what the copy, each with its interval."""
    where = f"{frame} B, header-only streams (the first {COVERED} bytes are written and checked), one core"
    if frame <= COVERED:
        result.notes.append(f"{where}: the copy is of the header itself, and can't be left out: no shares")
        return
    names = [variant.name for variant in HOP_AND_COPY]
    metric = "cpu_ns_per_frame"
    gain = samples.made(names, metric, lambda cpu: cpu[3] - cpu[0])
    if sign(gain) <= 0:
        result.notes.append(f"{where}: what split takes more than bypass is not known: {_span(gain)} ns per frame")
        return
    shares = {
        "Dom0's hop without its copy": samples.made(names, metric, lambda cpu: (cpu[2] - cpu[0]) / (cpu[3] - cpu[0])),
        "the copy, in Dom0": samples.made(names, metric, lambda cpu: (cpu[3] - cpu[2]) / (cpu[3] - cpu[0])),
        "as much copied in a bypass guest": samples.made(names, metric, lambda cpu: (cpu[1] - cpu[0]) / (cpu[3] - cpu[0])),
    }
    words = "; ".join(f"{what} {_span(share, percent=True)}" for what, share in shares.items())
    result.notes.append(f"{where}: split takes {_span(gain)} ns of CPU more per frame than bypass. Of that: {words} ({gain.count})")


def _span(figure: Figure, *, percent: bool = False) -> str:
    """A figure with its 95 % interval."""
    if figure.median is None:
        return "no figure"
    show = (lambda value: f"{value:.0%}") if percent else short
    if figure.low is None or figure.high is None:
        return f"{show(figure.median)} (no interval)"
    return f"{show(figure.median)} ({show(figure.low)} to {show(figure.high)})"


def _hold_off(result: BenchmarkResult, samples: Samples, frame: int) -> None:
    for variant in HOLD_OFF:
        figure = samples.figure(variant.name, "notifications_per_frame")
        details = samples.details(variant.name)
        if variant.switches:
            result.compare(samples, variant.name, variant.path, "notifications_per_frame", _point(frame, "full"))
            result.notes.append(f"notifications per frame, {variant.name}, {frame} B, one core: {_span(figure)}")
        elif details:
            value = max(detail["per_frame"]["notifications"] for detail in details)
            text = f"notifications per frame, {variant.name}, {frame} B, one core"
            result.claims.append(Claim.counted(text, value, "≤", NOTIFICATIONS))


def _persistent(result: BenchmarkResult, samples: Samples, frame: int) -> None:
    """What is saved by granting a page once: CPU, and hypercalls, of the same hop with the same copies."""
    _, split, kept = (variant.name for variant in GRANTS)
    result.compare(samples, kept, split, "cpu_ns_per_frame", _point(frame, "full"))
    ratio = samples.ratio(kept, split, "cpu_ns_per_frame")
    cost = [samples.figure(name, "cpu_ns_per_frame").median for name in (split, kept)]
    ledgers = [samples.details(name)[-1]["per_frame"] for name in (split, kept) if samples.details(name)]
    if ratio.median is None or None in cost or len(ledgers) < 2:
        return
    calls, copies = ([ledger[what] for ledger in ledgers] for what in ("hypercalls", "copies"))
    result.notes.append(
        f"{frame} B, one core: split takes {cost[0]:.0f} CPU ns per frame, with persistent grants {cost[1]:.0f} (median of pairs: "
        f"× {ratio.median:.3f}); hypercalls per frame {calls[0]:.4f} and {calls[1]:.4f}, "
        f"payload copies {copies[0]:.2f} and {copies[1]:.2f}"
    )


def _line_rate_point(lab: LabBench, paths: Sequence[str], probe: Probe) -> Point:
    """CPU of the whole machine while the wire, not the path, sets the pace: what CDNA calls CPU at line rate. Nobody spins."""
    where: Row = {"direction": TO_WIRE, "mode": f"{LINE_GBPS:g} Gbit/s wire", "frame": LINE_FRAME, "cores": "all"}
    asked = [Question(path, "bypass", "cores_used") for path in paths if path != "bypass"] if "bypass" in paths else []

    async def arrange() -> None:
        lab.use("all", spin_us=0)

    again = "bypass" if "bypass" in paths else paths[0]
    return Point("line rate", where, [_at_line_rate(lab, path) for path in paths], again, probe, asked, arrange)


def _line_rate(result: BenchmarkResult, paths: Sequence[str], point: Point) -> None:
    for path in paths:
        result.take(point.samples, path, {"path": path}, point.where, ("gbps", "cores_used"))
    for question in point.questions:
        result.compare(point.samples, question.of, question.to, question.metric, point.where)


def _at_line_rate(lab: LabBench, path: str) -> Contender:
    guest = guest_names(path, 1)[0]
    load = {"kind": "stream", "from": guest, "to": WIRE, "frame": LINE_FRAME, "frames": None}

    async def run(seconds: float) -> Slice:
        await lab.lab.call("nic", "wire_mode", mode="sink", gbps=LINE_GBPS)
        try:
            record = await lab.runner.run({**load, "seconds": seconds})
        finally:
            await lab.lab.call("nic", "wire_mode", mode="sink", gbps=0.0)
        if record["errors"]:
            return Slice(errors=record["errors"])
        return Slice({"gbps": record["gbps"], "cores_used": record["cpu_us_per_frame"] * record["mpps"]})

    return Contender(path, run)
