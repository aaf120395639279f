"""Xen's shared ring: against a slow model, over the wrap of its indices, against hostile peers, for lost wake-ups."""

import mmap
import os
import random
import select
from collections.abc import Callable, Iterator

import numba
import numpy as np
import pytest

from hyp.abi.ring import FIRST_SLOT, PAGE_BYTES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SRING
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
    PROTOCOL_FAULT,
    RING,
    arm_requests,
    arm_responses,
    attach_back,
    attach_front,
    free_requests,
    next_request,
    next_request_slot,
    next_response,
    next_response_slot,
    push_requests,
    push_responses,
    ring_size,
    signed16,
    sring_init,
    unconsumed_requests,
    unconsumed_responses,
)

RINGS = numba.types.Array(numba.from_dtype(RING), 1, "C")
FRONT, BACK = 0, 1
WRAP = 1 << 32
JUST_BELOW_WRAP = 0xFFFF_FFF0
ENTRY_BYTES = 12
STALLED, FAULTED = -2, -3
STALL_NS = 60_000_000_000  # a wake-up that takes this long was lost

(INIT, ATTACH_FRONT, ATTACH_BACK, FREE, NEXT_REQ, PUSH_REQ, HAVE_RSP, NEXT_RSP, ARM_RSP, HAVE_REQ, NEXT_REQ_SLOT,
 NEXT_RSP_SLOT, PUSH_RSP, ARM_REQ, SIGNED) = range(15)  # fmt: skip


@entry(i64(RINGS, i64, i64, i64, i64))
def operate(rings, op, sring, entries, argument):  # type: ignore[no-untyped-def]
    """One operation of either side."""
    front, back = rings[0], rings[1]
    if op == INIT:
        sring_init(sring, argument)
    elif op == ATTACH_FRONT:
        attach_front(front, sring, entries, ENTRY_BYTES, argument)
    elif op == ATTACH_BACK:
        attach_back(back, sring, entries, ENTRY_BYTES, argument)
    elif op == FREE:
        return free_requests(front)
    elif op == NEXT_REQ:
        return next_request(front)
    elif op == PUSH_REQ:
        return push_requests(front)
    elif op == HAVE_RSP:
        return unconsumed_responses(front)
    elif op == NEXT_RSP:
        return next_response(front)
    elif op == ARM_RSP:
        return arm_responses(front)
    elif op == HAVE_REQ:
        return unconsumed_requests(back)
    elif op == NEXT_REQ_SLOT:
        return next_request_slot(back)
    elif op == NEXT_RSP_SLOT:
        return next_response_slot(back)
    elif op == PUSH_RSP:
        return push_responses(back)
    elif op == ARM_REQ:
        return arm_requests(back)
    elif op == SIGNED:
        return signed16(argument)
    return 0


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
            if epoll_sleep(epoll, STALL_NS) == 0:
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


class Pair:
    """A shared page with a front end and a back end in this process."""

    def __init__(self, entries: int, start: int) -> None:
        self.entries = entries
        self.memory = mmap.mmap(-1, PAGE_BYTES)
        self.page = np.frombuffer(self.memory, np.uint8)
        self.header = np.frombuffer(self.memory, SRING, 1)[0:1]
        self.words = np.frombuffer(self.memory, "<u4")
        self.sring = int(self.page.ctypes.data)
        self.rings = np.zeros(2, RING)
        for op in (INIT, ATTACH_FRONT, ATTACH_BACK):
            self(op, start)

    def __call__(self, op: int, argument: int = 0) -> int:
        return int(operate(self.rings, op, self.sring, self.entries, argument))

    def __getitem__(self, offset: int) -> int:
        return int(self.words[offset // 4])

    def __setitem__(self, offset: int, value: int) -> None:
        self.words[offset // 4] = value % WRAP

    def slot(self, address: int) -> int:
        """Number of the slot at an address."""
        number, rest = divmod(address - self.sring - FIRST_SLOT, ENTRY_BYTES)
        assert rest == 0
        assert 0 <= number < self.entries
        return number

    def write(self, address: int, value: int) -> None:
        self[address - self.sring] = value

    def request(self, count: int) -> int:
        for _ in range(count):
            self(NEXT_REQ)
        return self(PUSH_REQ)

    def answer(self, count: int) -> int:
        assert self(HAVE_REQ) >= count
        for _ in range(count):
            self(NEXT_REQ_SLOT)
            self(NEXT_RSP_SLOT)
        return self(PUSH_RSP)


@pytest.fixture(params=[0, JUST_BELOW_WRAP], ids=["from 0", "over the wrap"])
def start(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(start: int) -> Pair:
    return Pair(32, start)


# --- one side at a time ----------------------------------------------------------------------------------------------


def test_fresh_page_asks_for_the_first_notification() -> None:
    pair = Pair(256, 0)
    assert [pair[offset] for offset in (REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT)] == [0, 1, 0, 1]
    assert not pair.page[16:].any()
    assert pair.request(1) == 1
    assert pair.answer(1) == 1


def test_ring_sizes_of_a_page() -> None:
    assert [ring_size(entry_bytes) for entry_bytes in (8, 12, 16, 4032)] == [256, 256, 128, 1]


def test_requests_and_responses_share_slots_in_order(pair: Pair, start: int) -> None:
    addresses = [pair(NEXT_REQ) for _ in range(32)]
    assert [pair.slot(a) for a in addresses] == [(start + k) % 32 for k in range(32)]
    assert pair(FREE) == 0
    pair(PUSH_REQ)
    assert pair[REQ_PROD] == (start + 32) % WRAP
    assert pair(HAVE_REQ) == 32
    assert [pair(NEXT_REQ_SLOT) for _ in range(32)] == addresses
    assert [pair(NEXT_RSP_SLOT) for _ in range(32)] == addresses
    assert pair(HAVE_RSP) == 0  # not before they are pushed
    pair(PUSH_RSP)
    assert pair(HAVE_RSP) == 32
    assert [pair(NEXT_RSP) for _ in range(32)] == addresses
    assert pair(FREE) == 32


def test_push_without_anything_new_does_not_notify(pair: Pair) -> None:
    assert (pair(PUSH_REQ), pair(PUSH_RSP)) == (0, 0)


def test_hold_off_until_the_event_index(pair: Pair) -> None:
    assert pair.request(1) == 1
    assert pair.request(1) == 0  # the back end is awake
    assert pair.answer(2) == 1
    assert pair(ARM_REQ) == 0
    assert pair.request(3) == 1
    assert pair(ARM_REQ) == 1  # something is there: stay awake


def test_restarted_back_end_takes_up_at_the_first_unanswered_request(pair: Pair, start: int) -> None:
    pair.request(5)
    pair.answer(2)
    pair(NEXT_REQ_SLOT)  # read, and never answered
    pair(ATTACH_BACK, pair[RSP_PROD])
    assert pair(HAVE_REQ) == 3
    assert pair.slot(pair(NEXT_REQ_SLOT)) == (start + 2) % 32


def test_signed16() -> None:
    pair = Pair(4, 0)
    assert [pair(SIGNED, value) for value in (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)] == [0, 1, 32767, -32768, -2, -1]


# --- against a model -------------------------------------------------------------------------------------------------


class Model:
    """A ring with unbounded indices: nothing wraps. Notify iff the event index is among what was just published."""

    def __init__(self, entries: int, start: int) -> None:
        self.entries = entries
        self.written = self.published = self.taken = start  # requests
        self.answered = self.returned = self.consumed = start  # responses
        self.req_event = self.rsp_event = start + 1
        self.slots: dict[int, int] = {}

    def unwrap(self, value: int, near: int) -> int:
        """The unbounded index next to `near` whose low 32 bits are `value`."""
        return near + (value - near + WRAP // 2) % WRAP - WRAP // 2


ACTS = ["send", "send", "push", "respond", "respond", "give", "read", "read", "sleep f", "sleep b"]


def check_ready(ready: int, available: int) -> None:
    """The peer's index is cached: fewer may be reported than there are, but none only if there are none."""
    assert 0 <= ready <= available
    assert (ready == 0) == (available == 0)


@pytest.mark.parametrize("entries", [1, 4, 32])
@pytest.mark.parametrize("seed", range(3))
def test_random_operations_against_model(entries: int, start: int, seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed * 100 + entries)
    pair, model = Pair(entries, start), Model(entries, start)
    for step in range(4000):
        act = choose.choice(ACTS)
        many = choose.randint(1, entries)
        if act == "send":
            assert pair(FREE) == entries - (model.written - model.consumed)
            for _ in range(min(many, pair(FREE))):
                pair.write(pair(NEXT_REQ), step)
                model.slots[model.written] = step
                model.written += 1
        elif act == "push":
            due = model.published < model.req_event <= model.written
            assert pair(PUSH_REQ) == due
            model.published = model.written
        elif act == "respond":
            ready = pair(HAVE_REQ)
            check_ready(ready, model.published - model.taken)
            for _ in range(min(many, ready)):
                address = pair(NEXT_REQ_SLOT)
                assert pair[address - pair.sring] == model.slots.pop(model.taken)
                assert pair(NEXT_RSP_SLOT) == address
                pair.write(address, ~step)
                model.slots[model.answered] = ~step % WRAP
                model.taken, model.answered = model.taken + 1, model.answered + 1
        elif act == "give":
            due = model.returned < model.rsp_event <= model.answered
            assert pair(PUSH_RSP) == due
            model.returned = model.answered
        elif act == "read":
            ready = pair(HAVE_RSP)
            check_ready(ready, model.returned - model.consumed)
            for _ in range(min(many, ready)):
                assert pair[pair(NEXT_RSP) - pair.sring] == model.slots.pop(model.consumed)
                model.consumed += 1
        elif act == "sleep f":
            awake = pair(ARM_RSP)
            assert awake == (model.returned > model.consumed)
            event = model.unwrap(pair[RSP_EVENT], model.consumed)
            assert event == model.consumed + 1 or (awake and event == model.rsp_event)
            model.rsp_event = event
        else:
            awake = pair(ARM_REQ)
            assert awake == (model.published > model.taken)
            event = model.unwrap(pair[REQ_EVENT], model.taken)
            assert event == model.taken + 1 or (awake and event == model.req_event)
            model.req_event = event
        assert (pair[REQ_PROD], pair[RSP_PROD]) == (model.published % WRAP, model.returned % WRAP)
    assert model.consumed > start + 50


# --- hostile peers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [1, 2, 31, 1 << 31, WRAP - 6])
def test_rsp_prod_ahead_of_what_was_requested(pair: Pair, start: int, jump: int) -> None:
    pair.request(5)
    pair[RSP_PROD] = start + 5 + jump
    assert pair(HAVE_RSP) == PROTOCOL_FAULT
    assert pair(HAVE_RSP) == PROTOCOL_FAULT  # it was not believed the second time either
    assert pair(FREE) == 27


def test_rsp_prod_covers_requests_that_were_not_published(pair: Pair, start: int) -> None:
    pair.request(1)
    pair(NEXT_REQ)
    pair[RSP_PROD] = start + 2
    assert pair(HAVE_RSP) == PROTOCOL_FAULT


def test_rsp_prod_goes_back(pair: Pair, start: int) -> None:
    pair.request(5)
    pair.answer(5)
    for _ in range(pair(HAVE_RSP)):
        pair(NEXT_RSP)
    pair[RSP_PROD] = start + 4
    assert pair(ARM_RSP) == 1  # look, and find the fault, rather than sleep on it
    assert pair(HAVE_RSP) == PROTOCOL_FAULT


@pytest.mark.parametrize("jump", [33, 64, 1 << 31, WRAP - 1])
def test_req_prod_overruns_the_ring(pair: Pair, start: int, jump: int) -> None:
    pair[REQ_PROD] = start + jump
    assert pair(ARM_REQ) == 1
    assert pair(HAVE_REQ) == PROTOCOL_FAULT
    pair[REQ_PROD] = start + 32
    assert pair(HAVE_REQ) == 32


def test_req_prod_reuses_slots_whose_responses_were_not_published(pair: Pair, start: int) -> None:
    pair.request(32)
    assert pair(HAVE_REQ) == 32
    for _ in range(32):
        pair(NEXT_REQ_SLOT)
        pair(NEXT_RSP_SLOT)
    pair[REQ_PROD] = start + 33  # over a response that it cannot have seen
    assert pair(HAVE_REQ) == PROTOCOL_FAULT
    pair(PUSH_RSP)
    assert pair(HAVE_REQ) == 1


def test_peer_overwrites_our_producer_index(pair: Pair, start: int) -> None:
    pair.request(2)
    pair[REQ_PROD] = start - 7
    assert pair.request(1) == 0  # hold-off is not decided by what the page says of ourselves
    assert pair[REQ_PROD] == (start + 3) % WRAP
    pair.answer(3)
    pair[RSP_PROD] = start + 1000
    pair.request(1)
    pair.answer(1)
    assert pair[RSP_PROD] == (start + 4) % WRAP


@pytest.mark.parametrize("event", [0, 1, 1 << 31, JUST_BELOW_WRAP, WRAP - 1])
def test_garbage_event_index_costs_at_most_a_notification(pair: Pair, start: int, event: int) -> None:
    pair[REQ_EVENT] = pair[RSP_EVENT] = event
    assert pair.request(3) in (0, 1)
    assert pair.answer(3) in (0, 1)
    assert pair(HAVE_RSP) == 3


# --- two processes ---------------------------------------------------------------------------------------------------


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


def test_push_and_arm_at_the_same_time_do_not_miss_each_other(pair: Pair) -> None:
    """Either the one who publishes sees that a notification is due, or the one who arms sees what was published."""
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


@pytest.mark.parametrize(("entries", "count"), [(256, 4_000_000), (8, 200_000), (1, 20_000)])
def test_no_wake_up_is_lost_under_load(wakers: tuple[list[int], list["select.epoll"]], entries: int, count: int) -> None:
    """Large rings stream, small ones sleep at nearly every slot. A lost wake-up leaves both sides asleep."""
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
