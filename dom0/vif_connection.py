"""What netback holds of a guest while its vif is Connected: taken in one go, given back in the reverse order, whatever failed.

Who owns what, and when (`Connection.open` in this order, `Connection.close` backwards)::

    view of the guest      its RAM and grant tables, mapped here; the DOMAIN_VIEW by which grant hypercalls on our threads see it
    of each queue, in order:
      two ring pages       mapped by grant, for writing; RING records that begin at the ring's own `rsp_prod`
      event channels       one port of ours, or two, bound to the guest's, and the eventfds by which we notify
    MAC address            a filter of the NIC for context 0
    control ring           if there is one: its page, its event channel, and the pages that are mapped by it (dom0/control/ring.py)
    bridge port            the engine's, from `add_vif` until `remove_vif` has returned; and pages that it maps for a batch
"""

import asyncio
import errno
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from dom0.build import EngineState, Pages, QueueEnd
from dom0.control.hashing import HashControl
from dom0.control.mappings import StaticMappings
from dom0.control.pages import Grants, map_page, unmap_page
from dom0.control.ring import ControlRing
from dom0.rate import Rate
from hyp.abi.domids import DOM0
from hyp.abi.features import CSUM, NETIF_NODES, NETIF_OFFERS, NO_CSUM_OFFLOAD, NONE, unoffered
from hyp.abi.netif import (
    CTRL_RING_REF,
    CTRL_SLOT_BYTES,
    EVENT_CHANNEL_CTRL,
    NUM_QUEUES_NODE,
    REQUEST_MULTICAST_CONTROL,
    RX_SLOT_BYTES,
    TX_SLOT_BYTES,
)
from hyp.control import Channel, ControlError, Refused, Reply, close_all
from hyp.control.debt import Debt
from hyp.control.descriptors import close_shared
from hyp.counters import CounterPage
from hyp.kernels import entry, i64
from hyp.memory import MappedOnce, Mapping, SharedMemoryError
from hyp.ring import RING, resume_back, ring_at, ring_size
from hyp.xenstore.client import XenstoreClient, XenstoreError


@entry(i64(i64, i64, i64, i64))
def _resume(ring: int, sring: int, entries: int, entry_bytes: int) -> int:
    return resume_back(ring_at(ring), sring, entries, entry_bytes)


BUSY_S, BUSY_TRIES = 0.1, 50
"""How often, and how many times, a guest is asked again that is too dear to notify."""


class VifError(Exception):
    """A front end cannot be served: `number`, an errno, and a sentence, as both go into xenstore."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def errno_of(name: str) -> int:
    """The number of an error that xenstored or the hypervisor named; EIO for what this system has no number for."""
    return int(getattr(errno, name, errno.EIO))


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose vif it is: guest, port of the bridge."""

    domid: int
    name: str
    mac: str
    number: int


# --- what the front end says ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueWishes:
    """A front end's nodes of one queue."""

    where: str
    """What its nodes' names begin with: ``""``, ``"queue-1/"``."""
    tx_ring_ref: int
    rx_ring_ref: int
    tx_port: int
    rx_port: int
    """Of the event channels, or the channel."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """A front end's nodes, judged."""

    queues: tuple[QueueWishes, ...]
    features: int
    filters: bool
    control: tuple[int, int] | None
    """The control ring's reference and port; None: there is none."""


async def read_wishes(store: XenstoreClient, front: str, *, max_queues: int) -> Wishes:
    """What the front end at `front` asks for. VifError, naming the node, for what cannot be.

    `max_queues`: how many are on offer.
    """
    if (queues := await _number(store, front, NUM_QUEUES_NODE, missing=1)) > max_queues or queues == 0:
        raise VifError(errno.EINVAL, f"guest requested {queues} queues, the maximum is {max_queues}")
    if not await _is_set(store, front, "request-rx-copy"):
        raise VifError(errno.EOPNOTSUPP, f"{front}/request-rx-copy is not 1: frames are copied into a guest, never flipped")
    features = NONE
    for feature, (_, accepts) in NETIF_NODES.items():
        if await _is_set(store, front, accepts):
            features |= feature
    if not await _is_set(store, front, NO_CSUM_OFFLOAD):
        features |= CSUM
    if wrong := unoffered(NETIF_OFFERS, features):
        raise VifError(errno.EINVAL, f"features {wrong:#x} have not been offered")
    control = None
    if (control_ref := await _number(store, front, CTRL_RING_REF, missing=-1)) >= 0:
        control = control_ref, await _number(store, front, EVENT_CHANNEL_CTRL)
    places = [""] if queues == 1 else [f"queue-{k}/" for k in range(queues)]
    return Wishes(
        queues=tuple([await _read_queue(store, front, where) for where in places]),
        features=int(features),
        filters=await _is_set(store, front, REQUEST_MULTICAST_CONTROL),
        control=control,
    )


async def _read_queue(store: XenstoreClient, front: str, where: str) -> QueueWishes:
    """The nodes of one queue. As with Linux's netback, ``event-channel`` counts unless both of the split ones are there."""
    tx_ring_ref, rx_ring_ref = [await _number(store, front, f"{where}{way}-ring-ref") for way in ("tx", "rx")]
    tx_port, rx_port = [await _number(store, front, f"{where}event-channel-{way}", missing=0) for way in ("tx", "rx")]
    if tx_port == 0 or rx_port == 0:
        tx_port = rx_port = await _number(store, front, f"{where}event-channel")
    return QueueWishes(where, tx_ring_ref, rx_ring_ref, tx_port, rx_port)


async def _is_set(store: XenstoreClient, front: str, feature: str) -> bool:
    """What the front end says of a feature: 1; 0, or nothing."""
    value = await _number(store, front, feature, missing=0)
    if value > 1:
        raise VifError(errno.EINVAL, f"{front}/{feature} is {value}, not 0 or 1")
    return value == 1


async def _number(store: XenstoreClient, front: str, node: str, missing: int | None = None) -> int:
    """A node's number; `missing` where there is no such node, if that may be."""
    try:
        text = await store.read(f"{front}/{node}")
    except XenstoreError as error:
        if error.name == "ENOENT" and missing is not None:
            return missing
        raise VifError(errno_of(error.name), f"reading {front}/{node}") from error
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise VifError(errno.EINVAL, f"{front}/{node} is {text[:32]!r}, not a number")
    return int(text)


# --- what it gets -----------------------------------------------------------------------------------------------------


class Connection:
    """A vif's resources: none until `open` has returned, none once `close` has."""

    def __init__(self, hyp: Channel, state: EngineState, who: Identity, ram: MappedOnce, debt: Debt) -> None:
        """`ram`: where the guest's is mapped while its domain lives. `debt`: the guest's, for what it has us do."""
        self._hyp, self._state, self._who, self._ram, self._debt = hyp, state, who, ram, debt
        self._rings: dict[int, np.ndarray[tuple[int], np.dtype[np.void]]] = {}  # RING records, by their shared page
        self._pages: list[Pages] = []  # the engine's, from add_vif to remove_vif
        self._control: asyncio.Task[None] | None = None  # it ends by itself only if the control ring has run away
        self._held = AsyncExitStack()

    @property
    def failed(self) -> bool:
        """A ring has run away: the engine has taken the port out of service, or nobody serves the control ring any more."""
        control = self._control is not None and self._control.done()
        return control or bool(self._state.ports[self._who.number]["failed"])

    async def close(self) -> None:
        """Give everything back. It is done as far as it goes; raises what stood in its way last."""
        await self._held.aclose()

    async def open(self, counters: CounterPage, wishes: Wishes, rate: Rate, *, maps: bool = False, routed: bool = True) -> None:
        """Take everything. VifError if something cannot be had, and then nothing is held.

        `rate`: how much the guest may send. `maps`: what it sends is mapped, not a grant copy. `routed`: the guest's address is
        ours; else not before `take_address`.
        """
        try:
            await self._view_guest()
            grants = self._grants(counters)
            tables = maps or wishes.control is not None
            queues = [await self._take_queue(queue, grants, tables=tables) for queue in wishes.queues]
            control = await self._open_control(wishes, grants)
            if routed:
                await self.take_address()
            await self._become_port(counters, queues, wishes, rate, maps=maps)
            if control is not None:
                self._control = asyncio.get_running_loop().create_task(control.serve())
                self._held.push_async_callback(self._end_control, self._control)
        except ControlError as error:  # the hypervisor refuses, or is gone
            await self.close()
            raise VifError(errno_of(error.name) if isinstance(error, Refused) else errno.EIO, str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def _view_guest(self) -> None:
        """Let the grant hypercalls, which run on our threads, see the guest."""
        reply = await self._hyp.call("foreign_view", domid=self._who.domid)
        memory, refs = int(reply.value["memory"]), int(reply.value["refs"])
        try:
            ram = self._ram.map(self._who.name, reply.fds[0], memory)
            regions = [ram, *(Mapping(fd, refs * 8) for fd in reply.fds[1:])]
        except SharedMemoryError as error:
            raise VifError(error.errno or errno.EIO, str(error)) from error
        finally:
            close_all(reply.fds)
        _, table, active = regions
        view = self._state.views[self._who.domid]
        view["grant_table"], view["refs"], view["active"] = table.address, refs, active.address
        view["ram"], view["ram_bytes"], view["present"] = ram.address, memory, 1

        def forget() -> None:
            view["present"] = 0
            regions.clear()

        self._held.callback(forget)

    def _grants(self, counters: CounterPage) -> Grants:
        state = self._state
        return state.platform, *counters.row("control"), state.views_address, state.view_count, self._who.domid

    async def _take_queue(self, queue: QueueWishes, grants: Grants, *, tables: bool) -> QueueEnd:
        rings = (
            self._map(f"{queue.where}tx-ring-ref", queue.tx_ring_ref, TX_SLOT_BYTES, grants),
            self._map(f"{queue.where}rx-ring-ref", queue.rx_ring_ref, RX_SLOT_BYTES, grants),
        )
        tx_event = await self._bind(queue.tx_port, self._state.upcall)
        rx_event = await self._bind(queue.rx_port, self._state.upcall) if queue.rx_port != queue.tx_port else tx_event
        return QueueEnd(rings, (tx_event, rx_event), self._tables() if tables else None)

    def _tables(self) -> Pages:
        """Two tables of pages, which we keep until the port has gone."""
        self._pages.append(np.zeros((2, int(self._state.views[self._who.domid]["refs"])), np.int64))
        return self._pages[-1]

    def _map(self, node: str, gref: int, entry_bytes: int, grants: Grants) -> int:
        """Address of the RING record for the page granted under `gref`, which must not be another ring's."""
        sring = map_page(*grants, gref, 1)
        if sring < 0:
            raise VifError(errno.EINVAL, f"{node} {gref} cannot be mapped (grant status {sring})")
        self._held.callback(unmap_page, *grants, gref, 1)
        if sring in self._rings:
            raise VifError(errno.EINVAL, f"{node} {gref} is the page of another ring")
        record = self._rings[sring] = np.zeros(1, RING)
        if _resume(int(record.ctypes.data), sring, ring_size(entry_bytes), entry_bytes) < 0:
            raise VifError(errno.EIO, f"{node} {gref}: more is requested than the ring has slots")
        return int(record.ctypes.data)

    async def _open_control(self, wishes: Wishes, grants: Grants) -> ControlRing | None:
        """The control ring, whose static mappings are given back after the port has gone."""
        if wishes.control is None:
            return None
        ring = self._map(CTRL_RING_REF, wishes.control[0], CTRL_SLOT_BYTES, grants)
        upcall = self._state.control
        event_fd = await self._bind(wishes.control[1], upcall.number)
        state, number, count = self._state, self._who.number, len(wishes.queues)
        mappings, hashing = StaticMappings(state, number, grants, count), HashControl(state, number, grants, count)
        control = ControlRing(ring, event_fd, (state.debt_of(number), self._debt), mappings, hashing, upcall.found)
        upcall.join(control.woken)
        self._held.callback(upcall.leave, control.woken)
        self._held.callback(control.close)
        return control

    @staticmethod
    async def _end_control(control: "asyncio.Task[None]") -> None:
        control.cancel()
        await asyncio.wait({control})
        if not control.cancelled() and (error := control.exception()) is not None:  # ours
            raise error

    async def _bound(self, port: int, upcall: int) -> Reply:
        """Bind to the guest's port; later, if to notify the guest is too dear just now (hyp/events.py), for a while at most."""
        for _ in range(BUSY_TRIES):
            try:
                return await self._hyp.call("evtchn_bind_interdomain", remote=self._who.domid, remote_port=port, upcall=upcall)
            except Refused as error:
                if error.name != "EBUSY":
                    raise
            await asyncio.sleep(BUSY_S)
        raise VifError(errno.EBUSY, f"event channel {port}: to notify the guest stays too dear")

    async def _bind(self, port: int, upcall: int) -> int:
        bound = await self._bound(port, upcall)
        self._held.push_async_callback(self._hyp.call, "evtchn_close", port=int(bound.value["port"]))
        self._held.callback(close_shared, [bound.fds[0]])
        return bound.fds[0]

    async def take_address(self) -> None:
        """Let the NIC give Dom0 what is for the guest."""
        await self._hyp.call("filter_change", domid=DOM0, add=[self._who.mac], remove=[])
        self._held.push_async_callback(self._hyp.call, "filter_change", domid=DOM0, add=[], remove=[self._who.mac])

    async def _become_port(self, counters: CounterPage, queues: list[QueueEnd], wishes: Wishes, rate: Rate, *, maps: bool) -> None:
        who = self._who
        counts = counters.row(f"vif{who.domid}:{who.name}")
        self._held.push_async_callback(self._state.remove_vif, who.number)
        how: dict[str, Any] = {"filters": wishes.filters, "maps": maps}
        await self._state.add_vif(who.number, who.domid, wishes.features, counts, queues, rate, **how)
