"""Split guests whose pages Dom0 maps, for good or for a batch; what a hostile one gets out of it; and that all is unpinned."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domu.frontends.split import RX_SLOTS, TX_SLOTS
from lab import owner as lab_module
from lab.errors import LabError
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.topology import TopologyError
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.labs import run, topology, until, workload

pytestmark = pytest.mark.usefixtures("warm")

RINGS = 2  # pages that stay mapped with and without persistent grants
KEPT = RINGS + 1 + TX_SLOTS + RX_SLOTS  # with: a control ring, and both pools
FRAMES = 20_000
STRAY = 1e-3  # per frame: an announcement that is still under way when a stream begins is in its ledger too
PERSISTENT, MAPPED = ('path = "split"\n' + f'grants = "{mode}"\n' for mode in ("persistent", "map"))
LAB = "[nic]\npause_us = 1_000_000\n" + "".join(
    f'[[guest]]\nname = "{name}"\n{how}'
    for name, how in (("anna", PERSISTENT), ("bert", PERSISTENT), ("carl", 'path = "split"\n'), ("dora", 'path = "bypass"\n'))
)
WAYS = (("anna", "wire"), ("wire", "anna"), ("anna", "bert"), ("bert", "anna"))
PLAIN = "carl"


def active_table(runner: Runner, guest: str) -> "np.ndarray[Any, Any]":
    """What is pinned of a guest's pages: the hypervisor's own table, which outlives the guest as long as it is looked at."""
    return np.memmap(f"/dev/shm/xbl.{os.getuid()}.{runner.lab.name}.{guest}.active", np.uint64, "r")


async def pinned(table: "np.ndarray[Any, Any]", expected: int) -> bool:
    return int(np.count_nonzero(table)) == expected


async def vif_counts(runner: Runner, row: str) -> dict[str, int]:
    counts: dict[str, int] = (await runner.lab.counters()).read()[f"dom0/{row}"]
    return counts


async def stream(runner: Runner, sender: str, receiver: str, frame: int = 64) -> dict[str, Any]:
    """A stream that must arrive whole; its ledger."""
    record = await runner.run(workload("stream", sender, receiver, frame, frames=FRAMES))
    check(record)
    assert (record["frames"], record["checksummed"]) == (FRAMES, 1.0), record
    per_frame: dict[str, Any] = record["per_frame"]
    return per_frame


# --- the topology file, the nodes ------------------------------------------------------------------------------------


def test_the_key_is_for_split_guests(tmp_path: Path) -> None:
    guests = topology(tmp_path, "key", LAB)["guest"]
    assert [guest["grants"] for guest in guests] == ["persistent", "persistent", "copy", "copy"]
    for path in ("bypass", "native", "trapped"):
        text = f'[[guest]]\nname = "carl"\npath = "{path}"\ngrants = "map"\n'
        with pytest.raises(TopologyError, match=rf"guest\[0\]\.grants: .*guest 'carl' is '{path}'"):
            topology(tmp_path, "key", text)
        topology(tmp_path, "key", text.replace("map", "copy"))
    for key, words in (
        ('grants = "mapp"', r"guest\[0\]\.grants: 'mapp' is none of copy, map, persistent \(did you mean 'map'\?\)"),
        ("grants = 1", r"guest\[0\]\.grants: "),
        ("persistent_grants = true", r'guest\[0\]\.persistent_grants: is not a key any more: true is grants = "persistent" now'),
    ):
        with pytest.raises(TopologyError, match=words):
            topology(tmp_path, "key", f'[[guest]]\nname = "carl"\npath = "split"\n{key}\n')


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_no_hypercall_and_as_many_copies_as_without(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "persist", LAB) as runner:
            for sender, receiver in WAYS:
                for frame in (64, 1514):
                    cost = await stream(runner, sender, receiver, frame)
                    assert cost["hypercalls"] < STRAY
                    assert (cost["copies"], cost["dom0_frames"]) == pytest.approx((2, 1), abs=STRAY)
            for sender, receiver in ((PLAIN, "wire"), ("wire", PLAIN)):
                cost = await stream(runner, sender, receiver)
                assert cost["hypercalls"] > 5 * STRAY
                assert (cost["copies"], cost["dom0_frames"]) == pytest.approx((2, 1), abs=STRAY)
            tables = {name: active_table(runner, name) for name in ("anna", "bert", PLAIN)}
            held = {name: int(np.count_nonzero(table)) for name, table in tables.items()}
            assert held == {"anna": KEPT, "bert": KEPT, PLAIN: RINGS}

    run(main())


def test_mapped_pages_are_mapped_and_unmapped_for_each_frame_sent(tmp_path: Path) -> None:
    """A map and an unmap each, two hypercalls and a flush a batch, to send; grant copies to receive; nothing stays mapped."""

    async def main() -> None:
        text = f'[nic]\npause_us = 1_000_000\n[[guest]]\nname = "anna"\n{MAPPED}[[guest]]\nname = "bert"\n{MAPPED}'
        async with running(tmp_path, "mapped", text) as runner:
            for sender, receiver in WAYS:
                await stream(runner, sender, receiver)
                record = await runner.run(workload("stream", sender, receiver, 1514, frames=FRAMES))
                check(record)
                cost = Counter(record["operations"]["dom0"])
                sends, receives = int(sender != "wire"), int(receiver != "wire")
                assert cost["grant_map_ns"] == cost["grant_unmap_ns"] == pytest.approx(sends, abs=STRAY)
                assert cost["grant_copy_ns"] == pytest.approx(receives, abs=STRAY)
                assert record["per_frame"]["copies"] == pytest.approx(2, abs=STRAY)
                copying = cost["hypercall_ns"] - 2 * cost["grant_flush_ns"]  # hypercalls: a batch is mapped by one, unmapped by one
                assert (cost["grant_flush_ns"] > STRAY) == sends
                assert (copying > STRAY) == receives
                assert cost["grant_flush_ns"] + copying < 0.5
            assert [int(np.count_nonzero(active_table(runner, name))) for name in ("anna", "bert")] == [RINGS, RINGS]

    run(main())


def test_guests_with_and_without_reach_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "persistmix", LAB) as runner:
            for one, other in (("anna", PLAIN), (PLAIN, "anna"), ("anna", "dora"), ("dora", "anna")):
                await stream(runner, one, other, 1514)
                check(await runner.run(workload("rr", one, other, frames=200)))

    run(main())


@pytest.mark.long
@pytest.mark.parametrize("settings", ['[memory]\nbacking = "sealed"\n', "[model]\nprice = { grant_map_ns = 20_000 }\n"])
def test_other_settings(tmp_path: Path, settings: str) -> None:
    async def main() -> None:
        async with running(tmp_path, "persistset", settings + LAB) as runner:
            for one, other in WAYS:
                await stream(runner, one, other, 200)

    run(main())


# --- hostile and dying front ends ------------------------------------------------------------------------------------


@asynccontextmanager
async def hostile_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **more: Any) -> AsyncIterator[Runner]:
    """LAB with a hostile front end in bert, domain 2."""

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(topology)
        bert = next(process for process in processes if process["name"] == "bert")
        bert["module"], bert["config"] = "tests.support.hostile_netfront", {**bert["config"], **more}
        return processes

    monkeypatch.setattr(lab_module, "plan", plan)
    monkeypatch.setattr(lab_module, "MODULES", [*MODULES, "tests.support.hostile_netfront"])
    async with running(tmp_path, name, LAB) as runner:
        yield runner


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"answer": "2"}, "the back end refuses"),
        ({"deaf": True}, "it has no control ring .feature-ctrl-ring."),
        ({"revoked": True}, "the back end answered control request 9 of io/netif.h with status 2"),
    ],
)
def test_a_front_end_that_is_refused_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], why: str
) -> None:
    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, "persistodd", **how):
            pass

    with pytest.raises(LabError, match=rf"bert could not start: .*backend/vif/2/0/state: {why}"):
        run(main())


BAD = [2048, 2049, 1 << 31, (1 << 32) - 1, (1 << 32) - 8, 3]  # beyond the table, or never granted


def test_bad_references_cost_their_guest_those_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is mapped already. What its grants say now is of no account for that."""

    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, "persistbad") as runner:
            lab, table = runner.lab, active_table(runner, "bert")
            await lab.call("bert", "repost", first=0, grefs=BAD)
            record = await runner.run(workload("stream", "anna", "bert", frames=FRAMES))
            assert [error.rpartition(" ")[0] for error in record["errors"]] == ["dom0/vif2:bert: faults_grant"]
            assert 0 < record["lost"] == sum(record["drops"].values()) <= len(BAD)  # the first may be an announcement's
            assert record["corrupt"] == record["duplicated"] == 0
            await stream(runner, "anna", "bert")  # a slot that is posted again has a good reference
            assert (await stream(runner, "anna", "wire"))["hypercalls"] < STRAY
            row = await vif_counts(runner, "vif2:bert")
            assert row["faults_grant"] == row["drop_bad_address"] == len(BAD)
            assert await pinned(table, KEPT)
            others = await vif_counts(runner, "vif1:anna")
            assert others["faults_grant"] == others["drop_bad_address"] == 0

    run(main())


def test_an_entry_rewritten_in_use_changes_nothing_that_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, "persistscr") as runner:
            for _ in range(2):
                for sender, receiver in (("bert", "wire"), ("anna", "bert")):
                    cost = await stream(runner, sender, receiver)
                await runner.lab.call("bert", "scramble", seed=1)
            assert cost["hypercalls"] < STRAY
            table = active_table(runner, "bert")
            assert await pinned(table, KEPT)
            await runner.lab.call("bert", "close")
            assert await pinned(table, 0)
            await stream(runner, "anna", "wire")

    run(main())


@pytest.mark.long
def test_a_vif_out_of_service_lets_go_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, "persistfail") as runner:
            table = active_table(runner, "bert")
            assert await pinned(table, KEPT)
            await runner.lab.call("bert", "overrun")
            await stream(runner, "anna", "wire")  # Dom0 looks at bert's ring
            await until(partial(pinned, table, 0), "the failed vif's pages to be unpinned, and its rings")
            assert (await vif_counts(runner, "vif2:bert"))["faults_protocol"] == 1
            await stream(runner, "wire", "anna")

    run(main())


def test_a_killed_guest_leaves_nothing_pinned(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "persistkill", LAB) as runner:
            lab, wire = runner.lab, str(runner.lab.topology["nic"]["wire"]["mac"])
            await stream(runner, "anna", "bert")
            table = active_table(runner, "bert")
            dying = asyncio.create_task(lab.call("bert", "send_stream", mac=wire, frame=1514, stream=903, seconds=600.0))
            counters = await lab.counters()

            async def sending() -> bool:
                return counters.read()["dom0/vif2:bert"]["tx_frames"] > 10 * TX_SLOTS

            await until(sending, "bert to have sent from all its pages")
            assert await pinned(table, KEPT)
            os.kill(runner.pids["bert"], signal.SIGKILL)
            with pytest.raises(Exception, match="is gone"):
                await dying
            await until(partial(pinned, table, 0), "the dead guest's pages to be unpinned")
            for sender, receiver in (("anna", "wire"), ("wire", PLAIN)):
                await stream(runner, sender, receiver)

    run(main())
