"""Each row of the table of models, end to end in real processes: verified traffic every way, and a ledger that says what it is."""

from pathlib import Path

import pytest

from hyp.paths import PATHS, Attachment, PathSpec
from lab.owner import Lab
from lab.workloads import Runner
from tests.support.labs import left_behind, run, topology, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

rows = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
PATIENT = "[nic]\npause_us = 1_000_000\n"  # a receiver that waits long for its turn loses nothing
GUESTS = PATIENT + '[[guest]]\nname = "one"\npath = "{path}"\n[[guest]]\nname = "other"\npath = "{path}"\n'
NEIGHBOURS = '[[guest]]\nname = "split"\npath = "split"\n[[guest]]\nname = "bypass"\npath = "bypass"\n'


@rows
def test_every_frame_arrives_and_every_hop_balances(tmp_path: Path, path: PathSpec) -> None:
    async def main() -> str:
        lab = Lab(topology(tmp_path, f"model-{path.name}", GUESTS.format(path=path.name) + NEIGHBOURS))
        async with lab:
            runner = await Runner.open(lab)
            for load in (
                workload("stream", "one", "wire", 64, frames=20_000),
                workload("stream", "one", "other", 1514, frames=5_000),
                workload("stream", "wire", "one", 333, frames=5_000),
                workload("rr", "one", "other", 64, frames=300),
                workload("rr", "one", "wire", 64, frames=300),
                workload("stream", "one", "bypass", 128, frames=5_000),
                workload("stream", "split", "one", 128, frames=5_000),
            ):
                record = await runner.run(load)
                assert record["errors"] == [], load
                assert record["frames"] == load["frames"] - sum(record["drops"].values())
                assert record["corrupt"] == record["duplicated"] == 0
        return lab.name

    assert left_behind(run(main())) == []


@pytest.mark.parametrize("path", tiered(PATHS.values(), [PATHS["split"], PATHS["cdna"]]), ids=PATHS.keys())
def test_the_ledger_says_what_the_model_is(tmp_path: Path, path: PathSpec) -> None:
    """Per frame to the wire: who handles it, how often it is copied, and whether anybody makes a hypercall or a trap for it."""

    async def main() -> dict[str, float]:
        async with Lab(topology(tmp_path, f"ledger-{path.name}", GUESTS.format(path=path.name))) as lab:
            record = await (await Runner.open(lab)).run(workload("stream", "one", "wire", 64, frames=50_000))
            assert record["errors"] == []
            return dict(record["per_frame"])

    cost = run(main())
    by_dom0 = path.attachment is Attachment.VIF
    by_vmm = path.attachment is Attachment.EMULATION or path.on_thread is not None
    assert cost["dom0_frames"] == pytest.approx(int(by_dom0), abs=1e-3)
    assert cost["vmm_frames"] == pytest.approx(int(by_vmm), abs=1e-3)
    assert cost["copies"] == pytest.approx(2 if path.attachment in (Attachment.VIF, Attachment.EMULATION) else 1, abs=1e-3)
    assert (cost["hypercalls"] > 0) == (by_dom0 or path.on_thread is not None)
    assert (cost["traps"] > 0) == (path.attachment is Attachment.EMULATION)
