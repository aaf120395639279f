"""Frames of an emulated NIC that are not one plain piece: chains of descriptors, offloads, frames over several buffers; all faults.

What nic/send.py and nic/deliver.py do for a context of the real NIC, done for a guest's queues. A frame is copied whole between the
guest's pieces and our own buffers, and goes on from there; offloads are not carried out here: our context on the NIC has the
features that the guest has accepted, so that the NIC does what the guest did not.
"""

from typing import Any

from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_DOWN,
    DROP_OVERSIZE,
    DROP_SMALL_BUFFER,
    FAULTS_ADDRESS,
    FAULTS_CHAIN,
    FAULTS_DESCRIPTOR,
    FAULTS_OFFLOAD,
    RX_BYTES,
    RX_FRAMES,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.features import SG
from hyp.abi.fragment import LENGTH_MASK, MORE, OFFLOAD_MASK, SIGNALED
from hyp.abi.nic import (
    DESC_MORE,
    DESC_SIGNALED,
    MAX_FRAGMENTS,
    MAX_FRAME,
    MAX_LONE_FRAME,
    MIN_FRAME,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_CHAIN,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_OK,
)
from hyp.abi.sizes import FRAME_BUFFER, LARGEST_FRAME_BUFFER
from hyp.abi.trace import NOWHERE
from hyp.atomics import load64, u32_add
from hyp.counters import count
from hyp.events import tracer_of
from hyp.fairness.cutting import is_cut
from hyp.frames import lies_within, takes_part
from hyp.kernels import compiled, outlined
from hyp.monitor.guest_queues import (
    buffers_left,
    complete_fragments,
    complete_receive,
    complete_send,
    receive_descriptor,
    send_descriptor,
    sends_left,
)
from hyp.offload.fragments import LONGEST_CHAIN, fragment_fault, offload_fault
from hyp.offload.frame import add_piece, begin_frame, copy_pieces, frame_at, piece_addr, piece_length, set_piece
from hyp.offload.segments import prepare
from hyp.trace.ring import DROPPED, PASSED, trace_pieces
from hyp.verbs import peek_fragment, poll_sends, post_send, send_room

SIGNAL_EVERY = 32
UPLINK = 0
"""The device model's side towards the NIC, as a port for who traces; guests' go by their domain ids."""
DONE, WAIT = -1, -2
"""What became of a frame, where it is not a drop's name."""


@compiled
def has_room(q: Any, wanted: int) -> Any:
    """True if our queue on the NIC takes `wanted` descriptors more."""
    if send_room(q) < wanted:
        poll_sends(q)
    return send_room(q) >= wanted


@compiled
def signal_for(q: Any, n: int) -> int:
    """DESC_SIGNALED if the next `n` descriptors have a completion, as one in SIGNAL_EVERY has; else 0."""
    return DESC_SIGNALED if q.sq_prod % SIGNAL_EVERY + n >= SIGNAL_EVERY else 0


# --- from the guest ---------------------------------------------------------------------------------------------------


@outlined
def send_one(m: Any, q: Any, now: int) -> Any:
    """Send the guest's next frame, whatever it is. Returns (descriptors done, bytes copied, whether it was refused).

    0 descriptors: `m.send_wanted` slots of our queue are waited for.
    """
    f = frame_at(m.frame)
    n, status, signaled = _take_chain(m, f)
    copied = 0
    if status == STATUS_OK:
        buffers = (f.length + LARGEST_FRAME_BUFFER - 1) // LARGEST_FRAME_BUFFER
        if not has_room(q, buffers):
            m.send_wanted = buffers
            return 0, 0, False
        _take_over(m, q, f, buffers)
        copied = f.length
        if f.offload != 0 and not prepare(f):
            status = STATUS_BAD_OFFLOAD
    count(m.counts, TX_FRAMES, 1)
    count(m.counts, TX_BYTES, f.length & 0xFFFF)
    drop = 0
    if status == STATUS_OK:
        _post(m, q, f, now)
    else:
        drop = _refuse(m, f, status)
    tracer = tracer_of(m.wait)
    if tracer != 0:
        _trace(tracer, f, m.domid, UPLINK, drop)
    m.sq_cons = u32_add(m.sq_cons, n - 1)
    if status != STATUS_OK or signaled != 0:
        complete_send(m, status)
    m.sq_cons = u32_add(m.sq_cons, 1)
    return n, copied, status != STATUS_OK


@compiled
def _take_chain(m: Any, f: Any) -> Any:
    """Copy the next frame's descriptors, each once, and check the copies. Returns (descriptors, STATUS_*, SIGNALED or 0).

    All of the chain is taken, whatever is wrong with it, or LONGEST_CHAIN of it. `f.pieces` are the guest's.
    """
    n, total, status, word = 0, 0, STATUS_OK, MORE
    begin_frame(f, 0, 0, 0, 0)
    while word & MORE != 0 and n < LONGEST_CHAIN:
        if n > 0 and sends_left(m) <= n:
            status = STATUS_BAD_CHAIN if status == STATUS_OK else status
            break  # it has no end
        addr, word = send_descriptor(m, n)
        if n == 0 and m.features & SG == 0 and word & MORE != 0:
            return 1, STATUS_BAD_FLAGS, 0
        if status == STATUS_OK:
            status = fragment_fault(m.features, word, n)
        if status == STATUS_OK and n == 0:
            f.offload = word & OFFLOAD_MASK
            if f.offload != 0:
                status = offload_fault(m.features, word)
        if status == STATUS_OK:
            if lies_within(addr, word & LENGTH_MASK, m.ram_bytes):
                add_piece(f, m.ram + addr, word & LENGTH_MASK)
            else:
                status = STATUS_BAD_ADDRESS
        total += word & LENGTH_MASK
        n += 1
    f.length = total
    if status == STATUS_OK and (total < MIN_FRAME or total > _longest(m, f)):
        status = STATUS_BAD_LENGTH
    return n, status, word & SIGNALED


@compiled
def _longest(m: Any, f: Any) -> int:
    """The longest frame that is taken: as the NIC, which segments those that are to be; without SG, what goes on in one piece."""
    longest = m.max_frame if f.offload == 0 else MAX_FRAME
    return longest if m.features & SG != 0 else min(longest, MAX_LONE_FRAME)


@compiled
def _take_over(m: Any, q: Any, f: Any, n: int) -> None:
    """Payload copy 1, into the buffers of our next `n` slots: the frame's pieces from now on, which nobody else changes."""
    left = f.length
    for k in range(n):
        slot = u32_add(q.sq_prod, k) & (q.sq_size - 1)
        set_piece(m.to, k, m.own_ram + m.tx_pool + slot * LARGEST_FRAME_BUFFER, min(left, LARGEST_FRAME_BUFFER))
        left -= LARGEST_FRAME_BUFFER
    copy_pieces(f.pieces, 0, f.length, m.to, 0)
    f.count = 0
    for k in range(n):
        add_piece(f, piece_addr(m.to, k), piece_length(m.to, k))
    first = piece_addr(f.pieces, 0)
    f.head0, f.head1 = load64(first), load64(first + 8)
    count(m.counts, COPIES, 1)
    count(m.counts, COPIED_BYTES, f.length)


@compiled
def _post(m: Any, q: Any, f: Any, now: int) -> None:
    """Post the frame on the NIC, as a chain if it has several pieces, its offloads in the first."""
    last, signal = f.count - 1, signal_for(q, f.count)
    for k in range(f.count):
        flags = (DESC_MORE if k < last else signal) | (f.offload >> 32 if k == 0 else 0)
        post_send(q, piece_addr(f.pieces, k) - m.own_ram, piece_length(f.pieces, k), flags)
    is_cut(m, f.parts, now, m.to_host)
    count(m.uplink, TX_FRAMES, 1)
    count(m.uplink, TX_BYTES, f.length)


@compiled
def _refuse(m: Any, f: Any, status: int) -> int:
    """Count what is wrong with a frame to send, and its drop, whose name this returns."""
    drop = DROP_BAD_FRAME
    if status == STATUS_BAD_ADDRESS:
        fault, drop = FAULTS_ADDRESS, DROP_BAD_ADDRESS
    elif status == STATUS_BAD_CHAIN:
        fault = FAULTS_CHAIN
    elif status == STATUS_BAD_OFFLOAD:
        fault = FAULTS_OFFLOAD
    else:
        fault = FAULTS_DESCRIPTOR
        if status == STATUS_BAD_LENGTH and f.length > _longest(m, f):
            drop = DROP_OVERSIZE
    count(m.counts, fault, 1)
    count(m.counts, drop, 1)
    return drop


@outlined
def _trace(tracer: int, f: Any, port: int, other: int, drop: int) -> None:
    """Tell what became of a frame."""
    moment, to = (PASSED, other) if drop == 0 else (DROPPED, NOWHERE)
    trace_pieces(tracer, moment, port, to, drop, f.pieces, f.count, f.length, (f.offload >> 32) & 0xFFFF_FFFF)


# --- to the guest -----------------------------------------------------------------------------------------------------


@outlined
def receive_one(m: Any, q: Any) -> Any:
    """Deal with the next frame from the NIC, whatever it is. Returns (our buffers that it is in, the guest's that were looked at).

    0 of ours: `m.receive_wanted` buffers of the guest's are waited for.
    """
    f = frame_at(m.frame)
    n, word = 0, MORE
    begin_frame(f, 0, 0, 0, 0)
    while word & MORE != 0:
        index, word, _ = peek_fragment(q, n)
        if n == 0:
            f.offload = word & OFFLOAD_MASK
        add_piece(f, m.own_ram + m.rx_pool + (index & (q.rq_size - 1)) * FRAME_BUFFER, word & LENGTH_MASK)
        f.length += word & LENGTH_MASK
        n += 1
    result = DROP_DOWN if m.failed != 0 else _claim_buffers(m, f.length)
    if result == WAIT:
        return 0, m.receive_wanted
    count(m.uplink, RX_FRAMES, 1)
    count(m.uplink, RX_BYTES, f.length)
    if result == DONE:
        copy_pieces(f.pieces, 0, f.length, m.to, 0)
        complete_fragments(m, m.to, m.receive_wanted, f.offload)
        count_handed_in(m, f.length)
    else:
        count(m.counts, result, 1)
    tracer = tracer_of(m.wait)
    if tracer != 0:
        _trace(tracer, f, UPLINK, m.domid, 0 if result == DONE else result)
    pieces, m.receive_wanted = m.receive_wanted, 1
    return n, pieces


@compiled
def _claim_buffers(m: Any, length: int) -> Any:
    """Enter as many of the guest's next buffers as `length` bytes take into `m.to`. DONE, WAIT, or a drop's name."""
    n, left = 0, length
    while left > 0:
        if n == MAX_FRAGMENTS or (n > 0 and m.features & SG == 0):
            return _refuse_buffers(m, n, FAULTS_DESCRIPTOR, STATUS_BAD_LENGTH, DROP_SMALL_BUFFER)
        m.receive_wanted = n + 1
        if buffers_left(m) <= n:
            return WAIT
        addr, word = receive_descriptor(m, n)
        if not takes_part(word, left):
            return _refuse_buffers(m, n + 1, FAULTS_DESCRIPTOR, STATUS_BAD_LENGTH, DROP_SMALL_BUFFER)
        taken = min(word & LENGTH_MASK, left)
        if not lies_within(addr, taken, m.ram_bytes):
            return _refuse_buffers(m, n + 1, FAULTS_ADDRESS, STATUS_BAD_ADDRESS, DROP_BAD_ADDRESS)
        set_piece(m.to, n, m.ram + addr, taken)
        left -= taken
        n += 1
    return DONE


@compiled
def _refuse_buffers(m: Any, n: int, fault: int, status: int, drop: int) -> int:
    """The last of the guest's next `n` buffers is no good: use them up."""
    count(m.counts, fault, 1)
    for _ in range(n):
        complete_receive(m, 0, status)
    return drop


@compiled
def count_handed_in(m: Any, length: int) -> None:
    """A frame of `length` bytes has been copied into the guest."""
    count(m.counts, COPIES, 1)
    count(m.counts, COPIED_BYTES, length)
    count(m.counts, RX_FRAMES, 1)
    count(m.counts, RX_BYTES, length)
