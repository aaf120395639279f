"""The other ends, for tests, fuzzing and benchmarks: a NIC with its hypervisor, and drivers that behave or do not.

`Bench` runs the real NIC (`nic.device`), its engines in threads of this process or all of it in a forked one, and the real
hypervisor's tables (hyp/monitor) in this process. There is no keeper, no fork server, no xenstore, no Dom0 process. The
control plane runs on an event loop in a thread of its own, so that tests are plain functions::

    with Bench(engines=2) as bench:
        anna, bert = bench.guest(), bench.guest()
        bert.post_buffers(8)
        anna.send(anna.frame(bert.mac))
        assert bert.take(1) == [(STATUS_OK, anna.frame(bert.mac))]
        bench.at_rest()

The drivers are in tests/support/guests.py.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

import uvloop

from hyp import linux
from hyp.abi.counters import COUNTERS_BYTES, DROPS, read_rows
from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.control import Channel, Reply, close_all, socketpair
from hyp.fairness.waking import FAIR_MOST_NS
from hyp.kernels import load_all
from hyp.memory import Mapping, Region
from hyp.monitor.hypervisor import Hypervisor
from hyp.process import Process, run_role
from nic.device import Nic
from tests.support.drivers import FINISHED
from tests.support.guests import WAIT_S, WIRE_MAC, Guest, eventually
from tests.support.patience import patient

DEFAULT_RAM: Final = 1 << 20
PRIVATE_INDICES: Final = ("sq_prod", "sq_cons", "scq_prod", "scq_told", "rq_prod", "rq_cons", "rcq_prod", "rcq_told")


class _Silent:
    """A keeper's console that nobody listens to."""

    async def call(self, op: str, **args: Any) -> Reply:
        return Reply(None, [])

    def tell(self, op: str, **args: Any) -> None:
        pass


class _HypervisorProcess:
    """As much of `Process` as `Hypervisor` needs."""

    console = _Silent()

    def serve(self, op: str, handler: object, *, takes_fds: bool = False) -> None:
        """Nobody asks."""


class _NicProcess(Process):
    """The NIC's `Process` where it is a thread of the test's process, which must survive the end of its console."""

    def _keeper_gone(self) -> None:
        self.stopped.set()


class Bench:
    """A hypervisor, a NIC and guests. `pause_us`: how long a sender waits for a full receiver. `forked`: the NIC is a process."""

    def __init__(
        self, *, engines: int = 1, pause_us: int = 1_000_000, mtu: int = 4014, spin_us: int = 0, wire: str = "sink",
        backing: str = "sealed", topology: str = "bench", forked: bool = False,
    ) -> None:  # fmt: skip
        self._config: dict[str, Any] = {
            "engines": engines,
            "engine_cpus": [],
            "pause_us": pause_us,
            "storm_pps": 0,
            "mtu": mtu,
            "wire": {"mac": WIRE_MAC, "mode": wire},
        }
        self._hypervisor_config = {
            "name": topology,
            "memory": {"backing": backing},
            "spin_limit_us": spin_us,
            "fair_notify_ns": FAIR_MOST_NS,
        }
        self.engines, self.macs, self.guests = engines, dict[int, str](), list[Guest]()
        self.passed_through: set[int] = set()  # domains whose contexts the IOMMU passes through
        self.queues: dict[int, int] = {}  # how many contexts a domain may have; 1 if that is not said
        self.pid: int | None = None
        for _ in load_all():  # here, before there are threads and processes that would all compile
            pass
        self._ends = [socketpair(), socketpair()]  # hypercalls, console
        if forked:
            self._fork()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Bench":
        try:
            self.run(self._start())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the control plane's loop and wait for its result."""
        return self.submit(coroutine).result(patient(WAIT_S))

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Begin to run a coroutine on the control plane's loop: a concurrent.futures.Future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    # -- start and end --

    def _fork(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                linux.die_with_parent()
                for ours, _ in self._ends:
                    ours.close()
                sockets = dict(zip(("hypercalls", "console"), (theirs.detach() for _, theirs in self._ends), strict=True))
                status = run_role("nic", "nic", "nic.device", self._config, sockets)
            finally:
                os._exit(status)
        for _, theirs in self._ends:
            theirs.close()

    async def _start(self) -> None:
        self.hypervisor = Hypervisor(_HypervisorProcess(), self._hypervisor_config)  # type: ignore[arg-type]
        self.contexts, its = self.hypervisor.system.contexts, self.hypervisor.system.nic
        engine, self._shootdown_fds = its.engine, list[int]()

        def taken_up(index: int, page: Region) -> tuple[int, int]:
            found = engine(index, page)
            self._shootdown_fds.append(found[1])
            return found

        its.engine = taken_up  # type: ignore[method-assign]
        (hypercalls, nic_hypercalls), (console, nic_console) = self._ends
        ready = asyncio.get_running_loop().create_future()
        self.console = Channel(console, {"ready": lambda: ready.set_result(None)}, name="the NIC")
        await self.hypervisor.domain_create(DOMID_NIC, "nic", 0, [hypercalls.detach()])
        if self.pid is None:
            process = _NicProcess("nic", "nic", {"hypercalls": nic_hypercalls.detach(), "console": nic_console.detach()})
            self.nic = Nic(process, self._config)
            await self.nic.start()
        else:
            await ready
        self.dom0 = await self._domain(DOM0, "dom0", DEFAULT_RAM)
        await self.dom0.hyp.call("toolstack_ready")

    def close(self) -> None:
        """End everything; all threads are gone when this returns."""
        try:
            self.run(self._stop())
        finally:
            if self.pid is not None:
                os.waitpid(self.pid, 0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            for pair in self._ends:
                for end in pair:
                    end.close()

    async def _stop(self) -> None:
        if hasattr(self, "hypervisor"):
            await self.hypervisor.system.emulation.stop()
        if self.pid is not None:
            os.kill(self.pid, 9)
        elif hasattr(self, "nic"):
            await self.nic.stop()
            self._close_nic()
        for guest in [*self.guests, *([self.dom0] if hasattr(self, "dom0") else [])]:
            guest.close()
        if hasattr(self, "console"):
            self.console.close()
        if hasattr(self, "hypervisor"):
            for domain in self.hypervisor.system.domains.values():
                if domain.channel is not None:
                    domain.channel.close()
                for context in list(domain.contexts.values()):
                    self.contexts._release(domain, context)
                domain.close()
            self.hypervisor.system.platform.close()
            for past in self.hypervisor.system.nic._engine_past:
                self._loop.remove_reader(past)
            close_all(self._shootdown_fds)

    def _close_nic(self) -> None:
        """What the end of its process would close."""
        nic = self.nic
        nic._process.console.close()
        nic._hyp.close()
        for state in nic._engines:
            close_all([state.engine._kick, state.engine._reply, int(state._record[0]["shootdown_fd"])])
        close_all([int(nic._engines[0].contexts[number]["completion_fd"]) for number in nic._mappings])
        close_all([int(fd) for fd in nic._engines[0]._keep[0].kicks])

    # -- guests --

    async def _domain(self, domid: int, name: str, memory: int) -> Guest:
        near, far = socketpair()
        await self.hypervisor.domain_create(domid, name, memory, [near.detach()])
        toolstack = {
            "context_authorize": self._authorize, "emulation_authorize": self._authorize, "domain_gone": lambda domid: None,
        }  # fmt: skip
        hyp = Channel(far, toolstack if domid == DOM0 else {}, name="the hypervisor")
        ram, *others = (await hyp.call("domain_info")).fds
        upcall = await hyp.call("upcall_create")
        for fd in others:
            os.close(fd)
        return Guest(self, domid, name, self.macs.get(domid, "00:00:00:00:00:00"), hyp, Mapping.adopt(ram, memory),
                     (int(upcall.value["upcall"]), upcall.fds[0]))  # fmt: skip

    def _authorize(self, domid: int) -> dict[str, Any]:
        return {"mac": self.macs[domid], "passthrough": domid in self.passed_through, "queues": self.queues.get(domid, 1)}

    def guest(
        self, mac: str | None = None, *, queue: int = 64, memory: int = DEFAULT_RAM, start: int = 0, features: int = 0
    ) -> Guest:
        """A guest with a started context; its indices begin at `start`. The n-th guest gets context n, engine n mod engines."""
        guest = self.domain(mac, memory)
        self.run(guest._open(queue, start, features))
        return guest

    def several(self, queues: int, *, queue: int = 64, start: int = 0) -> list[Guest]:
        """A guest with so many contexts, each as a `Guest` of the same domain."""
        first = self.domain(None, DEFAULT_RAM * queues * max(queue // 64, 1))
        self.queues[first.domid] = queues
        self.run(first._open(queue, start, 0))
        return [first, *(self.sibling(first, number, queue=queue, start=start) for number in range(1, queues))]

    def sibling(self, first: Guest, number: int, *, queue: int = 64, start: int = 0) -> Guest:
        """Another context of a guest's, queue `number` of its device, with an upcall of its own."""
        upcall = first.call("upcall_create")
        other = Guest(
            self, first.domid, first.name, first.mac, first.hyp, first.mapping, (int(upcall.value["upcall"]), upcall.fds[0])
        )
        other.ram = first.ram
        self.guests.append(other)
        self.run(other._open(queue, start, 0, number))
        return other

    def domain(self, mac: str | None = None, memory: int = DEFAULT_RAM) -> Guest:
        """A guest without a context."""
        domid = len(self.guests) + 1
        self.macs[domid] = mac or f"02:00:00:00:00:{domid:02x}"
        guest: Guest = self.run(self._domain(domid, f"guest{domid}", memory))
        self.guests.append(guest)
        return guest

    def physical_function(self, queue: int = 64) -> Guest:
        """Dom0 with its context 0: any source address, and what the wire sends to nobody else."""
        self.run(self.dom0._open(queue, 0, 0))
        return self.dom0

    def begin_at(self, context: int, start: int) -> None:
        """Let the NIC's private indices of a context that is not started yet begin at `start`."""
        for state in self.nic._engines:
            for name in PRIVATE_INDICES:
                state.contexts[context][name] = start

    # -- the device --

    def wire(self, op: str, **args: Any) -> Any:
        """An operation of the NIC's console: ``wire_mode``, ``wire_generate``, ``wire_report``, ``threads``."""
        return self.run(self._wire(op, args)).value

    async def _wire(self, op: str, args: dict[str, Any]) -> Reply:
        return await self.console.call(op, **args)

    def filters(self, domid: int, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> None:
        """Dom0 programs the MAC filters of a domain's first context."""
        self.dom0.call("filter_change", domid=domid, add=list(add), remove=list(remove))

    def sync(self) -> None:
        """Every engine has begun a new batch and committed its counters when this returns."""
        self.wire("wire_mode", mode=self._config["wire"]["mode"])

    def counts(self) -> dict[str, dict[str, int]]:
        """The NIC's counters, by row: ``engine0``, ``wire0``, ``ctx1:guest1``."""
        region = self.hypervisor.system.domains[DOMID_NIC].counters
        page = Mapping(region.fd, COUNTERS_BYTES, writable=False)
        return read_rows(page.array.data)

    def count(self, column: str, row: str = "") -> int:
        """Sum of a column over all rows whose name begins with `row`."""
        return sum(counts[column] for name, counts in self.counts().items() if name.startswith(row))

    def of(self, guest: Guest) -> dict[str, int]:
        """A guest's row, columns that are not zero only."""
        row = self.counts()[f"ctx{guest.context}:{guest.name}"]
        return {column: n for column, n in row.items() if n}

    def drops(self) -> dict[str, int]:
        """Drops by name, over all rows, those that are not zero."""
        totals = {drop.name.lower(): self.count(drop.name.lower()) for drop in DROPS}
        return {name: n for name, n in totals.items() if n}

    def balance(self) -> tuple[int, int]:
        """(frames that went in, frames that came out or were dropped by name). Equal at rest."""
        made = self.count("replicated") + self.count("segmented")
        went_in = self.count("tx_frames", "ctx") + self.count("tx_frames", "wire") + made
        came_out = self.count("rx_frames", "ctx") + self.count("rx_frames", "wire") + sum(self.drops().values())
        return went_in, came_out

    def at_rest(self, sent: int | None = None) -> None:
        """Wait until nothing is under way; what went in has come out then. `sent`: frames that guests and wire sent."""

        def balanced() -> bool:
            self.sync()
            went_in, came_out = self.balance()
            started = self.count("tx_frames", "ctx") + self.count("tx_frames", "wire")
            return went_in == came_out and (sent is None or started == sent)

        try:
            eventually(balanced, "rest")
        except AssertionError:
            rows = {name: {c: n for c, n in row.items() if n} for name, row in self.counts().items()}
            raise AssertionError(f"in {self.balance()[0]} ≠ out {self.balance()[1]} (expected to send {sent}): {rows}") from None


@contextmanager
def bench_of(guests: int, **options: Any) -> Iterator[tuple[Any, ...]]:
    """``(bench, guest1, …)``."""
    of_guests = {name: options.pop(name) for name in ("start", "queue", "memory", "features") if name in options}
    with Bench(**options) as bench:
        yield bench, *(bench.guest(**of_guests) for _ in range(guests))


def well(bench: Bench, one: Guest, other: Guest, frames: int = 2000) -> None:
    """The bystanders: a stream from one to the other arrives whole."""
    receiver, sender = other.traffic(expect=frames), one.traffic(other.mac, frames, stream=9)
    assert sender.wait() == FINISHED
    assert receiver.wait() == FINISHED
    report = receiver.report(9)
    assert (report["frames"], report["lost"], report["corrupt"], report["duplicated"]) == (frames, 0, 0, 0)
