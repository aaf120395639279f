"""Unmodified programs between TAP guests of each path, beside a veth pair and what pumps frames between two TAPs; and by the wire.

``python -m bench programs [--paths split,bypass,trapped] [--seconds 3]``

Servers stay up; clients run in turns, a slice each. What a slice cost is CPU time, the kernel's included: of the client, from its
start to its end (wait4(2)); of the server, of every process of the contender (a lab's are all of the lab) and of ksoftirqd from
before the client to after it (/proc/<pid>/task/*/schedstat). An interrupt's share is in the time of whoever it interrupted.
"""

import functools
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from bench.method.contenders import probe_of
from bench.method.estimate import median
from bench.method.options import Options
from bench.method.progress import Steps, parts
from bench.method.samples import Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.peers import PeerError
from bench.programs.ends import Ends, PumpEnds, RelayEnds, WireEnds, ends
from bench.programs.placement import CLIENT_END, SERVER_END, TOGETHER, best_placement
from bench.programs.running import Server, softirq_threads
from bench.programs.suite import IperfTcp, Program, once, programs
from bench.report.results import BenchmarkResult, Row, Series
from lab.accounting import spent, usages
from lab.errors import LabError

SLICE_S, TRIAL_S = 0.3, 0.15
PATHS = ("bypass", "split", "trapped")
PUMP, RELAY = PumpEnds.name, RelayEnds.name
BETWEEN_GUESTS, BY_THE_WIRE = "guest↔guest", "wire↔guest"
TARGETS: dict[str, tuple[Question, ...]] = {
    "iperf3 TCP": (
        Question("bypass", "pump", "gbps", 0.8),
        Question("bypass", "veth", "gbps", 0.5),
        Question("split", "pump", "gbps", 0.5),
        Question("split", "veth", "gbps", 0.35),
        Question("split", "bypass", "cpu_ns_per_byte", 1.3),
    ),
}
"""What ratios are to be. Of other programs: bypass ÷ split is above 1; of those in `NEAR_THE_FLOORS`, bypass ÷ pump and relay."""
CPU_SHARE = TARGETS["iperf3 TCP"][-1]
ON_ONE_CPU = IperfTcp(5204)
"""Whose CPU per byte is held against each other in one placement, too: the fastest one is not always the cheapest."""
NEAR_THE_FLOORS = ("redis", "nginx", "TCP round trip")
FLOOR_SHARE = 0.9
SMALLEST_SHARE = 0.005

TITLE = "Programs"
ABOUT = (
    "Unmodified programs between two TAP guests: iperf3, TCP round trips of one byte, nginx asked by wrk (16 connections, 1 kB), "
    "redis (GET by 10 clients, alone and pipelined). Beside the paths: a veth pair, and the pump, one process that reads frames "
    "from one TAP and writes them to another, with the same offloads: what any TAP guest is bound by; and the relay, three "
    "processes that do no more, as guests and device are three: what TAP guests that are processes are bound by. Between guests "
    "both split and bypass have one process in between, Dom0 or the NIC; so the same again with the client on a machine beyond "
    "the NIC's wire, where split has Dom0 and the NIC in between, and bypass the NIC. Servers stay up, clients take turns. CPU per "
    "byte or request is that of client, server and whatever carries the frames, the kernel's time included."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Every program that is here, on every contender that can be had."""
    async with AsyncExitStack() as stack:
        paths = [path for path in PATHS if path in options.paths]
        live = await _started(result, stack, ends(paths))
        beyond = await _started(result, stack, [WireEnds(path) for path in paths], BY_THE_WIRE)
        wanted = []
        for program in programs():
            if (reason := program.missing()) is None:
                wanted.append(program)
            else:
                result.notes.append(f"{program.name}: left out: {reason}")
        if live and wanted:
            await _measure(result, options, progress, stack, {BETWEEN_GUESTS: live, BY_THE_WIRE: beyond}, wanted)


async def _started(
    result: BenchmarkResult, stack: AsyncExitStack, contenders: Sequence[Ends], where: str = BETWEEN_GUESTS
) -> list[Ends]:
    """The contenders that can be had, up until `stack` is closed; a note for each that can't."""
    live = []
    for one in contenders:
        reason = one.missing()
        if reason is None:
            stack.push_async_callback(one.stop)
            try:
                await one.start()
                live.append(one)
            except (PeerError, LabError) as error:
                reason = str(error)
        if reason is not None:
            name = one.name if where == BETWEEN_GUESTS else f"{one.name}, {where}"
            result.notes.append(f"{name}: left out: {reason}")
    return live


async def _measure(
    result: BenchmarkResult,
    options: Options,
    progress: Steps,
    stack: AsyncExitStack,
    live: Mapping[str, Sequence[Ends]],
    wanted: Sequence[Program],
) -> None:
    notes = list(result.notes)
    seconds = min(SLICE_S, options.seconds)
    rounds = replace(options, slice_s=seconds).rounds
    with probe_of("all") as probe:
        points = []
        for where, contenders in ((where, those) for where, those in live.items() if those):
            points += [_point(program, where, contenders, stack, probe) for program in wanted]
            bytes_ = [ON_ONE_CPU] if ON_ONE_CPU.name in [program.name for program in wanted] else []
            points += [_point(program, where, contenders, stack, probe, TOGETHER) for program in bytes_]
        found = functools.partial(_report, result, points, live, notes)
        (part,) = parts(progress, ["programs"])
        await study(points, rounds=rounds, seconds=seconds, budget_s=options.budget_s, progress=part, found=found)
    shown = [point for point in points if (point.where["direction"], point.where["cores"]) == (BETWEEN_GUESTS, "all")]
    _plots(result, shown, live[BETWEEN_GUESTS])


def questions(program: Program, where: str) -> list[Question]:
    """What is asked of a program's figures."""
    if program is ON_ONE_CPU:
        return [CPU_SHARE]
    if where == BY_THE_WIRE:
        cheaper = [CPU_SHARE] if program.cost == CPU_SHARE.metric else []
        return [Question("bypass", "split", program.rate), *cheaper]
    if program.name in TARGETS:
        return list(TARGETS[program.name])
    floors = (PUMP, RELAY) if program.name.startswith(NEAR_THE_FLOORS) else ()
    near = [Question("bypass", floor, program.rate, FLOOR_SHARE) for floor in floors]
    return [Question("bypass", "split", program.rate), *near]


def _point(
    program: Program, where: str, live: Sequence[Ends], stack: AsyncExitStack, probe: Probe, placement: str | None = None
) -> Point:
    """All contenders with one program, whose servers are started at the first visit; all in one placement, or each in its best."""
    runs = [_Runs(program, one, stack, placement) for one in live]
    names = [one.name for one in live]
    asked = [one for one in questions(program, where) if one.of in names and one.to in names]
    again = "bypass" if "bypass" in names else names[0]
    place: Row = {"program": program.name, "direction": where, "cores": "all" if placement is None else "1"}
    title = f"{program.name}, {where}" + ("" if placement is None else f", {placement}")
    return Point(title, place, [one.contender() for one in runs], again, probe, asked)


class _Runs:
    """One program on one contender."""

    def __init__(self, program: Program, ends: Ends, stack: AsyncExitStack, placement: str | None) -> None:
        self._program, self._ends, self._stack, self._given = program, ends, stack, placement
        self._server: Server | None = None
        self._failure = "its server was not started"
        self._per_s = program.first_per_s
        self._placement = placement or ends.placements[0]

    def contender(self) -> Contender:
        """As the method takes it."""
        return Contender(self._ends.name, self.slice, self._ends.kind, self.prepare)

    async def prepare(self) -> None:
        """Start the server, which stays; learn from short runs how much fills a slice and, if none is given, the best placement."""
        try:
            self._server = await self._program.serve(self._ends)
            self._stack.callback(self._server.stop)
            await self._once(TRIAL_S)
            if self._given is None:
                self._placement = await best_placement(self._ends.placements, self._trial)
        except PeerError as error:
            self._failure = str(error)

    async def _trial(self, placement: str) -> float:
        self._placement = placement
        return (await self._once(TRIAL_S)).figures[self._program.rate]

    async def slice(self, seconds: float) -> Slice:
        """A run of the client, and what it cost."""
        if self._server is None:
            return Slice(errors=[self._failure])
        try:
            return await self._once(seconds)
        except PeerError as error:
            return Slice(errors=[str(error)])

    async def _once(self, seconds: float) -> Slice:
        assert self._server is not None
        self._ends.place(self._placement, self._server.pid)
        pids = {**self._ends.processes(), "server": self._server.pid, **softirq_threads()}
        before = usages(pids)
        reading, client = await once(self._program, self._ends, seconds, self._per_s)
        used = {**spent(usages(pids), before), "client": client}
        self._per_s = (reading.moved + reading.lost) / reading.seconds
        figures = self._program.figures(reading, sum(use.cpu_ns for use in used.values()))
        unit = 1e3 if self._program.cost == "cpu_us_per_request" else 1.0
        shares = {name: use.cpu_ns / reading.moved / unit for name, use in used.items()}
        switches = {name: use.switches / reading.moved for name, use in used.items()}
        return Slice(figures, detail={"processes": shares, "switches": switches, "placement": self._placement})


def _report(result: BenchmarkResult, points: Sequence[Point], live: Mapping[str, Sequence[Ends]], notes: Sequence[str]) -> None:
    """All that is known so far: a record for each program and contender, ratios, and the claims."""
    result.forget()
    result.notes += notes
    for point in points:
        if not point.samples.taken:
            continue
        for one in live[point.where["direction"]]:
            more = _typical(point.samples.details(one.name))
            metrics = point.samples.metrics(one.name)
            result.take(point.samples, one.name, {one.kind: one.name}, point.where, metrics, **more)
        for question in point.questions:
            result.compare(point.samples, question.of, question.to, question.metric, point.where)
            result.claims.append(point.claim(question, _claim(point.title, question)))
    _costs(result)


def _typical(details: Sequence[Row]) -> Row:
    """What slices say beside their figures: medians by process, and the placement, which is the same for all."""
    if not details:
        return {}
    medians = {
        what: {name: median([one[what][name] for one in details if name in one[what]]) for name in details[-1][what]}
        for what in ("processes", "switches")
    }
    return {**medians, "placement": details[-1]["placement"]}


def _costs(result: BenchmarkResult) -> None:
    """A table of who takes how much of a request, and how often processes take turns for it: what a path's rate is made of."""
    rows: list[list[str]] = []
    for record in result.records:
        if not record["program"].startswith(NEAR_THE_FLOORS) or "processes" not in record:
            continue
        cpu = dict(record["processes"])
        total, client, server = sum(cpu.values()), cpu.pop(CLIENT_END), cpu.pop(SERVER_END)
        carriers = " + ".join(f"{name} {us:.3g}" for name, us in sorted(cpu.items()) if us >= SMALLEST_SHARE * total)
        name = str(record.get("path") or record.get("peer"))
        figures = [f"{client:.3g}", f"{server:.3g}", carriers or "–", f"{total:.3g}", f"{sum(record['switches'].values()):.3g}"]
        row = [record["program"], record["direction"], name, *figures, record["placement"]]
        if row not in rows:  # a record for each regime has the same
            rows.append(row)
    head = ["program", "", "", CLIENT_END, SERVER_END, "who carries it", "all", "context switches", "placement"]
    result.table("A request: who takes how much CPU time for it (µs), and how often processes take turns", head, rows)


def _claim(program: str, question: Question) -> str:
    what = "CPU per byte" if question.metric == "cpu_ns_per_byte" else "rate"
    return f"{program}: {what}, {question.of} ÷ {question.to}"


def _plots(result: BenchmarkResult, points: Sequence[Point], live: Sequence[Ends]) -> None:
    """What each program reaches on each contender, as a multiple of what it reaches on the pump."""
    names = [one.name for one in live]
    if PUMP not in names:
        return
    rates = {program.name: program.rate for program in programs()}
    titles = [point.where["program"] for point in points]
    series = Series("programs", "Programs, beside a process that pumps two TAPs", "program", titles, "÷ pump", "bar")
    for name in names:
        if name != PUMP:
            found = [point.samples.ratio(name, PUMP, rates[point.where["program"]]) for point in points]
            series.add(name, [one.median for one in found], [one.low for one in found], [one.high for one in found])
    result.series.append(series)
