"""The private state of Dom0's engine: ports of the bridge, staged frames, buffers. Everything hangs on the ENGINE record."""

import numpy as np

from hyp.abi.sizes import COLOUR_BYTES, COLOURED_FRAME, COLOURS, DOM0_SCRATCH, MAX_GUESTS, MAX_QUEUES, SPLIT_SLOTS
from hyp.atomics import load64, record_view, store64
from hyp.kernels import compiled

STAGE = 64  # slots that a port takes in at a time, and the last one's frame to its end; they wait there for a full receiver
STAGE_SLOTS = SPLIT_SLOTS  # that a stage has room for: a frame may be as long as a ring
UPLINK = 0  # port 0 is the NIC; the next are vifs, each its first queue; those beyond are further queues, of whoever has them
MAX_PORTS = 1 + MAX_GUESTS * MAX_QUEUES

PORT = np.dtype(
    [
        ("number", "i8"),
        ("vif", "i8"),  # number of the first of the ports that are one vif's queues: by it the bridge knows them all
        ("queues", "i8"),  # how many these are: of a vif's first port
        ("active", "i8"),
        ("domid", "i8"),
        ("mac", "i8"),  # the guest's, as the toolstack gave it
        ("trunk", "i8"),  # 1: there may be other stations behind the port, as there are behind the uplink
        ("tx_ring", "i8"),  # RING records (hyp/ring.py), as the back end
        ("rx_ring", "i8"),
        ("features", "i8"),  # what may be handed to it as it is (hyp/abi/features.py)
        ("counts", "i8"),
        ("counts_shared", "i8"),
        # slots taken in and not yet passed on: entries next .. staged − 1 of STAGED records
        ("stage", "i8"),
        ("staged", "i8"),
        ("next", "i8"),
        ("part", "i8"),  # of the next frame: how many of the frames that it is for its receiver have been passed on
        ("pause_until", "i8"),
        ("pause_for", "i8"),  # the port that it waits for
        ("towards", "i8"),  # the vif that its last frame was for
        ("shared", "i8"),  # it is the uplink, behind whose frames others' wait
        ("waited_for", "i8"),  # as a receiver: some port pauses until it has room for so many fragments; 0: none does
        # as a receiver that holds others up (hyp/fairness/patience.py)
        ("stalled", "i8"),  # a pause for it ran out, so drop at once until it has room
        ("standing", "i8"),  # STANDING record (hyp/fairness/standing.py) of the guest
        ("wary", "i8"),  # 1: of its last turn something was refused (dom0/netback_tx.py)
        ("full_since", "i8"),
        ("shared_since", "i8"),
        ("grace", "i8"),  # somebody is moving to it until then (ns)
        ("taken", "i8"),  # frames that its vif had taken when its patience was last filled up: of the vif's first port
        ("answers", "i8"),  # transmit requests staged and not yet answered
        ("copies", "i8"),  # receive copies queued, or made and not yet published, in this flush
        ("next_written", "i8"),  # the next port in the list that ENGINE.written heads, 0: none
        ("tx_refs", "i8"),  # words in the table of pages to transmit, if they are mapped (dom0/mapped_pages.py); 0: grant copy
        ("rx_refs", "i8"),  # the same, of pages to receive
        ("tx_pages", "i8"),
        ("rx_pages", "i8"),
        ("table_refs", "i8"),  # what both become when the front end names pages on its control ring
        ("passing", "i8"),  # words of pages that are pinned for this batch only: references, 1 << 32 for those that are written
        ("passing_count", "i8"),
        ("owed", "i8"),  # OWES_TX, OWES_RX: the guest asked for the event of something published, and has not been sent it
        ("waits", "i8"),  # rounds that it has been owed
        ("dirty", "i8"),
        ("failed", "i8"),
        ("cut_until", "i8"),  # (ns; hyp/fairness/cutting.py), of the vif's first port
        ("turn", "i8"),  # of the queues of the vif whose first port it is: the one that comes first in the vif's next turn
        ("members", "i8"),  # numbers (i8 each) of the ports that are the vif's queues: of its first port
        ("tx_event_fd", "i8"),  # the guest's event channel for transmit responses, and for receive responses: often the same
        ("rx_event_fd", "i8"),
        ("debt", "i8"),  # DEBT record (hyp/events.py) of the guest
        ("hash_info", "i8"),  # of a vif with several queues: extra info that goes with the frame that goes to it now; 0: none
        # of a vif's first port, for all its queues
        ("hashing", "i8"),  # a HASHING record (hyp/offload/toeplitz.py) that its queues are chosen by; 0: by the flow hash
        ("filters", "i8"),  # group addresses that its guest has not added are not flooded to it (dom0/multicast.py)
        ("groups", "i8"),  # those that it has added, MOST_GROUPS words
        ("group_count", "i8"),
        ("credit_bytes", "i8"),  # with a rate (dom0/credit.py), of each queue: what a window gives; 0: no limit
        ("window_ns", "i8"),
        ("window", "i8"),  # when the last one began
        ("allowance", "i8"),  # the count of its TX_BYTES that it may come to; without a rate, what it owes: 0 or less
        ("credit_at", "i8"),  # when the next frame may have enough; 0: it doesn't wait
    ]
)
PORT_BYTES = PORT.itemsize
OWES_TX, OWES_RX = 1, 2

STAGED = np.dtype(
    [
        ("buffer", "i8"),  # number of a Dom0 buffer, −1: none (the request was refused, or has no data)
        ("addr", "i8"),  # address of the fragment in it
        ("gpa", "i8"),
        ("length", "i8"),  # of the frame, in its first entry; 0: nothing to pass on
        ("id", "i8"),  # of the transmit request
        ("status", "i8"),  # of its response
        ("posted", "i8"),  # the NIC has the buffer until the send completes
        ("slots", "i8"),  # entries of the frame, in its first one; 0: it is this one, whole, and nothing is left to do to it
        # only where `slots` is not 0
        ("offload", "i8"),  # the offload word (hyp/abi/fragment.py), in the first entry
        ("bytes", "i8"),  # of the fragment; 0 for an extra info
        ("gref", "i8"),  # where the guest has it
        ("offset", "i8"),
    ]
)
"""A slot that was taken in: a transmit request, an extra info, a filled receive buffer of the uplink."""
STAGED_BYTES = STAGED.itemsize

PENDING = np.dtype(
    [
        ("port", "i8"),
        ("id", "i8"),  # of the receive request
        ("length", "i8"),
        ("offset", "i8"),  # in the guest's page
        ("ops", "i8"),  # operations of the frame, in its first one; 0: it is this one, in one slot, without flags
        # only where `ops` is not 0
        ("ends", "i8"),  # the next operation is for another slot
        ("flags", "i8"),  # RXF_* of the slot's response
        ("extra", "i8"),  # an extra info of segmentation that has the next slot, in a frame's first operation; 0: none
    ]
)
"""A receive copy in the batch: whose response is due once it is made."""
PENDING_BYTES = PENDING.itemsize
FLUSH = 128
OPS = DOM0_SCRATCH
"""Operations that a batch has room for: those of one frame more, of MAX_FRAGMENTS pieces for a page each, than make a flush due."""

ENGINE = np.dtype(
    [
        ("ports", "i8"),
        ("port_count", "i8"),  # ports 0 .. port_count − 1 have ever been in use
        ("first", "i8"),
        ("fdb", "i8"),
        ("ageing_ns", "i8"),
        ("qp", "i8"),  # the uplink's queue pair
        ("ram", "i8"),  # address of Dom0's guest-physical 0
        ("pool", "i8"),  # guest-physical address of the buffers
        ("free", "i8"),  # stack of free buffer numbers
        ("free_count", "i8"),
        ("posted", "i8"),  # ring of buffers the NIC has to send, in order
        ("posted_head", "i8"),
        ("posted_tail", "i8"),
        ("rx_pool", "i8"),  # guest-physical address of the uplink's receive buffers
        ("scratch", "i8"),  # guest-physical address of OPS pages, in which operation k's source can be made
        ("to_host", "i8"),  # 1: the NIC's wire leads there
        ("max_frame", "i8"),  # bytes that a frame may have, if it is not to be segmented
        ("frame", "i8"),  # FRAME record (hyp/offload/frame.py) of the frame that is passed on, unless it is a plain one
        ("to", "i8"),  # a table of pieces: where a frame is copied to
        ("wanted", "i8"),  # fragments for which a receiver that makes a frame wait needs room
        ("hash_infos", "i8"),  # by first operation of a frame in the batch that is no plain one: its receiver's `hash_info`
        ("ids", "i8"),  # of the receive requests whose pages are in `to`
        ("views", "i8"),  # DOMAIN_VIEW records (hyp/grants.py), by domain id
        ("view_count", "i8"),
        ("ops", "i8"),  # gnttab_copy operations
        ("op_count", "i8"),
        ("pending", "i8"),
        ("written", "i8"),  # first of the ports with mapped pages that have responses to publish, 0: none
        ("copy_counts", "i8"),
        ("mailbox", "i8"),
        ("mail", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        ("flooded", "i8"),  # copies of flooded frames in this turn
        ("dropped", "i8"),  # frames in this turn that went nowhere
        ("parts", "i8"),  # frames in this turn that were made of longer ones
        ("pause_ns", "i8"),
        ("timing", "i8"),  # a TIMING record (hyp/fairness/timing.py)
        ("storm_ns", "i8"),  # between two broadcasts of a guest (hyp/fairness/storm.py); 0: no limit
        ("now", "i8"),
        ("idle_since", "i8"),
        ("wait", "i8"),
        ("notifier", "i8"),  # a NOTIFIER record (hyp/events.py)
        ("held", "i8"),  # 1: nothing moves but mail, as guests of a Dom0 that died have yet to reconnect
    ]
)

engine_at = record_view(ENGINE)
port_at = record_view(PORT)
staged_at = record_view(STAGED)
pending_at = record_view(PENDING)


@compiled
def port_of(e, number):
    """The PORT record `number`."""
    return port_at(e.ports + number * PORT_BYTES)


@compiled
def member_of(e, first, k):
    """The PORT record of queue `k` of the vif whose first port is `first`."""
    return port_of(e, load64(first.members + 8 * k))


@compiled
def staged_of(p, k):
    """Entry `k` of a port's stage."""
    return staged_at(p.stage + k * STAGED_BYTES)


@compiled
def colour(number, length):
    """Where in its page a frame of `length` bytes begins that is the `number`-th, so that frames spread over the cache sets."""
    return (number % COLOURS) * COLOUR_BYTES if length <= COLOURED_FRAME else 0


@compiled
def take_buffer(e):
    """A free buffer's number, or −1."""
    if e.free_count == 0:
        return -1
    e.free_count -= 1
    return load64(e.free + 8 * e.free_count)


@compiled
def give_buffer(e, number):
    """Give a buffer back."""
    store64(e.free + 8 * e.free_count, number)
    e.free_count += 1
