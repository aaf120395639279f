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
    SEGMENTED,
)
from hyp.abi.features import CSUM, SG
from hyp.abi.fragment import CSUM_VALID, LENGTH_MASK
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, MAX_FRAGMENTS, STATUS_BAD_ADDRESS, STATUS_BAD_LENGTH, STATUS_OK
from hyp.atomics import copy32, load64_once, memcpy, store8, store64, u32_add
from hyp.counters import count
from hyp.fairness.patience import lose_patience, platform_wait_ends, wait_ends
from hyp.fairness.turns import PIECES
from hyp.frames import takes_frame, takes_part, write_completion
from hyp.iommu import NO_TRANSLATION, READ, WRITE
from hyp.kernels import compiled, outlined
from hyp.offload.frame import is_simple, piece_addr, set_piece, write_whole
from hyp.offload.segments import needed_features, part_length, write_part
from nic.queues import (
    NO_WINDOW,
    buffers_for,
    complete_fragments,
    complete_receive,
    posted_buffers,
    reach,
    receive_descriptor,
    seek,
)
from nic.state import BUDGET_PARTS, DELIVERED, PAUSE, STAGED_BYTES, staged_at, touch


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
def put(e, r, f, part):
    """Deliver a frame, or one part of it, into the receive queue of context `r`, which this engine owns.

    DELIVERED, PAUSE (too few buffers: `e.wanted` must be posted), or a drop's name.
    """
    if r.active == 0:
        return DROP_DOWN
    e.wanted = 1
    if posted_buffers(r) == 0:
        return PAUSE if r.active != 0 else DROP_DOWN
    addr, word = receive_descriptor(r, 0)
    if r.active == 0:
        return DROP_DOWN
    length = f.length
    if not is_simple(f) or (r.features & SG != 0 and word & LENGTH_MASK < length):
        return _put_fragments(e, r, f, part)
    if not takes_frame(word, length):
        count(r.counts, FAULTS_DESCRIPTOR, 1)
        complete_receive(e, r, 0, STATUS_BAD_LENGTH)
        return DROP_SMALL_BUFFER
    buffer = reach(r, addr, length, WRITE)
    if buffer == NO_TRANSLATION:
        count(r.counts, FAULTS_ADDRESS, 1)
        complete_receive(e, r, 0, STATUS_BAD_ADDRESS)
        return DROP_BAD_ADDRESS
    copy_frame(buffer, piece_addr(f.pieces, 0), length, f.head0, f.head1)
    complete_receive(e, r, length, STATUS_OK)
    _count_received(r, 1, length)
    return DELIVERED


@compiled
def _takes_whole(r, f):
    """True if the driver of `r` has accepted to be given the frame as it is."""
    needed = needed_features(f.offload)
    return r.features & needed == needed


@compiled
def parts_for(r, f):
    """How many frames this one is for context `r`."""
    return 1 if _takes_whole(r, f) else f.parts


@outlined
def _put_fragments(e, r, f, part):
    """`put` of a frame in pieces, with an offload, or for several buffers."""
    whole = f.offload == 0 or _takes_whole(r, f)
    length = f.length if whole else part_length(f, part)
    result = _claim_buffers(e, r, length)
    if result != DELIVERED:
        return result
    if whole:
        write_whole(f, e.to)
        offload = f.offload
    else:
        write_part(f, part, e.to, 1)
        offload = CSUM_VALID if r.features & CSUM else 0
    complete_fragments(e, r, e.to, e.wanted, offload)
    _count_received(r, 1, length)
    return DELIVERED


@compiled
def _claim_buffers(e, r, length):
    """Enter as many of the next buffers as `length` bytes take into `e.to`. DELIVERED, PAUSE, or a drop's name."""
    n, left = 0, length
    while left > 0:
        if n == MAX_FRAGMENTS or (n > 0 and r.features & SG == 0):
            return _refuse_buffers(e, r, n, FAULTS_DESCRIPTOR, STATUS_BAD_LENGTH, DROP_SMALL_BUFFER)
        e.wanted = n + 1
        if buffers_for(r, n + 1) <= n:
            return PAUSE if r.active != 0 else DROP_DOWN
        addr, word = receive_descriptor(r, n)
        if r.active == 0:
            return DROP_DOWN
        if not takes_part(word, left):
            return _refuse_buffers(e, r, n + 1, FAULTS_DESCRIPTOR, STATUS_BAD_LENGTH, DROP_SMALL_BUFFER)
        taken = min(word & LENGTH_MASK, left)
        place = reach(r, addr, taken, WRITE)
        if place == NO_TRANSLATION:
            return _refuse_buffers(e, r, n + 1, FAULTS_ADDRESS, STATUS_BAD_ADDRESS, DROP_BAD_ADDRESS)
        set_piece(e.to, n, place, taken)
        left -= taken
        n += 1
    return DELIVERED


@compiled
def _refuse_buffers(e, r, n, fault, status, drop):
    """The next `n` buffers are no good, or the last of them is: use up all that were looked at, lest they are once more."""
    count(r.counts, fault, 1)
    for _ in range(n):
        if r.active != 0:
            complete_receive(e, r, 0, status)
    return drop


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
def count_part(e, parts, part, result):
    """A part of a frame, which is `parts` for its receiver, was passed on or dropped: what its sender's one frame doesn't cover."""
    if part > 0:
        count(e.counts, SEGMENTED, 1)
    if result != DELIVERED and part + 1 < parts:  # those that follow drop with it
        count(e.counts, SEGMENTED, parts - part - 1)
        count(e.counts, result, parts - part - 1)


@compiled
def end_frame(e, sender):
    """What becomes of a sender's frame is known. If its way has changed when a part of it had been passed on, that part is what the
    sender's one frame covers, and the rest, which was dropped or went another way, is one more."""
    if sender.part > 0:
        count(e.counts, SEGMENTED, 1)
    sender.pause_until, sender.part = 0, 0


@compiled
def put_or_pause(e, sender, r, f):
    """`put`, with a full receiver turned into a pause of `sender` (a record with `pause_until`), then into a drop.

    Of a frame that is several for the receiver, `sender.part` says how many have been delivered when it has to wait.
    """
    if is_simple(f):
        result = put(e, r, f, 0)
        return await_receiver(e, sender, r) if result == PAUSE else result
    return _put_parts(e, sender, r, f)


@compiled
def is_turn_over(e):
    """True if a sender has had its turn with a frame that becomes many: it pauses, and nobody is waited for."""
    return e.parts >= BUDGET_PARTS


@outlined
def _put_parts(e, sender, r, f):
    parts, result = parts_for(r, f), DELIVERED
    while sender.part < parts and result == DELIVERED:  # its sender may have made the frame shorter since the last time
        if is_turn_over(e):
            return PAUSE
        result = put(e, r, f, sender.part)
        if result == PAUSE:
            result = await_receiver(e, sender, r)
            if result == PAUSE:
                return PAUSE
        count_part(e, parts, sender.part, result)
        e.parts += 1 + e.wanted // PIECES if parts > 1 else 0
        sender.part += 1
        sender.pause_until = 0
    sender.part = 0
    return result


@compiled
def await_receiver(e, sender, r):
    """Context `r` is full: PAUSE while it may hold up who waits for it (hyp/fairness/patience.py), then a drop's name."""
    if r.stalled != 0:
        return DROP_NO_BUFFER
    sender.pause_need = e.wanted
    if sender.pause_until == 0 or sender.pause_for != r.number:  # a sender may change its frame while it waits
        sender.pause_until = platform_wait_ends(e) if r.privileged != 0 else wait_ends(e, r, r, sender.shared)
        sender.pause_for = r.number
        if sender.pause_until == 0:
            return DROP_NO_BUFFER
        count(e.counts, PAUSES, 1)
        return PAUSE
    if e.now < sender.pause_until:
        return PAUSE
    lose_patience(e, r, sender.shared)
    return DROP_NO_BUFFER


@compiled
def put_broadcast(e, r, f):
    """`put` for a copy of a frame that never pauses anybody. DELIVERED, or a drop's name."""
    parts, part, result = parts_for(r, f), 0, DELIVERED
    while part < parts and result == DELIVERED:
        result = put(e, r, f, part)
        if result == PAUSE:
            result = DROP_QUEUE_FULL
        count_part(e, parts, part, result)
        part += 1
    if parts > 1:
        e.parts += part
    return result
