"""The guest's half of a trap: write a register of an emulated device, and stand still until the hypervisor has carried it out.

The wait is the virtual CPU's, not the driver's: it has an upcall of its own, in which nothing but the answer arrives, so
that it takes no other event away.
"""

import numpy as np

from hyp.abi.counters import TRAP_NS, TRAPS
from hyp.abi.trap import ANSWER_EVENT, ANSWERED, REGISTER, SEQUENCE, TRAP_EVENT, VALUE
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    full_fence,
    load32_acquire,
    load32_once,
    record_view,
    store32,
    store32_once,
    store32_release,
    u32_add,
)
from hyp.counters import commit, count
from hyp.events import may_spin, notify_if, sleep, wait_at
from hyp.kernels import compiled

VCPU = np.dtype(
    [
        ("page", "i8"),  # address of the trap page
        ("trap_fd", "i8"),
        ("wait", "i8"),  # a WAIT record whose upcall is for answers only
        ("sequence", "i8"),
        ("counts", "i8"),
        ("counts_shared", "i8"),
        ("lost", "i8"),  # set by the control plane: the hypervisor is gone and will not answer
    ]
)
"""What a guest needs to trap."""
vcpu_at = record_view(VCPU)


@compiled
def _await_answer(v, since):
    wait = wait_at(v.wait)
    while load32_acquire(v.page + ANSWERED) != v.sequence and v.lost == 0:
        if clock_ns() - since < may_spin(wait):
            cpu_relax()
            continue
        store32_once(v.page + ANSWER_EVENT, v.sequence)
        full_fence()
        if load32_acquire(v.page + ANSWERED) != v.sequence and v.lost == 0:
            sleep(wait, -1, v.counts)


@compiled
def write_register(vcpu, register, value):
    """Trap: returns when the hypervisor has carried the write out, or is gone. `vcpu`: address of the VCPU record."""
    v = vcpu_at(vcpu)
    start = clock_ns()
    v.sequence = u32_add(v.sequence, 1)
    store32(v.page + REGISTER, register)
    store32(v.page + VALUE, value)
    store32_release(v.page + SEQUENCE, v.sequence)
    full_fence()
    notify_if(load32_once(v.page + TRAP_EVENT) == v.sequence, v.trap_fd, v.counts)
    _await_answer(v, start)
    count(v.counts, TRAPS, 1)
    count(v.counts, TRAP_NS, clock_ns() - start)
    commit(v.counts, v.counts_shared)
