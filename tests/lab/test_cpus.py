"""Who runs where from the start on: the lab's own choice for TAP guests, and what `[cpu]` says, down to the programs in guests."""

import os
from typing import Any

import pytest

from lab.api import Lab
from lab.cpus import seats
from lab.topology import TopologyError, check_machine, parse

CPUS = sorted(os.sched_getaffinity(0))


def topology(*, program: str = "tap", guests: int = 2, **tables: Any) -> dict[str, Any]:
    return parse(described(program=program, guests=guests, **tables)).plain()


def described(*, program: str = "tap", guests: int = 2, path: str = "bypass", **tables: Any) -> dict[str, Any]:
    names = ("alice", "bob", "carol", "dave")[:guests]
    found: list[dict[str, Any]] = [{"name": name, "path": path, "program": program} for name in names]
    if program == "tap":
        found = [{**guest, "address": f"10.0.0.{number}/24"} for number, guest in enumerate(found, 1)]
    return {"name": f"cpus-{os.getpid()}", "guest": found, **tables}


def test_each_tap_guest_shares_a_cpu_with_its_programs_and_the_last_has_what_is_between() -> None:
    found = seats(topology(guests=4), [2, 5])
    assert found.processes == {"hyp": [5], "dom0": [5], "nic": [5], "alice": [2], "bob": [5], "carol": [2], "dave": [5]}
    assert found.programs == {"alice": [2], "bob": [5], "carol": [2], "dave": [5]}
    assert found.text == "alice, carol on CPU 2; hyp, dom0, nic, bob, dave on CPU 5"
    assert not found.said
    assert found.spinning is None


def test_elsewhere_the_lab_does_not_choose() -> None:
    for plain, cpus in ((topology(program="traffic"), [0, 1]), (topology(guests=2), list(range(6)))):
        found = seats(plain, cpus)
        assert (found.processes, found.programs, found.text) == ({}, {}, "anywhere")


def test_the_nic_has_a_core_of_its_own_in_one_line() -> None:
    found = seats(topology(cpu={"nic": [1]}), [0, 1])
    assert found.said
    assert found.processes == {"hyp": [0], "dom0": [0], "nic": [1], "alice": [0], "bob": [0]}
    assert found.programs == {"alice": [0], "bob": [0]}
    assert found.spinning == frozenset({"nic"})
    assert found.text == "hyp, dom0, alice, bob on CPU 0; nic on CPU 1; may spin: nic"


def test_each_says_its_own() -> None:
    cpu = {
        "nic": [[3], [2]], "dom0": [1], "guests": {"alice": [0, 1]}, "programs": [4], "spin": ["nic", "bob"],
    }  # fmt: skip
    found = seats(topology(cpu=cpu, nic={"engines": 2}), range(6))
    assert found.engines == [[3], [2]]
    assert found.processes == {"hyp": [5], "dom0": [1], "nic": [2, 3], "alice": [0, 1], "bob": [5]}
    assert found.programs == {"alice": [4], "bob": [4]}
    assert found.spinning == frozenset({"nic", "bob"})
    assert "programs of alice, programs of bob on CPU 4" in found.text


def test_who_may_spin_alone_leaves_the_rest_as_it_is() -> None:
    found = seats(topology(cpu={"spin": ["nic"]}), [0, 1])
    assert not found.said
    assert found.processes == seats(topology(), [0, 1]).processes
    assert found.spinning == frozenset({"nic"})


@pytest.mark.parametrize(
    ("cpu", "problem"),
    [
        ({"nic": []}, ("cpu.nic", "must be a list of CPU numbers, such as [0, 1], not []")),
        ({"nic": 1}, ("cpu.nic", "must be a list of CPU numbers, such as [0, 1], not 1")),
        ({"dom0": [0, 0]}, ("cpu.dom0", "names a CPU twice: [0, 0]")),
        ({"hyp": [-1]}, ("cpu.hyp", "must be a list of CPU numbers, such as [0, 1], not [-1]")),
        ({"programs": [True]}, ("cpu.programs", "must be a list of CPU numbers, such as [0, 1], not [True]")),
        ({"guests": {"alcie": [0]}}, ("cpu.guests.alcie", "there is no such guest (did you mean 'alice'?)")),
        ({"spin": ["xenstored"]}, ("cpu.spin", "'xenstored' has no loop; there are hyp, dom0, nic, alice, bob")),
        ({"nic": [[0], [1]]}, ("cpu.nic", "has lists for 2 engines, and nic.engines is 1")),
        ({"nick": [0]}, ("cpu.nick", "is not a key (did you mean 'nic'?)")),
    ],
)
def test_what_is_wrong_is_named(cpu: dict[str, Any], problem: tuple[str, str]) -> None:
    with pytest.raises(TopologyError) as refused:
        topology(cpu=cpu)
    assert refused.value.problems == [problem]


def test_cpus_that_this_machine_has_not() -> None:
    absent = max(CPUS) + 1
    with pytest.raises(TopologyError) as refused:
        check_machine(parse(described(cpu={"nic": [absent], "guests": {"bob": [CPUS[0]]}})))
    listed = ", ".join(map(str, CPUS))
    assert refused.value.problems == [("cpu.nic", f"CPU {absent} can't be used here; those that can are {listed}")]


def affinities(pid: int) -> set[frozenset[int]]:
    return {frozenset(os.sched_getaffinity(int(task))) for task in os.listdir(f"/proc/{pid}/task")}


@pytest.mark.usefixtures("warm")
@pytest.mark.needs("taps", "two-cpus")
def test_processes_and_programs_are_born_where_they_belong() -> None:
    first, last = CPUS[0], CPUS[-1]
    cpu = {"nic": [last], "guests": {"alice": [first]}, "programs": [first, last], "spin": []}
    where = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status"]
    with Lab(described(cpu=cpu)) as lab:
        pids = lab.pids()
        assert affinities(pids["nic"]) == {frozenset({last})}
        assert affinities(pids["alice"]) == {frozenset({first})}
        both = lab.run("alice", where)["output"].split()[1]
        assert both == f"{first}-{last}" if last == first + 1 else str(first) in both
        assert lab.status()["cpu"]["placement"].endswith("may spin: nobody")
    if len(CPUS) == 2:
        with Lab(described()) as lab:
            pids = lab.pids()
            assert affinities(pids["alice"]) == {frozenset({first})}
            assert affinities(pids["bob"]) == affinities(pids["nic"]) == affinities(pids["dom0"]) == {frozenset({last})}
            assert [lab.run(guest, where)["output"].split()[1] for guest in ("alice", "bob")] == [str(first), str(last)]


@pytest.mark.usefixtures("warm")
@pytest.mark.needs("two-cpus")
def test_a_workload_leaves_what_was_said_as_it_is() -> None:
    cpu = {"nic": [CPUS[-1]], "guests": {"alice": [CPUS[0]], "bob": [CPUS[0]]}}
    with Lab(described(program="traffic", cpu=cpu)) as lab:
        record = lab.stream("alice", "bob", frames=2000)
        assert record["errors"] == []
        assert record["placement"] == lab.status()["cpu"]["placement"]
        assert record["placement"].startswith(f"alice, bob on CPU {CPUS[0]}")
        assert affinities(lab.pids()["nic"]) == {frozenset({CPUS[-1]})}
        assert affinities(lab.pids()["alice"]) == {frozenset({CPUS[0]})}
