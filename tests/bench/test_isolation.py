"""The attacks of the catalogue harm nobody but who carries them out, on every path; and what the bench says of them."""

import os
import signal

import pytest

from bench.benchmarks import isolation
from bench.isolation.attack import Attack, Control, Door
from bench.isolation.trial import ONE, Trial, hostile_name
from bench.method.options import Options
from bench.method.progress import Silent
from bench.report.results import BenchmarkResult
from hyp.paths import PATHS
from tests.attacks import ATTACKS, harm, trial
from tests.support.labs import run
from tests.support.tiers import tiered

GROUP = 24
GROUPS = [list(ATTACKS)[k : k + GROUP] for k in range(0, len(ATTACKS), GROUP)]
NAMED = [(path, number) for path in PATHS for number in range(len(GROUPS))]
SHORT = [("split", 0)]


def test_the_catalogue_is_large_and_its_names_are_told_apart() -> None:
    assert len(ATTACKS) >= 30
    assert len({hostile_name(one) for one in ATTACKS.values()}) == len(ATTACKS)
    assert {one.door for one in ATTACKS.values()} == set(Door)
    assert all(one.paths <= set(PATHS) and one.paths for one in ATTACKS.values())
    shared = [one for one in ATTACKS.values() if one.paths == set(PATHS)]
    assert len(shared) >= 30, "most can be tried everywhere"


@pytest.mark.parametrize("where", tiered(NAMED, SHORT), ids=lambda where: f"{where[0]}-{where[1]}")
def test_an_attack_harms_nobody_else(where: tuple[str, int]) -> None:
    path, number = where

    async def body() -> None:
        waiting = [name for name in GROUPS[number] if path in ATTACKS[name].paths]
        async with trial(path, waiting) as one:
            found = {name: errors for name in waiting if (errors := await harm(one, name))}
        assert found == {}

    run(body())


@pytest.mark.long
@pytest.mark.parametrize("path", ["bypass", "split", "trapped"])
def test_nor_with_sealed_memory(path: str) -> None:
    async def body() -> None:
        names = [name for name, one in ATTACKS.items() if one.door is Door.MEMORY]
        async with trial(path, names, "sealed") as one:
            found = {name: errors for name in names if (errors := await harm(one, name))}
        assert found == {}

    run(body())


@pytest.mark.long
def test_what_the_bench_says_of_an_attack() -> None:
    result = BenchmarkResult(isolation.TITLE, isolation.ABOUT)
    options = Options(paths=("bypass",), repeat=2, slice_s=0.02, attacks=("index ahead", "spoofed source"))
    run(isolation.run(result, options, Silent()))
    assert [(row["path"], row["attack"]) for row in result.records] == [("bypass", "index ahead"), ("bypass", "spoofed source")]
    for row in result.records:
        assert row["errors"] == []
        assert (row["lost"], row["corrupt"], row["leaked"], row["changed"]) == (0, 0, 0, 0)
        assert row["attempts"] > 0
        assert row["contained"] is not False
    assert result.records[0]["got"]["faults_protocol"] == 1
    assert result.records[1]["got"]["drop_spoofed"] > 0
    (table,) = result.tables
    assert table["head"][:2] == ["attack", "bypass"]
    assert [line[0] for line in table["rows"]] == ["index ahead", "spoofed source"]
    (claim,) = result.claims
    assert claim.verdict == "met"


def test_a_trial_notices_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Attack("none", "", Door.CALLS, Control.QUIET, lambda a: a.rest(), frozenset(PATHS), False, False, {}, {})
    monkeypatch.setitem(ATTACKS, "none", attack)

    async def body() -> None:
        async with Trial("bypass", [attack], f"attacks-death-{os.getpid()}") as one:
            os.kill((await one.lab.pids())[ONE], signal.SIGKILL)
            first = await one.slice(attack, 0.02, attacked=True)
            assert any("anna died" in error for error in first.errors), first.errors
            assert (await one.slice(attack, 0.02, attacked=True)).errors == [one.broken]

    run(body())
