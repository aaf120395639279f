"""Doorbells that ring without end. Compiled, but for `Hushed`.

A guest holds its doorbell's eventfd and may write to it as often as it likes. While its engine is awake that is nobody's loss; but
each write wakes an engine that sleeps, so a guest that does nothing else has it awake all the time, on a CPU that is others'.

A ring is *vain* if it woke the engine with nothing posted, nothing taken of the context's since its last one, and nobody waiting
for its buffers. A driver that follows the event indices has next to none. A context with more than MOST_VAIN of them in WINDOW_NS
is *hushed*: the hypervisor takes its eventfd out of the engine's upcall (hypercall `doorbell_hush`) for HUSH_NS.
Linux does the same with an event channel that keeps firing for nothing (XSA-332, "lateeoi").

Who owns what, and what if:
* `hushed_until` is the engine's: it asks once until then. Meanwhile it looks at the context's queues whenever it is awake for
  anybody else. Its frames may be late, and none is lost; nobody else's are.
* When the hypervisor puts the eventfd back, one that was written to meanwhile is an event at once.
* If the NIC dies, the next one knows of no hush, and sees those queues at the latest when the eventfd is back.

The engine does not look by itself now and then: a sleep with a limit has the kernel set a timer each time, and on a virtual machine
that costs more than all the rest of a wake-up.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hyp.abi.nic import HUSH_NS, SQ_PROD
from hyp.atomics import load32_once, load64, notify
from hyp.events import event_data
from hyp.kernels import compiled, outlined
from nic.state import context_of

if TYPE_CHECKING:
    from nic.build import EngineState

log = logging.getLogger(__name__)

MOST_VAIN, WINDOW_NS = 50, 10_000_000


@outlined
def note_rings(e, wait, events):
    """The engine was woken by `events` events of its upcall: whose doorbells rang, and in vain?"""
    for k in range(events):
        data, known = event_data(wait, k), False
        for j in range(e.active):
            c = context_of(e, load64(e.order + 8 * j))
            if c.doorbell_data == data:
                _note_ring(e, c, wait.woken_ns)
                known = True
        if not known:
            _note_ring_of_another(e, wait, data)


@outlined
def _note_ring_of_another(e, wait, data):
    """That of a context that isn't started: nothing of the guest's is touched, as it may be none any more."""
    for number in range(e.context_end):
        c = context_of(e, number)
        if c.doorbell_data == data and c.mine != 0 and c.active == 0:
            _note_ring(e, c, wait.woken_ns)


@compiled
def _has_cause(e, c, now):
    waits = c.pause_until == 0 and load32_once(c.doorbell + SQ_PROD) != c.sq_cons
    is_full = c.full_since != 0 and now - c.full_since < e.pause_ns  # no wait for it is longer
    return waits or c.sq_cons != c.rung_at or is_full


@compiled
def _note_ring(e, c, now):
    if c.active != 0 and _has_cause(e, c, now):
        c.rung_at = c.sq_cons
        return
    if now - c.vain_since > WINDOW_NS:
        c.vain_since, c.vain = now, 0
    c.vain += 1
    if c.vain > MOST_VAIN and now >= c.hushed_until:
        c.hushed_until = now + HUSH_NS
        notify(e.hush_fd)


class Hushed:
    """An engine's: has the hypervisor told of contexts that are to be hushed, by ``tell(context)``. Control plane."""

    def __init__(self, state: "EngineState", tell: Callable[[int], None]) -> None:
        self._state, self._tell = state, tell
        self._told: dict[int, int] = {}
        asyncio.get_running_loop().add_reader(state.hush_fd, partial(self._look, state.hush_fd))

    def _look(self, fd: int) -> None:
        os.eventfd_read(fd)
        contexts = self._state.contexts
        for number in contexts["hushed_until"].nonzero()[0]:
            until = int(contexts["hushed_until"][number])
            if until and self._told.get(int(number)) != until:
                if int(number) not in self._told:
                    log.warning("context %d rings its doorbell for nothing: not listened to for %g s", number, HUSH_NS / 1e9)
                self._told[int(number)] = until
                self._tell(int(number))
