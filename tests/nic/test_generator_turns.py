"""The generator is a sender as others are: while its frames take long to be put where they belong, its turns are short."""

from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from hyp.fairness import timing
from hyp.fairness.timing import ENOUGH, EVERY, ONE, SHORT
from nic.state import WIRE_BATCH
from nic.wire import generator

SEED = 20126
LENGTH = 500


class Engine:
    """An engine on which `generate` is called, on a clock of its own. `cost`: ns that a frame takes."""

    def __init__(self, cost: float) -> None:
        self.now, self.cost, self.turns = 0.0, cost, list[int]()
        clocked = {**vars(timing), "clock_ns": lambda: int(self.now)}
        begin, end, short = (
            FunctionType(one.py_func.__code__, clocked) for one in (timing.begin_timing, timing.end_timing, timing.is_short)
        )
        self.t = SimpleNamespace(draw=SEED, plain=ONE, timed=ENOUGH + 1)
        self.w = SimpleNamespace(
            left=1 << 40, until_ns=0, replays=0, linked=0, sizes=0, owed=0, schedule=SimpleNamespace(pps=0), last_ns=0, dirty=0
        )
        space = {
            **vars(generator),
            "wire_at": lambda w: w,
            "schedule_at": lambda s: s,
            "timing_at": lambda t: t,
            "begin_turn": lambda e: None,
            "frames_due": lambda s, now, n: 0,  # nothing is left for frames that go one by one
            "begin_timing": begin,
            "end_timing": end,
            "is_short": short,
            "_generate_run": self._run,
        }
        self._generate = FunctionType(generator.generate.py_func.__code__, space)
        self._e = SimpleNamespace(wire=self.w, timing=self.t, now=0, wanted=0)

    def _run(self, e: Any, w: Any, most: int) -> tuple[int, int]:
        self.turns.append(most)
        self.now += most * self.cost
        return most, most * LENGTH

    def generate(self, turns: int) -> None:
        for _ in range(turns):
            self._generate(self._e)


@pytest.mark.parametrize("cost", [1.0, 20.0, 40.0])
def test_whose_frames_take_as_long_as_others_has_whole_turns(cost: float) -> None:
    engine = Engine(cost)
    engine.generate(2000)
    assert set(engine.turns) == {WIRE_BATCH}


@pytest.mark.parametrize("cost", [200.0, 1000.0])
def test_whose_frames_take_long_has_short_ones_and_whole_ones_again_when_they_do_not(cost: float) -> None:
    engine = Engine(cost)
    engine.generate(5000)
    assert set(engine.turns) == {WIRE_BATCH, WIRE_BATCH // SHORT}
    assert sum(engine.turns) * cost < 0.7 * 5000 * WIRE_BATCH * cost
    engine.cost = 20.0
    engine.generate(EVERY * timing.MOST_TURNS)
    engine.turns = []
    engine.generate(1000)
    assert set(engine.turns) == {WIRE_BATCH}


def test_nobody_learns_from_the_generator_what_is_plain() -> None:
    for cost in (0.1, 20.0, 1000.0):
        engine = Engine(cost)
        engine.generate(2000)
        assert (engine.t.plain, engine.t.timed) == (ONE, ENOUGH + 1)
