"""netback's control side: one vif per split guest, from its nodes in xenstore to a port of the bridge, and back.

Back end's states: InitWait (the toolstack's nodes are there, features written) → the front end writes rings and event channel and
becomes Initialised → map the rings by grant, bind the event channel, add the port → Connected → Closing/Closed or the guest's
death: remove the port, unmap, Closed.

Persistent grants are negotiated on the way: a back end that is to have them (the topology's `persistent_grants`) writes
``feature-persistent`` 1 before InitWait, a front end that will never revoke its pages writes the same before Initialised.
Unless both say 1, each frame is a grant copy. What follows from it is in dom0/persistent.py.
"""

import asyncio
import os
from typing import Any

import numpy as np

from dom0.build import EngineState, Pages
from hyp.abi.counters import GRANT_FLUSHES, GRANT_MAPS, GRANT_UNMAPS
from hyp.abi.domids import DOM0
from hyp.abi.features import NETIF_NODES, NETIF_OFFERS, NONE, unoffered
from hyp.abi.netif import FEATURE_PERSISTENT, RX_SLOT_BYTES, TX_SLOT_BYTES
from hyp.abi.platform import GRANT_FLUSH_PRICE, GRANT_MAP_PRICE, GRANT_UNMAP_PRICE
from hyp.control import Channel
from hyp.counters import CounterPage, commit
from hyp.grants import map_grant_at, unmap_grant_at
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.model.price import charge
from hyp.ring import RING, attach_back, ring_at, ring_size
from hyp.xenstore.client import XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import XenbusState, backend_path, frontend_path, switch_state, wait_for_state

DEVICE = "vif"
HANDSHAKE_TIMEOUT_S = 30.0


@entry(i64(i64, i64, i64, i64, i64, i64, i64))
def _map_ring(platform: int, counts: int, shared: int, views: int, count: int, domid: int, gref: int) -> int:
    """Address of the granted page, mapped for writing, or a negative grant status. `counts`, `shared`: the control plane's row."""
    charge(platform, GRANT_MAP_PRICE, counts, GRANT_MAPS, 1)
    commit(counts, shared)
    return map_grant_at(views, count, DOM0, domid, gref, 1)


@entry(i64(i64, i64, i64, i64, i64, i64, i64))
def _unmap_ring(platform: int, counts: int, shared: int, views: int, count: int, domid: int, gref: int) -> int:
    charge(platform, GRANT_UNMAP_PRICE, counts, GRANT_UNMAPS, 1)
    charge(platform, GRANT_FLUSH_PRICE, counts, GRANT_FLUSHES, 1)
    commit(counts, shared)
    return unmap_grant_at(views, count, DOM0, domid, gref, 1)


@entry(void(i64, i64, i64, i64))
def _attach(ring: int, sring: int, entries: int, entry_bytes: int) -> None:
    attach_back(ring_at(ring), sring, entries, entry_bytes)


async def create_nodes(store: XenstoreClient, domid: int, handle: int, mac: str) -> None:
    """The toolstack's part: both ends' nodes, each side's readable by the other and writable by its owner."""
    front, back = frontend_path(domid, DEVICE, handle), backend_path(DOM0, DEVICE, domid, handle)
    back_nodes = {"frontend": front, "frontend-id": str(domid), "handle": str(handle), "mac": mac, "online": "1"}
    front_nodes = {"backend": back, "backend-id": str(DOM0), "handle": str(handle), "mac": mac}
    initialising = str(int(XenbusState.INITIALISING))
    await store.mkdir(back)
    await store.set_perms(back, [f"n{DOM0}", f"r{domid}"])
    await store.mkdir(front)
    await store.set_perms(front, [f"n{domid}", f"r{DOM0}"])
    for path, nodes in ((back, back_nodes), (front, front_nodes)):
        for name, value in {**nodes, "state": initialising}.items():
            await store.write(f"{path}/{name}", value)


class Vif:
    """One vif: port `number` of the bridge. `run` is its life."""

    def __init__(
        self,
        hyp: Channel,
        store: XenstoreClient,
        state: EngineState,
        counters: CounterPage,
        guest: dict[str, Any],
        number: int,
    ) -> None:
        self._hyp, self._store, self._state, self._counters = hyp, store, state, counters
        self.domid, self.name, self.mac, self.number = (
            int(guest["domid"]),
            str(guest["name"]),
            str(guest["mac"]),
            number,
        )
        self._front = frontend_path(self.domid, DEVICE, 0)
        self._back = backend_path(DOM0, DEVICE, self.domid, 0)
        self._rings = np.zeros(2, RING)
        self._grefs: list[int] = []
        self._keep: list[Mapping] = []
        self._offers_persistent = bool(guest["persistent_grants"])
        self._pages: Pages | None = None  # the engine's, from add_vif to remove_port
        self.features = 0  # agreed on, once it is connected
        self.gone = asyncio.Event()

    async def run(self) -> None:
        """Offer, connect, wait for the end, disconnect."""
        await self._store.write(f"{self._back}/feature-rx-copy", "1")
        if self._offers_persistent:
            await self._store.write(f"{self._back}/{FEATURE_PERSISTENT}", "1")
        for feature, (offers, _) in NETIF_NODES.items():
            if feature & NETIF_OFFERS:
                await self._store.write(f"{self._back}/{offers}", "1")
        await switch_state(self._store, self._back, XenbusState.INIT_WAIT)
        ready = (XenbusState.INITIALISED, XenbusState.CONNECTED)
        await wait_for_state(self._store, self._front, ready, HANDSHAKE_TIMEOUT_S)
        await self._connect()
        await switch_state(self._store, self._back, XenbusState.CONNECTED)
        guest_there = await self._until_closing()
        await self._disconnect()
        if guest_there:
            await switch_state(self._store, self._back, XenbusState.CLOSED)

    async def _until_closing(self) -> bool:
        """Wait until the front end closes (True) or its domain is gone (False)."""
        closing = (XenbusState.CLOSING, XenbusState.CLOSED)
        closes = asyncio.ensure_future(wait_for_state(self._store, self._front, closing, float("inf")))
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({closes, gone}, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done() and closes.exception() is None
        finally:
            closes.cancel()
            gone.cancel()
            await asyncio.wait({closes, gone})

    async def _connect(self) -> None:
        await self._view_guest()
        refs = {}
        for name, entry_bytes, ring in (("tx-ring-ref", TX_SLOT_BYTES, 0), ("rx-ring-ref", RX_SLOT_BYTES, 1)):
            refs[name] = await self._read_int(name)
            sring = _map_ring(*self._hypercall_args(), refs[name])
            if sring < 0:
                raise RuntimeError(
                    f"vif of domain {self.domid} ({self.name}): {name} {refs[name]} cannot be mapped (grant status {sring})"
                )
            self._grefs.append(refs[name])
            _attach(int(self._rings[ring : ring + 1].ctypes.data), sring, ring_size(entry_bytes), entry_bytes)
        if self._offers_persistent and await self._is_set(FEATURE_PERSISTENT):
            self._pages = np.zeros((2, int(self._state.views[self.domid]["refs"])), np.int64)
        self.features = await self._accepted()
        port = await self._read_int("event-channel")
        bound = await self._hyp.call("evtchn_bind_interdomain", remote=self.domid, remote_port=port, upcall=self._state.upcall)
        self._event_fd = bound.fds[0]
        self._port = int(bound.value["port"])
        counts = self._counters.row(f"vif{self.domid}:{self.name}")
        rings = [int(self._rings[k : k + 1].ctypes.data) for k in range(2)]
        await self._hyp.call("filter_change", context=DOM0, add=[self.mac], remove=[])
        await self._state.add_vif(self.number, self.domid, rings, self._event_fd, counts, self._pages)

    def _hypercall_args(self) -> tuple[int, ...]:
        """What `_map_ring` and `_unmap_ring` take before the reference."""
        state = self._state
        return state.platform, *self._counters.row("control"), state.views_address, state.view_count, self.domid

    async def _disconnect(self) -> None:
        """Take the port away, then everything under it."""
        await self._state.remove_port(self.number)
        for gref in self._grefs:
            _unmap_ring(*self._hypercall_args(), gref)
        self._state.views[self.domid]["present"] = 0
        self._keep.clear()
        os.close(self._event_fd)
        await self._hyp.call("evtchn_close", port=self._port)
        await self._hyp.call("filter_change", context=DOM0, add=[], remove=[self.mac])
        if self._pages is not None and self._pages.any():
            held = np.count_nonzero(self._pages)
            raise RuntimeError(f"vif of domain {self.domid} ({self.name}): {held} persistent grants could not be unmapped")
        self._pages = None

    async def _view_guest(self) -> None:
        """Let the grant hypercalls, which run on our threads, see the guest."""
        reply = await self._hyp.call("foreign_view", domid=self.domid)
        memory, refs = int(reply.value["memory"]), int(reply.value["refs"])
        ram, table, active = (Mapping.adopt(fd, size) for fd, size in zip(reply.fds, (memory, refs * 8, refs * 8), strict=True))
        self._keep = [ram, table, active]
        view = self._state.views[self.domid]
        view["grant_table"], view["refs"], view["active"] = table.address, refs, active.address
        view["ram"], view["ram_bytes"], view["present"] = ram.address, memory, 1

    async def _accepted(self) -> int:
        """The feature word that the front end accepts; RuntimeError if it accepts what was not offered."""
        word = NONE
        for feature, (_, accepts) in NETIF_NODES.items():
            if await self._is_set(accepts):
                word |= feature
        if wrong := unoffered(NETIF_OFFERS, word):
            raise RuntimeError(f"vif of domain {self.domid} ({self.name}): features {wrong:#x} have not been offered")
        return int(word)

    async def _is_set(self, feature: str) -> bool:
        """What the front end says of a feature: 1; 0, or nothing."""
        try:
            value = await self._read_int(feature)
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            return False
        if value > 1:
            raise RuntimeError(f"vif of domain {self.domid} ({self.name}): {feature} is {value}, not 0 or 1")
        return value == 1

    async def _read_int(self, node: str) -> int:
        text = await self._store.read(f"{self._front}/{node}")
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise RuntimeError(f"vif of domain {self.domid} ({self.name}): {node} is {text!r}, not a number")
        return int(text)
