"""Which CPUs the loops of a workload get, and that a comparison measures each path where it is fastest."""

import asyncio
import os
from collections import Counter
from typing import Any

import pytest

from bench.benchmarks.throughput import where_time_goes
from bench.method.contenders import FIRST_TRIALS, TRIALS, LabBench, guest_names
from bench.method.progress import Silent
from bench.method.samples import Samples, Slice, Taken
from bench.method.slices import Contender, interleave
from lab.placement import Placement, usual
from lab.workloads import WIRE, Runner
from tests.support.labs import run

CPUS = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.needs("two-cpus")  # with one there is nothing to choose
ROLES = (Placement.DEVICE, Placement.BACK_END, Placement.SENDERS, Placement.RECEIVERS)


@pytest.mark.parametrize("apart", ROLES)
@pytest.mark.parametrize("cpus", [[3], [3, 5], [3, 5, 8, 9]])
def test_a_role_apart_shares_no_cpu_with_another(apart: Placement, cpus: list[int]) -> None:
    mine, others = apart.cpus(apart, cpus), [apart.cpus(role, cpus) for role in ROLES if role is not apart]
    assert mine
    for theirs in others:
        assert theirs
        assert set(mine) | set(theirs) == set(cpus)
        assert not set(mine) & set(theirs) or len(cpus) == 1


def test_anywhere_and_together() -> None:
    assert {tuple(Placement.ANYWHERE.cpus(role, [0, 1, 2])) for role in ROLES} == {(0, 1, 2)}
    assert {tuple(Placement.TOGETHER.cpus(role, [0, 1, 2])) for role in ROLES} == {(2,)}
    assert (usual(to_wire=True), usual(to_wire=False)) == (Placement.DEVICE, Placement.TOGETHER)


async def in_lab(paths: list[str], body: Any) -> Any:
    async with LabBench("place", paths) as lab:
        return await body(lab)


def stream(sender: str, receiver: str) -> dict[str, Any]:
    return {"kind": "stream", "from": sender, "to": receiver, "frame": 64, "seconds": 0.02, "frames": None}


def affinities(runner: Runner, process: str) -> list[set[int]]:
    """Of the threads of a process that are not allowed everywhere."""
    tasks = os.listdir(f"/proc/{runner.pids[process]}/task")
    found = [os.sched_getaffinity(int(task)) for task in tasks]
    return [one for one in found if one != set(CPUS)]


@needs_two
def test_loops_run_where_the_placement_says_and_the_record_names_it(warm: None) -> None:
    async def body(lab: LabBench) -> None:
        runner = lab.runner
        runner.cpus = CPUS[:2]
        one, other = guest_names("split", 2)
        for placement, receiver, nic in (
            (Placement.DEVICE, WIRE, CPUS[1]), (Placement.SENDERS, WIRE, CPUS[0]), (Placement.BACK_END, other, CPUS[0]),
        ):  # fmt: skip
            record = await runner.run(stream(one, receiver), placement=placement)
            assert record["errors"] == []
            assert record["placement"] == placement.value
            assert affinities(runner, "nic") == [{nic}]
        record = await runner.run(stream(one, WIRE))
        assert record["placement"] == "NIC apart"
        assert Placement.RECEIVERS in runner.placements(stream(one, other))
        assert Placement.RECEIVERS not in runner.placements(stream(one, WIRE))
        runner.cpus = CPUS[:1]
        assert runner.placements(stream(one, WIRE)) == []

    run(in_lab(["split"], body))


@needs_two
@pytest.mark.long
def test_each_model_is_tried_in_every_placement_and_measured_in_the_fastest(warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    real = Runner.run

    async def slow_but_for_one(self: Runner, *loads: Any, placement: Placement | None = None) -> dict[str, Any]:
        record = await real(self, *loads, placement=placement)
        seen.append((loads[0]["from"], record["placement"]))
        if record["placement"] != Placement.RECEIVERS:
            record["mpps"] /= 1e6
        return record

    async def body(lab: LabBench) -> None:
        lab.runner.cpus = CPUS[:2]
        contenders = [lab.stream(path, "guest→guest", 64) for path in ("native", "bypass", "split")]
        choices = {path: lab.runner.placements(stream(*guest_names(path, 2))) for path in ("native", "bypass", "split")}
        for contender in contenders:
            assert contender.prepare is not None
            await contender.prepare()
        tried = {name: [placement for guest, placement in seen if guest.startswith(name)] for name in ("native", "bypass", "split")}
        assert tried["bypass"] == [], "it is native's twin: both are measured in one placement"
        for path in ("native", "split"):
            times = Counter(tried[path])
            assert set(times) == {one.value for one in choices[path]}
            better = [one for one, n in times.items() if n == TRIALS]
            assert Placement.RECEIVERS in better
            assert len(better) == max(2, len(choices[path]) // 2)
            assert {n for one, n in times.items() if one not in better} == {FIRST_TRIALS}
        for contender in contenders:
            found = await contender.run(0.02)
            assert found.errors == []
            assert found.detail["placement"] == Placement.RECEIVERS

    monkeypatch.setattr(Runner, "run", slow_but_for_one)
    run(in_lab(["native", "bypass", "split"], body))


class Steady:
    """A machine that is always the same."""

    def read(self) -> int:
        return 0

    def regime(self, before: Any, after: Any) -> str:
        return "apart"


def test_all_prepare_before_the_first_slice() -> None:
    seen: list[str] = []

    def contender(name: str) -> Contender:
        async def prepare() -> None:
            seen.append(f"prepare {name}")

        async def one(seconds: float) -> Slice:
            seen.append(name)
            return Slice({"mpps": 1.0})

        return Contender(name, one, prepare=prepare)

    asyncio.run(interleave([contender("a"), contender("b")], rounds=1, seconds=0.1, probe=Steady(), again="a", progress=Silent()))
    assert seen == ["prepare a", "prepare b", "a", "b", "a"]


def test_where_the_time_goes_is_said_by_process() -> None:
    detail = {"processes": {"nic": 20.0, "a": 17.5, "dom0": 0.0}, "spun": {"nic": 0.25, "a": 3.0}}
    samples = Samples([Taken(0, "bypass", "apart", Slice({"mpps": 1.0}, detail=detail))])
    assert where_time_goes(samples, "bypass") == "bypass: nic 20.0 (0.250), a 17.5 (3.00)"
    assert where_time_goes(samples, "floor") == "floor: not known"
