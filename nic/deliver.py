"""Handing a frame to a context's receive queue: the one payload copy of bypass I/O, made by the device."""

from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DROP_BAD_ADDRESS,
    DROP_DOWN,
    DROP_NO_BUFFER,
    DROP_QUEUE_FULL,
    DROP_SMALL_BUFFER,
    FAULTS_ADDRESS,
    FAULTS_DESCRIPTOR,
    PAUSES,
    RX_BYTES,
    RX_FRAMES,
)
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, STATUS_BAD_ADDRESS, STATUS_BAD_LENGTH, STATUS_OK
from hyp.atomics import copy32, load64_once, memcpy, store8, store64, u32_add
from hyp.counters import count
from hyp.frames import takes_frame, write_completion
from hyp.iommu import NO_TRANSLATION, READ, WRITE
from hyp.kernels import compiled, outlined
from nic.queues import (
    NO_WINDOW,
    complete_receive,
    posted_buffers,
    reach,
    receive_descriptor,
    seek,
)
from nic.state import DELIVERED, PAUSE, STAGED_BYTES, staged_at, touch


@compiled
def copy_frame(place, frame, length, head0, head1):
    """Copy a frame whose 14-byte header was validated as (`head0`, `head1`): the header comes from that copy (R3).

    The payload may change under the copy; that is its sender's own affair.
    """
    if 48 <= length <= 80:
        copy32(place + 16, frame + 16)
        copy32(place + length - 32, frame + length - 32)
    else:
        memcpy(place, frame, length)
    store64(place, head0)
    if length >= 16:
        store64(place + 8, head1)
    else:
        for k in range(8, length):
            store8(place + k, (head1 >> (8 * (k - 8))) & 0xFF)


@outlined
def put(e, r, frame, length, head0, head1):
    """Deliver into the receive queue of context `r`, which this engine owns. DELIVERED, PAUSE (no buffer), or a drop's name."""
    if r.active == 0:
        return DROP_DOWN
    if posted_buffers(r) == 0:
        return PAUSE if r.active != 0 else DROP_DOWN
    addr, word = receive_descriptor(r)
    if r.active == 0:
        return DROP_DOWN
    if not takes_frame(word, length):
        count(r.counts, FAULTS_DESCRIPTOR, 1)
        complete_receive(e, r, 0, STATUS_BAD_LENGTH)
        return DROP_SMALL_BUFFER
    buffer = reach(r, addr, length, WRITE)
    if buffer == NO_TRANSLATION:
        count(r.counts, FAULTS_ADDRESS, 1)
        complete_receive(e, r, 0, STATUS_BAD_ADDRESS)
        return DROP_BAD_ADDRESS
    copy_frame(buffer, frame, length, head0, head1)
    complete_receive(e, r, length, STATUS_OK)
    _count_received(r, 1, length)
    return DELIVERED


@outlined
def put_run(e, r, n, head0):
    """`put` for the first `n` staged frames, whose headers begin with `head0`. Returns (frames, bytes).

    Fewer than `n`: the next frame is for `put`, which knows what to do with a buffer that is missing or no good.
    """
    queue, completions, mask, size = r.rq, r.rcq, r.rq_size - 1, r.rq_size  # in registers: a store to a buffer might alias
    cons, prod, staged = r.rq_cons, r.rcq_prod, e.stage
    (q_first, q_span, q_base), (a_first, a_span, a_base), (first, span, base) = NO_WINDOW, NO_WINDOW, NO_WINDOW
    done, total = 0, 0
    while done < n:
        # 1. Where the descriptor is, and where the completion will be.
        at, answer_at = queue + ((cons + done) & mask) * DESC_BYTES, completions + ((prod + done) & mask) * CQE_BYTES
        slot, q_first, q_span, q_base = seek(r, at, DESC_BYTES, READ, q_first, q_span, q_base)
        answer, a_first, a_span, a_base = seek(r, answer_at, CQE_BYTES, WRITE, a_first, a_span, a_base)
        if slot == NO_TRANSLATION or answer == NO_TRANSLATION:
            break
        # 2. Our copy of the descriptor, and whether the frame fits.
        s = staged_at(staged + done * STAGED_BYTES)
        length = s.length
        addr, word = load64_once(slot), load64_once(slot + 8)
        if not takes_frame(word, length):
            break
        # 3. Where the buffer is.
        buffer, first, span, base = seek(r, addr, length, WRITE, first, span, base)
        if buffer == NO_TRANSLATION:
            break
        # 4. The copy, and its completion.
        copy_frame(buffer, s.frame, length, head0, s.head1)
        write_completion(answer, size, prod + done, u32_add(cons, done), length, STATUS_OK)
        total += length
        done += 1
    if done > 0:
        r.rq_cons, r.rcq_prod = u32_add(cons, done), u32_add(prod, done)
        _count_received(r, done, total)
        touch(e, r)
    return done, total


@compiled
def _count_received(r, frames, total):
    count(r.counts, RX_FRAMES, frames)
    count(r.counts, RX_BYTES, total)
    count(r.counts, COPIES, frames)
    count(r.counts, COPIED_BYTES, total)


@compiled
def put_or_pause(e, sender, r, frame, length, head0, head1):
    """`put`, with a full receiver turned into a pause of `sender` (a record with `pause_until`), then into a drop."""
    result = put(e, r, frame, length, head0, head1)
    return await_receiver(e, sender, r) if result == PAUSE else result


@compiled
def await_receiver(e, sender, r):
    """Context `r` is full: PAUSE until the sender's deadline, then a drop's name, at once while `r` is stalled."""
    if r.stalled == 0:
        if sender.pause_until == 0:
            sender.pause_until = e.now + e.pause_ns
            sender.pause_for = r.number
            count(e.counts, PAUSES, 1)
            return PAUSE
        if e.now < sender.pause_until:
            return PAUSE
        r.stalled = 1
    return DROP_NO_BUFFER


@compiled
def put_broadcast(e, r, frame, length, head0, head1):
    """`put` for a copy of a flooded frame: it never pauses anybody."""
    result = put(e, r, frame, length, head0, head1)
    return DROP_QUEUE_FULL if result == PAUSE else result
