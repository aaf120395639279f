"""The native path: the work of bypass without the check, so that the two may be held against each other."""

from pathlib import Path
from typing import Any

import pytest

from hyp.abi.nic import STATUS_BAD_ADDRESS, STATUS_OK
from lab.ledger import difference
from lab.owner import Lab
from lab.workloads import Runner
from tests.support.labs import run, topology, workload
from tests.support.peers import Bench
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

FRAMES = 20_000
TEXT = "".join(f'[[guest]]\nname = "{path}{k}"\npath = "{path}"\n' for path in ("native", "bypass") for k in (0, 1))
TIMING = {"notifications", "suppressed", "wakeups", "domain_switches", "interrupts", "batches", "pauses", "spin_ns", "notify_ns"}
"""Columns that depend on when loops meet, not on what a frame is put through."""


async def _counted(runner: Runner, lab: Lab, load: dict[str, Any]) -> dict[str, dict[str, int]]:
    reader = await lab.counters()
    await runner.prepare(load)
    before = await runner._settled()
    record = await runner.measure(load)
    assert record["errors"] == []
    assert record["frames"] == FRAMES
    counted = difference(reader.read(), before)
    sender, receiver = load["from"], load["to"]
    names = {sender: "sender", receiver: "receiver"}
    found: dict[str, dict[str, int]] = {}
    for row, counts in counted.items():
        used = {column: n for column, n in counts.items() if n and column not in TIMING}
        if used:
            process, _, rest = row.partition("/")
            kind, _, owner = rest.partition(":")
            label = f"nic/ctx of {names.get(owner, owner)}" if kind.startswith("ctx") else f"{names.get(process, process)}/{rest}"
            found[label] = used
    return found


@pytest.mark.parametrize("far", ["wire", "guest"])
@pytest.mark.parametrize("frame", tiered([64, 1500], [1500]))
def test_native_and_bypass_put_a_frame_through_the_same_work(tmp_path: Path, far: str, frame: int) -> None:
    """Everything that is counted, row by row, is the same: frames, bytes, copies, hypercalls, checks."""

    async def main() -> None:
        async with Lab(topology(tmp_path, "native", TEXT)) as lab:
            runner = await Runner.open(lab)
            work = {}
            for path in ("native", "bypass"):
                load = workload("stream", f"{path}0", "wire" if far == "wire" else f"{path}1", frame, frames=FRAMES)
                work[path] = await _counted(runner, lab, load)
            assert work["native"] == work["bypass"]
            total = sum(counts.get("copies", 0) for counts in work["native"].values())
            assert total == FRAMES

    run(main())


def test_a_passed_through_context_reaches_all_its_ram_and_no_more() -> None:
    with Bench() as bench:
        bench.passed_through.add(1)
        native, bypass = bench.guest(), bench.guest()
        for guest, expected in ((native, STATUS_OK), (bypass, STATUS_BAD_ADDRESS)):
            at = guest.free  # nobody has registered this page
            frame = guest.frame("02:00:00:00:ff:01")
            guest.memory[at : at + len(frame)] = list(frame)
            assert guest.send_one(at, len(frame)) == expected
        for beyond in (native.ram.size, native.ram.size - 32, 1 << 62, -64 & (1 << 64) - 1):
            assert native.send_one(beyond, 64) == STATUS_BAD_ADDRESS, hex(beyond)


def test_a_native_guest_registers_nothing(tmp_path: Path) -> None:
    """Set-up is what bypass adds: the hypervisor is asked for a context and no more."""

    async def main() -> None:
        async with Lab(topology(tmp_path, "bare", TEXT)) as lab:
            calls = {path: await lab.call("hyp", "registrations", name=f"{path}0") for path in ("native", "bypass")}
            assert calls == {"native": 0, "bypass": 6}

    run(main())
