"""Event channels and the notification that compiled loops do with them.

R6: an eventfd belongs to one notifier and one waiter, and only the notifier holds it. The hypervisor makes it, gives it to
the notifier, and enters it (edge-triggered) into the waiter's *upcall*: an epoll descriptor, one per engine of a domain.
So a waiter can neither swallow a wake-up by reading, nor block the notifier by filling the counter or clearing
O_NONBLOCK. Nobody ever reads an eventfd: every write is an edge. A wake-up is a hint; the rings are the truth.

The hypervisor's table is hyp/monitor/event_channels.py. `WAIT`, `spins` and `sleep` are the loops' side: spin for a while that
adapts, then sleep. `passed` and `notify_if` are the hold-off: whether a notification is due. `notify_guest` is for loops
that serve several guests.
"""

import os
from typing import Any

import numpy as np

from hyp.abi.counters import NOTIFICATIONS, NOTIFY_NS, SPIN_NS, SUPPRESSED, WAKEUPS
from hyp.abi.debts import CREDIT_NS, DEARNESS, MOST_NS
from hyp.abi.platform import FAIR_NOTIFY_NS, SPIN_LIMIT_NS
from hyp.atomics import (
    EVENT_BYTES,
    EVENT_DATA,
    MOST_EVENTS,
    clock_ns,
    cpu_relax,
    epoll_sleep,
    load32_once,
    load64_once,
    notify,
    record_view,
    thread_cpu_ns,
    u32_sub,
)
from hyp.counters import count
from hyp.fairness.waking import FAIR_MOST_NS
from hyp.kernels import compiled, outlined
from hyp.memory import Mapping

# --- hold-off ---------------------------------------------------------------------------------------------------------
#
# A producer publishes an index, passes a full fence, loads the consumer's event index and notifies if it passed that
# (RING_PUSH_REQUESTS_AND_CHECK_NOTIFY in Xen's io/ring.h). A consumer that is about to sleep stores the event index, passes
# a full fence and looks at the producer's index once more (RING_FINAL_CHECK_FOR_REQUESTS): that look is the caller's, for
# all its queues after one fence. Either the producer sees the event index or the consumer sees the producer's.


@compiled
def passed(event: int, old: int, new: int) -> bool:
    """True if a free-running 32-bit index came to `event` on its way from `old` to `new`: the other side asked for that.

    Of a single step, it is whether `new` is `event`: who publishes one by one (traps, crossings) compares no more than that.
    """
    return u32_sub(new, event) < u32_sub(new, old)


@compiled
def passed64(event: int, old: int, new: int) -> bool:
    """`passed` for a 64-bit index, which never wraps."""
    return old < event <= new


@compiled
def notify_if(due: bool | int, eventfd: int, counts: int) -> None:
    """Notify if that is due. Counts it in the private row `counts`, or that it could be held off."""
    if due:
        notify(eventfd)
        count(counts, NOTIFICATIONS, 1)
    else:
        count(counts, SUPPRESSED, 1)


# --- what a notification costs ------------------------------------------------------------------------------------------
#
# The kernel wakes whoever polls an upcall within the notifier's own write(2), and a waiter can poll its own any number of times
# over: poll(2) with the descriptor in each of its places, epolls of epolls, many threads. So what a notification costs, the waiter
# decides, and the notifier pays. A loop that serves others too sends one to a guest by `notify_guest`, and before that asks
# `may_notify`:
#
# * A notification that takes more CPU time than is fair on this machine (`fair` of the loop's NOTIFIER, hyp/fairness/waking.py)
#   makes a *debt* of its waiter, with all that it took, and if that is its habit, spoilt: it is paid off by DEARNESS times as much
#   time. While it owes more than CREDIT_NS of that, nothing is sent to it. So who is dearer than others gets no more than that
#   share of its notifiers' time, and a single dear one, or one of a slow machine, costs an honest guest nothing, and one of a
#   machine that stood still not more than MOST_NS makes.
# * A notification that is put off is never lost, and is its sender's: it stays as due as it was, in the sender's own state, and
#   the loop's sleep ends at `notify_at`. Whoever of its waiter's is told meanwhile by anybody else is told.
# * What is measured is CPU time, since a notifier loses the CPU most easily in just this call. But reading that clock costs as much
#   as all the rest: it is read when a notification was long by the other clock, and it is held against the last reading, from
#   which on the thread cannot have used more than has gone by. `FRESH_NS` old that is read anew before a notification, and always
#   before one of who owes. Who sleeps or is preempted in between blames the waiter for less, and nobody for what he did not cause.
#
# The debt is a domain's at one notifier: its contexts on one engine, its queues of a vif share one, and it begins with none.
# Notifications by Python, and messages by sockets, whose peers can do the same: hyp/control/debt.py.

FRESH_NS = 500_000
SPOILT_NS = 100_000
"""What a notification costs its notifier afterwards that goes through hundreds of places in memory, or as much again as it took, if
that is more: what the loop works on is not in the caches any more."""
DEAR_STEP, HABIT, MOST_HABIT = 8, 16, 64
"""A dear one counts so much and a fair one takes away 1: beyond HABIT it is no chance that they are dear, but for such places."""

NOTIFIER = np.dtype([("cpu", "i8"), ("at", "i8"), ("fair", "i8"), ("dear", "i8")])
"""A loop's last reading of its thread's CPU time, and when that was; what a notification may take (ns), and how many took more."""
DEBT = np.dtype([("until", "i8"), ("habit", "i8")])
"""A waiter's: when it is paid off, and how often it is dear."""

notifier_at = record_view(NOTIFIER)
debt_at = record_view(DEBT)


@compiled
def notify_at(debt):
    """When a waiter may be notified (ns)."""
    return debt_at(debt).until - CREDIT_NS


@compiled
def may_notify(debt, now):
    """Whether the waiter with the debt at this address may be notified."""
    return notify_at(debt) <= now


@compiled
def notify_guest(notifier, debt, eventfd, counts):
    """Notify a waiter that may be; count it in the private row `counts`. `notifier`, `debt`: addresses of its records."""
    n, d, start = notifier_at(notifier), debt_at(debt), clock_ns()
    if start - n.at > FRESH_NS or d.until > start:
        n.cpu, n.at = thread_cpu_ns(), start
    notify(eventfd)
    count(counts, NOTIFICATIONS, 1)
    end = clock_ns()
    if end - start > n.fair:
        _owe(n, d, start, end, counts)
    elif d.habit > 0:
        d.habit -= 1


@outlined
def _owe(n, debt, start, end, counts) -> None:
    """A notification took from `start` to `end`: the waiter owes what of that was CPU time beyond what is fair."""
    cpu = thread_cpu_ns()
    used = min(cpu - n.cpu - (start - n.at), end - start)
    n.cpu, n.at = cpu, clock_ns()
    if used > n.fair:
        n.dear += 1
        debt.habit = min(debt.habit + DEAR_STEP, MOST_HABIT)
        spoilt = max(used, SPOILT_NS) if debt.habit > HABIT else 0
        debt.until = max(debt.until, end) + DEARNESS * min(used + spoilt, MOST_NS)
        count(counts, NOTIFY_NS, used - n.fair)


def new_notifier(platform: Mapping) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """A NOTIFIER record, an array of one. `platform`: the platform page, as the hypervisor has filled it in."""
    notifier = np.zeros(1, NOTIFIER)
    notifier["fair"] = platform.words("<u8", FAIR_NOTIFY_NS, 1)[0] or FAIR_MOST_NS
    return notifier


@compiled
def most_of(due: int) -> int:
    """How many of the `due` completions a sleeper waits for that wants room, not the last of them: three quarters."""
    return due - (due >> 2)


# --- loops ------------------------------------------------------------------------------------------------------------

_WORDS = ["epoll", "platform", "spin_ns", "never", "woken_ns", "trace", "naps", "events"]
WAIT = np.dtype({"names": _WORDS, "formats": ["i8"] * len(_WORDS), "itemsize": 8 * len(_WORDS) + MOST_EVENTS * EVENT_BYTES})
"""Private state of a loop's waiting: its upcall, the address of the platform page, how long it spins just now, and 1 in `never` if
it may not at all, whatever that page says; when its last sleep was over; the TRACER record for which it is to tell what it does
(hyp/trace/ring.py), 0 if nobody looks; how often it has begun or ended a sleep, odd while it is asleep; and where the events are
that have ended its last one, behind the record, or 0."""

Wait = np.ndarray[Any, np.dtype[np.void]]
"""One such record, as an array."""
wait_at = record_view(WAIT)
_TRACE_AT = WAIT.fields["trace"][1]  # type: ignore[index]


@compiled
def tracer_of(wait):
    """The TRACER of the loop with the WAIT record at this address; 0: nobody looks, as nearly always."""
    return load64_once(wait + _TRACE_AT)


@compiled
def event_data(wait, k):
    """What event `k` of those that ended the last sleep carries: its descriptor, by its number in the process that entered it."""
    return load32_once(wait.events + k * EVENT_BYTES + EVENT_DATA)


FIRST_SPIN_NS = 4000


@compiled
def spin_limit(wait):
    """The longest that a loop may spin, in ns: for what is known to be due within that time it does not sleep."""
    return load64_once(wait.platform + SPIN_LIMIT_NS) if wait.never == 0 else 0


@compiled
def may_spin(wait):
    """How long, in ns, the loop should look for work before it sleeps. 0: not at all."""
    return min(wait.spin_ns, spin_limit(wait))


@compiled
def spins(loop, wait):
    """True if the loop, which found nothing to do, should look again before it sleeps; the time counts until `end_spin`."""
    if loop.idle_since == 0:
        loop.idle_since = loop.now
    if loop.now - loop.idle_since >= may_spin(wait):
        return False
    cpu_relax()
    return True


@compiled
def end_spin(loop, counts):
    """A loop that looked for work since `loop.idle_since` found it, or goes to sleep: count the time as spun."""
    if loop.idle_since != 0:
        count(counts, SPIN_NS, loop.now - loop.idle_since)
        loop.idle_since = 0


@compiled
def sleep(wait, timeout_ns, counts):
    """Sleep until an event or for `timeout_ns` (negative: no limit), and learn from it how long to spin next time.

    As KVM's halt-polling does: a sleep that ended soon would have been a spin that found work, so spin longer; one that
    lasted would not, so spin less. A sleep is longer than what it waited for took, by the wake-up: between distant cores by as much
    as a loop may spin at all.
    """
    start = clock_ns()
    wait.naps += 1
    events = epoll_sleep(wait.epoll, timeout_ns, wait.events)
    wait.naps += 1
    if events != 0:
        count(counts, WAKEUPS, 1)
    wait.woken_ns = clock_ns()
    slept = wait.woken_ns - start
    limit = spin_limit(wait)
    if events > 0 and slept <= 2 * limit:
        wait.spin_ns = min(max(2 * wait.spin_ns, FIRST_SPIN_NS), limit)
    elif slept > 8 * limit:
        wait.spin_ns >>= 1
    return events


_never = False


def never_spin() -> None:
    """No loop that this process makes from now on spins (`new_wait`): it shares its CPU with others, or so its user wants it."""
    global _never
    _never = True


def new_wait(epoll: int, platform: int, *, events: bool = False) -> "Wait":
    """A WAIT record, an array of one. `epoll`: the loop's upcall; `platform`: the platform page; `events`: for `event_data`."""
    wait = np.zeros(1, WAIT)
    wait[0]["epoll"], wait[0]["platform"], wait[0]["never"] = epoll, platform, _never
    if events:
        wait[0]["events"] = wait.ctypes.data + 8 * len(_WORDS)
    return wait


# --- eventfds ----------------------------------------------------------------------------------------------------------


def new_eventfd() -> int:
    """A fresh eventfd that never blocks its notifier."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def raise_event(eventfd: int) -> None:
    """Set pending, as a bind does on both ends."""
    os.eventfd_write(eventfd, 1)
