"""An engine of the NIC: one compiled loop that owns its contexts' queues. One call is one life, its sleeps included.

A batch:
  1. publish the epoch (odd), fence, look for a shootdown            hyp/iommu.py
  2. take set-up changes from the mailbox
  3. deliver what other engines crossed over
  4. one turn for each guest, of one of its contexts' send queues    nic/send.py
  5. what has arrived by the wire, and its generator
  6. publish: completions' notifications, checkpoints, counters    nic/publish.py
If nothing moved: spin for a while, then arm every queue, fence, look again, publish an even epoch and sleep.
"""

from hyp.abi.counters import DROP_DOWN
from hyp.abi.nic import CONTEXTS, NO_CONTEXT, RQ_EVENT, SQ_EVENT
from hyp.abi.platform import EPOCH, KEEP_ARMED, SHOOTDOWN_REQUEST
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    full_fence,
    load64,
    load64_once,
    notify,
    record_view,
    store32_once,
    store64,
    store64_release,
    u32_add,
)
from hyp.counters import count
from hyp.engine import STOP, mail_address, mail_record, mail_taken, mail_waiting
from hyp.events import end_spin, notify_at, sleep, spin_limit, spins, tracer_of, wait_at
from hyp.fairness.patience import begin_patience, end_wait
from hyp.fairness.turns import PIECES, begin_turn, is_turn_spent
from hyp.kernels import compiled, entry, i64, outlined
from hyp.model.ablation import ablated
from nic.crossing import (
    CONS,
    FLOOD,
    SLOT_CONTEXT,
    SLOT_GENERATION,
    arm_crossing,
    crossed,
    crossed_frame,
    crossing,
    is_paused,
    made_room,
    slot_of,
    want_room,
)
from nic.deliver import end_frame, is_turn_over, put_or_pause
from nic.doorbell import note_rings
from nic.publish import dma_of, publish, publish_last
from nic.queues import posted_sends
from nic.resume import checkpoint, resume
from nic.send import flood_crossed, sends_again_at, serve_sends
from nic.state import DELIVERED, FOR_WIRE, GATE_BYTES, PAUSE, context_of, engine_at, gate_at, touch, wire_at
from nic.switch import enter, forget
from nic.tracing import trace_crossed
from nic.wire.generator import begin_generating, generate
from nic.wire.linked import link_wire, serve_wire, wire_due
from nic.wire.replay import begin_replaying
from nic.wire.tap_input import serve_tap

START_CONTEXT, STOP_CONTEXT, FILTER, WIRE_MODE, GENERATE, RESUME_CONTEXT, GO, DRAIN_CONTEXT, NOTHING = 1, 2, 3, 4, 5, 6, 7, 8, 9
REPLAY = 10
MAIL = mail_record(
    "context", "mac", "mode", "fs_per_byte", "delay_ns",
    "length", "frames", "nanoseconds", "pps", "stream", "entries", "round_ns", "shared",
)  # fmt: skip
"""What the operations take: START_CONTEXT, RESUME_CONTEXT, DRAIN_CONTEXT, STOP_CONTEXT a context; FILTER a MAC address and who has
it; WIRE_MODE mode, rate and delay; GENERATE a destination, and from `length` on; REPLAY the
ENTRY records and how many (`length`), and what GENERATE has; GO nothing: all that a dead NIC served has been
resumed; NOTHING nothing."""
_mail_at = record_view(MAIL)
CROSSING_BUDGET = 32


@compiled
def _begin_batch(e):
    e.epoch += 2 - (e.epoch + 1) % 2
    store64_release(e.page + EPOCH, e.epoch)
    full_fence()
    _heed_shootdown(e)
    e.now = clock_ns()


@compiled
def _heed_shootdown(e):
    """After the epoch was published: tell the hypervisor, if it has asked since the last time, now and at the next boundary.

    Twice, because a request that came between the store of the epoch and this load may wait for just this epoch to pass.
    """
    request = load64_once(e.platform + SHOOTDOWN_REQUEST)
    if request != e.shootdowns or e.heed_again != 0:
        e.heed_again = 1 if request != e.shootdowns else 0
        e.shootdowns = request
        notify(e.shootdown_fd)


@compiled
def _start_context(e, number):
    c = context_of(e, number)
    c.active = 1
    begin_patience(c)
    first = context_of(e, c.first)
    store64(first.members + 8 * c.queue, number)
    first.queues = c.queue + 1
    dma_of(c)
    if c.mine != 0:
        store64(e.order + 8 * e.active, number)
        e.active += 1


@compiled
def _forget_routes(e):
    """The switch's table has changed: what contexts remember of it may be wrong."""
    for number in range(CONTEXTS):
        context_of(e, number).head1 = -1


@compiled
def _free_waiting(e, number):
    """A context goes: nobody waits for it any more, nor for who has its number next."""
    for k in range(e.active):
        _free_one(context_of(e, load64(e.order + 8 * k)), number)
    for producer in range(e.engines):
        _free_one(gate_at(e.gates + producer * GATE_BYTES), number)
    _free_one(wire_at(e.wire), number)


@compiled
def _free_one(sender, number):
    if sender.pause_for == number:
        sender.pause_until = 0


@compiled
def _stop_context(e, number):
    c = context_of(e, number)
    c.active = 0
    if c.mine != 0:
        end_wait(c, e.now)
    _free_waiting(e, number)
    first = context_of(e, c.first)
    if c.queue < first.queues and load64(first.members + 8 * c.queue) == number:
        first.queues = c.queue
    forget(e.table, number)
    _forget_routes(e)
    left = 0
    for k in range(e.active):
        other = load64(e.order + 8 * k)
        if other != number:
            store64(e.order + 8 * left, other)
            left += 1
    e.active = left
    if c.mine != 0:
        publish_last(e, c)


@compiled
def _take_mail(e):
    """Carry out what the control plane posted. Returns True if the engine is to stop."""
    stop = False
    while mail_waiting(e.mailbox, e.mail) > 0:
        m = _mail_at(mail_address(e.mailbox, e.mail))
        if m.opcode == STOP:
            stop = True
        elif m.opcode == START_CONTEXT:
            if context_of(e, m.context).mine != 0:
                checkpoint(e, context_of(e, m.context))  # there is one of who had the number before
            _start_context(e, m.context)
        elif m.opcode == RESUME_CONTEXT:
            if context_of(e, m.context).mine != 0:
                resume(e, context_of(e, m.context))
            _start_context(e, m.context)
        elif m.opcode == GO:
            e.held = 0
        elif m.opcode == DRAIN_CONTEXT:
            context_of(e, m.context).draining = 1
            touch(e, context_of(e, m.context))
        elif m.opcode == STOP_CONTEXT:
            _stop_context(e, m.context)
        elif m.opcode == FILTER:
            enter(e.table, m.mac, m.context)
            _forget_routes(e)
        elif m.opcode == WIRE_MODE:
            link_wire(e, m.mode, m.fs_per_byte, m.delay_ns)
        elif m.opcode == GENERATE:
            begin_generating(e, m.mac, m.length, m.frames, m.nanoseconds, m.pps, m.stream, m.entries)
        elif m.opcode == REPLAY:
            begin_replaying(e, m.entries, m.length, m.round_ns, m.frames, m.nanoseconds, m.stream, m.pps, m.shared)
        e.mail += 1
    publish(e, True)
    mail_taken(e.mailbox, e.mail)
    return stop


@compiled
def _put_crossed(e, gate, r, generation, f):
    """Deliver a frame that was for generation `generation` of context `r`. DELIVERED, PAUSE, or a drop's name."""
    if r.active != 0 and r.generation == generation:
        return put_or_pause(e, gate, r, f)
    return DROP_DOWN


@compiled
def _serve_crossing(e, producer):
    """Deliver what engine `producer` put into our crossing. Returns the number of frames done."""
    ring, gate = crossing(e, producer, e.index), gate_at(e.gates + producer * GATE_BYTES)
    waiting = min(crossed(ring), CROSSING_BUDGET)
    if waiting == 0 or is_paused(e, gate):
        return 0
    done, work, octets, e.parts, e.wanted = 0, 0, 0, 0, 1
    begin_turn(e)
    cons = load64(ring + CONS)
    while done < waiting and not is_turn_over(e):
        slot = slot_of(ring, cons)
        number, f = load64(slot + SLOT_CONTEXT), crossed_frame(e, slot)
        result = DELIVERED
        if number == FLOOD:
            flood_crossed(e, load64(slot + SLOT_GENERATION), f)
            waiting, e.flooded = waiting - e.flooded, 0
        else:
            result = _put_crossed(e, gate, context_of(e, number), load64(slot + SLOT_GENERATION), f)
            tracer = tracer_of(e.wait)
            if tracer != 0 and result != PAUSE:
                trace_crossed(tracer, number, f, result)
        if result == PAUSE:
            break
        end_frame(e, gate)
        if result != DELIVERED:
            count(e.counts, result, 1)
        cons += 1
        done += 1
        work, octets = work + 1 + e.wanted // PIECES, octets + (f.length if result == DELIVERED else 0)
        if is_turn_spent(e, work, octets):
            break
    if done > 0:
        store64_release(ring + CONS, cons)
        made_room(e, ring, producer)
    return done


@compiled
def _arm_receiver(e, sender):
    """What a paused sender waits for: ask the receiver's driver to ring when it posts buffers, or an engine for room.

    For every sender, every time: another one may have taken the slot that we were woken for last.
    """
    if sender.pause_until == 0:
        return
    if sender.pause_for < 0:
        if sender.pause_for != FOR_WIRE:  # which moves by itself
            want_room(e, -1 - sender.pause_for)
        return
    r = context_of(e, sender.pause_for)
    if r.active != 0:
        store32_once(r.doorbell + RQ_EVENT, u32_add(r.rq_cons, max(sender.pause_need, 1)))


@compiled
def _deadline(e):
    """When there is something to do even if nobody notifies (ns), or −1: pauses run out, the wire goes on."""
    deadline = wire_due(e)
    for k in range(e.active):
        c = context_of(e, load64(e.order + 8 * k))
        if c.active != 0 and c.pause_until != 0:
            deadline = c.pause_until if deadline < 0 else min(deadline, c.pause_until)
        if c.active != 0 and sends_again_at(e, c) > e.now and posted_sends(c) > 0:
            deadline = sends_again_at(e, c) if deadline < 0 else min(deadline, sends_again_at(e, c))
    for producer in range(e.engines):
        gate = gate_at(e.gates + producer * GATE_BYTES)
        if gate.pause_until != 0:
            deadline = gate.pause_until if deadline < 0 else min(deadline, gate.pause_until)
    return deadline


@compiled
def _or_who_may_be_notified(e, deadline):
    """The same, or when the first may be notified who is held back by nothing but his price. Nobody spins for him."""
    for k in range(e.dirty_count):  # all of them: there has been a publication since the last batch
        at = notify_at(context_of(e, load64(e.dirty + 8 * k)).debt)
        deadline = at if deadline < 0 else min(deadline, at)
    return deadline


@compiled
def _arm(e):
    """Ask every driver and engine for a notification, then look once more. True if there is something to do."""
    for k in range(e.active):
        c = context_of(e, load64(e.order + 8 * k))
        event = u32_add(c.sq_cons, 1)
        if c.sq_armed != event:
            store32_once(c.doorbell + SQ_EVENT, event)
            c.sq_armed = event
        _arm_receiver(e, c)
    for producer in range(e.engines):
        if producer != e.index:
            arm_crossing(crossing(e, producer, e.index))
            _arm_receiver(e, gate_at(e.gates + producer * GATE_BYTES))
    _arm_receiver(e, wire_at(e.wire))
    full_fence()
    return _has_work(e)


@compiled
def _has_work(e):
    if mail_waiting(e.mailbox, e.mail) > 0:
        return True
    for k in range(e.active):
        c = context_of(e, load64(e.order + 8 * k))
        if c.active != 0 and posted_sends(c) > 0 and not is_paused(e, c) and sends_again_at(e, c) <= e.now:
            return True
    for producer in range(e.engines):
        if producer != e.index:
            gate = gate_at(e.gates + producer * GATE_BYTES)
            if crossed(crossing(e, producer, e.index)) > 0 and not is_paused(e, gate):
                return True
    return 0 <= wire_due(e) <= e.now


@compiled
def _idle(e):
    """Nothing moved: spin while that pays, then sleep."""
    wait = wait_at(e.wait)
    if spins(e, wait):
        return
    e.now = clock_ns()
    deadline = _deadline(e)
    if 0 <= deadline <= e.now + spin_limit(wait):
        cpu_relax()
        return
    if _arm(e):
        return
    e.epoch += 1
    store64_release(e.page + EPOCH, e.epoch)
    full_fence()
    _heed_shootdown(e)
    deadline = _or_who_may_be_notified(e, deadline)
    events = sleep(wait, -1 if deadline < 0 else max(deadline - clock_ns(), 0), e.counts)
    if events > 0 and ablated(e.platform, KEEP_ARMED) == 0:  # by which drivers ring always
        note_rings(e, wait, events)
    wire_at(e.wire).tap_readable = 1
    end_spin(e, e.counts)


@outlined
def _whose_turn(e, first):
    """Which context of a guest with several, whose first is `first`, has the guest's turn in this batch; NO_CONTEXT: none.

    A guest with many is to have no more of the engine than one with one, so they have one turn a batch together, and take it one
    after the other. One that waits for the wire has it if no other can use it, so that it comes first when the wire has room.
    """
    if first.served == e.epoch:
        return NO_CONTEXT
    waiting = NO_CONTEXT
    for k in range(first.queues):
        queue = (first.turn + k) % first.queues
        c = context_of(e, load64(first.members + 8 * queue))
        if c.active != 0 and c.mine != 0 and posted_sends(c) > 0:
            if not is_paused(e, c):
                first.served, first.turn = e.epoch, queue + 1
                return c.number
            if c.pause_for == FOR_WIRE:
                waiting = c.number
    return waiting


@compiled
def _round(e):
    """Steps 3 to 5. Returns the number of frames moved."""
    if e.held != 0:
        return 0
    moved = serve_wire(e) if wire_at(e.wire).linked != 0 else 0
    for producer in range(e.engines):
        if producer != e.index:
            moved += _serve_crossing(e, producer)
    before, waiting = moved, -1
    if e.first >= e.active:
        e.first = 0
    for k in range(e.active):
        at = e.first + k
        at = at if at < e.active else at - e.active
        number = load64(e.order + 8 * at)
        if context_of(e, context_of(e, number).first).queues > 1:
            number = _whose_turn(e, context_of(e, context_of(e, number).first))
        if number != NO_CONTEXT and context_of(e, number).active != 0:
            c = context_of(e, number)
            sent = serve_sends(e, c)
            moved += sent
            if sent == 0 and waiting < 0 and c.pause_until != 0 and c.pause_for == FOR_WIRE:
                waiting = at
    if moved > before:  # who found the wire full comes first when it has room; rounds in vain change nothing
        e.first = waiting if waiting >= 0 else e.first + 1
    w = wire_at(e.wire)
    return moved + (serve_tap(e) if w.tap_reads != 0 else generate(e))


@entry(i64(i64))
def run(address: int) -> int:
    """Serve until the mailbox says stop. `address`: the ENGINE record. Returns the number of batches that moved frames."""
    e = engine_at(address)
    batches = 0
    while True:
        _begin_batch(e)
        if mail_waiting(e.mailbox, e.mail) > 0 and _take_mail(e):
            break
        if _round(e) > 0:
            batches += 1
            end_spin(e, e.counts)
            publish(e, False)
        else:
            if e.dirty_count > 0:
                publish(e, True)
            _idle(e)
    e.epoch += 1
    store64_release(e.page + EPOCH, e.epoch)
    full_fence()
    _heed_shootdown(e)
    return batches
