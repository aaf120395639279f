"""Paths at settings, as contenders: labs that are started when they are first needed, and slices that say who used the CPU."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from bench.method.contenders import BETWEEN, FROM_WIRE, TO_WIRE, LabBench, guest_names, probe_of, stream_slice
from bench.method.probe import MachineProbe
from bench.method.samples import Slice
from bench.method.slices import Contender
from bench.questions.settings import SUITED, Setting
from lab.placement import Placement
from lab.workloads import WIRE, Workload

ROLES = {"guests": "", "dom0": "dom0", "hyp": "hyp", "device": "nic"}
"""Who uses the CPU, and in which process; the guests' are all others."""
LATENCIES = ("p50", "p99")
PERSISTENT = "split, persistent grants"
KINDS: dict[str, dict[str, Any]] = {
    **{mode: {"path": "split", "grants": mode} for mode in ("map", "persistent")},
    **{strategy: {"path": "bypass", "iommu": strategy} for strategy in ("strict", "deferred", "copy")},
}
"""Guests that are not their path's usual ones: what their names begin with, and what they have in the topology."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A path with something changed, under a name of its own: an ablation more, or guests of another kind."""

    name: str
    path: str
    ablation: str | None = None
    guests: str = ""  # the beginning of their names, where they are not the path's own


def role_metric(role: str) -> str:
    """The figure of a slice that is the CPU time of one role, in ns per frame."""
    return f"{role}_cpu_ns"


class Labs:
    """The labs of a question, one for each topology, all up at a time. ``async with Labs(paths, kinds)``, `kinds` of KINDS."""

    def __init__(self, paths: Sequence[str], kinds: Iterable[str] = ()) -> None:
        self.paths, self._kinds = list(paths), list(kinds)
        self._up: dict[tuple[int, int, int], LabBench] = {}
        self._probes: dict[str, MachineProbe] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def at(self, setting: Setting) -> LabBench:
        """The lab of a setting, started now if it is not up."""
        key = setting.topology
        if key not in self._up:
            guests, queue, engines = key
            others = [{"name": f"{kind}{number}", **KINDS[kind]} for kind in self._kinds for number in range(guests)]
            name = f"ask-{'-'.join(map(str, key))}"
            more: dict[str, Any] = {"nic": {"queue": queue, "engines": engines}}
            lab = LabBench(name, self.paths, guests=max(2, guests), queue=queue, others=others, **more)
            self._up[key] = await self._stack.enter_async_context(lab)
        return self._up[key]

    def probe(self, cores: str) -> MachineProbe:
        """A probe of a core set."""
        if cores not in self._probes:
            self._probes[cores] = self._stack.enter_context(probe_of(cores))
        return self._probes[cores]

    def contender(self, setting: Setting, variant: Variant, metric: str) -> Contender:
        """A path, or a variant of it, at a setting. For a latency in a closed loop it makes round trips, else streams."""
        ablated = setting if variant.ablation is None else replace(setting, ablation=variant.ablation)
        trips = metric.startswith(LATENCIES) and not setting.load
        sliced: Callable[[dict[str, Any]], Slice] = _trips if trips else _stream
        made: dict[str, Contender] = {}

        async def ready() -> Contender:
            lab = await self.at(setting)
            lab.use(setting.cores)
            await lab.lab.call("hyp", "ablate", **ablated.switches)
            await lab.lab.call("hyp", "price", **setting.prices)
            if not made:
                placement = None if setting.placement == SUITED else Placement(setting.placement)
                loads = _loads(setting, variant, trips)
                made[""] = lab.streams(variant.name, variant.path, loads, sliced, placement, suited=not trips)
            return made[""]

        async def run(seconds: float) -> Slice:
            contender = await ready()
            try:
                return await contender.run(seconds)
            finally:
                if ablated.switches:
                    await (await self.at(setting)).lab.call("hyp", "ablate")

        async def prepare() -> None:
            contender = await ready()
            if contender.prepare is not None:
                await contender.prepare()

        return Contender(variant.name, run, prepare=prepare)


def _loads(setting: Setting, variant: Variant, trips: bool) -> list[Workload]:
    kind = variant.guests or (setting.kind if variant.path == "split" else None) or variant.path
    names = guest_names(kind, max(2, setting.guests))
    ends = {TO_WIRE: (None, WIRE), FROM_WIRE: (WIRE, names[0]), BETWEEN: (names[0], names[1])}[setting.direction]
    load: Workload = {
        "kind": "rr" if trips else "stream", "to": ends[1], "frame": setting.frame, "frames": None, "payload": setting.payload,
    }  # fmt: skip
    if setting.load:
        load["pps"] = round(setting.load * 1e6)
    senders = names[: setting.guests] if ends[0] is None else [ends[0]]
    return [{**load, "from": sender} for sender in senders]


def _stream(record: dict[str, Any]) -> Slice:
    """A stream's slice, with who used the CPU; and the latencies, if frames were due by the clock."""
    found = stream_slice(record)
    if not found.errors:
        found.figures |= _by_role(found.detail["processes"])
        found.figures |= {f"per_frame_{name}": value for name, value in record["per_frame"].items()}
        if record.get("latency"):
            found.figures |= {f"{name}_us": record["latency"][name] / 1000 for name in (*LATENCIES, "p999")}
    return found


def _trips(record: dict[str, Any]) -> Slice:
    if record["errors"] or not record["rtt_us"]:
        return Slice(errors=record["errors"] or ["no round trip was answered"])
    found = stream_slice(record)
    found.figures |= _by_role(found.detail["processes"])
    found.figures |= {f"per_frame_{name}": value for name, value in record["per_frame"].items()}
    found.figures |= {f"{name}_us": record["rtt_us"][name] for name in (*LATENCIES, "p999")}
    return found


def _by_role(processes: dict[str, float]) -> dict[str, float]:
    known = {process: role for role, process in ROLES.items() if process}
    found = dict.fromkeys(map(role_metric, ROLES), 0.0)
    for process, cpu in processes.items():
        found[role_metric(known.get(process, "guests"))] += cpu
    return found
