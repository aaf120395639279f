"""The role of a guest whose front end walks no handshake of its own: each node, each state and each slot as its console is told.

So it can be any front end, Linux's, Windows', a firmware's, or one that nobody has written. Operations, beside those of a `Poster`
(tests/support/fuzz_netfront.py: transmit, post, received, overrun, pools):

setup {start, queues, apart}  new rings with all indices at `start`, granted; {node: value} as a front end writes them (None: not
                              there). `apart`: an event channel for each ring, not for each queue
notifier {}                   the event channels, which the back end has bound by now, are those to notify from here on
nodes {values}                write below the front end's directory in one transaction; None removes
state {value}                 write the front end's state, whatever it is; None removes the node
control {start}               a control ring with its indices at `start`, and a page for tables, granted; {node: value}
control_notifier {}           as `notifier`, for the control ring's
ask {requests}                control requests [id, type, data, data, data]; waits for the answers: [[id, type, status, data], …]
table {entries}               write [reference, flags, status] into the page for tables
fill {content}                the same, bytes
statuses {count}              the statuses of the first so many entries
tamper {what, seed}           from here on, in a thread of its own, rewrite what netback may be reading of queue 0: "grants" of both
                              pools (revoked and granted again), "slots" that are published (all but their flags), "flags" of
                              these, "bytes" of what is sent, from byte KEPT of a page on
calm {}                       no more; how many rewrites there were. The grants are as they were
settled {}                    whether all that was published to transmit is answered
refill {}                     takes all receive responses, and posts a request for every page that has none
run_away {}                   claim more control requests than there can be
store {op, path, value}       "read", "write", "directory", "rm" as the guest: the result, or the error's name
"""

import asyncio
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from domu.frontends import split
from domu.frontends.split_state import BACKEND, QUEUE_REFS
from domu.guest import Guest
from hyp.abi.grant import GTF_PERMIT_ACCESS, GTF_READING, GTF_WRITING, PAGE_BYTES
from hyp.abi.netif import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    CTRL_RING_REF,
    CTRL_SLOT_BYTES,
    EVENT_CHANNEL_CTRL,
    GREF,
    NUM_QUEUES_NODE,
    TX_REQUEST,
)
from hyp.process import Process
from hyp.ring import ring_size
from hyp.xenstore.client import Transaction, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import frontend_path
from tests.support.fuzz_netfront import WRAP, Poster, RingEnd

QUEUES = 4
"""That it has memory for."""
CONTROL_REF = split.FIRST_REF + QUEUES * QUEUE_REFS
"""Grant of the control ring's page; the next one is that of the page for tables."""
KEPT = 128
"""Of a page that is tampered with: where a test places the frame's Ethernet header, whose source address the bridge checks."""
CTRL_SLOTS = ring_size(CTRL_SLOT_BYTES)


class Driven(Poster):
    """The operations."""

    def __init__(
        self, process: Process, guest: Guest, memories: "list[split._Memory]", mac: str, store: XenstoreClient, frames: int
    ) -> None:
        super().__init__(process, guest, memories, mac, frames)
        self._guest, self._store = guest, store
        self._first_pages = [memory.ring_pages // PAGE_BYTES for memory in memories]
        self._front = frontend_path(guest.domid, "vif", 0)
        self._ports: dict[tuple[int, str], int] = {}  # by queue, and "tx", "rx" or "both"
        self._named: list[tuple[int, str, int]] = []  # queue, ring, port: as of the last `setup`
        self._control_port = 0
        self._calm, self._tampering = threading.Event(), asyncio.get_running_loop().create_future()
        address = int(memories[0].record[0]["ram"])
        self._control_pages = guest.ram.allocate(2 * PAGE_BYTES)
        self._control = RingEnd(address + self._control_pages, CTRL_SLOTS, CTRL_REQUEST, CTRL_RESPONSE)
        self._table = self._ram[self._control_pages + PAGE_BYTES : self._control_pages + 2 * PAGE_BYTES].view(GREF)
        ops: list[Callable[..., Any]] = [self.setup, self.notifier, self.nodes, self.state, self.store, self.control]
        ops += [self.tamper, self.calm, self.settled, self.refill]
        ops += [self.control_notifier, self.ask, self.table, self.fill, self.statuses, self.run_away]
        for op in ops:
            process.serve(op.__name__, op)

    async def setup(self, start: int, queues: int = 1, apart: bool = False) -> dict[str, str | None]:
        self._named.clear()
        nodes: dict[str, int | None] = {"request-rx-copy": 1, "feature-rx-notify": 1}
        nodes[NUM_QUEUES_NODE] = queues if queues > 1 else None
        for queue in range(queues):
            where = f"queue-{queue}/" if queues > 1 else ""
            nodes |= {f"{where}{name}": value for name, value in (await self._begin(queue, start, apart)).items()}
        return {name: None if value is None else str(value) for name, value in nodes.items()}

    async def _begin(self, queue: int, start: int, apart: bool) -> dict[str, int | None]:
        """New rings of one queue; its nodes."""
        for ring in self._queues[queue].rings.values():
            ring.begin(start)
        first = split.FIRST_REF + queue * QUEUE_REFS
        self._write_entries([[first + k, GTF_PERMIT_ACCESS, BACKEND, self._first_pages[queue] + k] for k in range(2)])
        ports = {way: await self._port(queue, way if apart else "both") for way in ("tx", "rx")}
        self._named += [(queue, way, port) for way, port in ports.items()]
        channels = {f"event-channel-{way}": port if apart else None for way, port in ports.items()}
        return {"tx-ring-ref": first, "rx-ring-ref": first + 1, **channels, "event-channel": None if apart else ports["tx"]}

    async def _port(self, queue: int, way: str) -> int:
        if (queue, way) not in self._ports:
            call = self._guest.hyp.call("evtchn_alloc_unbound", remote=BACKEND, upcall=self._guest.upcall)
            self._ports[queue, way] = int((await call).value["port"])
        return self._ports[queue, way]

    async def notifier(self) -> None:
        for queue, way, port in self._named:
            event_fds = self._queues[queue].event_fds
            if event_fds[way] > 0:
                os.close(event_fds[way])
            event_fds[way] = (await self._guest.hyp.call("evtchn_notifier", port=port)).fds[0]

    async def control(self, start: int) -> dict[str, str]:
        self._control.begin(start)
        first = self._control_pages // PAGE_BYTES
        self._write_entries([[CONTROL_REF + k, GTF_PERMIT_ACCESS, BACKEND, first + k] for k in range(2)])
        if self._control_port == 0:
            call = self._guest.hyp.call("evtchn_alloc_unbound", remote=BACKEND, upcall=self._guest.upcall)
            self._control_port = int((await call).value["port"])
        return {CTRL_RING_REF: str(CONTROL_REF), EVENT_CHANNEL_CTRL: str(self._control_port)}

    async def control_notifier(self) -> None:
        self._control_fd = (await self._guest.hyp.call("evtchn_notifier", port=self._control_port)).fds[0]

    async def ask(self, requests: list[list[int]]) -> list[Any]:
        self._control.post([(number, kind, tuple(data)) for number, kind, *data in requests])  # type: ignore[misc]
        os.eventfd_write(self._control_fd, 1)
        return await self._answers(self._control, len(requests))

    def table(self, entries: list[list[int]]) -> None:
        for k, entry in enumerate(entries):
            self._table[k] = tuple(entry)

    def fill(self, content: bytes) -> None:
        self._table.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)

    def statuses(self, count: int) -> list[int]:
        return [int(status) for status in self._table["status"][:count]]

    def tamper(self, what: list[str], seed: int) -> None:
        self._calm.clear()
        self._tampering = asyncio.get_running_loop().run_in_executor(None, self._tamper, what, seed)

    async def calm(self) -> int:
        self._calm.set()
        rewrites: int = await self._tampering
        return rewrites

    def _tamper(self, what: list[str], seed: int) -> int:
        chance, rewrites = random.Random(seed), 0
        pools, tx = self._entries[split.TX_REF : split.RX_REF + split.RX_SLOTS], self._queues[0].rings["tx"]
        sound = pools.copy()
        sound["flags"] &= ~np.uint16(GTF_READING | GTF_WRITING)
        slots, page = tx.slots().view(TX_REQUEST), self._queues[0].pools["tx"] * PAGE_BYTES
        while not self._calm.is_set():
            k = chance.randrange(len(pools))
            slot = slots[chance.randrange(len(slots))]
            if "grants" in what:
                pools[k] = (0, 0, 0)
                pools[k] = sound[k]
            if "slots" in what:
                slot[chance.choice(["gref", "offset", "id", "size"])] = chance.choice([0, 1, 60, split.TX_REF + 3, 4096, 0xFFFF])
            if "flags" in what:
                slot["flags"] = chance.randrange(16)
            if "bytes" in what:
                at = chance.randrange(64) * PAGE_BYTES + chance.randrange(KEPT, PAGE_BYTES)
                self._ram[page + at] = chance.randrange(256)
            rewrites += 1
        pools[:] = sound
        return rewrites

    def settled(self) -> bool:
        ring = self._queues[0].rings["tx"]
        answered = ring.are_answered(ring.produced)
        ring.consumed = ring.produced if answered else ring.consumed
        return answered

    def refill(self) -> None:
        ring = self._queues[0].rings["rx"]
        ring.consumed = ring.answered()
        free = split.RX_SLOTS - (ring.produced - ring.consumed) % WRAP
        numbers = [(ring.produced + k) % split.RX_SLOTS for k in range(free)]
        self.post([], [[number, split.RX_REF + number] for number in numbers])

    def run_away(self) -> None:
        self._control.overrun()
        os.eventfd_write(self._control_fd, 1)

    async def nodes(self, values: dict[str, str | None]) -> None:
        async def write(transaction: Transaction) -> None:
            for name, value in values.items():
                path = f"{self._front}/{name}"
                await (transaction.rm(path) if value is None else transaction.write(path, value))

        await self._store.retry(write)

    async def state(self, value: str | None) -> None:
        await self.nodes({"state": value})

    async def store(self, op: str, path: str, value: str = "") -> Any:
        try:
            return await getattr(self._store, op)(path, *([value] if op == "write" else []))
        except XenstoreError as error:
            return error.name


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest: memory, a store, and nothing else until the console says so."""
    guest = Guest(process, config)
    await guest.boot()
    store = await XenstoreClient.lasting(process.store_socket)
    table = await split._grant_table(guest, QUEUES)
    memories = [split._Memory(guest, table, queue) for queue in range(QUEUES)]
    mac = await store.read(f"{frontend_path(guest.domid, 'vif', 0)}/mac")
    driven = Driven(process, guest, memories, mac, store, table.size // PAGE_BYTES)
    process.ready()
    await process.stopped.wait()
    del driven
