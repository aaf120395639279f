"""The split front end, Xen's netfront: rings and grants shared with netback in Dom0, which does the rest.

What runs per frame is domu/frontends/split_rings.py; here is the set-up. A guest with several queues has a device for each.

As a Linux netfront does, it grants a page per packet and takes the grant back when the packet is answered. Send page i belongs to
request id i, receive page i to receive slot i.

With ``grants = "persistent"`` it grants every page of both pools once, at set-up, and has the back end map them for good:
domu/frontends/split_mappings.py.

Set-up (XenBus), as Linux's netfront has it: wait for the back end's InitWait → rings in RAM, granted (and both pools, if
persistent) → event channels → all nodes in one transaction → Connected → the back end Connected (→ pools mapped) → receive
requests posted.
What becomes of the back end's state afterwards: domu/frontends/split_follow.py.
"""

import asyncio
import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from domu.device import Device, InUse, Record, device_at, new_device
from domu.frontends.split_follow import ConnectedQueue, Following, close_front_end, max_queues, notifiers, tell_connected
from domu.frontends.split_mappings import REFS, Mappings, Unmapped
from domu.frontends.split_rings import OPERATIONS
from domu.frontends.split_state import BACKEND, NETFRONT, POLLED, QUEUE_REFS, netfront_at, post_receive, tell
from domu.frontends.split_state import FIRST_REF as FIRST_REF
from domu.frontends.split_state import RX_REF as RX_REF
from domu.frontends.split_state import RX_SLOTS as RX_SLOTS
from domu.frontends.split_state import TX_REF as TX_REF
from domu.frontends.split_state import TX_SLOTS as TX_SLOTS
from hyp.abi.features import CSUM, CSUM6, NETIF_NODES, NO_CSUM_OFFLOAD, SG, TSO4, TSO6
from hyp.abi.grant import ENTRY_BYTES, PAGE_BYTES
from hyp.abi.netif import (
    FEATURE_CTRL_RING,
    FEATURE_SPLIT_EVENT_CHANNELS,
    NR_SLOTS_MIN,
    NUM_QUEUES_NODE,
    RX_SLOT_BYTES,
    TX_SLOT_BYTES,
)
from hyp.abi.nic import mac_to_int
from hyp.abi.sizes import COLOURED_FRAME
from hyp.atomics import store64
from hyp.grants import end_access, grant_access
from hyp.kernels import entry, i64, void
from hyp.memory import Mapping
from hyp.ring import RING, attach_front, push_requests, ring_at, sring_init
from hyp.xenstore.client import XenstoreClient
from hyp.xenstore.xenbus import (
    XenbusError,
    XenbusState,
    frontend_path,
    offered_features,
    says_one,
    tell_error,
    wait_for_state,
)

if TYPE_CHECKING:
    from domu.guest import Guest, GuestQueue

GRANT_FRAMES = 4  # at least
HANDSHAKE_TIMEOUT_S = 30.0
LEFT = (XenbusState.INITIALISING, XenbusState.INIT_WAIT, XenbusState.CLOSING, XenbusState.CLOSED)

KNOWN = SG | CSUM | TSO4 | TSO6
"""Features that this driver can use."""


@entry(void(i64, i64))
def _init_rings(front: int, rings: int) -> None:
    """Initialise both shared pages (`rings`: guest-physical address of the two), grant them, free all ids."""
    f = netfront_at(front)
    sring = f.ram + rings
    for k in range(2):
        sring_init(sring + k * PAGE_BYTES)
        grant_access(f.table, f.tx_ref - 2 + k, BACKEND, (rings >> 12) + k, 0)
    attach_front(ring_at(f.tx_ring), sring, TX_SLOTS, TX_SLOT_BYTES)
    attach_front(ring_at(f.rx_ring), sring + PAGE_BYTES, RX_SLOTS, RX_SLOT_BYTES)
    for number in range(TX_SLOTS):
        store64(f.free + 8 * number, number)
    f.free_tail = TX_SLOTS


@entry(void(i64))
def _grant_pools(front: int) -> None:
    """Grant all pages for as long as the device is up."""
    f = netfront_at(front)
    f.persistent = 1
    for number in range(TX_SLOTS):
        grant_access(f.table, f.tx_ref + number, BACKEND, (f.tx_pool >> 12) + number, 1)
    for number in range(RX_SLOTS):
        grant_access(f.table, f.rx_ref + number, BACKEND, (f.rx_pool >> 12) + number, 0)


@entry(i64(i64))
def _revoke_all(front: int) -> int:
    """Revoke all that has been granted for a queue; of how many pages the other side has not let go."""
    f = netfront_at(front)
    used = 0
    for ref in range(f.tx_ref - 2, f.tx_ref - 2 + QUEUE_REFS):
        used += 1 - end_access(f.table, ref)
    return used


@entry(void(i64))
def _post_all_receives(device: int) -> None:
    """Ask for a frame in every receive page."""
    d = device_at(device)
    f = netfront_at(d.front)
    ring = ring_at(f.rx_ring)
    for _ in range(RX_SLOTS):
        post_receive(f, ring)
    tell(d, f.rx_event_fd, push_requests(ring))


class _Memory:
    """What the NETFRONT record of queue `queue` points at."""

    def __init__(self, guest: "Guest", table: Mapping, queue: int = 0) -> None:
        self.record = np.zeros(1, NETFRONT)
        self._rings = np.zeros(2, RING)
        self._lists = np.zeros((3, TX_SLOTS), np.int64)
        self.busy = self._lists[1]
        self._polled = np.zeros(RX_SLOTS, POLLED)
        self._table = table
        self.ring_pages = guest.ram.allocate(2 * PAGE_BYTES)
        row = self.record[0]
        row["awaited"] = 1
        row["tx_ref"], row["rx_ref"] = TX_REF + queue * QUEUE_REFS, RX_REF + queue * QUEUE_REFS
        row["tx_ring"], row["rx_ring"] = (int(self._rings[k : k + 1].ctypes.data) for k in range(2))
        row["free"], row["busy"], row["infos"] = (int(self._lists[k].ctypes.data) for k in range(3))
        row["polled"], row["table"], row["ram"] = self._polled.ctypes.data, table.address, guest.ram.address
        row["tx_pool"] = guest.ram.allocate(TX_SLOTS * PAGE_BYTES)
        row["rx_pool"] = guest.ram.allocate(RX_SLOTS * PAGE_BYTES)
        self.address = int(self.record.ctypes.data)


@dataclass(slots=True)
class _Queue:
    """One queue on its way to a device."""

    guest: "GuestQueue"
    memory: _Memory
    ports: list[int]
    """Event channels: one to transmit and one to receive, or one for both."""

    def nodes(self) -> dict[str, int]:
        """What the back end must know of it."""
        tx_ref = int(self.memory.record[0]["tx_ref"])
        nodes = {"tx-ring-ref": tx_ref - 2, "rx-ring-ref": tx_ref - 1}
        names = ("event-channel-tx", "event-channel-rx") if len(self.ports) > 1 else ("event-channel",)
        return nodes | dict(zip(names, self.ports, strict=True))


async def connect(guest: "Guest") -> list[Device]:
    """Walk the XenBus handshake with netback; returns the connected device of each queue.

    There are as many as the guest has and the back end takes. XenbusError, told in the store too, if it fails.
    """
    store = await guest.xenstore()
    front = frontend_path(guest.domid, "vif", 0)
    async with contextlib.AsyncExitStack() as held:
        try:
            devices = await _connect(guest, store, front, held)
        except XenbusError as error:
            await tell_error(store, front, errno.ETIMEDOUT, str(error))
            raise
        held.pop_all()  # it is the devices' now
        return devices


async def _connect(guest: "Guest", store: XenstoreClient, front: str, held: contextlib.AsyncExitStack) -> list[Device]:
    """`held`: is told how everything is given back, whatever fails."""
    back = await _backend_path(store, front)
    await wait_for_state(store, back, [XenbusState.INIT_WAIT], HANDSHAKE_TIMEOUT_S)
    mac = await store.read(f"{front}/mac")
    own = guest.queues[: await max_queues(store, back)]
    table = await _grant_table(guest, len(own))
    channels = 2 if await says_one(store, f"{back}/{FEATURE_SPLIT_EVENT_CHANNELS}") else 1
    queues = [await _make_queue(guest, table, queue, channels, held) for queue in own]
    nodes = {"request-rx-copy": 1, "feature-rx-notify": 1}
    if len(queues) == 1:
        nodes |= queues[0].nodes()
    else:
        nodes[NUM_QUEUES_NODE] = len(queues)
        nodes |= {f"queue-{k}/{name}": value for k, queue in enumerate(queues) for name, value in queue.nodes().items()}
    mappings = None
    if guest.config["grants"] == "persistent":
        mappings = await _make_mappings(guest, store, back, table, queues)
        held.push_async_callback(mappings.close)
        nodes |= mappings.nodes()
    features = acceptable(int(guest.config["features"]), await offered_features(store, back))
    nodes |= {accepts: 1 for feature, (_, accepts) in NETIF_NODES.items() if feature & features}
    if not features & CSUM:
        nodes[NO_CSUM_OFFLOAD] = 1
    held.push_async_callback(close_front_end, store, front, back)
    await tell_connected(store, front, nodes)
    await _until_connected(store, back)
    if mappings is not None:
        await _have_mapped(store, back, mappings)
    connected = [await _device(guest, queue, mac, features & ~CSUM6, held) for queue in queues]
    for one in connected:
        _post_all_receives(one.device.address)
    following = Following(guest.hyp, store, front, back, nodes, features, connected, mappings, held.pop_all())
    held.push_async_callback(following.close)
    await following.begin()
    for queue, one in zip(queues, connected, strict=True):
        one.device.keep += [following, mappings, queue.memory, store]
        one.device.behind = VifBehind(following, one)
    return [one.device for one in connected]


class VifBehind:
    """A queue of a connected vif that can be given back (domu/move.py)."""

    def __init__(self, following: Following, queue: ConnectedQueue) -> None:
        self._following, self._queue = following, queue

    def adopt(self, device: Device, record: Record, counts: tuple[int, int]) -> None:
        """Follow the back end for `device`, and count in its row."""
        self._queue.device = device
        for one in (record, self._queue.attached):
            one[0]["counts"], one[0]["counts_shared"] = counts

    async def close(self) -> None:
        """All queues are closed with the first one."""
        if self._queue.guest.number == 0:
            await self._following.close()


async def _grant_table(guest: "Guest", queues: int) -> Mapping:
    """The guest's grant table, large enough for so many queues."""
    frames = max(-(-(_mappings_ref(queues) + REFS) * ENTRY_BYTES // PAGE_BYTES), GRANT_FRAMES)
    setup = await guest.hyp.call("gnttab_setup", frames=frames)
    return Mapping.adopt(setup.fds[0], frames * PAGE_BYTES)


def _mappings_ref(queues: int) -> int:
    """The first grant reference behind those of so many queues."""
    return FIRST_REF + queues * QUEUE_REFS


async def _make_mappings(guest: "Guest", store: XenstoreClient, back: str, table: Mapping, queues: list[_Queue]) -> Mappings:
    """Grant all pages of the pools, and a control ring on which to say so."""
    if not await says_one(store, f"{back}/{FEATURE_CTRL_RING}"):
        raise _refused(
            back, XenbusState.INIT_WAIT, f'it has no control ring ({FEATURE_CTRL_RING}), which grants = "persistent" takes'
        )
    rows = [queue.memory.record[0] for queue in queues]
    for queue in queues:
        _grant_pools(queue.memory.address)
    mappings = Mappings(guest, table, _mappings_ref(len(queues)), [(int(row["tx_ref"]), int(row["rx_ref"])) for row in rows])
    await mappings.open()
    return mappings


async def _have_mapped(store: XenstoreClient, back: str, mappings: Mappings) -> None:
    """Have the pools mapped. XenbusError if the back end does not, or leaves Connected before it has."""
    mapping = asyncio.ensure_future(mappings.map_pools())
    leaving = asyncio.ensure_future(wait_for_state(store, back, LEFT, HANDSHAKE_TIMEOUT_S))
    try:
        await asyncio.wait({mapping, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not mapping.done():
            raise _refused(back, leaving.result(), "it left before it had mapped all pages")
        mapping.result()
    except Unmapped as error:
        raise _refused(back, XenbusState.CONNECTED, str(error)) from error
    finally:
        for task in (mapping, leaving):
            task.cancel()
        await asyncio.gather(mapping, leaving, return_exceptions=True)


async def _make_queue(
    guest: "Guest", table: Mapping, queue: "GuestQueue", channels: int, held: contextlib.AsyncExitStack
) -> _Queue:
    """Rings, granted, and so many event channels."""
    memory = _Memory(guest, table, queue.number)
    _init_rings(memory.address, memory.ring_pages)
    held.callback(_revoke_grants, memory)
    ports = []
    for _ in range(channels):
        made = await guest.hyp.call("evtchn_alloc_unbound", remote=BACKEND, upcall=queue.upcall)
        ports.append(int(made.value["port"]))
        held.push_async_callback(guest.hyp.call, "evtchn_close", port=ports[-1])
    return _Queue(queue, memory, ports)


def _revoke_grants(memory: _Memory) -> None:
    """InUse if the back end has not let go."""
    if used := int(_revoke_all(memory.address)):
        raise InUse(f"the back end has not let go of {used} pages")


async def _device(guest: "Guest", queue: _Queue, mac: str, features: int, held: contextlib.AsyncExitStack) -> ConnectedQueue:
    """The device upon a queue that the back end has connected."""
    event_fds = await notifiers(guest.hyp, queue.ports)
    memory = queue.memory
    record = memory.record[0]
    record["tx_event_fd"], record["rx_event_fd"] = event_fds[0], event_fds[-1]
    counts = guest.counters.row(queue.guest.row("device"))
    device = new_device(
        OPERATIONS, queue.memory.address, mac, mac_to_int(mac), COLOURED_FRAME, counts, queue.guest.wait, features
    )  # fmt: skip
    row = device.record[0]
    row["fragment_room"], row["fragment_align"], row["max_fragments"] = PAGE_BYTES, PAGE_BYTES, NR_SLOTS_MIN
    connected = ConnectedQueue(queue.guest, device, memory.record, memory.busy, queue.ports, event_fds)
    held.callback(connected.close_notifiers)
    return connected


def acceptable(wanted: int, offered: int) -> int:
    """What of the `wanted` features can be accepted. Programs know one feature for all checksums, and TSO without is none."""
    checksums, segmentation = CSUM | CSUM6, TSO4 | TSO6
    features = KNOWN & wanted & offered
    if wanted & CSUM and offered & checksums == checksums:
        return features | checksums
    return features & ~(CSUM | segmentation)


def _refused(back: str, seen: XenbusState, why: str) -> XenbusError:
    return XenbusError(back, seen, frozenset({XenbusState.CONNECTED}), why)


async def _until_connected(store: XenstoreClient, back: str) -> None:
    """Wait for the back end's answer. XenbusError if it is no."""
    wanted = frozenset({XenbusState.CONNECTED})
    seen = await wait_for_state(store, back, wanted | {XenbusState.CLOSING, XenbusState.CLOSED}, HANDSHAKE_TIMEOUT_S)
    if seen not in wanted:
        raise XenbusError(
            back, seen, wanted, "the back end refuses; the reason is in its log, and under error/ in its domain's home"
        )


async def _backend_path(store: XenstoreClient, front: str) -> str:
    """Where the toolstack says the back end is; waits until the toolstack has made the device."""
    await wait_for_state(store, front, [XenbusState.INITIALISING], HANDSHAKE_TIMEOUT_S)
    return await store.read(f"{front}/backend")
