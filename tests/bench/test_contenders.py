"""A bench's lab is started anew between looks, and taken down once, whatever interrupts that."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bench.method.contenders import LabBench
from lab.workloads import Runner


class FakeLab:
    """Counts what is done with it. Those of `broken` fail to start, or to be opened."""

    made: list["FakeLab"]
    broken: dict[int, str]

    def __init__(self, topology: dict[str, Any]) -> None:
        self.starts = self.stops = 0
        self.fails = self.broken.get(len(self.made), "")
        self.made.append(self)

    async def start(self) -> None:
        if self.fails == "start":
            raise InterruptedError(self.fails)
        self.starts += 1

    async def stop(self) -> None:
        self.stops += 1
        if self.fails == "stop":
            raise InterruptedError(self.fails)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[FakeLab]:
    async def opened(lab: FakeLab) -> Any:
        if lab.fails == "open":
            raise InterruptedError(lab.fails)
        return SimpleNamespace(lab=lab, cpus=[0], spin_us=None)

    monkeypatch.setattr(Runner, "open", opened)
    FakeLab.made, FakeLab.broken = [], {}
    return FakeLab


def bench(kind: type[FakeLab]) -> LabBench:
    return LabBench("renewed", ["bypass"], kind=kind)  # type: ignore[arg-type]


def test_what_runs_afterwards_runs_in_the_new_one_on_the_same_cores(fakes: type[FakeLab]) -> None:
    async def main() -> None:
        async with bench(fakes) as lab:
            lab.runner.cpus, lab.runner.spin_us = [1], 7
            await lab.renew()
            first, second = fakes.made
            assert (first.starts, first.stops, second.starts, second.stops) == (1, 1, 1, 0)
            assert [id(lab.lab), id(lab.runner.lab)] == [id(second)] * 2
            assert (lab.runner.cpus, lab.runner.spin_us) == ([1], 7)
        assert (second.starts, second.stops) == (1, 1)

    asyncio.run(main())


@pytest.mark.parametrize(("number", "where"), [(0, "start"), (0, "open"), (0, "stop"), (1, "start"), (1, "open")])
def test_each_that_was_started_is_taken_down_once(fakes: type[FakeLab], number: int, where: str) -> None:
    fakes.broken = {number: where}

    async def main() -> None:
        async with bench(fakes) as lab:
            await lab.renew()

    with pytest.raises(InterruptedError, match=where):
        asyncio.run(main())
    assert all(one.stops == one.starts for one in fakes.made)
