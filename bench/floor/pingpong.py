"""One word handed round between threads or processes: the least that any round trip through them takes.

Each participant waits on a word of its own and then writes the next one's; words are WORD_STRIDE bytes apart, so that no two
share a cache line, nor a pair of lines that a prefetcher fetches together. `lead` starts every round and times it, `follow` passes
it on. With `notifier` and `epoll` below zero a participant spins; otherwise every hop is an eventfd write and a wait
in epoll, as R6 has it: the word is the truth, a wake-up a hint.

A round begins where the one before ended, with one reading of the clock (some 20 ns) in between.
"""

from hyp.atomics import clock_ns, cpu_relax, epoll_sleep, load64_acquire, notify, store64, store64_release
from hyp.kernels import compiled, entry, i64

WORD_STRIDE = 128
STOP = -1
STALLED = -2
SPINS_PER_CLOCK = 256


@compiled
def _receive(word, previous, epoll, stall_ns):
    """Wait until the word is no longer `previous`; returns it, or STALLED if that takes longer than `stall_ns`."""
    if epoll >= 0:
        while epoll_sleep(epoll, stall_ns, 0) > 0:  # first the wait, then the look: every hop pays for a wake-up
            value = load64_acquire(word)
            if value != previous:
                return value
        return STALLED
    deadline = 0
    while True:
        for _ in range(SPINS_PER_CLOCK):
            value = load64_acquire(word)
            if value != previous:
                return value
            cpu_relax()
        now = clock_ns()
        if deadline == 0:
            deadline = now + stall_ns
        if now > deadline:
            return STALLED


@compiled
def _send(word, value, notifier):
    store64_release(word, value)
    if notifier >= 0:
        notify(notifier)


@entry(i64(i64, i64, i64, i64, i64, i64, i64, i64))
def lead(mine, following, notifier, epoll, rounds, nanoseconds, samples, stall_ns):
    """Up to `rounds` round trips within `nanoseconds`; the time of each, in ns, goes to `samples` (int64). Returns how many.

    The first round trip is not counted: in it the others get going. 0 if it did not come back within `stall_ns`.
    """
    done, start, until = -1, clock_ns(), 0
    while done < rounds and (done < 0 or start < until):
        _send(following, done + 2, notifier)
        if _receive(mine, done + 1, epoll, stall_ns) < 0:
            break
        now = clock_ns()
        if done < 0:
            until = now + nanoseconds
        else:
            store64(samples + 8 * done, now - start)
        start = now
        done += 1
    _send(following, STOP, notifier)
    return max(done, 0)


@entry(i64(i64, i64, i64, i64, i64, i64))
def follow(mine, following, notifier, epoll, last, stall_ns):
    """Pass on whatever comes until it is STOP, which the `last` one (nonzero) keeps. Returns how many, or STALLED."""
    passed, value = 0, 0
    while True:
        value = _receive(mine, value, epoll, stall_ns)
        if value == STALLED:
            return STALLED
        if value == STOP:
            if last == 0:
                _send(following, STOP, notifier)
            return passed
        _send(following, value, notifier)
        passed += 1
