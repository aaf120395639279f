"""Allocates an engine's private state and keeps it alive. Control plane; runs before the engine starts."""

import numpy as np

from hyp.abi.nic import CONTEXTS, LINK_HEADER, mac_to_int
from hyp.abi.platform import PLATFORM_BYTES
from hyp.abi.sizes import JUMBO_BUFFER, LARGEST_FRAME_BUFFER, MAX_QUEUES
from hyp.counters import CounterPage
from hyp.engine import Engine
from hyp.events import DEBT, NOTIFIER, new_eventfd, new_wait
from hyp.load.frames import TRACKER, TRACKERS, attach_histograms
from hyp.load.schedule import SCHEDULE
from hyp.memory import Mapping, private_pages
from hyp.offload.frame import PIECES_BYTES, FrameMemory
from nic.crossing import CROSSING_BYTES
from nic.link import LINE_BYTES, LINK
from nic.state import BUDGET_FRAMES, CONTEXT, ENGINE, GATE, STAGE, STAGED, SWITCH_ENTRY, SWITCH_SLOTS, WIRE
from nic.tap import TapMemory
from nic.wire import BATCH, WIRE_BUFFERS


class Crossings:
    """The rings between the engines of one NIC, and the eventfds that wake an engine for them."""

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self._memory = np.zeros(engines * engines * CROSSING_BYTES if engines > 1 else 8, np.uint8)
        self.kicks = np.array([new_eventfd() for _ in range(engines)], np.int64)
        self.address = int(self._memory.ctypes.data)


class EngineState:
    """Everything that one engine's kernel works on: `address` is its argument."""

    def __init__(self, index: int, crossings: Crossings, page: Mapping, platform: Mapping, shootdown_fd: int, epoll: int) -> None:
        self.engine = Engine(f"nic{index}", epoll)
        self._record = np.zeros(1, ENGINE)
        self.address = int(self._record.ctypes.data)
        self.contexts = np.zeros(CONTEXTS, CONTEXT)
        self._debts, self._notifier = np.zeros(CONTEXTS, DEBT), np.zeros(1, NOTIFIER)
        self._members = np.zeros((CONTEXTS, MAX_QUEUES), np.int64)
        self.trackers = np.zeros(TRACKERS, TRACKER)
        self.histograms = attach_histograms(self.trackers)
        self.wire = np.zeros(1, WIRE)
        self.schedule = np.zeros(1, SCHEDULE)
        self._links = np.zeros(2, LINK)
        self._lines = np.zeros((2, LINE_BYTES), np.uint8)  # memory that costs nothing until a frame is on a link
        self._stage = np.zeros(STAGE, STAGED)
        self._lists = np.zeros((2, CONTEXTS), np.int64)
        self._table = np.zeros(SWITCH_SLOTS, SWITCH_ENTRY)
        self._gates = np.zeros(crossings.engines, GATE)
        self._wait = new_wait(epoll, platform.address)
        self._buffers = private_pages(WIRE_BUFFERS * LARGEST_FRAME_BUFFER)
        self._jumbos = np.zeros(WIRE_BUFFERS * JUMBO_BUFFER, np.uint8)  # memory that costs nothing until there is such a frame
        self._lengths = np.zeros(WIRE_BUFFERS, np.int64)
        self._keep = (crossings, page, platform)
        for number in range(CONTEXTS):
            self.clear(number)
        self._frames = [FrameMemory(), FrameMemory()]
        self._to = np.zeros(PIECES_BYTES // 8, np.int64)
        self.wire[0]["buffers"], self.wire[0]["jumbos"] = self._buffers.ctypes.data, self._jumbos.ctypes.data
        self.wire[0]["lengths"] = self._lengths.ctypes.data
        self.wire[0]["schedule"] = self.schedule.ctypes.data
        self._links["line"] = [line.ctypes.data for line in self._lines]
        self.wire[0]["out"], self.wire[0]["back"] = (self._links[k : k + 1].ctypes.data for k in range(2))
        assert platform.size >= PLATFORM_BYTES
        assert BUDGET_FRAMES <= WIRE_BUFFERS  # the sink looks at a whole turn's frames at its end
        assert BATCH <= STAGE  # the generator stages a batch
        record = self._record[0]
        for name, array in {
            "contexts": self.contexts, "order": self._lists[0], "dirty": self._lists[1], "table": self._table, "wire": self.wire,
            "trackers": self.trackers, "gates": self._gates, "wait": self._wait, "notifier": self._notifier,
            "kick_fds": crossings.kicks, "stage": self._stage, "to": self._to,
        }.items():  # fmt: skip
            record[name] = array.ctypes.data
        record["frame"], record["turned"] = (memory.address for memory in self._frames)
        record["index"], record["engines"], record["crossings"] = index, crossings.engines, crossings.address
        record["page"], record["platform"], record["mailbox"] = page.address, platform.address, self.engine.mailbox
        record["shootdown_fd"] = shootdown_fd

    def clear(self, number: int, first: int = -1, *, fresh: bool = True) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
        """Forget all about context `number`, which no engine serves; returns its record.

        What its guest owes for notifications is kept with the `first` of its contexts, and forgotten only of a `fresh` guest.
        """
        first = number if first < 0 else first
        if fresh and number == first:
            self._debts[first] = 0
        record = self.contexts[number : number + 1]
        record[:] = 0
        record["number"], record["head1"], record["members"] = number, -1, self._members[number].ctypes.data
        record["debt"] = self._debts[first : first + 1].ctypes.data
        record["clock"] = self._record["now"].ctypes.data
        return record

    def attach_tap(self, fd: int) -> None:
        """The wire leads to the host, by a TAP with descriptor `fd`. The first engine reads it."""
        self._tap = TapMemory()
        reads = int(self._record[0]["index"]) == 0
        self.wire[0]["shared"] = reads
        self._tap.attach(self.wire[0], fd, reads=reads)
        if reads:
            self.engine.wake_on(fd)

    def configure(self, counters: CounterPage, wire_mac: str, pause_us: int, mtu: int) -> None:
        """Set what comes from the topology, and the rows that count."""
        index = int(self._record[0]["index"])
        self._record[0]["max_frame"] = mtu + LINK_HEADER
        self._record[0]["pause_ns"] = self.pause_ns = pause_us * 1000
        self._record[0]["counts"], self._record[0]["counts_shared"] = counters.row(f"engine{index}")
        self.wire[0]["counts"], self.wire[0]["counts_shared"] = counters.row(f"wire{index}")
        self.wire[0]["mac"] = mac_to_int(wire_mac)
