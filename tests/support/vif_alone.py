"""A vif in this process, with a store that is real, and a hypervisor and an engine that fail when told to."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from dom0.rate import Rate
from dom0.state import PORT
from dom0.toolstack.libxl import create_domain, create_vif
from dom0.vifs import Cause, Vif
from dom0.xenstore.server import Xenstored
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.grant import GRANT_ENTRY, GTF_PERMIT_ACCESS, PAGE_BYTES
from hyp.abi.ring import REQ_PROD, RSP_PROD
from hyp.abi.sizes import MAX_QUEUES
from hyp.control import Reply
from hyp.counters import CounterPage
from hyp.grants import DOMAIN_VIEW
from hyp.memory import Mapping
from hyp.xenstore.client import Transaction, XenstoreClient
from hyp.xenstore.xenbus import XenbusState as S
from hyp.xenstore.xenbus import backend_path, frontend_path, wait_for_state
from tests.support.patience import patient

DOMID, PAGES, REFS = 1, 16, 512
FRONT, BACK = frontend_path(DOMID, "vif", 0), backend_path(0, "vif", DOMID, 0)
GUEST = {
    "domid": DOMID,
    "name": "anna",
    "mac": "02:00:00:00:00:01",
    "memory": PAGES * PAGE_BYTES,
    "grants": "copy",
    "rate": None,
}
NODES = {"tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": "3", "request-rx-copy": "1"}
CALLS = ("foreign_view", "evtchn_bind_interdomain", "filter_change", "add_vif")


def memory(pages: int) -> tuple[int, Mapping]:
    fd = os.memfd_create("vif")
    os.ftruncate(fd, pages * PAGE_BYTES)
    return fd, Mapping(fd, pages * PAGE_BYTES)


class World:
    """A guest's memory, the hypervisor and the engine as a vif knows them, and what it holds of each."""

    def __init__(self) -> None:
        self._fds, self._maps = zip(*[memory(pages) for pages in (PAGES, 1, 1)], strict=True)
        ram, table, self._active = self._maps
        self._words = ram.words("<u4")
        entries = table.array.view(GRANT_ENTRY)
        for ref, frame in ((8, 1), (9, 2)):
            entries[ref] = (GTF_PERMIT_ACCESS, 0, frame)
        self.fails: dict[str, Exception] = {}
        self.ports: set[int] = set()
        self.macs: list[str] = []
        self.bridge: set[int] = set()
        self.rates: list[Rate] = []
        self._views, self._platform = np.zeros(2, DOMAIN_VIEW), np.zeros(4096, np.uint8)
        self.engine: Any = SimpleNamespace(
            views=self._views, views_address=int(self._views.ctypes.data), view_count=2, upcall=0,
            platform=int(self._platform.ctypes.data), ports=np.zeros(2, PORT), add_vif=self._add_vif, remove_vif=self._remove_vif,
            set_rate=self._set_rate, forget_guest=lambda number: None,
        )  # fmt: skip
        self.counters = _counters()

    async def call(self, op: str, **args: Any) -> Reply:
        """A hypercall."""
        await asyncio.sleep(0)
        failing = f"{op}, the inverse" if args.get("remove") else op
        if failing in self.fails:
            raise self.fails[failing]
        if op == "foreign_view":
            return Reply({"memory": PAGES * PAGE_BYTES, "refs": REFS}, [os.dup(fd) for fd in self._fds])
        if op == "evtchn_bind_interdomain":
            port = next(n for n in range(1, 100) if n not in self.ports)
            self.ports.add(port)
            return Reply({"port": port}, [os.eventfd(0)])
        if op == "evtchn_close":
            self.ports.remove(args["port"])
        elif op == "filter_change":
            self.macs += args["add"]
            for mac in args["remove"]:
                self.macs.remove(mac)
        return Reply(None, [])

    async def _add_vif(self, number: int, *rest: object, filters: bool, maps: bool) -> None:
        if "add_vif" in self.fails:
            raise self.fails["add_vif"]
        assert number not in self.bridge
        self.engine.ports[number]["failed"] = 0
        self.bridge.add(number)
        assert isinstance(rest[-1], Rate)
        self.rates.append(rest[-1])

    async def _remove_vif(self, number: int) -> None:
        self.bridge.discard(number)

    async def _set_rate(self, number: int, rate: Rate) -> None:
        assert number in self.bridge
        self.rates.append(rate)

    def overrun(self) -> None:
        self._words[(PAGE_BYTES + REQ_PROD) // 4] = self._words[(PAGE_BYTES + RSP_PROD) // 4] + 300

    def rings(self, start: int = 0) -> None:
        for page in (1, 2):
            self._words[(page * PAGE_BYTES + REQ_PROD) // 4] = self._words[(page * PAGE_BYTES + RSP_PROD) // 4] = start

    def held(self) -> tuple[int, int, int, int, int]:
        """Pinned pages, event channels, addresses, bridge ports, views: one each but for two rings, or nothing."""
        pinned = int(np.count_nonzero(self._active.array.view(np.int64)))
        return pinned, len(self.ports), len(self.macs), len(self.bridge), int(self._views[DOMID]["present"])

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


ALL, NOTHING = (2, 1, 1, 1, 1), (0, 0, 0, 0, 0)


def _counters() -> CounterPage:
    fd = os.memfd_create("counters")
    os.ftruncate(fd, COUNTERS_BYTES)
    return CounterPage(Mapping.adopt(fd, COUNTERS_BYTES))


class Front:
    """A front end, and its vif."""

    def __init__(self, world: World, server: Xenstored, dom0: XenstoreClient, guest: XenstoreClient) -> None:
        self.world, self.server, self.dom0, self.guest = world, server, dom0, guest
        self.vif = Vif(world, dom0, world.engine, world.counters, GUEST, 1, MAX_QUEUES)  # type: ignore[arg-type]

    async def write(self, **nodes: str | None) -> None:
        """Nodes of the front end's (with _ for -), in one transaction; None removes."""

        async def body(transaction: Transaction) -> None:
            for name, value in nodes.items():
                path = f"{FRONT}/{name.replace('_', '-')}"
                await (transaction.rm(path) if value is None else transaction.write(path, value))

        await self.guest.retry(body)

    async def state(self, state: S) -> None:
        await self.write(state=str(int(state)))

    async def told(self, state: S) -> None:
        await wait_for_state(self.dom0, BACK, [state], patient(20))

    async def connect(self) -> None:
        """Whatever was before."""
        self.world.rings()
        await self.state(S.INITIALISING)
        await self.told(S.INIT_WAIT)
        await self.write(**{name.replace("-", "_"): value for name, value in NODES.items()})
        await self.state(S.CONNECTED)
        await self.told(S.CONNECTED)
        assert self.world.held() == ALL


def drive(body: Callable[[Front], Awaitable[None]]) -> None:
    """Run a body with a vif that lives meanwhile; then its guest dies, and nothing is held."""

    async def main() -> None:
        world, server = World(), Xenstored()
        ends = {domid: socket.socketpair() for domid in (0, DOMID)}
        for domid, (_, far) in ends.items():
            server.expect(domid, far)
        dom0, guest = [await XenstoreClient.open(near) for near, _ in ends.values()]
        await create_domain(dom0, GUEST)
        await create_vif(dom0, DOMID, 0, str(GUEST["mac"]))
        await dom0.introduce(DOMID)
        front = Front(world, server, dom0, guest)
        life = asyncio.ensure_future(front.vif.run())
        await body(front)
        assert not life.done()
        front.vif.wake(Cause.GONE)
        await life
        assert world.held() == NOTHING
        for client in (dom0, guest):
            await client.close()
        server.close()
        world.close()

    asyncio.run(main())
