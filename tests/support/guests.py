"""Drivers on a `Guest`'s queue pair, for tests: those that behave and those that do not. The device they work on: peers.py.

Three kinds:

* a `Guest`'s methods: descriptor by descriptor, in Python, straight from the layout in hyp/abi/nic.py (not through hyp/verbs.py, so
  that the one is checked against the other). What they post is never checked first: `post` is also the hostile driver's tool;
* `Guest.traffic`: a compiled loop over hyp/verbs.py, in a thread: test frames out, test frames in and verified. It sleeps as a
  front end does and reports a wake-up that got lost;
* `Loop(scribble, guest, guest.job(...))` and the like: hostile, compiled, at full speed, in a thread.

The compiled ones are in tests/support/drivers.py and bench/isolation/loops.py.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.isolation.loops import JOB
from hyp.abi.nic import CQE, DESC, DESC_MORE, DESC_SIGNALED, DOORBELL, PAGE, STATUS_OK
from hyp.control import Channel, Reply, close_all
from hyp.kernels import Entry
from hyp.load.frames import TRACKER, TRACKER_ROWS, tracker_report
from hyp.memory import Mapping
from hyp.ram import QueuePair, Ram, open_queue_pair, register, start_queue_pair
from tests.support.drivers import ABANDON, compose, exchange, fence, head_words, sleep_until_event
from tests.support.patience import patient

if TYPE_CHECKING:
    from tests.support.peers import Bench

WAIT_S: Final = 20.0
END_S: Final = 80.0  # of a loop: it says itself that it waited in vain, after STALL_NS
JUST_BELOW_WRAP: Final = 0xFFFF_FFF0
WRAP: Final = 1 << 32
WIRE_MAC: Final = "02:00:00:00:ff:01"
BROADCAST_MAC: Final = "ff:ff:ff:ff:ff:ff"
NOBODY: Final = "02:00:00:00:77:77"  # an address that no context has


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true and return what it returned; AssertionError with `what` if that does not happen."""
    deadline = time.monotonic() + patient(WAIT_S)
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.0005)
    return found


class Guest:
    """A domain with a NIC context and a driver in Python. Guest-physical layout: queues, `tx_pool`, `rx_pool`, free space."""

    def __init__(
        self, bench: "Bench", domid: int, name: str, mac: str, channel: Channel, ram: Mapping, upcall: tuple[int, int]
    ) -> None:
        self.bench, self.domid, self.name, self.mac, self.hyp = bench, domid, name, mac, channel
        self.mapping, self.ram = ram, Ram(ram)
        self.upcall, self.epoll = upcall
        self.memory = ram.array
        self._counts = np.zeros(128, np.int64)
        self.loops: list[Loop] = []
        self.pair: QueuePair

    def call(self, op: str, **args: Any) -> Reply:
        """A hypercall."""
        reply: Reply = self.bench.run(self.hyp.call(op, **args))
        return reply

    async def _open(self, entries: int, start: int, features: int, queue: int = 0) -> None:
        self.pair = await open_queue_pair(self.hyp, self.upcall, entries, int(self._counts.ctypes.data), queue)
        self.q, self.entries, self.context = self.pair.record[0], entries, self.pair.context
        self.words = np.frombuffer(self.pair.doorbell.array, DOORBELL, 1)[0]
        for name in ("sq_prod", "sq_rung", "sq_told", "sq_done", "scq_cons", "signaled", "rq_prod", "rq_rung", "rcq_cons"):
            self.q[name] = start
        self.words["sq_prod"] = self.words["rq_prod"] = start
        if start:
            self.bench.begin_at(self.context, start)
        await start_queue_pair(self.hyp, self.ram, self.pair, features)
        at = {name: int(self.q[name]) - self.ram.address for name in ("sq", "scq", "rq", "rcq")}
        self.places = at
        self.sq, self.rq = (self._view(at[name], DESC, entries) for name in ("sq", "rq"))
        self.scq, self.rcq = (self._view(at[name], CQE, entries) for name in ("scq", "rcq"))
        for ring in (self.scq, self.rcq):  # as the pass before would have left it
            index = (start + (np.arange(entries) - start) % entries) % WRAP
            ring["owner"] = (index & entries) != 0
        self.tx_pool, self.rx_pool = self.ram.allocate(entries * PAGE), self.ram.allocate(entries * PAGE)
        self.free = self.rx_pool + entries * PAGE
        await register(self.hyp, self.tx_pool, entries * PAGE, writable=False)
        await register(self.hyp, self.rx_pool, entries * PAGE, writable=True)
        self._signaled = 0

    def _view(self, gpa: int, dtype: np.dtype[Any], count: int) -> Any:
        return np.frombuffer(self.memory, dtype, count, gpa)

    def wake(self) -> None:
        """A wake-up without a cause, as the hypervisor makes one at set-up."""
        os.eventfd_write(self.bench.hypervisor.system.domains[self.domid].contexts[self.context].completion_fd, 1)

    def close(self) -> None:
        """Close what it holds open. A loop that a test has left behind ends first: what it works on is gone then."""
        for loop in self.loops:
            loop.job[0]["stop"] = ABANDON
        woken = os.eventfd(1)  # for good
        with select.epoll.fromfd(os.dup(self.epoll)) as upcall:
            upcall.register(woken, select.EPOLLIN)
            for loop in self.loops:
                loop.join()
        os.close(woken)
        self.hyp.close()
        close_all([self.epoll, *([int(self.q["doorbell_fd"])] if hasattr(self, "q") else [])])

    # -- memory --

    def write(self, gpa: int, content: bytes) -> None:
        """Put bytes into RAM."""
        self.memory[gpa : gpa + len(content)] = np.frombuffer(content, np.uint8)

    def read(self, gpa: int, length: int) -> bytes:
        """Take bytes out of RAM."""
        return self.memory[gpa : gpa + length].tobytes()

    def frame(self, destination: str, length: int = 64, stream: int = 1, sequence: int = 0, source: str | None = None) -> bytes:
        """A test frame from this guest."""
        return compose(destination, source or self.mac, length, stream, sequence)

    # -- sending --

    def post(self, addr: int, length: int, flags: int = DESC_SIGNALED, segment: int = 0) -> int:
        """Write the next send descriptor, whatever it says; returns its index."""
        index = int(self.q["sq_prod"])
        self.sq[index % self.entries] = (addr % (1 << 64), length % WRAP, flags, segment)
        self.q["sq_prod"] = (index + 1) % WRAP
        self.q["signaled"] = (int(self.q["signaled"]) + (flags & DESC_SIGNALED)) % WRAP
        return index

    def ring(self) -> None:
        """Publish what was posted and wake the NIC (always: a hint too many does no harm)."""
        self.words["sq_prod"] = self.q["sq_rung"] = self.q["sq_told"] = self.q["sq_prod"]
        self.kick()

    def kick(self) -> None:
        """Signal the doorbell's eventfd."""
        os.eventfd_write(int(self.q["doorbell_fd"]), 1)

    def send(self, *frames: bytes, flags: int = DESC_SIGNALED) -> None:
        """Post well-formed frames from the pool's pages and ring. At most as many as the queue has slots."""
        for content in frames:
            gpa = self.tx_pool + int(self.q["sq_prod"]) % self.entries * PAGE
            self.write(gpa, content)
            self.post(gpa, len(content), flags)
        self.ring()

    def sent(self, count: int = 1) -> list[int]:
        """Wait for `count` send completions; their statuses. The owner bits and the order of indices are checked."""
        statuses = []
        for cqe in self._completions(self.scq, "scq_cons", "scq_event", count):
            index = int(cqe["index"])
            assert 0 <= (index - int(self.q["sq_done"])) % WRAP < self.entries, "a completion of what was not posted"
            self.q["sq_done"] = (index + 1) % WRAP
            if not int(self.sq[index % self.entries]["flags"]) & DESC_SIGNALED:  # it failed, and is completed unasked
                self.q["signaled"] = (int(self.q["signaled"]) + 1) % WRAP
            statuses.append(int(cqe["status"]))
        return statuses

    def send_one(self, addr: int, length: int, flags: int = DESC_SIGNALED) -> int:
        """Post one raw descriptor, ring, wait: its status."""
        self.post(addr, length, flags)
        self.ring()
        return self.sent(1)[0]

    # -- receiving --

    def post_buffer(self, addr: int, length: int = PAGE, flags: int = 0) -> None:
        """Write the next receive descriptor, whatever it says."""
        index = int(self.q["rq_prod"])
        self.rq[index % self.entries] = (addr % (1 << 64), length % WRAP, flags, 0)
        self.q["rq_prod"] = (index + 1) % WRAP

    def ring_buffers(self) -> None:
        """Publish the receive buffers and wake the NIC."""
        self.words["rq_prod"] = self.q["rq_rung"] = self.q["rq_prod"]
        self.kick()

    def post_buffers(self, count: int, length: int = PAGE) -> None:
        """Post `count` buffers, each the page of its slot, and ring."""
        for _ in range(count):
            self.post_buffer(self.rx_pool + int(self.q["rq_prod"]) % self.entries * PAGE, length)
        self.ring_buffers()

    def take(self, count: int = 1) -> list[tuple[int, bytes]]:
        """Wait for `count` receive completions: (status, frame) each."""
        return [
            (int(cqe["status"]), self.read(int(self.rq[int(cqe["index"]) % self.entries]["addr"]), int(cqe["length"])))
            for cqe in self._completions(self.rcq, "rcq_cons", "rcq_event", count)
        ]

    def take_frame(self) -> tuple[int, int, bytes]:
        """Wait for a received frame of any number of buffers: (flags of its first fragment without MORE, segment size, bytes)."""
        cqes, fragments = list[Any](), list[bytes]()
        while not cqes or int(cqes[-1]["flags"]) & DESC_MORE:
            cqe = next(self._completions(self.rcq, "rcq_cons", "rcq_event", 1))
            assert int(cqe["status"]) == STATUS_OK
            cqes.append(cqe)
            fragments.append(self.read(int(self.rq[int(cqe["index"]) % self.entries]["addr"]), int(cqe["length"])))
        return int(cqes[0]["flags"]) & ~DESC_MORE, int(cqes[0]["segment"]), b"".join(fragments)

    def send_chain(self, fragments: Sequence[bytes], flags: int = 0, segment: int = 0) -> None:
        """Post a frame in fragments, each in its slot's page, the last one signalled; ring. `flags`, `segment`: its offloads."""
        for k, content in enumerate(fragments):
            gpa = self.tx_pool + int(self.q["sq_prod"]) % self.entries * PAGE
            self.write(gpa, content)
            more = DESC_MORE if k < len(fragments) - 1 else DESC_SIGNALED
            self.post(gpa, len(content), more | (flags if k == 0 else 0), segment if k == 0 else 0)
        self.ring()

    def waiting(self) -> int:
        """Number of receive completions that have not been taken."""
        cons, n = int(self.q["rcq_cons"]), 0
        while n < self.entries and self._is_new(self.rcq, (cons + n) % WRAP):
            n += 1
        return n

    def _is_new(self, ring: Any, index: int) -> bool:
        return bool(int(ring[index % self.entries]["owner"]) == (0 if index & self.entries else 1))

    def _completions(self, ring: Any, cons_name: str, event_name: str, count: int) -> Iterator[Any]:
        for done in range(count):
            cons = int(self.q[cons_name])
            deadline = time.monotonic() + patient(WAIT_S)
            while not self._is_new(ring, cons):
                self.words[event_name] = (cons + 1) % WRAP
                fence()
                if not self._is_new(ring, cons):
                    assert time.monotonic() < deadline, f"{self.name}: completion {done} of {count} did not come"
                    sleep_until_event(self.epoll, 100_000_000)
            self.q[cons_name] = (cons + 1) % WRAP
            yield ring[cons % self.entries].copy()

    # -- compiled loops --

    def job(self, **fields: int) -> "np.ndarray[Any, Any]":
        """A JOB record for a compiled driver on this guest."""
        job = np.zeros(1, JOB)
        defaults = {
            "qp": self.pair.address, "epoll": self.epoll, "ram": self.ram.address, "tx_pool": self.tx_pool,
            "rx_pool": self.rx_pool, "counts": int(self._counts.ctypes.data), "length": 64, "stream": 1,
            "signal_every": 16, "window": self.entries, "seed": 0x1234_5678_9ABC_DEF1 + self.domid,
        }  # fmt: skip
        for name, value in {**defaults, **fields}.items():
            job[0][name] = value
        return job

    def traffic(self, destination: str = WIRE_MAC, frames: int = 0, expect: int = 0, **fields: int) -> "Loop":
        """A thread that sends `frames` test frames to `destination` and verifies what comes until `expect` good ones have.

        Another one on the same guest would take its wake-ups. The receive queue is filled first.
        """
        self.post_buffers(self.entries - (int(self.q["rq_prod"]) - int(self.q["rcq_cons"])) % WRAP)
        head0, head1 = head_words(destination, self.mac)
        return Loop(exchange, self, self.job(head0=head0, head1=head1, frames=frames, expect=expect, **fields))


class Loop:
    """A compiled loop in a thread. `job[0]` is its record; `wait` returns what the loop returned."""

    def __init__(self, kernel: Entry, guest: Guest, job: "np.ndarray[Any, Any]") -> None:
        kernel.load()
        self.job, self._guest = job, guest
        self.trackers = np.zeros(TRACKER_ROWS, TRACKER)
        job[0]["trackers"] = self.trackers.ctypes.data
        self.result: int | None = None
        guest.loops.append(self)
        self._thread = threading.Thread(target=self._run, args=(kernel,), daemon=True)
        self._thread.start()

    def _run(self, kernel: Entry) -> None:
        self.result = kernel(int(self.job.ctypes.data))

    def __getitem__(self, field: str) -> int:
        return int(self.job[0][field])

    def report(self, stream: int = 1) -> dict[str, int]:
        """What a receiver knows of a stream."""
        return tracker_report(self.trackers, stream)

    def stop(self) -> int:
        """Ask it to end, and wait."""
        self.job[0]["stop"] = 1
        self._guest.wake()
        return self.wait()

    def join(self) -> None:
        """Wait for its end, for a while."""
        self._thread.join(patient(END_S))

    def wait(self) -> int:
        """Wait for its end; AssertionError if it does not come."""
        self.join()
        progress = f"{self['done']}/{self['frames']} sent, {self['received']}/{self['expect']} received"
        assert not self._thread.is_alive(), f"the loop does not end: {progress}"
        assert self.result is not None, "the loop raised"
        return self.result


# --- runs of frames --------------------------------------------------------------------------------------------------


def prime(sender: Guest, receiver: Guest | None) -> str:
    """Send one frame by itself; returns the address that it went to. Behind it, frames like it are a run (nic/send.py)."""
    mac = WIRE_MAC if receiver is None else receiver.mac
    if receiver is not None:
        receiver.post_buffers(1)
    sender.send(sender.frame(mac))
    assert sender.sent(1) == [STATUS_OK]
    if receiver is not None:
        receiver.take(1)
    return mac


def completed(guest: Guest, count: int) -> list[tuple[int, int]]:
    """Wait for send completions: (index, status) each."""
    return [(int(cqe["index"]), int(cqe["status"])) for cqe in guest._completions(guest.scq, "scq_cons", "scq_event", count)]


def place(guest: Guest, ahead: int, content: bytes) -> int:
    """Write a frame into the pool's page of the descriptor that is posted `ahead` from now; returns its address."""
    gpa = guest.tx_pool + (int(guest.q["sq_prod"]) + ahead) % guest.entries * PAGE
    guest.write(gpa, content)
    return gpa


HOSTILE_ADDRESSES: Final[dict[str, Callable[[Guest], int]]] = {
    "0": lambda g: 0,
    "unregistered": lambda g: g.free,
    "into an unregistered page": lambda g: g.free - 32,
    "the end of RAM": lambda g: g.mapping.size - 32,
    "beyond RAM": lambda g: g.mapping.size,
    "-1": lambda g: -1,
    "-16": lambda g: -16,
    "-PAGE": lambda g: -PAGE,
    "-(1 << 63)": lambda g: -(1 << 63),
    "2**63 above a good page": lambda g: (1 << 63) + g.tx_pool,
    "2**63 below the window": lambda g: g.tx_pool + PAGE - (1 << 63),
    "(1 << 63) - 1": lambda g: (1 << 63) - 1,
    "(1 << 63) - 64": lambda g: (1 << 63) - 64,
    "-(1 << 63) + 64": lambda g: -(1 << 63) + 64,
}
