"""An engine's private state. Nobody else maps it; what others may see is published (hyp/abi/nic.py, platform.py).

Everything hangs on the ENGINE record, so that compiled functions take one argument: `engine_at(address)`.
"""

import numpy as np

from hyp.atomics import load64, record_view, store64
from hyp.kernels import compiled, outlined
from hyp.offload.flow import queue_of
from hyp.offload.frame import piece_addr, piece_length

CONTEXT = np.dtype(
    [
        # set by the control plane before the context starts
        ("number", "i8"),
        ("generation", "i8"),  # of the number: no two contexts of a topology have the same one
        ("active", "i8"),  # 1 while the engine serves it
        ("mine", "i8"),  # this engine owns its queues (every engine knows every context)
        ("engine", "i8"),  # which engine does
        ("queues", "i8"),  # how many of the guest's contexts have been started: of the first
        ("passthrough", "i8"),  # native: the IOMMU translates nothing, an IOVA is a place in the owner's RAM
        ("privileged", "i8"),  # the physical function: any source MAC, and what nobody else has an address for
        ("mac", "i8"),
        ("ram", "i8"),
        ("ram_pages", "i8"),
        ("iommu", "i8"),
        ("iommu_pages", "i8"),
        ("doorbell", "i8"),
        ("completion_fd", "i8"),
        ("debt", "i8"),  # DEBT record (hyp/events.py) of its guest on this engine
        ("sq", "i8"),
        ("scq", "i8"),
        ("rq", "i8"),
        ("rcq", "i8"),
        ("sq_size", "i8"),
        ("rq_size", "i8"),
        ("features", "i8"),  # that its driver has accepted
        ("counts", "i8"),  # private counters row, and its shared place
        ("counts_shared", "i8"),
        # the engine's own: free-running 32-bit indices, never read back from shared memory
        ("sq_prod", "i8"),  # as last loaded from the doorbell page
        ("sq_cons", "i8"),
        ("sq_armed", "i8"),  # last value written to sq_event
        ("scq_prod", "i8"),
        ("scq_told", "i8"),  # scq_prod when the driver was last considered for a notification
        ("rq_prod", "i8"),
        ("rq_cons", "i8"),
        ("rcq_prod", "i8"),
        ("rcq_told", "i8"),
        ("waits", "i8"),  # batches that a notification has been held back
        ("draining", "i8"),  # 1: it goes once all that its driver has posted is sent, and that is to be told
        ("pause_until", "i8"),  # the sending queue waits for a full receiver until then (ns); 0: it does not
        ("pause_for", "i8"),  # the context it waits for, −1 − engine for a full crossing, or FOR_WIRE
        ("pause_need", "i8"),  # buffers that the context it waits for must have posted
        ("shared", "i8"),  # it is the physical function, behind whose frames others' wait
        ("cut_until", "i8"),  # of the first: for what the host has cut for its guest (ns; hyp/fairness/cutting.py)
        ("part", "i8"),  # of the frame at the head of the queue: how many of its segments have been passed on
        ("head0", "i8"),  # the addresses of its last frame, as the header's first word and the low half of its second
        ("head1", "i8"),  # (−1: none), and what the switch made of them (nic/send.py)
        ("route", "i8"),
        ("first", "i8"),  # the first of the contexts that are one guest's queues: the switch knows them all by it; often itself
        # as a receiver that holds senders up (hyp/fairness/patience.py)
        ("stalled", "i8"),  # a pause for it ran out, so drop at once until it posts a buffer
        ("standing", "i8"),  # STANDING record (hyp/fairness/standing.py) of its guest on this engine
        ("flooded", "i8"),  # the frame at the head of the queue has been passed on to all, but not yet to the wire
        ("full_since", "i8"),  # somebody has waited for it since then (ns) that has not been charged; 0: nobody does
        ("shared_since", "i8"),  # and in a shared queue
        ("grace", "i8"),  # somebody is moving to it until then (ns)
        ("taken", "i8"),  # frames that it had taken when its patience was last filled up
        ("clock", "i8"),  # address of its engine's `now`
        ("moved", "i8"),  # bytes read and written that have been charged for
        ("dirty", "i8"),  # in this batch's list of contexts to publish: TOUCHED, or HELD over from the last one
        ("failed", "i8"),
        ("queue", "i8"),  # which of its guest's contexts it is
        ("members", "i8"),  # numbers (i8 each) of the contexts that are the guest's queues: of the first
        ("served", "i8"),  # the batch (by its epoch) in which one of them has had the guest's turn on this engine: of the first
        ("turn", "i8"),  # which of them comes first in the next turn
        # its doorbell (nic/doorbell.py)
        ("doorbell_data", "i8"),  # what its doorbell's events carry (hyp/events.py, event_data)
        ("rung_at", "i8"),  # `sq_cons` when it last woke the engine
        ("vain", "i8"),  # how often it has for nothing since `vain_since` (ns)
        ("vain_since", "i8"),
        ("hushed_until", "i8"),  # it isn't listened to (ns)
    ]
)
CONTEXT_BYTES = CONTEXT.itemsize

WIRE_BUFFERS = 256
WIRE_BATCH = 64  # frames that a wire takes up at a time
WIRE_ORIGIN = -1  # where a frame comes from that no context has sent
SINK, REFLECT, TAP = 0, 1, 2  # what a wire does with the frames that leave

WIRE = np.dtype(
    [
        ("mode", "i8"),
        ("mac", "i8"),
        ("buffers", "i8"),  # where the frames that leave the machine go: WIRE_BUFFERS of LARGEST_FRAME_BUFFER bytes
        ("jumbos", "i8"),  # and as many of JUMBO_BUFFER bytes for those that are longer
        ("lengths", "i8"),  # of the frames in them, i8 each; negative: it is among the jumbos
        ("next", "i8"),
        ("fresh", "i8"),  # frames that have left, and their bytes, which nobody has counted or looked at yet
        ("fresh_bytes", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        # the generator
        ("left", "i8"),  # frames still to be sent; 0: none
        ("destination", "i8"),  # MAC address
        ("length", "i8"),
        ("stream", "i8"),
        ("sequence", "i8"),
        ("sizes", "i8"),  # lengths of the frames, i8 each, over and over; 0: all have `length`
        ("size_count", "i8"),
        ("size_at", "i8"),  # the next one
        ("schedule", "i8"),  # a SCHEDULE record
        ("until_ns", "i8"),  # 0: no limit in time
        ("pause_until", "i8"),  # of the generator; on a linked wire: of the oldest frame that has come in
        ("pause_for", "i8"),
        ("pause_need", "i8"),
        ("shared", "i8"),  # frames come from the host, or from a file, for anybody: 1 then
        ("owed", "i8"),  # for turns of the generator's that took longer than others' (ns; hyp/fairness/timing.py)
        ("part", "i8"),
        ("last_ns", "i8"),
        ("dirty", "i8"),
        # with a bit rate or a delay
        ("linked", "i8"),  # 1: frames go by the links; 0: they are there at once
        ("out", "i8"),  # LINK records: from the machine, and to it
        ("back", "i8"),
        ("held", "i8"),  # the generator waits for the link
        # in the generator's place (nic/wire/replay.py)
        ("replays", "i8"),  # 1: frames come from a REPLAY record, and `left`, `sequence`, `schedule` are about them
        ("replay", "i8"),
        ("recorder", "i8"),  # a RING record (hyp/capture/ring.py): what leaves the machine is recorded; 0: it isn't
        # that leads to the host (nic/wire/tap.py)
        ("tap_fd", "i8"),
        ("tap_reads", "i8"),  # this engine reads from it
        ("tap_iov", "i8"),  # struct iovec, MAX_FRAGMENTS + 1 of them
        ("tap_out", "i8"),  # a virtio_net_hdr and the headers of a frame that leaves
        ("tap_in", "i8"),  # the same and all of a frame that was read
        ("tap_got", "i8"),  # its length; 0: none is waiting
        ("tap_word", "i8"),  # and its offload word
        ("tap_readable", "i8"),  # the TAP has not said EAGAIN since it was last seen readable
        ("tap_looked", "i8"),  # when that was looked for
        ("crowded", "i8"),  # somebody found the link out full: nobody sends before it has room again
    ]
)

ENGINE = np.dtype(
    [
        ("index", "i8"),
        ("engines", "i8"),
        ("contexts", "i8"),  # CONTEXTS records
        ("order", "i8"),  # numbers of the active contexts of this engine, i8 each
        ("active", "i8"),  # how many
        ("first", "i8"),  # where the next round begins
        ("dirty", "i8"),  # numbers of the contexts touched in this batch
        ("dirty_count", "i8"),
        ("stage", "i8"),  # STAGE of STAGED
        ("max_frame", "i8"),  # bytes of a frame that is not to be segmented: the MTU and LINK_HEADER
        ("frame", "i8"),  # FRAME records (hyp/offload/frame.py): the frame that is being passed on,
        ("turned", "i8"),  # and one that the wire has reflected
        ("to", "i8"),  # where it is copied to: a table of `wanted` pieces, which is how many receive buffers it takes
        ("wanted", "i8"),
        ("table", "i8"),  # switch: SWITCH_SLOTS of SWITCH_ENTRY
        ("crossings", "i8"),  # engines × engines crossing rings
        ("page", "i8"),  # engine page (we write)
        ("platform", "i8"),  # platform page (we read)
        ("mailbox", "i8"),
        ("mail", "i8"),  # messages taken so far
        ("wire", "i8"),
        ("trackers", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        ("epoch", "i8"),
        ("shootdowns", "i8"),  # shootdown_request as last seen
        ("heed_again", "i8"),  # it was new at the last boundary
        ("shootdown_fd", "i8"),
        ("drained_fd", "i8"),
        ("flooded", "i8"),  # copies of flooded frames that nobody's turn has been charged for yet
        ("parts", "i8"),  # frames in this turn that were made of longer ones
        ("turn_until", "i8"),  # when the turn is over in which frames are passed on one by one (hyp/fairness/turns.py)
        ("look_at", "i8"),  # after how much work of it the clock is looked at
        ("timing", "i8"),  # a TIMING record (hyp/fairness/timing.py)
        ("pause_ns", "i8"),
        ("storm_ns", "i8"),  # between two broadcasts of a guest (hyp/fairness/storm.py); 0: no limit
        ("now", "i8"),  # CLOCK_MONOTONIC at the start of the batch
        ("idle_since", "i8"),
        ("wait", "i8"),  # a WAIT record (hyp/events.py)
        ("notifier", "i8"),  # a NOTIFIER record
        ("kick_fds", "i8"),  # by engine: its eventfd for crossings, i8 each
        ("gates", "i8"),  # by engine: a GATE for what arrives from it
        ("held", "i8"),  # 1: contexts of a NIC that died are still being handed over, so nothing moves but mail
        ("hush_fd", "i8"),  # contexts are to be hushed (nic/doorbell.py)
        ("context_end", "i8"),  # no context from this number on has been created yet
    ]
)

GATE = np.dtype(
    [
        ("pause_until", "i8"),
        ("pause_for", "i8"),
        ("pause_need", "i8"),
        ("part", "i8"),
        ("shared", "i8"),  # 1: there are frames for others behind
    ]
)
"""A sender without a queue of its own: frames that arrive from another engine wait here for a full receiver."""
GATE_BYTES = GATE.itemsize

BUDGET_FRAMES = 256
BUDGET_BYTES = 128 * 1024
"""What a queue may send in its turn, copies of flooded frames included; then the next one's comes (fair service among contexts)."""
BUDGET_PARTS = 46
"""Of segmented frames, in a turn: those of the longest one, for an MTU of 1500. One that becomes more takes several turns."""
MOST_REFUSED = 16
"""Frames in a turn that have to be refused: they take longer than sound ones."""

STAGE = 64
STAGED = np.dtype([("frame", "i8"), ("length", "i8"), ("head1", "i8")])
"""A frame on its way to a receiver: where it is, and our copy of its header's second word. The first one all of a run share."""
STAGED_BYTES = STAGED.itemsize

SWITCH_SLOTS = 1024
SWITCH_ENTRY = np.dtype([("mac", "i8"), ("context", "i8")])
SWITCH_ENTRY_BYTES = SWITCH_ENTRY.itemsize

context_at = record_view(CONTEXT)
wire_at = record_view(WIRE)
engine_at = record_view(ENGINE)
gate_at = record_view(GATE)
staged_at = record_view(STAGED)
switch_entry_at = record_view(SWITCH_ENTRY)

TOUCHED, HELD = 1, 2
FOR_WIRE = -1000
"""In `pause_for`: what the sender waits for is the wire, which is sure to take the frame; so it never drops."""

PAUSE = -1
"""Result of a delivery that must be tried again: the receiver is full and the sending queue's deadline has not passed."""
DELIVERED = 0
"""Any other result is a Count column: the name of the drop."""


@compiled
def context_of(e, number):
    """The CONTEXT record `number` of engine `e`."""
    return context_at(e.contexts + number * CONTEXT_BYTES)


@outlined
def member_for(e, first, f):
    """The one of a guest's contexts, whose first is `first`, that frame `f` goes to.

    Its bytes may change under our eyes, and decide on no more than which of them it is.
    """
    queue = queue_of(f.head0, f.head1, piece_addr(f.pieces, 0), piece_length(f.pieces, 0), first.queues)
    return context_of(e, load64(first.members + 8 * queue))


@compiled
def receiver_of(e, number, f):
    """The context that a frame for context `number`, which has its destination, goes to."""
    r = context_of(e, number)
    if r.queues > 1:
        r = member_for(e, r, f)
    return r


@compiled
def stage(e, index, frame, length, head1) -> None:
    """Enter a frame at place `index` of the stage."""
    s = staged_at(e.stage + index * STAGED_BYTES)
    s.frame, s.length, s.head1 = frame, length, head1


@compiled
def touch(e, c) -> None:
    """Enter a context in the list of those that this batch publishes."""
    if c.dirty == 0:
        store64(e.dirty + 8 * e.dirty_count, c.number)
        e.dirty_count += 1
    c.dirty = TOUCHED
