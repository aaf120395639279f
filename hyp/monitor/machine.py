"""One guest's emulated NIC: the device model's half of it, which the VMM's loop (hyp/monitor/vmm.py) gives a turn each round.

It emulates a NIC by means of a real one: behind each *machine* is a queue pair of the device model's own (hyp/verbs.py), whose
RAM and buffers the guest does not have.

A turn:
  1. a trap: decode the register write, carry it out, answer it
  2. send: copy each posted frame (descriptor copied once, then checked) into a buffer of our own and post that on the NIC.
     A frame copied is a send completed. No room on the NIC's queue: the descriptor stays where it is until there is some
  3. receive: copy each frame that came from the NIC into the guest's next buffer. No buffer: it stays in the NIC's queue,
     which is what makes the NIC pause its sender
     Either way, what is not a good frame in one piece, without an offload, is left for machine_chains.py
  4. raise the guest's interrupt if a completion passed its event register; ring the NIC; publish counters

A guest that breaks the protocol loses its device: its traps are answered and do nothing any more, frames for it drop as
`drop_down`.
"""

import numpy as np

from hyp.abi.counters import (
    COPIED_BYTES,
    COPIES,
    FAULTS_PROTOCOL,
    INTERRUPTS,
    RX_BYTES,
    RX_FRAMES,
    SUPPRESSED,
    TRAPS,
    TX_BYTES,
    TX_FRAMES,
)
from hyp.abi.fragment import LENGTH_MASK, SIGNALED
from hyp.abi.nic import RCQ_EVENT, RQ_PROD, SCQ_EVENT, SQ_PROD, STATUS_OK
from hyp.abi.platform import INTERRUPT_PRICE, VM_EXIT_PRICE
from hyp.abi.sizes import FRAME_BUFFER, LARGEST_FRAME_BUFFER
from hyp.abi.trap import ANSWER_EVENT, ANSWERED, REGISTER, SEQUENCE, TRAP_EVENT, VALUE
from hyp.atomics import (
    full_fence,
    load32_acquire,
    load32_once,
    memcpy,
    record_view,
    store32_once,
    store32_release,
    u32_add,
    u32_sub,
)
from hyp.counters import commit, count
from hyp.events import may_notify, notify_at, notify_guest, passed, tracer_of
from hyp.fairness.cutting import cuts_again_at
from hyp.fairness.timing import SHORT, begin_timing, end_timing, is_short, timing_at
from hyp.fairness.turns import PIECES, begin_turn, is_turn_spent
from hyp.frames import lies_within, send_fault, takes_frame
from hyp.kernels import compiled, entry, i64, void
from hyp.model.price import charge
from hyp.monitor.guest_queues import buffers_left, complete_receive, complete_send, receive_descriptor, send_descriptor, sends_left
from hyp.monitor.machine_chains import UPLINK, count_handed_in, has_room, receive_one, send_one, signal_for
from hyp.trace.ring import PASSED, is_passed_over, trace_frame
from hyp.verbs import (
    arm_receives,
    arm_sends,
    consume_receives,
    peek_fragment,
    post_receive,
    post_send,
    qp_at,
    receives_completed,
    ring_receives,
    ring_sends,
    send_room,
    sends_completed,
)

BUDGET = 64  # descriptors of one machine in its turn, each way; and what is left of a frame
BUDGET_BYTES = 128 * 1024  # that it sends in its turn; and what is left of a frame
FRAME_NS, BYTES_A_NS = 5, 64  # of work (hyp/fairness/timing.py): of a plain frame, and of bytes
WHOLE_TURN = BUDGET * 8  # of short frames
MOST_REFUSED = 8  # frames in a turn that have to be refused

MACHINE = np.dtype(
    [
        # set by the control plane before the machine starts
        ("page", "i8"),  # address of the trap page
        ("ram", "i8"),  # the guest's RAM
        ("ram_bytes", "i8"),
        ("answer_fd", "i8"),  # wakes the guest's virtual CPU from a trap
        ("interrupt_fd", "i8"),
        ("notifier", "i8"),  # a NOTIFIER record (hyp/events.py): the loop's, for all machines
        ("debt", "i8"),  # and the guest's DEBT
        ("sq", "i8"),  # addresses of the guest's queues, all of them within its RAM
        ("scq", "i8"),
        ("rq", "i8"),
        ("rcq", "i8"),
        ("sq_size", "i8"),
        ("rq_size", "i8"),
        ("qp", "i8"),  # our queue pair on the NIC
        ("features", "i8"),  # what the guest accepted, and we on the NIC
        ("max_frame", "i8"),  # bytes of a frame that the NIC takes if it is not to be segmented
        ("frame", "i8"),  # a FRAME record (hyp/offload/frame.py) and a table of pieces: the loop's, for all machines
        ("to", "i8"),
        ("wait", "i8"),  # the loop's WAIT record, and the guest's domain id, for who traces
        ("domid", "i8"),
        ("to_host", "i8"),  # 1: the NIC's wire leads to the host
        ("timing", "i8"),  # the loop's TIMING record (hyp/fairness/timing.py)
        ("turn_until", "i8"),  # when the turn is over in which frames are passed on one by one (hyp/fairness/turns.py)
        ("look_at", "i8"),  # after how much work of it the clock is looked at
        ("own_ram", "i8"),  # address of guest-physical 0 of the device model
        ("tx_pool", "i8"),  # guest-physical there: a buffer for each slot
        ("rx_pool", "i8"),
        ("counts", "i8"),  # row of the guest's side, and its shared place
        ("counts_shared", "i8"),
        ("uplink", "i8"),  # row of the NIC's side
        ("uplink_shared", "i8"),
        # the loop's own: registers and free-running 32-bit indices, never read back from shared memory
        ("active", "i8"),
        ("failed", "i8"),
        ("trap", "i8"),  # number of the last trap taken
        ("trap_armed", "i8"),
        ("answer_due", "i8"),  # the guest's virtual CPU sleeps, and has not been told of the answer
        ("sq_prod", "i8"),
        ("sq_cons", "i8"),
        ("owed", "i8"),  # for turns that took longer than others' (ns)
        ("send_wanted", "i8"),  # slots of our queue that the next frame wants
        ("cut_until", "i8"),  # (ns; hyp/fairness/cutting.py)
        ("scq_prod", "i8"),
        ("scq_event", "i8"),
        ("scq_told", "i8"),
        ("rq_prod", "i8"),
        ("rq_cons", "i8"),
        ("receive_wanted", "i8"),  # buffers that the next frame from the NIC wants
        ("rcq_prod", "i8"),
        ("rcq_event", "i8"),
        ("rcq_told", "i8"),
    ]
)
MACHINE_BYTES = MACHINE.itemsize

machine_at = record_view(MACHINE)


@compiled
def _end_timing(m, began, frames, octets, is_all):
    """So many plain frames of a turn are done, in one direction."""
    if began != 0:
        end_timing(timing_at(m.timing), m, began, FRAME_NS * frames + octets // BYTES_A_NS, WHOLE_TURN, is_all)


# --- frames -----------------------------------------------------------------------------------------------------------


@compiled
def _forward(m, q, addr, length):
    """Payload copy 1 into the buffer of our next slot; copy 2 is the NIC's DMA."""
    gpa = m.tx_pool + (q.sq_prod & (q.sq_size - 1)) * LARGEST_FRAME_BUFFER
    memcpy(m.own_ram + gpa, m.ram + addr, length)
    post_send(q, gpa, length, signal_for(q, 1))
    tracer = tracer_of(m.wait)
    if tracer != 0 and not is_passed_over(tracer, m.own_ram + gpa, length):
        trace_frame(tracer, PASSED, m.domid, UPLINK, 0, m.own_ram + gpa, length, length, 0)
    count(m.counts, TX_FRAMES, 1)
    count(m.counts, TX_BYTES, length)
    count(m.counts, COPIES, 1)
    count(m.counts, COPIED_BYTES, length)
    count(m.uplink, TX_FRAMES, 1)
    count(m.uplink, TX_BYTES, length)


@compiled
def _may_send_more(m, total, bad, now):
    """False when the turn is over, by bytes, by frames that had to be refused, or by the work that it is for the NIC."""
    return total < BUDGET_BYTES and bad < MOST_REFUSED and cuts_again_at(m) <= now


@compiled
def _serve_sends(m, q, now, most):
    """Step 2. Returns the number of descriptors done. The turn ends after MOST_REFUSED that were refused (nic/send.py)."""
    done, total, bad, slow = 0, 0, 0, 0
    began = begin_timing(timing_at(m.timing))
    begin_turn(m)
    while done < most and _may_send_more(m, total, bad, now) and sends_left(m) > 0 and has_room(q, m.send_wanted):
        m.send_wanted = 1
        addr, word = send_descriptor(m, 0)
        length = word & LENGTH_MASK
        if send_fault(word) != STATUS_OK or length > m.max_frame or not lies_within(addr, length, m.ram_bytes):
            if slow == 0:
                _end_timing(m, began, done, total, 0)
            taken, copied, refused = send_one(m, q, now)
            slow += 1 + taken // PIECES
            if taken == 0:
                break
            done += taken
            total += copied
            bad += refused
            if is_turn_spent(m, slow, total):
                break
            continue
        _forward(m, q, addr, length)
        total += length
        if word & SIGNALED != 0:
            complete_send(m, STATUS_OK)
        m.sq_cons = u32_add(m.sq_cons, 1)
        done += 1
        slow += 1 if slow > 0 else 0  # then it is the clock by which the turn ends
        if slow > 0 and is_turn_spent(m, slow, total):
            break
    if slow == 0:
        _end_timing(m, began, done, total, 1)
    return done


@compiled
def _hand_in(m, frame, length):
    """Copy a frame in one piece into the guest's next receive buffer. False: it does not fit there, or the buffer is no good."""
    addr, word = receive_descriptor(m, 0)
    if not takes_frame(word, length) or not lies_within(addr, length, m.ram_bytes):
        return False
    memcpy(m.ram + addr, frame, length)
    complete_receive(m, length, STATUS_OK)
    tracer = tracer_of(m.wait)
    if tracer != 0 and not is_passed_over(tracer, frame, length):
        trace_frame(tracer, PASSED, UPLINK, m.domid, 0, frame, length, length, 0)
    count_handed_in(m, length)
    count(m.uplink, RX_FRAMES, 1)
    count(m.uplink, RX_BYTES, length)
    return True


@compiled
def _can_hand_in(m):
    """True if a frame from the NIC can be dealt with now: there are the buffers that it wants, or nobody to keep it for."""
    return buffers_left(m) >= m.receive_wanted or m.failed != 0


@compiled
def _serve_receives(m, q, most):
    """Step 3. Returns the number of buffers from the NIC that are done."""
    done, slow, octets = 0, 0, 0
    began = begin_timing(timing_at(m.timing))
    begin_turn(m)
    while done < most and _can_hand_in(m):
        index, word, status = peek_fragment(q, 0)
        if index < 0:
            break
        m.receive_wanted = 1
        taken = 1
        if status == STATUS_OK:
            frame = m.own_ram + m.rx_pool + (index & (q.rq_size - 1)) * FRAME_BUFFER
            if word >> 32 != 0 or m.failed != 0 or not _hand_in(m, frame, word):
                if slow == 0:
                    _end_timing(m, began, done, octets, 0)
                taken, pieces = receive_one(m, q)
                slow += 1 + pieces // PIECES
                octets += taken * FRAME_BUFFER
            else:
                octets += word
                slow += 1 if slow > 0 else 0
        for _ in range(taken):
            post_receive(q, m.rx_pool + (q.rq_prod & (q.rq_size - 1)) * FRAME_BUFFER, FRAME_BUFFER)
        consume_receives(q, taken)
        done += taken
        if taken == 0 or (slow > 0 and is_turn_spent(m, slow, octets)):
            break
    if slow == 0:
        _end_timing(m, began, done, octets, 1)
    return done


# --- traps ------------------------------------------------------------------------------------------------------------


@compiled
def _fail(m):
    """The guest broke the protocol: its device is out of service. Nobody else notices."""
    count(m.counts, FAULTS_PROTOCOL, 1)
    m.failed = 1
    m.sq_prod = m.sq_cons


@compiled
def _carry_out(m, register, value):
    """The effect of one register write on a device in service."""
    if register == SQ_PROD:
        if u32_sub(value, m.sq_cons) > m.sq_size or u32_sub(value, m.sq_cons) < u32_sub(m.sq_prod, m.sq_cons):
            _fail(m)
        else:
            m.sq_prod = value
    elif register == RQ_PROD:
        if u32_sub(value, m.rq_cons) > m.rq_size or u32_sub(value, m.rq_cons) < u32_sub(m.rq_prod, m.rq_cons):
            _fail(m)
        else:
            m.rq_prod = value
    elif register == SCQ_EVENT:
        m.scq_event = value
    elif register == RCQ_EVENT:
        m.rcq_event = value
    else:
        _fail(m)


@compiled
def _take_trap(m, platform):
    """Step 1 up to the answer. True if the guest stands still in a trap."""
    sequence = load32_acquire(m.page + SEQUENCE)
    if sequence == m.trap:
        return False
    register, value = load32_once(m.page + REGISTER), load32_once(m.page + VALUE)
    in_order = sequence == u32_add(m.trap, 1)
    m.trap = sequence
    charge(platform, VM_EXIT_PRICE, m.counts, TRAPS, 1)
    if m.failed == 0:
        if in_order:
            _carry_out(m, register, value)
        else:
            _fail(m)
    return True


@compiled
def _answer(m):
    """Let the guest go on; everything that its trap brought about is visible to it."""
    store32_release(m.page + ANSWERED, m.trap)
    full_fence()
    if load32_once(m.page + ANSWER_EVENT) == m.trap:
        m.answer_due = 1
    else:
        count(m.counts, SUPPRESSED, 1)


@compiled
def _interrupt_due(m):
    """Whether a completion passed an event register since the guest was last interrupted or need not be."""
    return passed(m.scq_event, m.scq_told, m.scq_prod) or passed(m.rcq_event, m.rcq_told, m.rcq_prod)


@compiled
def _interrupt(m, platform, now):
    """Step 4: inject the interrupt if it is due, and the guest may be notified. True if there was anything new to it."""
    if m.scq_prod == m.scq_told and m.rcq_prod == m.rcq_told:
        return False
    if not _interrupt_due(m):
        count(m.counts, SUPPRESSED, 1)
    elif may_notify(m.debt, now):
        notify_guest(m.notifier, m.debt, m.interrupt_fd, m.counts)
        charge(platform, INTERRUPT_PRICE, m.counts, INTERRUPTS, 1)
    else:
        return False
    m.scq_told, m.rcq_told = m.scq_prod, m.rcq_prod
    return True


@compiled
def due_at(m, now):
    """When it can be told of what it has not been, being too dear to notify just now, or sends again (ns); −1: there is nothing."""
    at = notify_at(m.debt)
    told = at if at > now and (m.answer_due != 0 or _interrupt_due(m)) else -1
    sends_at = cuts_again_at(m)
    if sends_at <= now or m.sq_cons == m.sq_prod:
        return told
    return sends_at if told < 0 else min(told, sends_at)


@compiled
def publish(m):
    """Show what the turn counted."""
    commit(m.counts, m.counts_shared)
    commit(m.uplink, m.uplink_shared)


@compiled
def serve(m, platform, now):
    """A turn. `platform`: address of the platform page. Returns 0 if there was nothing to do."""
    q = qp_at(m.qp)
    trapped = _take_trap(m, platform)
    most = BUDGET // SHORT if is_short(timing_at(m.timing), m, WHOLE_TURN) else BUDGET
    done = _serve_sends(m, q, now, most) + _serve_receives(m, q, most)
    if done > 0:
        ring_sends(q)
        ring_receives(q)
    if _interrupt(m, platform, now) or trapped or done > 0:
        publish(m)
    if trapped:
        _answer(m)
    if m.answer_due != 0 and may_notify(m.debt, now):
        m.answer_due = 0
        notify_guest(m.notifier, m.debt, m.answer_fd, m.counts)
    return done + (1 if trapped else 0)


@compiled
def arm(m):
    """Ask the guest for a signal at its next trap, and the NIC at what the machine waits for of it."""
    q = qp_at(m.qp)
    event = u32_add(m.trap, 1)
    if m.trap_armed != event:
        m.trap_armed = event
        store32_once(m.page + TRAP_EVENT, event)
    if _can_hand_in(m):
        arm_receives(q)
    if m.sq_cons != m.sq_prod:
        arm_sends(q)


@compiled
def has_work(m, now):
    """True if a turn would find something to do."""
    q = qp_at(m.qp)
    if load32_acquire(m.page + SEQUENCE) != m.trap or (_can_hand_in(m) and receives_completed(q)):
        return True
    return m.sq_cons != m.sq_prod and cuts_again_at(m) <= now and (send_room(q) >= m.send_wanted or sends_completed(q))


@entry(void(i64))
def post_all_buffers(machine: int) -> None:
    """Give every receive buffer of the device model to the NIC. `machine`: the MACHINE record, not started yet."""
    m = machine_at(machine)
    q = qp_at(m.qp)
    for k in range(q.rq_size):
        post_receive(q, m.rx_pool + k * FRAME_BUFFER, FRAME_BUFFER)
    ring_receives(q)
