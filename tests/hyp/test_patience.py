"""How long a receiver may hold others up: no longer than it begins with and has earned (hyp/fairness/patience.py)."""

from types import FunctionType, SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hyp.fairness import patience, turns
from hyp.fairness.patience import OWN, SHARED

PAUSE_NS = 20_000_000
COMPILED = ("begin_patience", "end_wait", "note_posted", "waits_on", "grace_ends", "wait_ends", "lose_patience")


class Guest:
    """A guest that receives by two queues, and who waits for them: two neighbours, and two queues behind which others wait."""

    def __init__(self) -> None:
        self.e = SimpleNamespace(now=1_000_000_000, pause_ns=PAUSE_NS)
        self.standing = SimpleNamespace(patience=PAUSE_NS, shared_patience=PAUSE_NS)
        self.taken = 0
        self.queues = [SimpleNamespace(grace=0, counts=0, stalled=0) for _ in range(2)]
        self.senders = [SimpleNamespace(shared=k & 1, until=0, queue=self.queues[0]) for k in range(4)]
        self.held = [0, 0]
        """ns for which somebody has waited: a neighbour, or a queue behind which others wait."""
        self.call: dict[str, Any] = {**vars(patience), "standing_of": lambda _: self.standing, "load64": lambda _: self.taken}
        for name in COMPILED:
            self.call[name] = FunctionType(getattr(patience, name).py_func.__code__, self.call)
        for queue in self.queues:
            self.call["begin_patience"](queue)

    def waits(self, sender: Any, queue: Any) -> None:
        """A sender's next frame is for a queue that is full."""
        if queue.stalled == 0 and sender.until == 0:
            sender.until, sender.queue = self.call["wait_ends"](self.e, queue, self.queues[0], sender.shared), queue

    def passes(self, ns: int) -> None:
        """Time passes, and those go on who have waited for long enough."""
        waiting = [one for one in self.senders if one.until > self.e.now]
        for shared in (0, 1):
            ends = [one.until for one in waiting if one.shared == shared]
            self.held[shared] += min(ns, max(ends) - self.e.now) if ends else 0
        self.e.now += ns
        for one in waiting:
            if one.until <= self.e.now:
                self.call["lose_patience"](self.e, one.queue, one.shared)
                one.until = 0
            else:
                self.call["waits_on"](self.e, one.queue, one.shared)

    def posts(self, queue: Any) -> None:
        """It posts a buffer, and has a frame of one who waits there for it."""
        self.call["note_posted"](queue, self.e.now, True)
        there = [one for one in self.senders if one.until > 0 and one.queue is queue]
        if there:
            there[0].until = 0
            self.taken += 1
        for one in there[1:]:
            self.call["waits_on"](self.e, queue, one.shared)

    def closes(self, queue: Any) -> None:
        """It closes a queue and opens it anew."""
        self.call["end_wait"](queue, self.e.now)
        for one in self.senders:
            one.until = 0 if one.queue is queue else one.until
        self.call["begin_patience"](queue)
        queue.stalled = 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("waits"), st.integers(0, 3), st.integers(0, 1)),
        st.tuples(st.just("passes"), st.sampled_from([1_000, 300_000, 19_900_000, 25_000_000])),
        st.tuples(st.just("posts"), st.integers(0, 1)),
        st.tuples(st.just("closes"), st.integers(0, 1)),
    ),
    max_size=200,
)


@given(STEPS)
def test_it_holds_nobody_up_for_longer_than_it_has_earned(steps: list[tuple[Any, ...]]) -> None:
    guest = Guest()
    for what, *of in steps:
        if what == "waits":
            guest.waits(guest.senders[of[0]], guest.queues[of[1]])
        elif what == "passes":
            guest.passes(of[0])
        else:
            getattr(guest, what)(guest.queues[of[0]])
        for shared, shift in ((0, OWN), (1, SHARED)):
            both = 2 * PAUSE_NS  # two queues of it may be full at a time, each of which sees what there is left
            assert guest.held[shared] <= both + guest.taken * (PAUSE_NS >> shift)


def test_what_a_neighbour_gives_is_not_for_a_queue_behind_which_others_wait() -> None:
    """One more frame is taken from a neighbour, who earns the guest much; then it keeps the shared queue waiting, over and over."""
    guest, rounds = Guest(), 50
    neighbour, shared = guest.senders[:2]
    for _ in range(rounds):
        for _ in range(64):
            guest.waits(neighbour, guest.queues[0])
            guest.posts(guest.queues[0])
        guest.waits(shared, guest.queues[0])
        guest.passes(19_900_000)
        guest.posts(guest.queues[0])
    assert guest.held[1] <= PAUSE_NS + guest.taken * (PAUSE_NS >> SHARED) < rounds * 19_900_000 / 20


def test_a_wait_that_ends_with_the_queue_is_taken_off_too() -> None:
    guest = Guest()
    for _ in range(50):
        guest.waits(guest.senders[1], guest.queues[0])
        guest.passes(19_900_000)
        guest.closes(guest.queues[0])
    assert guest.held[1] <= PAUSE_NS


def test_who_has_lost_its_shared_patience_is_still_waited_for_by_its_neighbours() -> None:
    guest = Guest()
    neighbour, shared = guest.senders[:2]
    guest.standing.shared_patience = 0
    guest.waits(shared, guest.queues[0])
    assert (shared.until, guest.standing.patience, guest.queues[0].stalled) == (0, PAUSE_NS, 0)
    guest.standing.shared_patience = 1_000
    guest.waits(shared, guest.queues[0])
    guest.passes(2_000)
    assert (shared.until, guest.queues[0].stalled) == (0, 0)
    guest.waits(shared, guest.queues[0])
    assert shared.until == 0, "there is nothing left to wait with"
    guest.waits(neighbour, guest.queues[0])
    assert neighbour.until > guest.e.now + 10_000_000


def test_a_turn_of_slow_frames_ends_by_the_clock() -> None:
    clock = iter(range(0, 1 << 40, 2_000))
    ask = FunctionType(turns.is_turn_spent.py_func.__code__, {**vars(turns), "clock_ns": lambda: next(clock)})
    e = SimpleNamespace(turn_until=0, look_at=0)
    for copied, work, looks in ((0, 1, 2), (32_000, 1, 3), (64_000, 1, 4), (64_000, 5, 4)):  # 2 us from one look to the next
        turns.begin_turn.py_func(e)
        spent = [ask(e, (k + 1) * work, copied) for k in range(50)]
        assert spent.index(True) == looks * (turns.LOOK if work == 1 else 1)
