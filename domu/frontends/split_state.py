"""The split front end's private state, and what the loops over both rings (domu/frontends/split_rings.py) share with what is taken
out of them (domu/frontends/split_chains.py). Compiled.
"""

import numpy as np

from domu.device import FAILED
from hyp.abi.counters import EVENTS, FAULTS_GRANT, FAULTS_PROTOCOL
from hyp.abi.domids import DOM0
from hyp.abi.netif import RX_SLOT_BYTES, TX_SLOT_BYTES
from hyp.abi.platform import EVENT_SEND_PRICE
from hyp.atomics import load64, record_view, store32, store64
from hyp.counters import count
from hyp.events import notify_if, wait_at
from hyp.grants import end_access, grant_access
from hyp.kernels import compiled
from hyp.model.price import charge
from hyp.ring import next_request, ring_size

BACKEND = DOM0
FIRST_REF = 8  # below are Xen's reserved entries
TX_SLOTS = ring_size(TX_SLOT_BYTES)
RX_SLOTS = ring_size(RX_SLOT_BYTES)
TX_REF, RX_REF = FIRST_REF + 2, FIRST_REF + 2 + TX_SLOTS  # of a device's first queue, after those of its two rings
QUEUE_REFS = 2 + TX_SLOTS + RX_SLOTS
PAGE_MASK = 4095

NETFRONT = np.dtype(
    [
        ("tx_ring", "i8"),  # RING records, as the front end
        ("rx_ring", "i8"),
        ("table", "i8"),  # address of the grant table
        ("tx_ref", "i8"),  # grant references of the first page of either pool
        ("rx_ref", "i8"),
        ("tx_event_fd", "i8"),  # to tell the back end of requests: the same, if there is one event channel for both rings
        ("rx_event_fd", "i8"),
        ("ram", "i8"),  # address of guest-physical 0
        ("tx_pool", "i8"),  # guest-physical addresses; a page per slot
        ("rx_pool", "i8"),
        ("free", "i8"),  # ring of TX_SLOTS free request ids
        ("free_head", "i8"),
        ("free_tail", "i8"),
        ("busy", "i8"),  # by request id: what it says (`send_page`) while the back end has it; else 0
        ("infos", "i8"),  # by request id: the extra info behind it, if it has one
        ("extras", "i8"),  # extra infos that the back end has
        ("polled", "i8"),  # RX_SLOTS POLLED entries: fragments of whole frames taken from the ring and not yet released
        ("polled_head", "i8"),
        ("polled_tail", "i8"),
        ("awaited", "i8"),  # responses that must be there before a frame can be taken: more than 1 where one is not whole yet
        ("failed", "i8"),
        ("persistent", "i8"),  # 1: the pools' pages were granted at set-up, for good
    ]
)
netfront_at = record_view(NETFRONT)

POLLED = np.dtype([("addr", "i8"), ("word", "i8"), ("slots", "i8")])
"""A fragment received: where, its fragment word, and how many slots of the ring its release frees: an extra info's too."""
POLLED_BYTES = POLLED.itemsize
polled_at = record_view(POLLED)


@compiled
def fail(d, f):
    """The back end broke the protocol: the device is out of service."""
    count(d.counts, FAULTS_PROTOCOL, 1)
    f.failed = 1
    return FAILED


# What is remembered of a request that the back end has, for that cannot be read back from the shared ring (R3):
#
#     bits 0–11 offset in the page   12–15 flags   16–31 size   32–60 sequence: its place among all requests   61 BEHIND   62 BUSY
FLAGS_SHIFT, FLAGS_MASK, SIZE_SHIFT, SEQUENCE_SHIFT, SEQUENCE_MASK = 12, 15, 16, 32, (1 << 29) - 1
BEHIND = 1 << 61
"""It is a fragment behind the first one of its frame."""
BUSY = 1 << 62


@compiled
def next_free(f):
    """The request id that is used next."""
    return load64(f.free + 8 * (f.free_head & (TX_SLOTS - 1)))


@compiled
def send_page(f, ring, grant, addr, octets, flags):
    """Write the next transmit request: `octets` bytes of the next free send page, which begin at `addr` in it."""
    head = f.free_head
    number = load64(f.free + 8 * (head & (TX_SLOTS - 1)))
    f.free_head = head + 1
    sequence = (head & SEQUENCE_MASK) << SEQUENCE_SHIFT
    word = BUSY | (addr & PAGE_MASK) | (flags << FLAGS_SHIFT) | (octets << SIZE_SHIFT) | sequence
    store64(f.busy + 8 * number, word)
    if grant:
        grant_access(f.table, f.tx_ref + number, BACKEND, (f.tx_pool >> 12) + number, 1)
    write_request(f, ring, number, addr & PAGE_MASK, octets, flags)


@compiled
def write_request(f, ring, number, offset, octets, flags):
    """Write the next transmit request, `number`, whose page is granted: `octets` bytes from `offset` on."""
    slot = next_request(ring)
    store32(slot, f.tx_ref + number)
    store32(slot + 4, offset | (flags << 16))
    store32(slot + 8, number | (octets << 16))


@compiled
def put_free(f, number):
    """The back end has request `number` no more."""
    store64(f.busy + 8 * number, 0)
    store64(f.free + 8 * (f.free_tail & (TX_SLOTS - 1)), number)
    f.free_tail += 1


@compiled
def take_back(d, f, index):
    """Revoke the grant of the receive page of slot `index`. 0, or FAILED: the back end still uses it."""
    if f.persistent == 0 and end_access(f.table, f.rx_ref + (index & (RX_SLOTS - 1))) == 0:
        count(d.counts, FAULTS_GRANT, 1)
        return fail(d, f)
    return 0


@compiled
def keep_polled(f, index, offset, word, slots):
    """Remember the fragment in the receive page of slot `index`."""
    entry = polled(f, f.polled_tail)
    entry.addr = f.ram + f.rx_pool + (index & (RX_SLOTS - 1)) * (PAGE_MASK + 1) + offset
    entry.word, entry.slots = word, slots
    f.polled_tail += 1


@compiled
def polled(f, k):
    """POLLED entry of a free-running index."""
    return polled_at(f.polled + (k % RX_SLOTS) * POLLED_BYTES)


@compiled
def post_receive(f, ring):
    """Grant the page of the next receive slot and ask for a frame in it."""
    number = ring.req_prod_pvt & (RX_SLOTS - 1)
    if f.persistent == 0:
        grant_access(f.table, f.rx_ref + number, BACKEND, (f.rx_pool >> 12) + number, 0)
    ask_for_frame(f, ring)


@compiled
def ask_for_frame(f, ring):
    """Write the next receive request, whose page is granted."""
    number = ring.req_prod_pvt & (RX_SLOTS - 1)
    store64(next_request(ring), number | ((f.rx_ref + number) << 32))


@compiled
def tell(d, event_fd, due):
    """Send the back end the event, if it is due."""
    notify_if(due, event_fd, d.counts)
    if due:
        charge(wait_at(d.wait).platform, EVENT_SEND_PRICE, d.counts, EVENTS, 1)
