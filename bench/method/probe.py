"""What the machine is doing to us just now: a probe of a few milliseconds to read before and after each slice of a measurement.

A virtual machine's host moves virtual CPUs between hardware threads as it likes, many times a minute, and the same program
then runs at a multiple of its speed. So slices are labelled, and only those of one label are compared (`regime`)::

    apart      two cores that share a cache
    far        two cores without a common cache: every cache line that changes hands comes over the interconnect
    together   the two CPUs are hardware threads of one core, or take turns on one, or one was away; with one CPU, always
    mixed      the two readings differ
    starved    the host took more than STARVED of the CPUs' time in between

", stolen" is added to the first three if the host took more than STOLEN of the time: such slices are held against such slices only.
/proc/stat counts in ticks of 10 ms, so that one tick in a short slice may be what was taken before it: one tick alone says nothing.

How the thresholds were found: some 400 readings on a 2-CPU virtual machine (AMD Zen 4) fell into four heaps. A spin ping-pong
took 60 ns, 100 to 150 ns, 470 to 670 ns, or (a few) more than GONE_NS or came to nothing. In the first heap, and nowhere else, both
CPUs dividing at a time took 1.98 times as long as one of them (0.9 to 1.05 elsewhere): two threads share a core's only divider.
So SLOWDOWN finds threads of one core whatever a ping-pong takes there; it is a ratio of two times of one reading, and needs no
calibration. FAR_NS is the geometric middle of the second and third heap, GONE_NS lies well beyond the third. They are absolute
and not relative to the fastest seen so far, because a slice's label must not depend on what came before it: a run that begins far
apart would call that apart. What they measure is two transfers of a cache line; other machines may need other figures.
"""

import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from bench.floor.pingpong import WORD_STRIDE, follow, lead
from bench.method.samples import STOLEN as STOLEN_LABEL
from hyp.atomics import clock_ns, store64
from hyp.kernels import entry, i64

ROUNDS = 4096
PING_PONG_NS = 1_000_000
STALL_NS = 3_000_000
LOOP = 1000
ALONE, AT_A_TIME = 15, 40  # timed loops; the threads do not start together to the microsecond, hence more of them
DIVIDEND = 0x7FFF_FFFF_FFFF

SLOWDOWN = 1.5
FAR_NS, GONE_NS = 250, 2000
STOLEN = 0.02
STARVED = 0.3


@entry(i64(i64, i64))
def _work(loops: int, times: int) -> int:
    """Time `loops` times LOOP iterations of two independent divisions, in ns each, to `times`.

    A core has one divider, which its hardware threads share: two that divide take twice as long as one.
    """
    a, b = 3, 5
    for k in range(loops):
        start = clock_ns()
        for _ in range(LOOP):
            a = DIVIDEND // ((a & 0xFFFF) | 0x10001)
            b = DIVIDEND // ((b & 0xFFFF) | 0x10001)
        store64(times + 8 * k, clock_ns() - start)
    return a ^ b


class _Thread:
    """A thread pinned to one CPU, with the memory its kernels write to."""

    def __init__(self, cpu: int) -> None:
        self._executor = ThreadPoolExecutor(1, f"probe{cpu}")
        self.times = np.zeros(ROUNDS, np.int64)
        self._executor.submit(lambda: os.sched_setaffinity(threading.get_native_id(), {cpu})).result()

    def start(self, kernel: Callable[..., int], *arguments: int) -> "Future[int]":
        return self._executor.submit(kernel, *arguments)

    def start_work(self, loops: int) -> "Future[int]":
        return self.start(_work, loops, int(self.times.ctypes.data))

    def median(self, count: int) -> float:
        return float(np.median(self.times[:count]))

    def switches(self) -> int:
        """Times this thread was taken off its CPU so far (by our kernel; the host's doing shows as steal)."""
        return self._executor.submit(lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw).result()

    def close(self) -> None:
        self._executor.shutdown()


def steal_ticks(cpus: Iterable[int], stat: str | None = None) -> int:
    """Clock ticks (``sysconf(SC_CLK_TCK)`` a second) that the host took from these CPUs so far; /proc/stat's eighth figure."""
    text = Path("/proc/stat").read_text() if stat is None else stat
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = (line.split() for line in text.splitlines())
    return sum(int(row[8]) for row in rows if row and row[0] in names and len(row) > 8)


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the probe. Times are medians."""

    at: float  # time.monotonic()
    pingpong_ns: float | None  # a round trip between the two first CPUs; None with one CPU, or when none came back in time
    work_ns: tuple[float, ...]  # LOOP iterations on each CPU, all CPUs at a time
    alone_ns: tuple[float, ...]  # the same on the two first CPUs, one after the other
    steal_ticks: int  # of the used CPUs, since boot
    ctx: int  # times the probe's own threads were taken off their CPUs during this reading

    @property
    def slowdown(self) -> float:
        """How much longer the same work takes when the two first CPUs do it at a time; about 1 on two cores, 2 on one."""
        return statistics.mean(self.work_ns[:2]) / statistics.mean(self.alone_ns)

    @property
    def placement(self) -> str:
        """``"apart"``, ``"far"`` or ``"together"``: where the two first CPUs were; ``"one"`` if only one is used."""
        if len(self.work_ns) == 1:
            return "one"
        if self.pingpong_ns is None or self.pingpong_ns >= GONE_NS or self.slowdown >= SLOWDOWN:
            return "together"
        return "apart" if self.pingpong_ns < FAR_NS else "far"


def steal_share(before: Reading, after: Reading) -> float:
    """The fraction of the CPUs' time between two readings that the host took."""
    seconds = (after.at - before.at) * len(after.work_ns)
    ticks = after.steal_ticks - before.steal_ticks
    return ticks / (seconds * os.sysconf("SC_CLK_TCK")) if seconds > 0 else 0.0


def regime(before: Reading, after: Reading) -> str:
    """The label of the slice between two readings: apart, far, together, one (any of them ", stolen"); mixed or starved."""
    share = steal_share(before, after)
    if share > STARVED:
        return "starved"
    if before.placement != after.placement:
        return "mixed"
    return before.placement + (STOLEN_LABEL if share > STOLEN and after.steal_ticks - before.steal_ticks > 1 else "")


class MachineProbe:
    """Probes `cpus`, on pinned threads of this process: ``with MachineProbe([0, 1]) as probe``. Idle between readings."""

    def __init__(self, cpus: Sequence[int]) -> None:
        if not cpus:
            raise ValueError("a probe needs at least one CPU")
        self.cpus = tuple(cpus)
        for kernel in (_work, lead, follow):
            kernel.load()
        self._threads = [_Thread(cpu) for cpu in self.cpus]
        words = np.zeros(4 * WORD_STRIDE // 8, np.int64)
        self._words, self._place = words, -(-int(words.ctypes.data) // WORD_STRIDE) * WORD_STRIDE

    def read(self) -> Reading:
        """Take a reading; 3 to 6 ms on a quiet machine, in which this thread waits."""
        before = self._switches()
        pingpong = self._ping_pong() if len(self._threads) > 1 else None
        alone = []
        for thread in self._threads[:2]:
            thread.start_work(ALONE).result()
            alone.append(thread.median(ALONE))
        for future in [thread.start_work(AT_A_TIME) for thread in self._threads]:
            future.result()
        work = tuple(thread.median(AT_A_TIME) for thread in self._threads)
        return Reading(time.monotonic(), pingpong, work, tuple(alone), steal_ticks(self.cpus), self._switches() - before)

    @staticmethod
    def regime(before: Reading, after: Reading) -> str:
        """`regime` of two readings."""
        return regime(before, after)

    def __enter__(self) -> "MachineProbe":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the probe's threads."""
        for thread in self._threads:
            thread.close()

    def _switches(self) -> int:
        return sum(thread.switches() for thread in self._threads)

    def _ping_pong(self) -> float | None:
        self._words[:] = 0
        leader, follower = self._threads[:2]
        theirs, ours = self._place, self._place + WORD_STRIDE
        passing = follower.start(follow, theirs, ours, -1, -1, 1, STALL_NS)
        samples = int(leader.times.ctypes.data)
        rounds = leader.start(lead, ours, theirs, -1, -1, ROUNDS, PING_PONG_NS, samples, STALL_NS).result()
        passing.result()
        return leader.median(rounds) if rounds > 0 else None
