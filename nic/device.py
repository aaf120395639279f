"""The NIC process: takes contexts from the hypervisor, runs the engines, serves the wire's operations on its console.

It trusts the hypervisor, which it shares the machine with, and nothing that a driver writes.
"""

import asyncio
import logging
import math
import os
import time
from contextlib import suppress
from typing import Any

from hyp import lost_memory
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.features import NIC_OFFERS, unoffered
from hyp.abi.frame import MIN_TEST_FRAME
from hyp.abi.nic import LINK_HEADER, PAGE, SQ_PROD, mac_to_int
from hyp.abi.platform import ENGINE_BYTES, PLATFORM_BYTES
from hyp.abi.sizes import MAX_GBPS, MIN_GBPS
from hyp.control import Handler, Refused, close_all
from hyp.control.descriptors import close_shared
from hyp.counters import CounterPage
from hyp.fairness.patience import GRACE_NS
from hyp.fairness.waking import KeptFair
from hyp.load.frames import keep_for, tracker_report
from hyp.load.schedule import MAX_RATE
from hyp.memory import MappedOnce, Mapping
from hyp.process import Process
from hyp.trace.points import TracePoints
from nic.build import Crossings, EngineState
from nic.captures import ENDLESS, WireCaptures
from nic.doorbell import Hushed
from nic.engine import (
    DRAIN_CONTEXT,
    FILTER,
    GENERATE,
    GO,
    MAIL,
    NOTHING,
    RESUME_CONTEXT,
    START_CONTEXT,
    STOP_CONTEXT,
    WIRE_MODE,
    run,
)
from nic.kept import Kept, kept_bytes
from nic.state import REFLECT, SINK, TAP
from nic.switch import MAX_FILTERS
from nic.wire.tap import open_wire

log = logging.getLogger(__name__)

WIRE_MODES = {"sink": SINK, "reflect": REFLECT, "generate": SINK, "replay": SINK, "record": SINK, "tap": TAP}
MAX_DELAY_US = 1_000_000
SETTLE_S = 1.0
DRAIN_S = 1.0
"""How long a context that is to go may take to send what has been posted: a receiver that has no buffers is waited for."""


def is_before(index: int, other: int) -> bool:
    """Of free-running 32-bit indices that are less than 2^31 apart."""
    return (index - other) & 0x8000_0000 != 0


class Nic:
    """The device: its engines, its contexts, its filters."""

    def __init__(self, process: Process, config: dict[str, Any]) -> None:
        self._config, self._process = config, process
        self._engines: list[EngineState] = []
        self._hushed: list[Hushed] = []
        self._mappings: dict[int, list[Mapping]] = {}
        self._ram = MappedOnce()
        self._generations: dict[int, int] = {}  # of the contexts that there are
        self._started: set[int] = set()
        self._setup = asyncio.Lock()  # a guest's calls may overtake each other; what they do to a context must not
        self._filters: dict[int, int] = {}  # MAC → context
        self._gbps, self._delay_us = 0.0, 0
        handlers: dict[str, Handler] = {
            "context_create": self.context_create, "context_start": self.context_start,
            "context_destroy": self.context_destroy, "context_settle": self.context_settle, "filter_change": self.filter_change,
            "ram_let_go": self._ram.let_go,
        }  # fmt: skip
        self._trace = TracePoints(process)
        self._hyp = process.hypercalls(handlers, takes_fds=frozenset({"context_create"}))
        for handler in (self.wire_mode, self.wire_generate, self.wire_expect, self.wire_report, self.threads, self.pin):
            process.serve(handler.__name__, handler)

    async def start(self) -> None:
        """Register with the hypervisor and start the engines."""
        engines = int(self._config["engines"])
        reply = await self._hyp.call("nic_register", engines=engines, kept=kept_bytes(engines), mtu=int(self._config["mtu"]))
        counters_fd, platform_fd, kept_fd, *rest = reply.fds
        self._counters = CounterPage(Mapping.adopt(counters_fd, COUNTERS_BYTES))
        platform = Mapping.adopt(platform_fd, PLATFORM_BYTES, writable=False)
        memory = Mapping.adopt(kept_fd, kept_bytes(engines), populate=False)
        kept = Kept(memory, engines, resumed=self._config.get("restarts", 0) > 0)
        self._crossings, self._settings = Crossings(engines, kept), kept.settings
        wire = self._config["wire"]
        tap = open_wire(wire, int(self._config["mtu"]), self._config["neighbours"]) if wire["mode"] == "tap" else -1
        for index in range(engines):
            page_fd, epoll, shootdown_fd = rest[3 * index : 3 * index + 3]
            page = Mapping.adopt(page_fd, ENGINE_BYTES)
            state = EngineState(index, self._crossings, kept, page, platform, shootdown_fd, epoll)
            limits = {name: int(self._config[name]) for name in ("pause_us", "mtu", "storm_pps")}
            state.configure(self._counters, self._config["wire"]["mac"], **limits)
            state.engine.wake_on(int(self._crossings.kicks[index]))
            if tap >= 0:
                state.attach_tap(tap)
            self._engines.append(state)
            self._trace.add(state.engine, state.waiting)
            self._hushed.append(Hushed(state, self._hush))
            KeptFair(state.notifier)
        self._captures = WireCaptures(self._process, self._engines, kept, wire, int(self._config["mtu"]))
        for state in self._engines:
            state.engine.start(run, state.address, mail=MAIL)
        for state, cpus in zip(self._engines, self._config["engine_cpus"], strict=False):
            state.engine.pin(cpus)
        if kept.resumed:
            self._gbps, self._delay_us = float(kept.settings[0]), int(kept.settings[1])
        else:
            await self.wire_mode(wire["mode"], wire.get("gbps", 0.0), wire.get("delay_us", 0))
        await self._hyp.call("nic_ready")  # in which contexts are handed over, if there are any
        if kept.resumed:
            for state in self._engines:
                await state.engine.post(GO)

    # -- the hypervisor's operations --

    async def context_create(
        self,
        fds: list[int],
        context: int,
        generation: int,
        name: str,
        memory: int,
        mac: str,
        privileged: bool,
        passthrough: bool,
        first: int,
        queue: int,
        fresh: bool,
        doorbell_data: int,
    ) -> dict[str, int]:
        """Map what a context needs; answers what the device offers it. It is number `queue` of those whose first is `first`.

        `fresh`: its domain has had no context for that queue yet. `doorbell_data`: what its doorbell's events carry.
        fds: RAM (read-write), IOMMU table (read-only), doorbell page, completion eventfd. The same is answered once more to who
        asks again, because the NIC has died over the first answer.
        """
        if self._generations.get(context) == generation:
            close_all(fds)
            return {"features": int(NIC_OFFERS)}
        ram_fd, iommu_fd, doorbell_fd, completion_fd = fds
        try:
            ram, doorbell = self._ram.map(name, ram_fd, memory), Mapping(doorbell_fd, PAGE)
            iommu = Mapping(iommu_fd, memory // PAGE * 8, writable=False)
            counts, shared = self._counters.row(f"ctx{context}:{name}")
        except Exception:  # the guest has cut its RAM short, or we are out of something
            close_all(fds)
            raise
        self._mappings[context] = [ram, iommu, doorbell]
        for index, state in enumerate(self._engines):
            record = state.clear(context, first, fresh=fresh)
            state.count_in(context)
            record["generation"], record["first"], record["queue"] = generation, first, queue
            record["engine"], record["mine"] = self._owner(context), index == self._owner(context)
            record["privileged"], record["passthrough"], record["mac"] = privileged, passthrough, mac_to_int(mac)
            record["shared"] = privileged
            record["ram"], record["ram_pages"] = ram.address, memory // PAGE
            record["iommu"], record["iommu_pages"] = iommu.address, memory // PAGE
            record["doorbell"], record["completion_fd"] = doorbell.address, completion_fd
            record["doorbell_data"] = doorbell_data
            record["counts"], record["counts_shared"] = counts, shared
        for fd in (ram_fd, iommu_fd, doorbell_fd):
            os.close(fd)
        self._generations[context] = generation
        return {"features": int(NIC_OFFERS)}

    async def context_start(
        self,
        context: int,
        generation: int,
        resume: bool,
        features: int,
        sq: int,
        scq: int,
        rq: int,
        rcq: int,
        sq_size: int,
        rq_size: int,
    ) -> None:
        """Serve a context from now on; its driver uses `features`. Refused if it has been started before, or is gone.

        `resume`: a NIC that died has served it, so go on where that one stopped.
        """
        if wrong := unoffered(NIC_OFFERS, features):
            raise Refused("EINVAL", f"context {context}: features {wrong:#x} have not been offered")
        queues = {"sq": sq, "scq": scq, "rq": rq, "rcq": rcq, "sq_size": sq_size, "rq_size": rq_size, "features": features}
        async with self._setup:
            self._check(context, generation)
            if context in self._started:
                raise Refused("EBUSY", f"context {context} has been started already")
            record = self._engines[0].contexts[context]
            mac, queue, before = int(record["mac"]), int(record["queue"]), self._queues(int(record["first"]))
            if queue != before:
                raise Refused("EINVAL", f"context {context} is queue {queue}, and {before} are started: they start in their order")
            self._started.add(context)
            for state in self._engines:
                for name, value in queues.items():
                    state.contexts[context][name] = value
            moves = self._filters.get(mac) not in (None, context) and not resume  # its guest: the toolstack says when
            if mac and queue == 0 and not moves:
                await self._filter(mac, context)
            for state in self._engines:
                await state.engine.post(RESUME_CONTEXT if resume else START_CONTEXT, context=context)

    def _queues(self, first: int) -> int:
        """How many of a guest's contexts have been started."""
        records = self._engines[0].contexts
        return sum(int(records[number]["first"]) == first for number in self._started)

    def _check(self, context: int, generation: int) -> None:
        """Refused, if context `context` is none, or another one than was meant."""
        if self._generations.get(context) != generation:
            raise Refused("ENODEV", f"there is no generation {generation} of context {context}")

    async def context_destroy(self, context: int, generation: int, drain: bool) -> None:
        """Let go of a context: no engine touches anything of it when this returns. `drain`: first send what has been posted."""
        async with self._setup:
            self._check(context, generation)
            if drain and context in self._started:
                await self._drain(context)
            for state in self._engines:
                await state.engine.post(STOP_CONTEXT, context=context)
            self._filters = {mac: owner for mac, owner in self._filters.items() if owner != context}
            close_shared([int(self._engines[0].contexts[context]["completion_fd"])])
            self._started.discard(context)
            del self._mappings[context], self._generations[context]

    async def context_settle(self, context: int, generation: int, what: str) -> dict[str, int]:
        """Wait for frames that are under way when this is asked; answers how many completions the receive queue has been given.

        `what`: "sent", all that the context has posted, until it has left and is in no crossing; "arriving", what is for the
        context and in a crossing. Refused (ETIMEDOUT) if that takes long, as somebody has to be waited for.
        """
        self._check(context, generation)
        owner = self._engines[self._owner(context)]
        record = owner.contexts[context]
        posted = int(self._mappings[context][2].words("<u4", SQ_PROD, 1)[0]) if what == "sent" else int(record["sq_cons"])
        try:
            async with asyncio.timeout(SETTLE_S):
                while record["active"] and is_before(int(record["sq_cons"]), posted):
                    await owner.engine.post(NOTHING)  # a batch later
                for (producer, consumer), end in self._crossings.under_way(context if what == "arriving" else None).items():
                    while self._crossings.taken(producer, consumer) < end:
                        await self._engines[consumer].engine.post(NOTHING)
        except TimeoutError:
            raise Refused("ETIMEDOUT", f"context {context}: what is under way has not arrived within {SETTLE_S:g} s") from None
        self._check(context, generation)
        return {"received": int(record["rcq_prod"])}

    async def _drain(self, context: int) -> None:
        state = self._engines[self._owner(context)]
        drained = asyncio.Event()
        asyncio.get_running_loop().add_reader(state.drained_fd, drained.set)
        try:
            await state.engine.post(DRAIN_CONTEXT, context=context)
            async with asyncio.timeout(DRAIN_S):
                await drained.wait()
        except TimeoutError:
            log.warning("context %d had frames to send for longer than %g s: they are lost", context, DRAIN_S)
        finally:
            asyncio.get_running_loop().remove_reader(state.drained_fd)
            with suppress(BlockingIOError):
                os.eventfd_read(state.drained_fd)

    async def filter_change(self, context: int, generation: int, add: list[int], remove: list[int]) -> None:
        """Give MAC addresses to a context, take others away. One that another context has had is of a guest that moves."""
        async with self._setup:
            self._check(context, generation)
            for mac in remove:
                if self._filters.get(mac) == context:
                    await self._filter(mac, -1)
            for mac in add:
                if self._filters.get(mac) not in (None, context):
                    self._begin_grace(context)
                await self._filter(mac, context)

    def _begin_grace(self, first: int) -> None:
        """Let senders wait for a guest that doesn't look at its new contexts yet (hyp/fairness/patience.py)."""
        grace = time.monotonic_ns() + GRACE_NS
        for state in self._engines:
            state.contexts["grace"][state.contexts["first"] == first] = grace

    async def _filter(self, mac: int, context: int) -> None:
        if context >= 0 and mac not in self._filters and len(self._filters) >= MAX_FILTERS:
            raise Refused("ENOSPC", f"the embedded switch has all its {MAX_FILTERS} filters")
        self._filters[mac] = context
        for state in self._engines:
            await state.engine.post(FILTER, mac=mac, context=context)
        if context < 0:
            del self._filters[mac]

    def _hush(self, context: int) -> None:
        """Let an engine not be woken by a context's doorbell for a while."""
        if context in self._generations:
            self._hyp.tell("doorbell_hush", context=context, generation=self._generations[context])

    def _owner(self, context: int) -> int:
        return context % len(self._engines)

    # -- the wire's operations, on the console --

    async def wire_mode(self, mode: str, gbps: float | None = None, delay_us: int | None = None) -> None:
        """``sink`` or ``reflect``, or ``tap`` if it is so already; the wire's bit rate and its delay, each way. None: as it is.
        0: no limit, no delay.

        Each of the NIC's engines has an equal share of the rate. Refused (EINVAL) outside [MIN_GBPS, MAX_GBPS], [0, MAX_DELAY_US].
        """
        gbps, delay_us = self._gbps if gbps is None else gbps, self._delay_us if delay_us is None else delay_us
        if gbps != 0 and not MIN_GBPS <= gbps <= MAX_GBPS:
            raise Refused("EINVAL", f"gbps is {gbps}, neither 0 nor in [{MIN_GBPS}, {MAX_GBPS}]")
        if not 0 <= delay_us <= MAX_DELAY_US:
            raise Refused("EINVAL", f"delay_us is {delay_us}, not in [0, {MAX_DELAY_US}]")
        if mode not in WIRE_MODES:
            raise Refused("EINVAL", f"{mode!r} is not a mode of the wire; there are {', '.join(WIRE_MODES)}")
        if (mode == "tap") != (self._config["wire"]["mode"] == "tap"):
            raise Refused("EINVAL", 'whether the wire leads to the host (mode "tap") is the topology\'s to say')
        self._gbps, self._delay_us = gbps, delay_us
        self._settings[:] = gbps, delay_us
        fs_per_byte = math.ceil(8_000_000 * len(self._engines) / gbps) if gbps else 0
        for state in self._engines:
            await state.engine.post(WIRE_MODE, mode=WIRE_MODES[mode], fs_per_byte=fs_per_byte, delay_ns=delay_us * 1000)

    async def wire_generate(
        self, mac: str, frame: int, stream: int, frames: int = 0, seconds: float = 0.0, pps: int = 0, traffic: str = ""
    ) -> None:
        """Send test frames of `frame` bytes, or of a mix of sizes (hyp/load/mix.py), to `mac`: `frames` of them, or for `seconds`.

        `pps` 0: as fast as they are taken. Else frame k is due k / `pps` s after the start and stamped with that time.
        """
        longest = int(self._config["mtu"]) + LINK_HEADER
        if not MIN_TEST_FRAME <= frame <= longest:
            raise Refused("EINVAL", f"frame is {frame}, not in [{MIN_TEST_FRAME}, {longest}]")
        if not 0 <= pps <= MAX_RATE:
            raise Refused("EINVAL", f"pps is {pps}, not in [0, {MAX_RATE}]")
        context = self._filters.get(mac_to_int(mac), 0)
        engine = self._engines[self._owner(context)].engine
        count, sizes = frames if frames > 0 else ENDLESS, 0
        if traffic:
            mix = self._captures.sizes(traffic)
            sizes, frame = int(mix.ctypes.data), len(mix)
        await engine.post(
            GENERATE, mac=mac_to_int(mac), length=frame, frames=count, nanoseconds=int(seconds * 1e9), pps=pps, stream=stream,
            entries=sizes,
        )  # fmt: skip

    def wire_expect(self, stream: int, mac: str | None) -> None:
        """The stream comes from `mac`, and nobody else's frames spoil what the wire knows of it; None: that was it."""
        for state in self._engines:
            keep_for(state.trackers, stream, 0 if mac is None else mac_to_int(mac))

    def wire_report(self, stream: int) -> dict[str, Any]:
        """What the wire has seen of a stream, what the generator still has to send, summed over the engines, and how late it is."""
        reports = [tracker_report(state.trackers, stream, state.histograms) for state in self._engines]
        best = max(reports, key=lambda report: report["frames"])
        generators = [state for state in self._engines if int(state.wire[0]["stream"]) == stream]
        sending = [state.wire[0] for state in generators]
        scheduled = [state.schedule[0] for state in generators if int(state.schedule[0]["pps"])]
        lag = {name: max(int(row[name]) for row in scheduled) for name in ("lag_ns", "max_lag_ns")} if scheduled else {}
        return {
            "received": best,
            "left": sum(int(wire["left"]) for wire in sending),
            "sent": sum(int(wire["sequence"]) for wire in sending),
            **lag,
            **self._captures.report(stream),
        }

    def threads(self) -> dict[str, int]:
        """Kernel thread ids of the engines, by name."""
        return {state.engine.name: state.engine.thread_id for state in self._engines}

    def pin(self, cpus: list[int]) -> None:
        """Let the engines run on these CPUs only."""
        for state in self._engines:
            state.engine.pin(cpus)

    async def stop(self) -> None:
        """End the engines."""
        for state in self._engines:
            await state.engine.stop()
        self._captures.stop()


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the NIC until the keeper says stop."""
    lost_memory.guard()
    nic = Nic(process, config)
    await nic.start()
    process.ready()
    await process.stopped.wait()
    await nic.stop()
