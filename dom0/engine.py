"""Dom0's engine: one compiled loop that owns the vifs' rings and the uplink's queues. One call is one life, its sleeps included.

A round, for each port in turn: take frames in (unless some still wait) → check and learn the source, look up the destination → pass
on → copy what goes to guests in one hypercall → post what goes to the NIC → answer. A port whose receiver is full pauses up to a
deadline, then its frame drops.

How a frame is passed on is in dom0/forward.py.
"""

from dom0.bridge import forget_port, move_static
from dom0.credit import end_credit, set_rate
from dom0.forward import pass_on
from dom0.frames import DELIVERED, PARTS_BUDGET, PAUSE, judge_frame
from dom0.mapped_pages import enter_pages, release_pages
from dom0.netback import drop_staged, end_frame, tell_guest
from dom0.netback_rx import flush_copies, has_room
from dom0.netback_tx import WHOLE_TURN, answer_requests, take_requests
from dom0.state import STAGE, UPLINK, engine_at, member_of, port_of, staged_of
from dom0.tracing import first_bytes, trace_passed, trace_taken
from dom0.uplink import (
    completions_to_wait_for,
    publish_uplink,
    reclaim,
    repost_received,
    take_received,
    tell_uplink,
)
from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    DOMAIN_SWITCHES,
    DROP_SPOOFED,
    INTERRUPTS,
    TX_FRAMES,
)
from hyp.abi.netif import NR_SLOTS_MIN
from hyp.abi.platform import DOMAIN_SWITCH_PRICE, INTERRUPT_PRICE
from hyp.atomics import clock_ns, full_fence, load64, record_view
from hyp.counters import commit, count
from hyp.engine import STOP, mail_address, mail_record, mail_taken, mail_waiting
from hyp.events import end_spin, may_notify, notify_at, sleep, spins, tracer_of, wait_at
from hyp.fairness.cutting import PART_NS, cuts_again_at, is_cut
from hyp.fairness.patience import begin_patience, end_wait
from hyp.fairness.standing import standing_of
from hyp.fairness.timing import begin_timing, end_timing, timing_at
from hyp.kernels import compiled, entry, i64, outlined
from hyp.model.price import charge
from hyp.ring import arm_requests, ring_at
from hyp.trace.ring import is_passed_over
from hyp.verbs import arm_receives, arm_sends, qp_at, receives_completed, sends_completed

ADD_PORT, REMOVE_PORT, SET_RATE, ENTER_PAGES, SET_HASHING, GO, ROUTE, NOTHING = 1, 2, 3, 4, 5, 6, 7, 8
"""The first two are for all queues of the vif whose first port it is. GO: an engine that was `held` begins."""
MAIL = mail_record("port", "credit_bytes", "window_ns", "pages", "count", "hashing", "mac")
_mail_at = record_view(MAIL)
FLOOD_BUDGET = 2 * STAGE
"""Copies of flooded frames for which a port's turn ends: the other ports wait for each of them."""
MOST_HELD = 2 * STAGE
"""Slots of a vif of several queues that wait for full receivers, beyond which it takes in no more: the buffers are everybody's."""
REQUEST_NS, COPY_NS, BYTES_A_NS = 36, 24, 64
"""Of work (hyp/fairness/timing.py): of a request, of the copy of its frame to a guest, of bytes."""
PATIENCE = 3
"""Rounds that an event may be held back while there is work: a round is up to STAGE frames of each port."""


@compiled
def _forward(e, p):
    """Pass the port's staged frames on, as far as its turn goes. Returns how many slots these are."""
    vif = port_of(e, p.vif)
    done, e.flooded, e.dropped, e.parts, tracer = 0, 0, 0, 0, tracer_of(e.wait)
    if cuts_again_at(vif) > e.now:
        return 0
    while p.next < p.staged and e.flooded < FLOOD_BUDGET and e.parts < PARTS_BUDGET:
        s, flooded = staged_of(p, p.next), e.flooded
        if s.length > 0:
            result = DELIVERED if s.slots == 0 else judge_frame(e, p, p.next)
            if result == DELIVERED:
                result = pass_on(e, p, s)
            if result == PAUSE:
                break
            if result != DELIVERED:
                count(p.counts, result, 1)
                e.dropped += 1
                if result == DROP_SPOOFED:
                    p.wary = 1
            if tracer != 0 and not is_passed_over(tracer, s.addr, first_bytes(s)):
                trace_passed(tracer, e, p, s, result, e.flooded > flooded)
        if p.pause_until != 0 or p.part != 0:
            end_frame(p)
        p.next += max(s.slots, 1)
        done += max(s.slots, 1)
        if s.slots != 0 and cuts_again_at(vif) > e.now:
            break
    if e.parts > PARTS_BUDGET:  # by a frame for many, perhaps, each of whom got it in parts
        is_cut(vif, e.parts - PARTS_BUDGET, e.now, 0)
    return done


@compiled
def _sent(e):
    """Frames that have left by the uplink."""
    return load64(port_of(e, UPLINK).counts + 8 * TX_FRAMES)


@compiled
def _end_timing(e, p, began, copies, octets, sent):
    """So much was copied from the guest, and passed on: `sent` by the uplink; the rest, but for what drops, is copied again.

    What is refused or drops is quicker than what is plain: a turn with any says nothing of that.
    """
    handed = max(copies - sent - e.dropped, 0) + e.flooded
    work = REQUEST_NS * copies + COPY_NS * handed + octets // BYTES_A_NS + e.parts * PART_NS
    plain = 1 if p.wary == 0 and e.dropped == 0 else 0
    end_timing(timing_at(e.timing), standing_of(p), began, work, WHOLE_TURN, plain)


@compiled
def _copied(p):
    """(payload copies, bytes) from the guest, ever."""
    return load64(p.counts + 8 * COPIES), load64(p.counts + 8 * COPIED_BYTES)


@compiled
def _serve_port(e, p):
    """One turn of a port. Returns the number of slots passed on, and of the parts of frames; 0: nothing moved."""
    began = copies = octets = sent = 0
    if p.next == p.staged:
        if p.number == UPLINK:
            take_received(e, p)
        else:
            if e.free_count < STAGE:
                reclaim(e)
            began = begin_timing(timing_at(e.timing))
            if began != 0:
                sent = _sent(e)
                copies, octets = _copied(p)
            take_requests(e, p)
            e.op_count = 0
        if p.next == p.staged:
            return 0
        if tracer_of(e.wait) != 0:
            trace_taken(e, p)
    done = _forward(e, p)
    flush_copies(e)
    if began != 0:
        copied, total = _copied(p)
        _end_timing(e, p, began, copied - copies, total - octets, _sent(e) - sent)
    publish_uplink(e)
    if done > 0 and p.active != 0:
        p.dirty = 1
        if p.number == UPLINK:
            repost_received(e, p)
        else:
            answer_requests(e, p)
    return done + e.parts  # of a frame, perhaps, that is not done


@outlined
def _may_take(e, first):
    """Whether a vif's queues may take more in: not if so many slots of theirs are staged that others have need of the buffers."""
    held = 0
    for k in range(first.queues):
        p = member_of(e, first, k)
        held += p.staged - p.next
    return held < MOST_HELD


@outlined
def _serve_vif(e, first):
    """One turn of a vif of several queues, which is one queue's: how many it has its guest says. Returns the slots passed on."""
    for k in range(first.queues):
        number = (first.turn + k) % first.queues
        p = member_of(e, first, number)
        moved = _serve_port(e, p) if p.active != 0 and (p.next < p.staged or _may_take(e, first)) else 0
        if moved > 0:
            first.turn = number + 1
            return moved
    return 0


@compiled
def _round(e):
    if e.held != 0:
        return 0
    moved = 0
    e.first = e.first + 1 if e.first + 1 < e.port_count else 0
    for k in range(e.port_count):
        at = e.first + k
        p = port_of(e, at if at < e.port_count else at - e.port_count)
        if p.queues > 1:
            moved += _serve_vif(e, p)
        elif p.active != 0 and p.vif == p.number:
            moved += _serve_port(e, p)
    return moved


@compiled
def _tell_guests(e, idle):
    """Send the events owed: at once if nothing more is to be done, else a few rounds later, so that a busy Dom0 wakes for many.

    A guest that is too dear to notify goes on being owed.
    """
    for number in range(e.port_count):
        p = port_of(e, number)
        if p.owed != 0:
            p.waits += 1
            if (idle or p.waits >= PATIENCE) and may_notify(p.debt, e.now):
                tell_guest(e, p)


@compiled
def _publish(e):
    """Copy the counters of what moved to the shared page."""
    for number in range(e.port_count):
        p = port_of(e, number)
        if p.dirty != 0:
            p.dirty = 0
            commit(p.counts, p.counts_shared)
    commit(e.counts, e.counts_shared)


@compiled
def _remove_port(e, number):
    p = port_of(e, number)
    end_wait(p, e.now)
    p.active = p.owed = 0
    drop_staged(e, p)
    for other in range(e.port_count):
        if port_of(e, other).pause_for == number:  # nobody waits for who has its number next
            port_of(e, other).pause_until = 0
    if p.tx_refs != 0:
        release_pages(e, p)
    commit(p.counts, p.counts_shared)


@compiled
def _add_vif(e, first):
    for k in range(first.queues):
        q = member_of(e, first, k)
        q.active = 1
        begin_patience(q)
        e.port_count = max(e.port_count, q.number + 1)


@compiled
def _remove_vif(e, first):
    end_credit(e, first.number)
    for k in range(first.queues):
        _remove_port(e, member_of(e, first, k).number)
    first.hashing = 0  # the record is its connection's
    forget_port(e.fdb, first.number)


@compiled
def _take_mail(e):
    """Carry out what the control plane posted. Returns True if the engine is to stop."""
    stop = False
    while mail_waiting(e.mailbox, e.mail) > 0:
        mail = _mail_at(mail_address(e.mailbox, e.mail))
        if mail.opcode == STOP:
            stop = True
        elif mail.opcode == ADD_PORT:
            set_rate(e, mail.port, mail.credit_bytes, mail.window_ns)
            _add_vif(e, port_of(e, mail.port))
        elif mail.opcode == REMOVE_PORT:
            _remove_vif(e, port_of(e, mail.port))
        elif mail.opcode == SET_RATE:
            set_rate(e, mail.port, mail.credit_bytes, mail.window_ns)
        elif mail.opcode == GO:
            e.held = 0
        elif mail.opcode == SET_HASHING:
            port_of(e, mail.port).hashing = mail.hashing
        elif mail.opcode == ROUTE:
            move_static(e.fdb, mail.mac, mail.port)
        elif mail.opcode == ENTER_PAGES and port_of(e, mail.port).active != 0:
            enter_pages(port_of(e, mail.port), mail.pages, mail.count)
        e.mail += 1
    _publish(e)
    mail_taken(e.mailbox, e.mail)
    return stop


@compiled
def _arm(e):
    """Ask every guest and the NIC for a notification and look once more.

    Returns (something to do, ns to sleep or −1, whether the NIC was asked for that of a send).
    """
    ready, deadline, due_at, nic_full = mail_waiting(e.mailbox, e.mail) > 0, -1, -1, False
    if e.held != 0:
        return ready, -1, False
    for number in range(e.port_count):
        p = port_of(e, number)
        if p.active != 0 and p.pause_until != 0:
            deadline = p.pause_until if deadline < 0 else min(deadline, p.pause_until)
            nic_full = nic_full or p.pause_for == UPLINK
        if p.active != 0 and p.credit_at != 0:
            due_at = p.credit_at if due_at < 0 else min(due_at, p.credit_at)
        if p.active != 0 and cuts_again_at(p) > e.now:
            due_at = cuts_again_at(p) if due_at < 0 else min(due_at, cuts_again_at(p))
        if p.owed != 0:
            due_at = notify_at(p.debt) if due_at < 0 else min(due_at, notify_at(p.debt))
    q = qp_at(e.qp)
    short = e.free_count < STAGE  # of buffers, which the NIC has: their completion is work
    ahead = completions_to_wait_for(e)
    asked = nic_full or short
    if asked:
        arm_sends(q, ahead)
    for number in range(e.port_count):
        p = port_of(e, number)
        if p.active != 0 and number == UPLINK:
            arm_receives(q)
        elif p.active != 0:
            if p.next == p.staged and _would_take(e, port_of(e, p.vif)) and arm_requests(ring_at(p.tx_ring)):
                ready = True
            if deadline >= 0:
                arm_requests(ring_at(p.rx_ring), max(p.waited_for, 1))
    full_fence()
    uplink = port_of(e, UPLINK)
    if uplink.active != 0 and uplink.next == uplink.staged and receives_completed(q):
        ready = True
    if asked and sends_completed(q, ahead):
        ready = True
    if deadline >= 0:
        ready = ready or _guest_has_room(e)
    if due_at >= 0:
        deadline = due_at if deadline < 0 else min(deadline, due_at)
    return ready, -1 if deadline < 0 else max(deadline - clock_ns(), 0), asked


@compiled
def _would_take(e, first):
    """Whether requests of a vif would be taken in now; else it is something else that has to come about before they are."""
    if first.credit_at != 0 or e.free_count < NR_SLOTS_MIN:
        return False
    return first.queues == 1 or _may_take(e, first)


@compiled
def _guest_has_room(e):
    """True if there is room in any guest's ring that a paused port may wait for."""
    for number in range(e.port_count):
        p = port_of(e, number)
        if p.active != 0 and number != UPLINK and p.stalled == 0 and p.waited_for != 0 and has_room(e, p, p.waited_for):
            return True
    return False


@compiled
def _idle(e):
    """Nothing moved: spin while that pays, then sleep."""
    wait = wait_at(e.wait)
    if spins(e, wait):
        return
    ready, timeout, asked = _arm(e)
    if not ready:
        _publish(e)
        q = qp_at(e.qp)
        if sleep(wait, timeout, e.counts) > 0:
            charge(wait.platform, DOMAIN_SWITCH_PRICE, e.counts, DOMAIN_SWITCHES, 1)
            if receives_completed(q) or (asked and sends_completed(q)):
                charge(wait.platform, INTERRUPT_PRICE, e.counts, INTERRUPTS, 1)
    end_spin(e, e.counts)


@entry(i64(i64))
def run(address: int) -> int:
    """Serve until the mailbox says stop. `address`: the ENGINE record. Returns the number of rounds that moved frames."""
    e = engine_at(address)
    rounds = 0
    while True:
        e.now = clock_ns()
        if mail_waiting(e.mailbox, e.mail) > 0 and _take_mail(e):
            break
        if _round(e) > 0:
            rounds += 1
            end_spin(e, e.counts)
            _tell_guests(e, False)
            _publish(e)
        else:
            tell_uplink(e)
            _tell_guests(e, True)
            _idle(e)
    tell_uplink(e)
    _tell_guests(e, True)
    _publish(e)
    return rounds
