"""Who takes longer than others for as much work owes for it, and makes up for it by short turns; nobody else does."""

import random
from types import FunctionType, SimpleNamespace

import pytest

from hyp.fairness import timing
from hyp.fairness.timing import EVERY, MOST_TURNS, ONE, SHORT, TURN_NS

SEED = 20126
WHOLE = 3000


class Loop:
    """A loop that serves senders in turn, on a clock of its own. `costs`: ns for ns of work, by sender."""

    def __init__(self, *costs: float, noise: float = 0.1, machine: float = 1.0) -> None:
        self.draw, self.now, self.costs, self.noise, self.machine = random.Random(SEED), 0.0, costs, noise, machine
        space = {**vars(timing), "clock_ns": lambda: int(self.now)}
        self._begin, self._end, self._is_short = (
            FunctionType(one.py_func.__code__, space) for one in (timing.begin_timing, timing.end_timing, timing.is_short)
        )
        self.t = SimpleNamespace(draw=SEED, plain=ONE, timed=0)
        self.senders = [SimpleNamespace(owed=0) for _ in costs]
        self.spent = [0.0 for _ in costs]
        self.turns = [[0, 0] for _ in costs]  # whole, short

    def turn(self, number: int, work: int = WHOLE, is_all: int = 1) -> None:
        sender = self.senders[number]
        short = self._is_short(self.t, sender, WHOLE)
        self.turns[number][short] += 1
        done = min(work, WHOLE // SHORT) if short else work
        began = self._begin(self.t)
        took = self.machine * (TURN_NS + done * self.costs[number]) * (1 + self.noise * self.draw.random())
        self.now += took
        self.spent[number] += took
        if began != 0:
            self._end(self.t, sender, began, done, WHOLE, is_all)

    def rounds(self, count: int, **work: int) -> None:
        for _ in range(count):
            for number in range(len(self.senders)):
                self.turn(number, **work)

    def settle(self) -> None:
        self.rounds(2000)
        self.spent = [0.0 for _ in self.costs]
        self.turns = [[0, 0] for _ in self.costs]


@pytest.mark.parametrize("machine", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("cost", [3.0, 8.0, 15.0])
def test_who_takes_longer_has_hardly_more_time_than_others(cost: float, machine: float) -> None:
    loop = Loop(1.0, 1.0, cost, 1.0, machine=machine)
    loop.settle()
    loop.rounds(5000)
    honest = (sum(loop.spent) - loop.spent[2]) / 3
    assert 0.9 * honest < loop.spent[2] < 2 * honest
    assert all(short == 0 for _, short in (loop.turns[k] for k in (0, 1, 3)))


def test_three_hostile_of_four_do_not_make_it_the_rule() -> None:
    loop = Loop(8.0, 1.0, 8.0, 1.0, 8.0, 8.0)
    loop.settle()
    loop.rounds(5000)
    assert loop.turns[1][1] == loop.turns[3][1] == 0
    assert max(loop.spent) < 2 * loop.spent[1]


@pytest.mark.parametrize("costs", [(8.0,), (8.0, 8.5), (1.0, 1.2, 1.3), (0.7, 0.9, 0.8)])
def test_who_is_as_others_are_or_alone_owes_nothing(costs: tuple[float, ...]) -> None:
    loop = Loop(*costs)
    loop.settle()
    loop.rounds(3000)
    assert all(short == 0 for _, short in loop.turns)


def test_who_is_quick_again_has_whole_turns_again() -> None:
    loop = Loop(1.0, 10.0, 1.0)
    loop.settle()
    loop.costs = (1.0, 1.0, 1.0)
    loop.rounds(2 * MOST_TURNS)
    loop.turns = [[0, 0] for _ in loop.costs]
    loop.rounds(1000)
    assert [short for _, short in loop.turns] == [0, 0, 0]


def test_a_machine_that_stood_still_costs_some_turns_at_most() -> None:
    loop = Loop(1.0, 1.0)
    loop.settle()
    while loop.senders[0].owed == 0:
        loop.costs = (1e6, 1.0)
        loop.turn(0)
        loop.costs = (1.0, 1.0)
    loop.rounds(1000)
    assert 0 < loop.turns[0][1] <= 1.2 * MOST_TURNS
    assert loop.turns[1][1] == 0


def test_neither_small_turns_are_timed_nor_the_first_ones() -> None:
    loop = Loop(1.0, 50.0)
    loop.rounds(EVERY * timing.ENOUGH // 4)
    assert [one.owed for one in loop.senders] == [0, 0]
    small = Loop(1.0, 50.0)
    small.rounds(5000, work=timing.LEAST_WORK - 1)
    assert small.t.timed == 0


@pytest.mark.parametrize(("work", "is_all"), [(WHOLE // 3, 1), (timing.LEAST_WORK, 1), (WHOLE, 0)])
def test_what_is_plain_is_not_learnt_from_small_turns_nor_from_parts_of_turns(work: int, is_all: int) -> None:
    """Whoever makes many of these, however quick they are, makes nobody else owe."""
    loop = Loop(1.0, 1.0, 1.0)
    loop.settle()
    loop.costs = (1.0, 1.0, 0.01)
    for _ in range(3000):
        for number in (0, 1):
            loop.turn(number)
        for _ in range(10):
            loop.turn(2, work=work, is_all=is_all)
    assert [short for _, short in loop.turns] == [0, 0, 0]


def test_turns_are_drawn_one_in_so_many_and_not_in_a_row() -> None:
    loop = Loop(1.0)
    drawn = [loop._begin(loop.t) != 0 for loop.now in range(1, 40_001)]
    assert 0.9 / EVERY < sum(drawn) / len(drawn) < 1.1 / EVERY
    assert {sum(drawn[k : k + 8]) for k in range(0, 40_000, 8)} >= {0, 1, 2, 3, 4}
