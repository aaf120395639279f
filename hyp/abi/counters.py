"""The counters page of a process: one row per thing that counts (engine, context, vif, device, program).

Row (512 B): 64 bytes of name (ASCII, zero-padded; an empty name is an unused row), then `COLUMNS` u64. The owner counts in
private memory and copies the row here once a batch; everybody else maps the page read-only. The region outlives its
writer. Counts only grow.

Plain Python only: read by processes that must not import numpy.

At rest, at every hop, ``in = out + drops by name``; `lab/ledger.py` states the equation of each hop and checks it.
"""

from enum import IntEnum
from struct import Struct
from typing import Any, Final

ROW_BYTES: Final = 512
NAME_BYTES: Final = 64  # a row's name has a guest's in it, of up to 31 letters, and is never cut
COLUMNS: Final = (ROW_BYTES - NAME_BYTES) // 8
ROWS: Final = 160
COUNTERS_BYTES: Final = ROWS * ROW_BYTES

_COUNTS: Final = Struct(f"<{COLUMNS}q")


class Count(IntEnum):
    """Columns of a row. What "tx" and "rx" mean is seen from the guest: a vif's tx is what its guest sends."""

    TX_FRAMES = 0
    TX_BYTES = 1
    RX_FRAMES = 2
    RX_BYTES = 3
    COPIES = 4  # payload copies made
    COPIED_BYTES = 5
    NOTIFICATIONS = 6  # eventfd writes
    SUPPRESSED = 7  # batches published whose reader had not asked for a notification
    WAKEUPS = 8  # sleeps ended by an event
    HYPERCALLS = 9  # system calls in the place of hypercalls, one per batch
    TRAPS = 10  # writes to registers of an emulated device; by the guest that made them, and by the hypervisor
    BATCHES = 11
    REPLICATED = 12  # extra copies of a frame made by flooding
    PAUSES = 13  # a sending queue began to wait for a full receiver
    FAULTS_PROTOCOL = 14  # a shared index ran away
    FAULTS_DESCRIPTOR = 15  # bad length or flags
    FAULTS_ADDRESS = 16  # no translation, or not the right
    FAULTS_GRANT = 17  # a grant operation refused
    DROP_NO_BUFFER = 18  # receiver full, and still full when the pause was over
    DROP_NO_ROUTE = 19  # nobody has this address
    DROP_SPOOFED = 20  # source address is not the sender's
    DROP_BAD_FRAME = 21  # length or flags refused
    DROP_BAD_ADDRESS = 22  # the sender's or the receiver's buffer address was refused
    DROP_SMALL_BUFFER = 23  # the receiver's buffer is shorter than the frame
    DROP_QUEUE_FULL = 24  # no room for a copy of a flooded frame, or for a reflected one: these never pause anybody
    DROP_DOWN = 25  # the device it was for is closed or failed
    DROP_SAME_PORT = 26  # a bridge never sends a frame back to its port
    DROP_TAP = 27  # the kernel did not take the frame from the TAP
    LOST = 28  # receiver: sequence numbers never seen; Dom0's uplink: frames that a Dom0 which died had not taken from the NIC
    CORRUPT = 29  # receiver: checksum wrong
    DUPLICATED = 30  # receiver: sequence number seen twice
    CHECKED = 31  # receiver: frames whose whole payload was checksummed
    FOREIGN = 32  # receiver: frames that are not of the test
    TRAP_NS = 33  # time that a guest stood still for its traps
    SPIN_NS = 34  # time that a loop looked for work in vain
    DROP_OVERSIZE = 35  # a frame is longer than the MTU of what its sender sends it on: the NIC's, or its own TAP's
    EVENTS = 36  # event-channel notifications sent; this and those below are what has a price (hyp/model/operations.py)
    DOMAIN_SWITCHES = 37  # sleeps of a domain ended by an event
    INTERRUPTS = 38  # of a NIC, delivered to a domain
    GRANT_MAPS = 39
    GRANT_UNMAPS = 40
    GRANT_FLUSHES = 41  # TLB flushes after unmapping
    GRANT_COPIES = 42  # operations of grant-copy batches
    GRANT_COPIED_BYTES = 43
    IOMMU_MAPS = 44  # pages mapped and unmapped by hypercalls of the data path, and IOTLB flushes
    IOMMU_UNMAPS = 45
    IOMMU_FLUSHES = 46
    DMA_BYTES = 47  # read and written by the NIC in domains' memory
    SEGMENTED = 48  # frames that a device made of a longer one, beyond the first
    FAULTS_CHAIN = 49  # too many fragments, an empty one, the last one missing, or no header in the first
    FAULTS_OFFLOAD = 50  # an offload not accepted, or headers or a segment size with which it can't be done
    CREDIT_WAITS = 51  # a vif with a rate began to wait for credit
    RESENT = 52  # frames that a split front end has sent again, as the back end that had them is no more
    NOTIFY_NS = 53  # CPU time that notifying it took beyond what is fair: further ones are put off (hyp/events.py)
    DROP_STORM = 54  # more broadcasts and multicasts than its sender may send (hyp/fairness/storm.py)


DROPS: Final = [count for count in Count if count.name.startswith("DROP_")]
FAULTS: Final = [count for count in Count if count.name.startswith("FAULTS_")]

# The enum's members as plain integers: compiled code freezes module globals, and only plain integers freeze well.
TX_FRAMES: Final = int(Count.TX_FRAMES)
TX_BYTES: Final = int(Count.TX_BYTES)
RX_FRAMES: Final = int(Count.RX_FRAMES)
RX_BYTES: Final = int(Count.RX_BYTES)
COPIES: Final = int(Count.COPIES)
COPIED_BYTES: Final = int(Count.COPIED_BYTES)
NOTIFICATIONS: Final = int(Count.NOTIFICATIONS)
SUPPRESSED: Final = int(Count.SUPPRESSED)
WAKEUPS: Final = int(Count.WAKEUPS)
HYPERCALLS: Final = int(Count.HYPERCALLS)
TRAPS: Final = int(Count.TRAPS)
BATCHES: Final = int(Count.BATCHES)
REPLICATED: Final = int(Count.REPLICATED)
PAUSES: Final = int(Count.PAUSES)
FAULTS_PROTOCOL: Final = int(Count.FAULTS_PROTOCOL)
FAULTS_DESCRIPTOR: Final = int(Count.FAULTS_DESCRIPTOR)
FAULTS_ADDRESS: Final = int(Count.FAULTS_ADDRESS)
FAULTS_GRANT: Final = int(Count.FAULTS_GRANT)
DROP_NO_BUFFER: Final = int(Count.DROP_NO_BUFFER)
DROP_NO_ROUTE: Final = int(Count.DROP_NO_ROUTE)
DROP_SPOOFED: Final = int(Count.DROP_SPOOFED)
DROP_BAD_FRAME: Final = int(Count.DROP_BAD_FRAME)
DROP_BAD_ADDRESS: Final = int(Count.DROP_BAD_ADDRESS)
DROP_SMALL_BUFFER: Final = int(Count.DROP_SMALL_BUFFER)
DROP_QUEUE_FULL: Final = int(Count.DROP_QUEUE_FULL)
DROP_DOWN: Final = int(Count.DROP_DOWN)
DROP_SAME_PORT: Final = int(Count.DROP_SAME_PORT)
DROP_TAP: Final = int(Count.DROP_TAP)
DROP_OVERSIZE: Final = int(Count.DROP_OVERSIZE)
DROP_STORM: Final = int(Count.DROP_STORM)
SEGMENTED: Final = int(Count.SEGMENTED)
FAULTS_CHAIN: Final = int(Count.FAULTS_CHAIN)
FAULTS_OFFLOAD: Final = int(Count.FAULTS_OFFLOAD)
CREDIT_WAITS: Final = int(Count.CREDIT_WAITS)
RESENT: Final = int(Count.RESENT)
NOTIFY_NS: Final = int(Count.NOTIFY_NS)
LOST: Final = int(Count.LOST)
CORRUPT: Final = int(Count.CORRUPT)
DUPLICATED: Final = int(Count.DUPLICATED)
CHECKED: Final = int(Count.CHECKED)
FOREIGN: Final = int(Count.FOREIGN)
TRAP_NS: Final = int(Count.TRAP_NS)
SPIN_NS: Final = int(Count.SPIN_NS)
EVENTS: Final = int(Count.EVENTS)
DOMAIN_SWITCHES: Final = int(Count.DOMAIN_SWITCHES)
INTERRUPTS: Final = int(Count.INTERRUPTS)
GRANT_MAPS: Final = int(Count.GRANT_MAPS)
GRANT_UNMAPS: Final = int(Count.GRANT_UNMAPS)
GRANT_FLUSHES: Final = int(Count.GRANT_FLUSHES)
GRANT_COPIES: Final = int(Count.GRANT_COPIES)
GRANT_COPIED_BYTES: Final = int(Count.GRANT_COPIED_BYTES)
IOMMU_MAPS: Final = int(Count.IOMMU_MAPS)
IOMMU_UNMAPS: Final = int(Count.IOMMU_UNMAPS)
IOMMU_FLUSHES: Final = int(Count.IOMMU_FLUSHES)
DMA_BYTES: Final = int(Count.DMA_BYTES)


def read_rows(page: Any) -> dict[str, dict[str, int]]:
    """All named rows of a counters page (bytes-like, `COUNTERS_BYTES` long) as ``{row: {column: count}}``."""
    found = {}
    for at in range(0, COUNTERS_BYTES, ROW_BYTES):
        if page[at]:  # a name begins with no zero
            name = bytes(page[at : at + NAME_BYTES]).rstrip(b"\0").decode("ascii", "replace")
            found[name] = dict(zip(_COLUMNS, _COUNTS.unpack_from(page, at + NAME_BYTES), strict=False))
    return found


def place_of(page: Any, row: str, column: str) -> int:
    """Where in a counters page the count of a row's column is. LookupError if there is no such row."""
    for index in range(ROWS):
        at = index * ROW_BYTES
        if bytes(page[at : at + NAME_BYTES]).rstrip(b"\0") == row.encode():
            return at + NAME_BYTES + 8 * int(Count[column.upper()])
    raise LookupError(f"no row {row}")


_COLUMNS = tuple(column.name.lower() for column in sorted(Count))
