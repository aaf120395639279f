"""The VMM's loop: the device model of all emulated NICs, one compiled loop in a thread of the hypervisor's own process.

A round gives each machine (machine.py) a turn, beginning with another one each time. A round in vain: spin, then sleep until
a guest traps or the NIC has something.
"""

import numpy as np

from hyp.atomics import clock_ns, full_fence, record_view
from hyp.counters import commit
from hyp.engine import STOP, mail_address, mail_record, mail_taken, mail_waiting
from hyp.events import end_spin, sleep, spins, wait_at
from hyp.kernels import compiled, entry, i64
from hyp.monitor.machine import MACHINE_BYTES, arm, due_at, has_work, machine_at, publish, serve

START_MACHINE, STOP_MACHINE = 1, 2
MAIL = mail_record("machine")

VMM = np.dtype(
    [
        ("machines", "i8"),  # MAX_GUESTS records
        ("machine_count", "i8"),  # machines 0 .. machine_count − 1 have ever been in use
        ("first", "i8"),
        ("mailbox", "i8"),
        ("mail", "i8"),
        ("platform", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        ("now", "i8"),
        ("idle_since", "i8"),
        ("wait", "i8"),
    ]
)

vmm_at = record_view(VMM)
_mail_at = record_view(MAIL)


@compiled
def _machine(v, number):
    return machine_at(v.machines + number * MACHINE_BYTES)


@compiled
def _arm(v):
    """Ask guests and NIC for a signal, then look once more. True if there is something to do."""
    for number in range(v.machine_count):
        m = _machine(v, number)
        if m.active != 0:
            arm(m)
    full_fence()
    if mail_waiting(v.mailbox, v.mail) > 0:
        return True
    for number in range(v.machine_count):
        m = _machine(v, number)
        if m.active != 0 and has_work(m, v.now):
            return True
    return False


@compiled
def _due_in(v):
    """How long until there is something to do for a guest that is made to wait (ns); −1: there is nothing."""
    deadline = -1
    for number in range(v.machine_count):
        m = _machine(v, number)
        at = due_at(m, v.now) if m.active != 0 else -1
        if at >= 0:
            deadline = at if deadline < 0 else min(deadline, at)
    return -1 if deadline < 0 else max(deadline - clock_ns(), 0)


@compiled
def _idle(v):
    """Nothing moved: spin while that pays, then sleep."""
    wait = wait_at(v.wait)
    if spins(v, wait):
        return
    if not _arm(v):
        sleep(wait, _due_in(v), v.counts)
        commit(v.counts, v.counts_shared)
    end_spin(v, v.counts)


@compiled
def _take_mail(v):
    """Carry out what the control plane posted. True if the loop is to stop."""
    stop = False
    while mail_waiting(v.mailbox, v.mail) > 0:
        mail = _mail_at(mail_address(v.mailbox, v.mail))
        if mail.opcode == STOP:
            stop = True
        elif mail.opcode == START_MACHINE:
            _machine(v, mail.machine).active = 1
            v.machine_count = max(v.machine_count, mail.machine + 1)
        elif mail.opcode == STOP_MACHINE:
            m = _machine(v, mail.machine)
            if m.active != 0:
                m.active = 0
                publish(m)
        v.mail += 1
    mail_taken(v.mailbox, v.mail)
    return stop


@compiled
def _round(v):
    moved = 0
    v.first = v.first + 1 if v.first + 1 < v.machine_count else 0
    for k in range(v.machine_count):
        at = v.first + k
        m = _machine(v, at if at < v.machine_count else at - v.machine_count)
        if m.active != 0:
            moved += serve(m, v.platform, v.now)
    return moved


@entry(i64(i64))
def run(address: int) -> int:
    """Serve until the mailbox says stop. `address`: the VMM record. Returns the number of rounds that found something to do."""
    v = vmm_at(address)
    rounds = 0
    while True:
        v.now = clock_ns()
        if mail_waiting(v.mailbox, v.mail) > 0 and _take_mail(v):
            break
        if _round(v) > 0:
            rounds += 1
            end_spin(v, v.counts)
        else:
            _idle(v)
    commit(v.counts, v.counts_shared)
    return rounds
