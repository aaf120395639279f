"""Which attacks are tried how long, on a simulated machine: what is open has more, in trials anew, while the budget lasts."""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Self

import pytest

from bench.benchmarks import isolation
from bench.benchmarks.isolation import BESIDE, ENOUGH, GROUP
from bench.isolation.attack import Attack
from bench.isolation.trial import STREAMS
from bench.method.options import Options
from bench.method.progress import Silent
from bench.method.samples import Slice
from bench.report.results import BenchmarkResult
from tests.attacks import ATTACKS
from tests.support.tiers import tiered

SEED = 20121
ON_BYPASS = [name for name, one in ATTACKS.items() if "bypass" in one.paths]


class Machine:
    """What lies where is another matter in each trial: all in it is faster or slower beside attacks than it should be."""

    def __init__(self, rates: dict[str, float], layout: float = 0.0) -> None:
        self.draw, self.rates, self.layout, self.now = random.Random(SEED), rates, layout, 0.0
        self.trials: list[tuple[str, list[str], list[str]]] = []  # path, who is in it, whose slices there were
        self.notes: list[str] = []
        self.breaks: Callable[[str, list[str]], bool] = lambda _attack, _there: False

    def read(self) -> None:
        """Time passes."""

    def regime(self, before: None, after: None) -> str:
        """Always the same."""
        return "apart"

    def trial(self, path: str, attacks: Sequence[Attack], name: str) -> "SimulatedTrial":
        return SimulatedTrial(self, path, [attack.name for attack in attacks])


class SimulatedTrial:
    """In the place of `Trial`."""

    def __init__(self, machine: Machine, path: str, names: list[str]) -> None:
        self.machine, self.path, self.names, self.broken, self.ran = machine, path, names, "", list[str]()
        self.factor = {name: math.exp(machine.draw.gauss(0, machine.layout)) for name in names}

    async def __aenter__(self) -> Self:
        self.machine.now += isolation.TRIAL_S
        self.machine.trials.append((self.path, self.names, self.ran))
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Nothing to take down."""

    async def slice(self, attack: Attack, seconds: float, *, attacked: bool) -> Slice:
        machine = self.machine
        machine.now += seconds + isolation.BETWEEN_S
        assert attack.name in self.names
        if attacked:
            self.ran.append(attack.name)
            if machine.breaks(attack.name, self.names):
                self.broken = "the topology is broken"
        if self.broken:
            return Slice(errors=[self.broken])
        rate = machine.rates.get(attack.name, 1.0) * self.factor[attack.name] if attacked else 1.0
        mpps = rate * math.exp(machine.draw.gauss(0, 0.03))
        return Slice({"mpps": mpps, "calls_per_s": 1.0} | dict.fromkeys(STREAMS, mpps / 3), detail={"attempts": 1, "got": {}})


Row = dict[str, Any]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Row]]:
    """Runs the benchmark on a machine; the records by attack."""

    def runs(machine: Machine, names: Sequence[str], budget_s: float, rounds: int = 6) -> dict[str, Row]:
        monkeypatch.setattr(isolation, "Trial", machine.trial)
        monkeypatch.setattr(isolation, "probe_of", lambda _: nullcontext(machine))
        monkeypatch.setattr(isolation, "time", SimpleNamespace(monotonic=lambda: machine.now))
        result = BenchmarkResult(isolation.TITLE, isolation.ABOUT)
        options = Options(paths=("bypass",), repeat=rounds, budget_s=budget_s, attacks=tuple(names))
        asyncio.run(isolation.run(result, options, Silent()))
        assert [row["attack"] for row in result.records] == [name for name in ON_BYPASS if name in names]
        machine.notes = result.notes
        return {row["attack"]: row for row in result.records}

    return runs


def test_what_is_decided_is_left_alone_and_what_is_open_is_tried_anew(swept: Callable[..., dict[str, Row]]) -> None:
    names = ON_BYPASS[:12]
    near, worse = names[2], names[7]
    machine = Machine({near: 0.93, worse: 0.5})
    found = swept(machine, names, budget_s=2000.0)
    assert {name: row["contained"] for name, row in found.items()} == {name: name != worse for name in names}
    assert found[near]["slices"] > found[worse]["slices"] >= 6
    later = [set(ran) for _, _, ran in machine.trials[1:]]
    assert later
    assert all(near in ran for ran in later[1:])
    assert all(there == list(dict.fromkeys(ran)) for _, there, ran in machine.trials), "nobody is there who does nothing"


def test_without_a_budget_everything_has_its_rounds_and_no_more(swept: Callable[..., dict[str, Row]]) -> None:
    machine = Machine(dict.fromkeys(ON_BYPASS, ENOUGH))
    found = swept(machine, ON_BYPASS, budget_s=0.0)
    assert {row["slices"] for row in found.values()} == {6}
    assert {row["contained"] for row in found.values()} == {None}
    assert all(len(there) <= GROUP for _, there, _ in machine.trials)
    assert sorted(name for _, there, _ in machine.trials for name in there) == sorted(ON_BYPASS)


@pytest.mark.parametrize("budget_s", tiered([30.0, 100.0, 1000.0], [100.0]))
def test_what_cannot_be_decided_ends_with_the_budget(swept: Callable[..., dict[str, Row]], budget_s: float) -> None:
    machine = Machine(dict.fromkeys(ON_BYPASS[:30], ENOUGH))
    swept(machine, ON_BYPASS[:30], 0.0)
    first_s = machine.now
    again = Machine(dict.fromkeys(ON_BYPASS[:30], ENOUGH))
    found = swept(again, ON_BYPASS[:30], budget_s)
    slice_s = 2 * (BESIDE + 2) * (isolation.SLICE_S + isolation.BETWEEN_S)
    assert budget_s / 2 < again.now - first_s <= budget_s + slice_s
    assert max(row["slices"] for row in found.values()) > 6


def test_an_unlucky_trial_is_outweighed(swept: Callable[..., dict[str, Row]]) -> None:
    """How a trial lies in memory is worth a tenth either way; what is reported is of many."""
    names = ON_BYPASS[:10]
    machine = Machine(dict.fromkeys(names, 1.0), layout=0.1)
    once = swept(machine, names, 0.0)
    assert any(row["contained"] is not True for row in once.values())
    assert all(row["contained"] for row in swept(machine, names, 4000.0).values())


def test_who_was_there_when_another_broke_the_trial_is_tried_alone(swept: Callable[..., dict[str, Row]]) -> None:
    names = ON_BYPASS[:8]
    guilty = names[4]
    machine = Machine({})
    machine.breaks = lambda attack, _there: attack == guilty
    found = swept(machine, names, 500.0)
    assert {name: row["contained"] for name, row in found.items()} == {name: name != guilty for name in names}
    assert found[guilty]["errors"]
    assert not any(row["errors"] for name, row in found.items() if name != guilty)


def test_where_only_two_together_break_it_that_is_said(swept: Callable[..., dict[str, Row]]) -> None:
    names = ON_BYPASS[:8]
    machine = Machine({})
    machine.breaks = lambda attack, there: attack == names[3] and names[6] in there
    assert all(row["contained"] for row in swept(machine, names, 500.0).values())
    (note,) = [note for note in machine.notes if "broke" in note]
    assert names[3] in note.partition("each alone: ")[2]
