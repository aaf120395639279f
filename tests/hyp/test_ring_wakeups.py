"""Xen's shared ring between two processes: whoever sleeps is woken, at any moment and under load."""

import mmap
import os
import select
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hyp.abi.ring import PAGE_BYTES
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    epoll_sleep,
    load32_once,
    load64_acquire,
    load64_once,
    notify,
    store32,
    store64_release,
)
from hyp.kernels import compiled, entry, i64
from hyp.ring import (
    arm_requests,
    arm_responses,
    free_requests,
    next_request,
    next_request_slot,
    next_response,
    next_response_slot,
    push_requests,
    push_responses,
    unconsumed_requests,
    unconsumed_responses,
)
from tests.support.rings import BACK, FRONT, JUST_BELOW_WRAP, RINGS, Pair
from tests.support.tiers import tiered

STALLED, FAULTED = -2, -3
STALL_NS = 60_000_000_000  # a wake-up that takes this long was lost


@entry(i64(RINGS, i64, i64, i64, i64, i64[::1]))
def drive(rings, side, count, kick, epoll, tally):  # type: ignore[no-untyped-def]
    """Send (front) or echo (back) `count` slots; sleep when there is nothing to do. Slots done, STALLED or FAULTED.

    tally: wrong slots, sleeps, notifications sent.
    """
    front, back = rings[0], rings[1]
    sent, done = 0, 0
    while done < count:
        if side == FRONT:
            ready = unconsumed_responses(front)
            for _ in range(ready):
                tally[0] += load32_once(next_response(front)) != (3 * done + 1) & 0xFFFFFFFF
                done += 1
            room = min(free_requests(front), count - sent, 1 + sent * 2654435761 % 61)
            for _ in range(room):
                store32(next_request(front), sent)
                sent += 1
            kicked, idle = push_requests(front), ready + room == 0
        else:
            ready = unconsumed_requests(back)
            for _ in range(ready):
                value = load32_once(next_request_slot(back))
                tally[0] += value != done & 0xFFFFFFFF
                store32(next_response_slot(back), 3 * value + 1)
                done += 1
            kicked, idle = push_responses(back), ready == 0
        if ready < 0:
            return FAULTED
        if kicked:
            notify(kick)
            tally[2] += 1
        if idle and not (arm_responses(front) if side == FRONT else arm_requests(back)):
            tally[1] += 1
            if epoll_sleep(epoll, STALL_NS, 0) == 0:
                return STALLED
    return done


@compiled
def meet(place, side, phase):  # type: ignore[no-untyped-def]
    """Wait until both sides have come to `phase`. 0 if the other did not come for as long as STALL_NS."""
    store64_release(place + 64 * side, phase)
    deadline = clock_ns() + STALL_NS
    while load64_acquire(place + 64 * (1 - side)) < phase:
        cpu_relax()
        if clock_ns() > deadline:
            return 0
    for _ in range((phase * 7 + side * phase * 13) % 64):  # so that the two meet at every distance
        load64_once(place + 64 * side)
    return 1


@entry(i64(RINGS, i64, i64, i64, i64[::1]))
def duel(rings, side, rounds, place, tally):  # type: ignore[no-untyped-def]
    """Publish one slot while the other side arms, both ways, `rounds` times or 1.5 s long. Rounds done, or STALLED.

    tally: wake-ups that got lost, because the one saw no request for an event and the other no slot.
    """
    front, back = rings[0], rings[1]
    finish = clock_ns() + 1_500_000_000
    for turn in range(rounds):
        for way in (FRONT, BACK):
            mine, theirs = place + 128 + 64 * side, place + 192 - 64 * side
            if side == way:  # before the race: whatever is slow
                next_request(front) if way == FRONT else next_response_slot(back)
            if side == FRONT and way == FRONT:
                store64_release(place + 256, clock_ns() > finish)
            if not meet(place, side, 4 * turn + 2 * way + 1):
                return STALLED
            last = load64_acquire(place + 256)  # between two meetings of this turn, so that both see the same
            if side == way:
                outcome = push_requests(front) if way == FRONT else push_responses(back)
            else:
                outcome = arm_requests(back) if way == FRONT else arm_responses(front)
            store64_release(mine, outcome)
            if not meet(place, side, 4 * turn + 2 * way + 2):
                return STALLED
            tally[0] += outcome + load64_acquire(theirs) == 0
            if side != way and way == FRONT:
                tally[1] += unconsumed_requests(back) != 1
                next_request_slot(back)
            elif side != way:
                tally[1] += unconsumed_responses(front) != 1
                next_response(front)
        if last:
            return turn + 1
    return rounds


def in_two_processes(run: Callable[[int], None]) -> None:
    """``run(FRONT)`` here and ``run(BACK)`` in a child, on a core each. What was compiled before is there in both."""
    cores = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {max(cores)})
            run(BACK)
        finally:
            os._exit(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        run(FRONT)
    finally:
        os.sched_setaffinity(0, cores)
        os.waitpid(child, 0)


@pytest.fixture
def wakers() -> Iterator[tuple[list[int], list["select.epoll"]]]:
    """For each side: the eventfd that wakes it, and the epoll it sleeps in."""
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
    polls = [select.epoll() for _ in range(2)]
    for eventfd, poll in zip(eventfds, polls, strict=True):
        poll.register(eventfd, select.EPOLLIN | select.EPOLLET)
    yield eventfds, polls
    for poll in polls:
        poll.close()
    for eventfd in eventfds:
        os.close(eventfd)


@pytest.mark.parametrize("start", [0, JUST_BELOW_WRAP], ids=["from 0", "over the wrap"])
def test_push_and_arm_at_the_same_time_do_not_miss_each_other(start: int) -> None:
    """Either the one who publishes sees that a notification is due, or the one who arms sees what was published."""
    pair = Pair(32, start)
    place = np.frombuffer(mmap.mmap(-1, PAGE_BYTES), np.int64)
    tallies = np.frombuffer(mmap.mmap(-1, PAGE_BYTES), np.int64).reshape(2, -1)
    duel.load()

    def run(side: int) -> None:
        tally = np.zeros(2, np.int64)
        tallies[side, 0] = duel(pair.rings, side, 400_000, int(place.ctypes.data), tally)
        tallies[side, 1:3] = tally

    in_two_processes(run)
    print(f"{tallies[0, 0]} rounds")
    assert tallies[0, 0] > 0
    assert tallies[0, :3].tolist() == [tallies[1, 0], 0, 0]
    assert tallies[1, 1:3].tolist() == [0, 0]


@pytest.mark.parametrize("ring", tiered([(256, 4_000_000), (8, 200_000), (1, 20_000)], [(8, 200_000)]), ids=str)
def test_no_wake_up_is_lost_under_load(wakers: tuple[list[int], list["select.epoll"]], ring: tuple[int, int]) -> None:
    """Large rings stream, small ones sleep at nearly every slot. A lost wake-up leaves both sides asleep."""
    entries, count = ring
    eventfds, polls = wakers
    pair = Pair(entries, JUST_BELOW_WRAP)
    results = np.frombuffer(mmap.mmap(-1, PAGE_BYTES), np.int64).reshape(2, -1)
    drive.load()

    def run(side: int) -> None:
        tally = np.zeros(3, np.int64)
        results[side, 0] = drive(pair.rings, side, count, eventfds[1 - side], polls[side].fileno(), tally)
        results[side, 1:4] = tally

    in_two_processes(run)
    for side in (FRONT, BACK):
        done, wrong, sleeps, notifications = map(int, results[side, :4])
        print(f"side {side}: {done} slots, {sleeps} sleeps, {notifications} notifications")
        assert (done, wrong) == (count, 0)
        assert sleeps > 0
        assert notifications <= count if entries == 1 else notifications < count  # a ring of one has nothing to share
