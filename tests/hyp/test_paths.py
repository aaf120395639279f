"""The table of I/O models: each row is whole, and what it names is there."""

import importlib
import inspect
from typing import Any

import pytest

from dom0.toolstack.authority import Toolstack
from domu.programs.table import PROGRAMS
from hyp.control import Refused
from hyp.paths import PATHS, Attachment, PathSpec
from lab.plan import MODULES, ROLES, plan
from lab.topology import parse

QUEUES = (64, 256, 4096)
rows = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


@rows
def test_a_row_names_modules_that_are_loaded_before_the_fork(path: PathSpec) -> None:
    assert inspect.iscoroutinefunction(importlib.import_module(path.front_end).connect)
    importlib.import_module(path.back_end)
    assert {path.front_end, path.back_end} <= set(MODULES)


@rows
def test_a_row_says_what_its_guests_take(path: PathSpec) -> None:
    for queue in QUEUES:
        assert path.ram(queue) > 0
        assert path.ram(queue) % 4096 == 0
        assert path.beside_ram(queue, 16 << 20) >= 0
        assert path.ring(queue) >= 64
    assert path.shared_loop in (None, "dom0", "hyp")
    assert path.cut_off_by.keys() <= ROLES.keys()
    assert "nic" in path.cut_off_by
    assert path.shared_loop is None or path.shared_loop in path.cut_off_by
    assert path.placed_like in PATHS
    assert path.about


def test_no_two_rows_look_alike_in_a_plot() -> None:
    for column in ("name", "colour", "colour_dark", "marker"):
        values = [getattr(path, column) for path in PATHS.values()]
        assert len(set(values)) == len(values), column


@rows
def test_the_toolstack_gives_what_the_row_says_and_nothing_else(path: PathSpec) -> None:
    toolstack = Toolstack([{"name": "anna", "domid": 1, "path": path.name, "mac": "02:00:00:00:00:01", "queues": 3}])
    asked = {
        "context": (toolstack.context_authorize, {Attachment.CONTEXT, Attachment.PASSTHROUGH}),
        "emulation": (toolstack.emulation_authorize, {Attachment.EMULATION}),
    }
    for authorize, attachments in asked.values():
        if path.attachment in attachments:
            answer = authorize(1)
            assert answer["mac"] == "02:00:00:00:00:01"
            assert answer["queues"] == (1 if path.attachment is Attachment.EMULATION else 3)
            assert answer["passthrough"] is (path.attachment is Attachment.PASSTHROUGH)
        else:
            with pytest.raises(Refused, match=r"domain 1 \(anna\)"):
                authorize(1)
        with pytest.raises(Refused, match="domain 2"):
            authorize(2)


def busy_loops(monkeypatch: pytest.MonkeyPatch, topology: dict[str, Any]) -> int:
    """How many loops the plan counts, by which it decides on spinning."""
    seen: list[int] = []

    def limit(setting: Any, loops: int, cpus: int | None = None) -> int:
        seen.append(loops)
        return 0

    monkeypatch.setattr("lab.plan.spin_limit_us", limit)
    plan(topology)
    return seen[0]


@rows
def test_the_plan_counts_each_loop_once(path: PathSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [{"name": f"g{k}", "path": path.name} for k in range(3)]
    loops = busy_loops(monkeypatch, parse({"name": "loops", "guest": guests}).plain())
    assert loops == 1 + 3 + len({"dom0", path.shared_loop} - {None})


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_program_is_a_role_that_is_loaded_before_the_fork(program: Any) -> None:
    assert inspect.iscoroutinefunction(importlib.import_module(program.module).main)
    assert program.module in MODULES
    assert not (program.addressed and program.workloads)
