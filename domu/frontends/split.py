"""The split front end, Xen's netfront: rings and grants shared with netback in Dom0, which does the rest.

As a Linux netfront does, it grants a page per packet and takes the grant back when the packet is answered. Send page i belongs to
request id i, receive page i to receive slot i.

Where the back end offers ``feature-persistent`` it grants every page of both pools once, at set-up, and revokes none: a page is
then shared with Dom0 as long as the device is up, and a request or its answer says only whose turn it is to use it. Dom0 could
read or change a page out of turn; such a guest trusts it not to. The back end's side is dom0/persistent.py.

Set-up (XenBus), as Linux's netfront has it: wait for the back end's InitWait → rings in RAM, granted (and both pools, if
persistent) → event channel → all nodes in one transaction → Connected → the back end Connected → receive requests posted.
A back end that closes is followed: Closed, and the device is out of service.
"""

import asyncio
import errno
import logging
from typing import TYPE_CHECKING

import numpy as np

from domu.device import (
    ALL,
    BURST,
    FAILED,
    RX,
    TX,
    Device,
    Operations,
    completions_to_wait_for,
    device_at,
    frame_length,
    new_device,
    set_frame,
)
from hyp.abi.counters import (
    EVENTS,
    FAULTS_GRANT,
    FAULTS_PROTOCOL,
    RX_BYTES,
    RX_FRAMES,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.features import NETIF_NODES, NONE
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import FEATURE_PERSISTENT, RX_SLOT_BYTES, TX_SLOT_BYTES
from hyp.abi.nic import mac_to_int
from hyp.abi.platform import EVENT_SEND_PRICE
from hyp.abi.sizes import COLOUR_BYTES, COLOURED_FRAME, COLOURS
from hyp.atomics import load16_once, load64, load64_once, record_view, store32, store64
from hyp.counters import commit, count
from hyp.events import notify_if, wait_at
from hyp.grants import end_access, grant_access
from hyp.kernels import compiled, entry, i64, operation, void
from hyp.memory import Mapping
from hyp.model.price import charge
from hyp.process import adopt_socket
from hyp.ring import (
    PROTOCOL_FAULT,
    RING,
    arm_responses,
    attach_front,
    free_requests,
    next_request,
    next_response,
    push_requests,
    ring_at,
    ring_size,
    signed16,
    sring_init,
    unconsumed_responses,
)
from hyp.xenstore.client import Transaction, Watch, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import (
    XenbusError,
    XenbusState,
    frontend_path,
    offered_features,
    read_state,
    says_one,
    switch_state,
    tell_error,
    wait_for_state,
)

if TYPE_CHECKING:
    from domu.guest import Guest

log = logging.getLogger(__name__)

BACKEND = 0
GRANT_FRAMES = 4
FIRST_REF = 8  # below are Xen's reserved entries
HANDSHAKE_TIMEOUT_S = 30.0
TX_SLOTS = ring_size(TX_SLOT_BYTES)
RX_SLOTS = ring_size(RX_SLOT_BYTES)
TX_REF, RX_REF = FIRST_REF + 2, FIRST_REF + 2 + TX_SLOTS

KNOWN = NONE
"""Features that this driver can use."""

NETFRONT = np.dtype(
    [
        ("tx_ring", "i8"),  # RING records, as the front end
        ("rx_ring", "i8"),
        ("table", "i8"),  # address of the grant table
        ("event_fd", "i8"),
        ("ram", "i8"),  # address of guest-physical 0
        ("tx_pool", "i8"),  # guest-physical addresses; a page per slot
        ("rx_pool", "i8"),
        ("free", "i8"),  # ring of TX_SLOTS free request ids
        ("free_head", "i8"),
        ("free_tail", "i8"),
        ("busy", "i8"),  # by request id: 1 while the back end has it
        ("polled", "i8"),  # RX_SLOTS × (address, length): responses taken from the ring and not yet released
        ("polled_head", "i8"),
        ("polled_tail", "i8"),
        ("failed", "i8"),
        ("persistent", "i8"),  # 1: the pools' pages were granted at set-up, for good
    ]
)
_netfront_at = record_view(NETFRONT)


@compiled
def _colour(slot: int) -> int:
    return (slot % COLOURS) * COLOUR_BYTES


@compiled
def _fail(d, f):
    """The back end broke the protocol: the device is out of service."""
    count(d.counts, FAULTS_PROTOCOL, 1)
    f.failed = 1
    return FAILED


@compiled
def _reap(d, f):
    """Take all transmit responses: revoke their grants, free their ids. 0, or FAILED."""
    ring, revoke = ring_at(f.tx_ring), f.persistent == 0
    ready = unconsumed_responses(ring)
    while ready > 0:
        for _ in range(ready):
            number = load16_once(next_response(ring))
            if number >= TX_SLOTS or load64(f.busy + 8 * number) == 0:
                return _fail(d, f)
            store64(f.busy + 8 * number, 0)
            if revoke and end_access(f.table, TX_REF + number) == 0:
                count(d.counts, FAULTS_GRANT, 1)  # answered and still in use: the page is lost to us until it is not
                return _fail(d, f)
            store64(f.free + 8 * (f.free_tail % TX_SLOTS), number)
            f.free_tail += 1
        ready = unconsumed_responses(ring)
    return _fail(d, f) if ready == PROTOCOL_FAULT else 0


@compiled
def _room(f):
    return min(free_requests(ring_at(f.tx_ring)), f.free_tail - f.free_head)


@operation(i64(i64, i64))
def tx_reserve(device: int, want: int) -> int:
    d = device_at(device)
    f = _netfront_at(d.front)
    if f.failed != 0 or (_room(f) < want and _reap(d, f) < 0):
        return FAILED
    n = min(_room(f), want)
    for k in range(n):
        number = load64(f.free + 8 * ((f.free_head + k) % TX_SLOTS))
        set_frame(d.tx, k, f.ram + f.tx_pool + number * PAGE_BYTES + _colour(number), 0)
    return n


@operation(i64(i64, i64))
def tx_commit(device: int, n: int) -> int:
    d = device_at(device)
    f = _netfront_at(d.front)
    if f.failed != 0:
        return FAILED
    ring, grant = ring_at(f.tx_ring), f.persistent == 0
    total = 0
    for k in range(n):
        number = load64(f.free + 8 * (f.free_head % TX_SLOTS))
        f.free_head += 1
        store64(f.busy + 8 * number, 1)
        length = frame_length(d.tx, k)
        total += length
        if grant:
            grant_access(f.table, TX_REF + number, BACKEND, (f.tx_pool >> 12) + number, 1)
        slot = next_request(ring)
        store32(slot, TX_REF + number)
        store32(slot + 4, _colour(number))  # offset; no flags
        store32(slot + 8, number | (length << 16))
    count(d.counts, TX_FRAMES, n)
    count(d.counts, TX_BYTES, total)
    _tell(d, f, push_requests(ring))
    commit(d.counts, d.counts_shared)
    return n


@compiled
def _tell(d, f, due):
    notify_if(due, f.event_fd, d.counts)
    if due:
        charge(wait_at(d.wait).platform, EVENT_SEND_PRICE, d.counts, EVENTS, 1)


@operation(i64(i64, i64))
def tx_pending(device: int, _: int) -> int:
    d = device_at(device)
    f = _netfront_at(d.front)
    if f.failed != 0 or _reap(d, f) < 0:
        return FAILED
    return TX_SLOTS - (f.free_tail - f.free_head)


@compiled
def _take_response(d, f, slot, index):
    """Check one receive response, revoke its grant, remember the frame. 0, or FAILED."""
    word = load64_once(slot)  # u16 id, offset, flags; s16 status
    number, offset, status = word & 0xFFFF, (word >> 16) & 0xFFFF, signed16(word >> 48)
    expected = index & (RX_SLOTS - 1)
    if number != expected or (status > 0 and offset + status > PAGE_BYTES):
        return _fail(d, f)
    if f.persistent == 0 and end_access(f.table, RX_REF + expected) == 0:
        count(d.counts, FAULTS_GRANT, 1)
        return _fail(d, f)
    at = f.polled + 16 * (f.polled_tail % RX_SLOTS)
    store64(at, f.ram + f.rx_pool + expected * PAGE_BYTES + offset)
    store64(at + 8, max(status, 0))
    f.polled_tail += 1
    return 0


@operation(i64(i64, i64))
def rx_poll(device: int, want: int) -> int:
    d = device_at(device)
    f = _netfront_at(d.front)
    if f.failed != 0:
        return FAILED
    ring = ring_at(f.rx_ring)
    missing = want - (f.polled_tail - f.polled_head)
    if missing > 0:
        ready = unconsumed_responses(ring)
        if ready == PROTOCOL_FAULT:
            return _fail(d, f)
        for _ in range(min(ready, missing)):
            index = ring.rsp_cons
            if _take_response(d, f, next_response(ring), index) < 0:
                return FAILED
    n = min(want, f.polled_tail - f.polled_head)
    for k in range(n):
        at = f.polled + 16 * ((f.polled_head + k) % RX_SLOTS)
        set_frame(d.rx, k, load64(at), load64(at + 8))
    return n


@compiled
def _post_receive(f, ring):
    """Grant the page of the next receive slot and ask for a frame in it."""
    number = ring.req_prod_pvt & (RX_SLOTS - 1)
    if f.persistent == 0:
        grant_access(f.table, RX_REF + number, BACKEND, (f.rx_pool >> 12) + number, 0)
    store64(next_request(ring), number | ((RX_REF + number) << 32))


@operation(i64(i64, i64))
def rx_release(device: int, n: int) -> int:
    d = device_at(device)
    f = _netfront_at(d.front)
    if f.failed != 0:
        return FAILED
    ring = ring_at(f.rx_ring)
    for _ in range(n):
        length = load64(f.polled + 16 * (f.polled_head % RX_SLOTS) + 8)
        f.polled_head += 1
        if length > 0:
            count(d.counts, RX_FRAMES, 1)
            count(d.counts, RX_BYTES, length)
        _post_receive(f, ring)
    _tell(d, f, push_requests(ring))
    commit(d.counts, d.counts_shared)
    return n


@operation(i64(i64, i64))
def arm(device: int, what: int) -> int:
    d = device_at(device)
    f = _netfront_at(d.front)
    ready = 0
    if what & RX and arm_responses(ring_at(f.rx_ring)):
        ready = 1
    if what & (TX | ALL):
        if _reap(d, f) < 0:
            return FAILED
        pending = TX_SLOTS - (f.free_tail - f.free_head)
        if (what & ALL and pending == 0) or (what & TX and _room(f) >= BURST):
            return 1
        if arm_responses(ring_at(f.tx_ring), completions_to_wait_for(what, pending)):
            ready = 1
    return ready


OPERATIONS = Operations(tx_reserve, tx_commit, tx_pending, rx_poll, rx_release, arm)


@entry(void(i64, i64))
def _init_rings(front: int, rings: int) -> None:
    """Initialise both shared pages (`rings`: guest-physical address of the two), grant them, free all ids."""
    f = _netfront_at(front)
    sring = f.ram + rings
    for k in range(2):
        sring_init(sring + k * PAGE_BYTES)
        grant_access(f.table, FIRST_REF + k, BACKEND, (rings >> 12) + k, 0)
    attach_front(ring_at(f.tx_ring), sring, TX_SLOTS, TX_SLOT_BYTES)
    attach_front(ring_at(f.rx_ring), sring + PAGE_BYTES, RX_SLOTS, RX_SLOT_BYTES)
    for number in range(TX_SLOTS):
        store64(f.free + 8 * number, number)
    f.free_tail = TX_SLOTS


@entry(void(i64))
def _grant_pools(front: int) -> None:
    """Grant all pages for as long as the device is up."""
    f = _netfront_at(front)
    f.persistent = 1
    for number in range(TX_SLOTS):
        grant_access(f.table, TX_REF + number, BACKEND, (f.tx_pool >> 12) + number, 1)
    for number in range(RX_SLOTS):
        grant_access(f.table, RX_REF + number, BACKEND, (f.rx_pool >> 12) + number, 0)


@entry(void(i64))
def _post_all_receives(device: int) -> None:
    """Ask for a frame in every receive page."""
    d = device_at(device)
    f = _netfront_at(d.front)
    ring = ring_at(f.rx_ring)
    for _ in range(RX_SLOTS):
        _post_receive(f, ring)
    _tell(d, f, push_requests(ring))


class _Memory:
    """What the NETFRONT record points at."""

    def __init__(self, guest: "Guest", table: Mapping) -> None:
        self.record = np.zeros(1, NETFRONT)
        self._rings = np.zeros(2, RING)
        self._lists = np.zeros((2, TX_SLOTS), np.int64)
        self._polled = np.zeros((RX_SLOTS, 2), np.int64)
        self._table = table
        self.ring_pages = guest.ram.allocate(2 * PAGE_BYTES)
        row = self.record[0]
        row["tx_ring"], row["rx_ring"] = (int(self._rings[k : k + 1].ctypes.data) for k in range(2))
        row["free"], row["busy"] = (int(self._lists[k].ctypes.data) for k in range(2))
        row["polled"], row["table"], row["ram"] = self._polled.ctypes.data, table.address, guest.ram.address
        row["tx_pool"] = guest.ram.allocate(TX_SLOTS * PAGE_BYTES)
        row["rx_pool"] = guest.ram.allocate(RX_SLOTS * PAGE_BYTES)
        self.address = int(self.record.ctypes.data)


async def connect(guest: "Guest") -> Device:
    """Walk the XenBus handshake with netback; returns the connected device. XenbusError, told in the store too, if it fails."""
    store = await XenstoreClient.open(adopt_socket(guest.process.sockets["xenstore"]))
    front = frontend_path(guest.domid, "vif", 0)
    try:
        return await _connect(guest, store, front)
    except XenbusError as error:
        await tell_error(store, front, errno.ETIMEDOUT, str(error))
        raise


async def _connect(guest: "Guest", store: XenstoreClient, front: str) -> Device:
    back = await _backend_path(store, front)
    await wait_for_state(store, back, [XenbusState.INIT_WAIT], HANDSHAKE_TIMEOUT_S)
    mac = await store.read(f"{front}/mac")
    setup = await guest.hyp.call("gnttab_setup", frames=GRANT_FRAMES)
    memory = _Memory(guest, Mapping.adopt(setup.fds[0], GRANT_FRAMES * PAGE_BYTES))
    _init_rings(memory.address, memory.ring_pages)
    port = int((await guest.hyp.call("evtchn_alloc_unbound", remote=BACKEND, upcall=guest.upcall)).value["port"])
    nodes = {"tx-ring-ref": FIRST_REF, "rx-ring-ref": FIRST_REF + 1, "event-channel": port}
    nodes |= {"request-rx-copy": 1, "feature-rx-notify": 1}
    if await says_one(store, f"{back}/{FEATURE_PERSISTENT}"):
        _grant_pools(memory.address)
        nodes[FEATURE_PERSISTENT] = 1
    features = KNOWN & await offered_features(store, back)
    nodes |= {accepts: 1 for feature, (_, accepts) in NETIF_NODES.items() if feature & features}

    async def write(transaction: Transaction) -> None:
        for name, value in nodes.items():
            await transaction.write(f"{front}/{name}", str(value))

    await store.retry(write)
    await switch_state(store, front, XenbusState.CONNECTED)
    await _until_connected(store, back)
    memory.record[0]["event_fd"] = (await guest.hyp.call("evtchn_notifier", port=port)).fds[0]
    device = new_device(
        OPERATIONS, memory.address, mac, mac_to_int(mac), COLOURED_FRAME, guest.counters.row("device"), guest.wait, features
    )
    watch = await store.watch(f"{back}/state", "follow")
    following = asyncio.get_running_loop().create_task(_follow(store, watch, front, back, memory))
    device.keep += [following, memory, store]
    _post_all_receives(device.address)
    return device


async def _until_connected(store: XenstoreClient, back: str) -> None:
    """Wait for the back end's answer. XenbusError if it is no."""
    wanted = frozenset({XenbusState.CONNECTED})
    seen = await wait_for_state(store, back, wanted | {XenbusState.CLOSING, XenbusState.CLOSED}, HANDSHAKE_TIMEOUT_S)
    if seen not in wanted:
        raise XenbusError(
            back, seen, wanted, "the back end refuses; the reason is in its log, and under error/ in its domain's home"
        )


async def _follow(store: XenstoreClient, watch: Watch, front: str, back: str, memory: "_Memory") -> None:
    """When the back end closes, or is removed, the front end does: xenbus_frontend_closed."""
    try:
        async for _ in watch:
            if await read_state(store, back) in (XenbusState.CLOSING, XenbusState.CLOSED, None):
                memory.record[0]["failed"] = 1
                log.warning("%s has closed: the device is out of service", back)
                await switch_state(store, front, XenbusState.CLOSED)
                return
    except XenstoreError:
        return  # the store is gone, or our nodes are: nobody is left to be told


async def _backend_path(store: XenstoreClient, front: str) -> str:
    """Where the toolstack says the back end is; waits until the toolstack has made the device."""
    await wait_for_state(store, front, [XenbusState.INITIALISING], HANDSHAKE_TIMEOUT_S)
    return await store.read(f"{front}/backend")
