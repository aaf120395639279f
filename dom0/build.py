"""Allocates the state of Dom0's engine, keeps it alive, and changes its ports through the mailbox. Control plane."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dom0.bridge import ENTRY, FDB_SLOTS, add_static
from dom0.engine import ADD_PORT, ENTER_PAGES, GO, NOTHING, REMOVE_PORT, ROUTE, SET_HASHING, SET_RATE
from dom0.multicast import MOST_GROUPS
from dom0.rate import UNLIMITED, Rate
from dom0.state import ENGINE, MAX_PORTS, OPS, PENDING, PORT, STAGE_SLOTS, STAGED, UPLINK, engine_at
from dom0.uplink import receive_buffer
from hyp.abi.grant import COPY_BYTES
from hyp.abi.netif import NR_SLOTS_MIN
from hyp.abi.nic import LINK_HEADER, mac_to_int
from hyp.abi.sizes import DOM0_BUFFERS, FRAME_BUFFER, MAX_QUEUES, SPLIT_RINGS, SPLIT_SLOTS
from hyp.control.debt import Debt
from hyp.engine import Engine
from hyp.events import DEBT, new_notifier, new_wait
from hyp.fairness.patience import GRACE_NS
from hyp.fairness.standing import STANDING, of_a_new_guest
from hyp.fairness.storm import storm_ns
from hyp.fairness.timing import new_timing
from hyp.grants import COPY_COUNTS, DOMAIN_VIEW
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.offload.frame import PIECES_BYTES, FrameMemory
from hyp.ram import QueuePair, Ram
from hyp.upcall import ControlUpcall
from hyp.verbs import post_receive, qp_at, ring_receives


@entry(void(i64))
def _post_all_buffers(engine: int) -> None:
    """Give every receive buffer of the uplink to the NIC."""
    e = engine_at(engine)
    q = qp_at(e.qp)
    for k in range(q.rq_size):
        post_receive(q, receive_buffer(e, k), FRAME_BUFFER)
    ring_receives(q)


def _credit(rate: Rate) -> dict[str, int]:
    """Words of a message."""
    return {"credit_bytes": rate.octets, "window_ns": rate.usecs * 1000}


Pages = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""Two tables of pinned pages' addresses by grant reference."""


@dataclass(frozen=True, slots=True)
class QueueEnd:
    """Our end of one queue of a vif."""

    rings: tuple[int, int]
    """Addresses of RING records: to transmit, to receive."""
    events: tuple[int, int]
    """Eventfds of the guest's channels for either; the same, if it has one for both."""
    pages: Pages | None = None
    """For pages that are mapped: the tables of those pinned for reading and for writing (dom0/mapped_pages.py), all 0, which the
    caller keeps until `remove_vif` has returned. None: there will be none."""


class EngineState:
    """Everything Dom0's kernel works on: `address` is its argument. `control` is where the control plane's own events arrive."""

    control: ControlUpcall

    def __init__(self, engine: Engine, upcall: int, epoll: int, platform: Mapping, domains: int, *, held: bool = False) -> None:
        """`held`: no frame moves until `go`."""
        self.engine, self.upcall = engine, upcall
        self._record = np.zeros(1, ENGINE)
        self.ports = np.zeros(MAX_PORTS, PORT)
        self.views = np.zeros(domains, DOMAIN_VIEW)
        self._stages = np.zeros((MAX_PORTS, STAGE_SLOTS), STAGED)
        self._passing = np.zeros((MAX_PORTS, SPLIT_RINGS * SPLIT_SLOTS), np.int64)  # no more is under way than the rings have slots
        self._groups = np.zeros((MAX_PORTS, MOST_GROUPS), np.int64)
        self._fdb = np.zeros(FDB_SLOTS, ENTRY)
        self._ops = np.zeros(OPS * COPY_BYTES // 8, np.int64)
        self._pending = np.zeros(OPS, PENDING)
        self._copy_counts = np.zeros(1, COPY_COUNTS)
        self._free = np.arange(DOM0_BUFFERS, dtype=np.int64)
        self._frame = FrameMemory()
        self._to = np.zeros(PIECES_BYTES // 8, np.int64)
        self._hash_infos = np.zeros(OPS, np.int64)
        self._ids = np.zeros(NR_SLOTS_MIN, np.int64)
        self.waiting = new_wait(epoll, platform.address)
        self._debts, self.notifier = np.zeros(MAX_PORTS, DEBT), new_notifier(platform)
        self.standings, self._timing = np.zeros(domains, STANDING), new_timing()
        self._control_debts = [Debt() for _ in range(domains)]
        self._members = np.zeros((domains, MAX_QUEUES), np.int64)
        self._spare = list(range(domains, MAX_PORTS))  # for queues that are not their vif's first, in order
        for number in range(MAX_PORTS):
            port = self.ports[number]
            port["number"] = port["vif"] = number
            port["stage"] = self._stages[number].ctypes.data
            port["passing"] = self._passing[number].ctypes.data
            port["groups"] = self._groups[number].ctypes.data
        self._join([UPLINK])
        self.ports[UPLINK]["standing"], self.ports[UPLINK]["shared"] = self.standings.ctypes.data, 1
        record = self._record[0]
        for name, array in {
            "ports": self.ports, "fdb": self._fdb, "free": self._free, "views": self.views, "ops": self._ops,
            "pending": self._pending, "copy_counts": self._copy_counts, "wait": self.waiting,
            "notifier": self.notifier, "to": self._to, "hash_infos": self._hash_infos, "ids": self._ids,
        }.items():  # fmt: skip
            record[name] = array.ctypes.data
        record["frame"], record["timing"] = self._frame.address, self._timing.ctypes.data
        record["held"] = held
        record["view_count"], record["free_count"], record["mailbox"] = domains, DOM0_BUFFERS, engine.mailbox
        self._keep = platform

    @property
    def address(self) -> int:
        return int(self._record.ctypes.data)

    @property
    def platform(self) -> int:
        """Address of the platform page."""
        return self._keep.address

    @property
    def views_address(self) -> int:
        return int(self.views.ctypes.data)

    @property
    def view_count(self) -> int:
        return len(self.views)

    def configure(
        self,
        ram: Ram,
        pair: QueuePair,
        rx_pool: int,
        pool: int,
        scratch: int,
        counts: tuple[int, int],
        ageing_s: float,
        pause_us: int,
        mtu: int,
        storm_pps: int = 0,
        *,
        to_host: bool = False,
    ) -> None:
        """Set RAM, uplink and limits. `to_host`: the NIC's wire leads there.

        `pool`, `rx_pool`, `scratch`: where DOM0_BUFFERS pages, a page per receive slot, and OPS pages lie.
        """
        record = self._record[0]
        record["ram"], record["pool"], record["rx_pool"], record["qp"] = ram.address, pool, rx_pool, pair.address
        record["scratch"], record["max_frame"] = scratch, mtu + LINK_HEADER
        record["counts"], record["counts_shared"] = counts
        record["ageing_ns"], record["pause_ns"] = int(ageing_s * 1e9), pause_us * 1000
        record["storm_ns"], record["to_host"] = storm_ns(storm_pps), to_host
        self.standings[:] = of_a_new_guest(pause_us * 1000)
        self._posted = np.zeros(int(pair.record[0]["sq_size"]), np.int64)
        record["posted"] = self._posted.ctypes.data
        view = self.views[0]
        view["ram"], view["ram_bytes"], view["present"] = ram.address, ram.size, 1
        self._keep_pair = (ram, pair)

    def add_guest(self, mac: str, number: int, *, trunk: bool = False) -> None:
        """A guest has `mac`, behind port `number`, which is the UPLINK unless it is split; before the engine runs.

        `trunk`: there may be other stations behind its vif. RuntimeError if the bridge's table cannot have it.
        """
        self.add_station(mac, number)
        if number != UPLINK:
            self.admit(number, mac, trunk=trunk)

    def add_station(self, mac: str, number: int) -> None:
        """`mac` is behind port `number` for good; before the engine runs. RuntimeError if the bridge's table cannot have it."""
        if not add_static(int(self._fdb.ctypes.data), mac_to_int(mac), number):
            raise RuntimeError(f"the bridge's table has no place for {mac}: too many guests' addresses hash alike")

    def admit(self, number: int, mac: str, *, trunk: bool) -> None:
        """Frames of `mac` may come in at port `number`, which is in nobody's service; if it is a `trunk`, others' too."""
        self.ports[number]["mac"], self.ports[number]["trunk"] = mac_to_int(mac), trunk

    def post_receive_buffers(self) -> None:
        """Fill the uplink's receive queue."""
        _post_all_buffers(self.address)

    async def add_uplink(self, counts: tuple[int, int], features: int) -> None:
        """Make the NIC port 0 of the bridge. `features`: those accepted."""
        self.ports[UPLINK]["features"], self.ports[UPLINK]["trunk"] = features, 1
        self.ports[UPLINK]["counts"], self.ports[UPLINK]["counts_shared"] = counts
        await self.engine.post(ADD_PORT, port=UPLINK)

    async def go(self) -> None:
        """Let frames move from now on."""
        await self.engine.post(GO)

    def _join(self, numbers: list[int]) -> None:
        """These ports are one to the bridge, under the number of the first."""
        members = self._members[numbers[0]]
        members[: len(numbers)] = numbers
        first = self.ports[numbers[0]]
        first["queues"], first["members"] = len(numbers), members.ctypes.data
        for number in numbers:
            self.ports[number]["vif"] = numbers[0]

    async def add_vif(
        self,
        number: int,
        domid: int,
        features: int,
        counts: tuple[int, int],
        queues: Sequence[QueueEnd],
        rate: Rate = UNLIMITED,
        *,
        filters: bool = False,
        maps: bool = False,
    ) -> None:
        """Make a connected vif port `number` of the bridge, with so many `queues`, which count in one row.

        `features`: what its front end accepts (hyp/abi/features.py). `maps`: pages to transmit are mapped for their batch, else
        they are grant copies; it needs tables of pages, as `enter_pages` does. `rate`: how much its guest may send, on all queues.
        `filters`: multicast control.
        """
        further = len(queues) - 1
        numbers, self._spare = [number, *self._spare[:further]], self._spare[further:]
        self._join(numbers)
        for one, queue in zip(numbers, queues, strict=True):
            self._prepare(one, domid, features, counts, queue, maps=maps)
            self.ports[one]["grace"] = 0
        self.ports[number]["filters"], self.ports[number]["group_count"] = filters, 0
        await self.engine.post(ADD_PORT, port=number, **_credit(rate))

    def _prepare(self, number: int, domid: int, features: int, counts: tuple[int, int], queue: QueueEnd, *, maps: bool) -> None:
        port, pages = self.ports[number], queue.pages
        refs = port["table_refs"] = 0 if pages is None else pages.shape[1]
        port["passing_count"] = port["rx_refs"] = 0
        port["tx_refs"] = refs if maps else 0
        if pages is not None:
            port["tx_pages"], port["rx_pages"] = (int(pages[k].ctypes.data) for k in range(2))
        port["domid"], port["failed"] = domid, 0
        vif = int(port["vif"])
        first = self.ports[vif]
        port["mac"], port["trunk"] = first["mac"], first["trunk"]
        port["debt"], port["standing"] = (of[vif : vif + 1].ctypes.data for of in (self._debts, self.standings))
        port["hashing"] = port["hash_info"] = 0
        port["tx_ring"], port["rx_ring"] = queue.rings
        port["tx_event_fd"], port["rx_event_fd"] = queue.events
        port["features"], port["part"], port["waited_for"] = features, 0, 0
        port["counts"], port["counts_shared"] = counts
        port["staged"] = port["next"] = port["answers"] = port["pause_until"] = port["stalled"] = port["owed"] = port["waits"] = 0
        port["cut_until"] = 0
        port["credit_bytes"] = 0

    async def route(self, mac: str, number: int) -> None:
        """The guest's address `mac` is behind port `number` from now on: no frame for it goes elsewhere when this returns.

        It moves there, and doesn't look at a new vif yet: senders wait for it (hyp/fairness/patience.py).
        """
        self.ports["grace"][self.ports["vif"] == number] = time.monotonic_ns() + GRACE_NS
        await self.engine.post(ROUTE, mac=mac_to_int(mac), port=number)

    async def received_by_uplink(self, completions: int) -> None:
        """Wait until so many completions of the uplink's receive queue (modulo 2^32) have been passed on, or dropped by name."""
        record = self._keep_pair[1].record[0]
        while (int(record["rcq_cons"]) - completions) & 0x8000_0000:
            await self.engine.post(NOTHING)  # a round later

    async def set_rate(self, number: int, rate: Rate) -> None:
        """How much the guest of the vif that is port `number` may send from now on."""
        await self.engine.post(SET_RATE, port=number, **_credit(rate))

    async def enter_pages(self, number: int, queue: int, entries: "np.ndarray[tuple[int], np.dtype[np.void]]") -> None:
        """Let a queue of the vif that is port `number` use these STATIC_PAGEs from now on, or (address 0) no more: it doesn't when
        this returns.
        """
        port = int(self._members[number][queue])
        await self.engine.post(ENTER_PAGES, port=port, pages=int(entries.ctypes.data), count=len(entries))

    async def set_hashing(self, number: int, hashing: int) -> None:
        """Choose queues of the vif that is port `number` by this HASHING record from now on; 0: by the flow hash.

        When this returns the engine looks at no earlier one.
        """
        await self.engine.post(SET_HASHING, port=number, hashing=hashing)

    async def remove_vif(self, number: int) -> None:
        """The engine touches nothing of the vif any more when this returns, and has unpinned what it held of the guest's pages."""
        await self.engine.post(REMOVE_PORT, port=number)
        first = self.ports[number]
        further = self._members[number][1 : int(first["queues"])].tolist()
        self._spare = sorted(further + self._spare)
        self._join([number])

    def forget_guest(self, number: int) -> None:
        """Who has port `number` next, which has no vif now, is another guest: it begins with all patience and without debts."""
        self.standings[number], self._debts[number] = of_a_new_guest(int(self._record[0]["pause_ns"])), 0
        self.ports[number]["allowance"] = 0
        self._control_debts[number] = Debt()

    def debt_of(self, number: int) -> Debt:
        """What the guest behind port `number` owes the control plane for notifications."""
        return self._control_debts[number]
