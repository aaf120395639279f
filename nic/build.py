"""Allocates an engine's private state and keeps it alive. Control plane; runs before the engine starts."""

import itertools

import numpy as np

from hyp.abi.nic import CONTEXTS, LINK_HEADER, mac_to_int
from hyp.abi.platform import EPOCH, PLATFORM_BYTES
from hyp.abi.sizes import MAX_QUEUES
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.events import DEBT, new_eventfd, new_notifier, new_wait
from hyp.fairness.standing import STANDING, of_a_new_guest
from hyp.fairness.storm import storm_ns
from hyp.fairness.timing import new_timing
from hyp.load.frames import attach_histograms
from hyp.memory import Mapping
from hyp.offload.frame import PIECES_BYTES, FrameMemory
from nic.crossing import CONS, CROSSING_BYTES, CROSSING_SLOTS, FIRST_SLOT, PROD, SLOT_BYTES, SLOT_CONTEXT
from nic.kept import Kept
from nic.state import BUDGET_FRAMES, CONTEXT, ENGINE, GATE, STAGE, STAGED, SWITCH_ENTRY, SWITCH_SLOTS, WIRE_BATCH, WIRE_BUFFERS
from nic.wire.tap import TapMemory


class Crossings:
    """The rings between the engines of one NIC, and the eventfds that wake an engine for them."""

    def __init__(self, engines: int, kept: Kept) -> None:
        self.engines = engines
        self.kicks = np.array([new_eventfd() for _ in range(engines)], np.int64)
        self._memory = kept.crossings
        self.address = int(kept.crossings.ctypes.data)

    def under_way(self, context: int | None = None) -> dict[tuple[int, int], int]:
        """By producer and consumer, behind which frame the last one is that is in their crossing now, where there are some.

        Counted are all that were ever put there; of those for `context` alone, if it is given.
        """
        found = {}
        for producer, consumer in itertools.permutations(range(self.engines), 2):
            prod, cons = self._indices(producer, consumer)
            for index in range(prod - 1, cons - 1, -1):
                if (
                    context is None
                    or self._word(producer, consumer, FIRST_SLOT + SLOT_CONTEXT + (index % CROSSING_SLOTS) * SLOT_BYTES) == context
                ):
                    found[producer, consumer] = index + 1
                    break
        return found

    def taken(self, producer: int, consumer: int) -> int:
        """How many of them have been taken out."""
        return self._indices(producer, consumer)[1]

    def _indices(self, producer: int, consumer: int) -> tuple[int, int]:
        return self._word(producer, consumer, PROD), self._word(producer, consumer, CONS)

    def _word(self, producer: int, consumer: int, at: int) -> int:
        at += (producer * self.engines + consumer) * CROSSING_BYTES
        return int(self._memory[at : at + 8].view(np.int64)[0])


class EngineState:
    """Everything that one engine's kernel works on: `address` is its argument."""

    def __init__(
        self,
        index: int,
        crossings: Crossings,
        kept: Kept,
        page: Mapping,
        platform: Mapping,
        shootdown_fd: int,
        epoll: int,
    ) -> None:
        self.engine = Engine(f"nic{index}", epoll)
        self._record = np.zeros(1, ENGINE)
        self.address = int(self._record.ctypes.data)
        self.contexts = np.zeros(CONTEXTS, CONTEXT)
        self._debts, self.notifier = np.zeros(CONTEXTS, DEBT), new_notifier(platform)
        self.standings, self.pause_ns, self._timing = np.zeros(CONTEXTS, STANDING), 0, new_timing()
        self._members = np.zeros((CONTEXTS, MAX_QUEUES), np.int64)
        out = kept.wires[index]
        self.wire, self.schedule, self.replay, self.buffers = out.wire, out.schedule, out.replay, out.buffers
        self.trackers, self.histograms = out.trackers, attach_histograms(out.trackers, out.histograms)
        self._stage = np.zeros(STAGE, STAGED)
        self._lists = np.zeros((2, CONTEXTS), np.int64)
        self._table = np.zeros(SWITCH_SLOTS, SWITCH_ENTRY)
        self._gates = np.zeros(crossings.engines, GATE)
        self._gates["shared"] = 1
        self.waiting = new_wait(epoll, platform.address, events=True)
        self._keep = (crossings, kept, page, platform)
        for number in range(CONTEXTS):
            self.clear(number)
        self._frames = [FrameMemory(), FrameMemory()]
        self._to = np.zeros(PIECES_BYTES // 8, np.int64)
        row = self.wire[0]
        for name in ("buffers", "jumbos", "lengths", "schedule", "replay"):
            row[name] = getattr(out, name).ctypes.data
        out.links["line"] = [line.ctypes.data for line in out.lines]
        row["out"], row["back"] = (out.links[k : k + 1].ctypes.data for k in range(2))
        self.recorded = out.ring, out.recorded
        row["recorder"] = 0
        if row["sizes"]:  # a mix is gone with the process that had read it
            row["sizes"] = row["left"] = 0
        row["pause_until"] = 0  # whom it waited for it looks for again
        assert platform.size >= PLATFORM_BYTES
        assert BUDGET_FRAMES <= WIRE_BUFFERS  # the sink looks at a whole turn's frames at its end
        assert WIRE_BATCH <= STAGE  # the generator stages a batch
        record = self._record[0]
        for name, array in {
            "contexts": self.contexts, "order": self._lists[0], "dirty": self._lists[1], "table": self._table, "wire": self.wire,
            "trackers": self.trackers, "gates": self._gates, "wait": self.waiting, "notifier": self.notifier,
            "kick_fds": crossings.kicks, "stage": self._stage, "to": self._to,
        }.items():  # fmt: skip
            record[name] = array.ctypes.data
        record["timing"] = self._timing.ctypes.data
        record["frame"], record["turned"] = (memory.address for memory in self._frames)
        record["index"], record["engines"], record["crossings"] = index, crossings.engines, crossings.address
        record["page"], record["platform"], record["mailbox"] = page.address, platform.address, self.engine.mailbox
        record["shootdown_fd"], record["held"], record["drained_fd"] = shootdown_fd, kept.resumed, new_eventfd()
        record["hush_fd"] = self.hush_fd = new_eventfd()
        self.drained_fd = int(record["drained_fd"])
        record["epoch"] = page.words("<u8", EPOCH, 1)[0]

    def clear(self, number: int, first: int = -1, *, fresh: bool = True) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
        """Forget all about context `number`, which no engine serves; returns its record.

        What its guest owes for notifications, and its standing, are kept with the `first` of its contexts, and forgotten only of a
        `fresh` guest.
        """
        first = number if first < 0 else first
        if fresh and number == first:
            self._debts[first], self.standings[first] = 0, of_a_new_guest(self.pause_ns)
        record = self.contexts[number : number + 1]
        record[:] = 0
        record["number"], record["head1"], record["members"] = number, -1, self._members[number].ctypes.data
        record["debt"] = self._debts[first : first + 1].ctypes.data
        record["standing"] = self.standings[first : first + 1].ctypes.data
        record["clock"] = self._record["now"].ctypes.data
        return record

    def count_in(self, number: int) -> None:
        """Context `number` has been created: the engine looks at those up to it."""
        self._record[0]["context_end"] = max(int(self._record[0]["context_end"]), number + 1)

    def attach_tap(self, fd: int) -> None:
        """The wire leads to the host, by a TAP with descriptor `fd`. The first engine reads it."""
        self._tap = TapMemory()
        reads = int(self._record[0]["index"]) == 0
        self.wire[0]["shared"] = reads
        self._tap.attach(self.wire[0], fd, reads=reads)
        if reads:
            self.engine.wake_on(fd)

    def configure(self, counters: CounterPage, wire_mac: str, pause_us: int, mtu: int, storm_pps: int = 0) -> None:
        """Set what comes from the topology, and the rows that count."""
        index = int(self._record[0]["index"])
        self._record[0]["max_frame"] = mtu + LINK_HEADER
        self._record[0]["pause_ns"] = self.pause_ns = pause_us * 1000
        self.standings[:] = of_a_new_guest(self.pause_ns)
        self._record[0]["storm_ns"] = storm_ns(storm_pps)
        self._record[0]["counts"], self._record[0]["counts_shared"] = counters.row(f"engine{index}")
        self.wire[0]["counts"], self.wire[0]["counts_shared"] = counters.row(f"wire{index}")
        self.wire[0]["mac"] = mac_to_int(wire_mac)
