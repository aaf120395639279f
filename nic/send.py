"""Serving a context's send queue: copy the descriptor, check it, read the header once, switch the frame."""

from hyp.abi.counters import (
    BATCHES,
    DROP_BAD_ADDRESS,
    DROP_BAD_FRAME,
    DROP_QUEUE_FULL,
    DROP_SAME_PORT,
    DROP_SPOOFED,
    FAULTS_ADDRESS,
    FAULTS_DESCRIPTOR,
    REPLICATED,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.nic import (
    DESC_BYTES,
    DESC_SIGNALED,
    GROUP_BIT,
    MAC_MASK,
    MAX_FRAME,
    MIN_FRAME,
    NO_CONTEXT,
    SQ_EVENT,
    STATUS_BAD_ADDRESS,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_DROPPED,
    STATUS_OK,
    STATUS_SPOOFED,
)
from hyp.abi.platform import KEEP_ARMED
from hyp.ablation import ablated
from hyp.atomics import load8, load64, load64_once, prefetch, store32_once, u32_add
from hyp.counters import count
from hyp.iommu import READ
from hyp.kernels import compiled
from nic.crossing import FLOOD, cross, cross_or_pause, is_paused
from nic.deliver import put_broadcast, put_or_pause
from nic.queues import complete_send, posted_sends, reach, send_page
from nic.state import (
    AHEAD,
    BUDGET_BYTES,
    BUDGET_FRAMES,
    DELIVERED,
    FOR_WIRE,
    ON_WIRE,
    PAUSE,
    STAGE,
    STAGED_BYTES,
    context_of,
    staged_at,
    touch,
)
from nic.switch import lookup
from nic.wire import await_wire, end_outbound, is_wire_full, outbound


@compiled
def _flood_here(e, origin, source, length, head0, head1):
    """Deliver to every context of this engine but `origin`. Returns the number of deliveries tried."""
    tried = 0
    for k in range(e.active):
        r = context_of(e, load64(e.order + 8 * k))
        if r.number != origin and r.active != 0:
            tried += 1
            result = put_broadcast(e, r, source, length, head0, head1)
            if result != DELIVERED:
                count(r.counts, result, 1)
                touch(e, r)
    return tried


@compiled
def flood(e, origin, source, length, head0, head1):
    """A broadcast or multicast frame of context `origin` to all others. Never pauses."""
    count(e.counts, REPLICATED, _flood_here(e, origin, source, length, head0, head1))
    for target in range(e.engines):
        if target != e.index and cross(e, target, FLOOD, origin, source, length, head0, head1) == PAUSE:
            count(e.counts, REPLICATED, 1)
            count(e.counts, DROP_QUEUE_FULL, 1)


@compiled
def flood_crossed(e, origin, source, length, head0, head1):
    """The part of a flood that concerns this engine's contexts; it arrived by a crossing."""
    count(e.counts, REPLICATED, _flood_here(e, origin, source, length, head0, head1))


@compiled
def _switch(e, c, source, length, head0, head1):
    """Pass a checked frame of context `c` on. DELIVERED, ON_WIRE, PAUSE, or a drop's name."""
    target = head0 & MAC_MASK
    if target != c.route_mac:
        c.route_mac, c.route = target, NO_CONTEXT if target & GROUP_BIT else lookup(e.table, target)
    number = c.route
    if number == NO_CONTEXT:
        if is_wire_full(e):
            await_wire(e, c)
            return PAUSE
        if target & GROUP_BIT:
            flood(e, c.number, source, length, head0, head1)
        outbound(e, source, length, head0, head1)
        return ON_WIRE
    if number == c.number:
        return DROP_SAME_PORT
    r = context_of(e, number)
    if r.mine == 0 and r.active != 0:
        return cross_or_pause(e, c, r.engine, number, c.number, source, length, head0, head1)
    return put_or_pause(e, c, r, source, length, head0, head1)


@compiled
def _header(source, length):
    """The first 14 bytes, each read once, as two words (zero beyond the frame)."""
    head0 = load64_once(source)
    if length >= 16:
        return head0, load64_once(source + 8)
    head1 = 0
    for k in range(8, length):
        head1 |= load8(source + k) << (8 * (k - 8))
    return head0, head1


@compiled
def _form(word):
    """STATUS_OK if a descriptor's length and flags are good, else what is wrong."""
    length = word & 0xFFFFFFFF
    if length < MIN_FRAME or length > MAX_FRAME:
        return STATUS_BAD_LENGTH
    return STATUS_OK if (word >> 32) & 0xFFFFFFFF & ~DESC_SIGNALED == 0 else STATUS_BAD_FLAGS


@compiled
def _locate(c, addr, word, page, base):
    """Where the frame of a descriptor (our copy of it) is; 0: refused. `base`: where page `page` is, looked up in this batch, or 0.

    Returns, too, page and base of this frame's first page, for the next one.
    """
    if _form(word) != STATUS_OK:
        return 0, page, base
    length, within = word & 0xFFFFFFFF, addr & 4095
    if addr >> 12 == page and base != 0 and length <= 4096 - within:
        source = base + within
    else:
        source = reach(c, addr, length, READ)
        page, base = addr >> 12, source - within if source != 0 else 0
    prefetch(source)
    return source, page, base


@compiled
def _fetch(e, c, first, n):
    """Stage `n` descriptors from index `first` on. Returns how many; fewer: the queue is out of reach.

    And have the lines of the next ones under way. So neither descriptors nor frames are waited for while they come out of the
    driver's cache: others are dealt with meanwhile.
    """
    queue, mask, stage = c.sq, c.sq_size - 1, e.stage  # in registers: a store to the stage might alias
    queue_page, queue_base = -1, 0
    page, base = -1, 0
    for k in range(n):
        index = first + k
        iova = queue + (index & mask) * DESC_BYTES
        if iova >> 12 != queue_page:
            queue_page, queue_base = iova >> 12, send_page(c, iova)
            if queue_base == 0:
                return k
        slot = queue_base + (iova & 4095)
        prefetch(queue_base + ((iova + AHEAD * DESC_BYTES) & 4095))
        addr, word = load64_once(slot), load64_once(slot + 8)
        s = staged_at(stage + (index & (STAGE - 1)) * STAGED_BYTES)
        s.source, page, base = _locate(c, addr, word, page, base)
        s.word = word
    return n


@compiled
def _refused(c, word):
    """Count the fault of a descriptor that leads nowhere. Returns (STATUS_*, the drop's name)."""
    status = _form(word)
    if status == STATUS_OK:
        count(c.counts, FAULTS_ADDRESS, 1)
        return STATUS_BAD_ADDRESS, DROP_BAD_ADDRESS
    count(c.counts, FAULTS_DESCRIPTOR, 1)
    return status, DROP_BAD_FRAME


@compiled
def _send_one(e, c, s):
    """Send one staged frame. Returns (STATUS_*, drop's name or DELIVERED, ON_WIRE or PAUSE)."""
    source, length = s.source, s.word & 0xFFFFFFFF
    if source == 0:
        return _refused(c, s.word)
    head0, head1 = _header(source, length)
    claimed = ((head0 >> 48) & 0xFFFF) | ((head1 & 0xFFFFFFFF) << 16)
    if claimed != c.mac and c.privileged == 0:
        return STATUS_SPOOFED, DROP_SPOOFED
    result = _switch(e, c, source, length, head0, head1)
    return STATUS_OK if result in (DELIVERED, ON_WIRE) else STATUS_DROPPED, result


@compiled
def serve_sends(e, c):
    """One turn of a context's send queue. Returns the number of descriptors done."""
    waiting = posted_sends(c)
    if waiting == 0 or is_paused(e, c):
        return 0
    if c.pause_for == FOR_WIRE:
        c.pause_until, c.pause_for = 0, 0  # that deadline is none: a receiver may be waited for from the beginning
    first, limit, fetched = c.sq_cons, min(waiting, BUDGET_FRAMES), 0
    done, total = 0, 0
    wired, wired_bytes = 0, 0
    while done < limit and total < BUDGET_BYTES:
        if fetched < limit and fetched - done <= AHEAD:
            want = min(AHEAD, limit - fetched)
            got = _fetch(e, c, u32_add(first, fetched), want)
            fetched += got
            if got < want:
                limit = fetched
                continue
        s = staged_at(e.stage + (c.sq_cons & (STAGE - 1)) * STAGED_BYTES)
        status, result = _send_one(e, c, s)
        if result == PAUSE:
            break
        c.pause_until = 0
        length = s.word & 0xFFFF
        total += length
        if result == ON_WIRE:
            wired += 1
            wired_bytes += length
        elif result != DELIVERED:
            count(c.counts, result, 1)
        if status != STATUS_OK or (s.word >> 32) & DESC_SIGNALED != 0:
            complete_send(e, c, status)
        c.sq_cons = u32_add(c.sq_cons, 1)
        done += 1
    if wired > 0:
        end_outbound(e, wired, wired_bytes)
    if done > 0:
        if ablated(e.platform, KEEP_ARMED) != 0:
            store32_once(c.doorbell + SQ_EVENT, u32_add(c.sq_cons, 1))
        count(c.counts, TX_FRAMES, done)
        count(c.counts, TX_BYTES, total)
        count(c.counts, BATCHES, 1)
        touch(e, c)
    return done
