"""A running guest moves from split to bypass and back: nothing is lost or seen twice, whoever sends to it and whatever it sends."""

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyp.abi.grant import GRANT_ENTRY
from hyp.control import ControlError, Refused
from lab import move
from tests.support.labs import GUESTS, launch, run, staying_up, topology_file, unique
from tests.support.streams import all_of, arrived, kill, lab_of, macs, received
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

PATIENT = "[nic]\nengines = {engines}\npause_us = 1000000\n"
"""The machine may be busy with other tests: a receiver that gets no CPU for a while is to cost nobody a frame."""


@pytest.mark.parametrize("engines", tiered([1, 2], [2]))
@pytest.mark.parametrize(("guest", "paths"), [("anna", ("bypass", "split", "bypass")), ("carl", ("split", "bypass", "split"))])
def test_streams_to_and_from_a_guest_that_moves_arrive_whole(
    tmp_path: Path, engines: int, guest: str, paths: tuple[str, ...]
) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "moves", PATIENT.format(engines=engines) + GUESTS) as lab:
            mac = macs(lab)
            others = [name for name in ("anna", "bert", "carl", "dora") if name != guest]
            ends = [(others[0], guest), (others[1], guest), (guest, others[2]), (others[2], others[0])]
            jobs = [
                asyncio.ensure_future(lab.call(one, "send_stream", mac=mac[other], frame=200, stream=k, frames=1 << 40))
                for k, (one, other) in enumerate(ends)
            ]
            for path in paths:
                before = [await arrived(lab, other, k) for k, (_, other) in enumerate(ends)]
                await lab.move(guest, path)
                for k, ((_, other), frames) in enumerate(zip(ends, before, strict=True)):
                    await arrived(lab, other, k, frames)
            for k, ((one, other), job) in enumerate(zip(ends, jobs, strict=True)):
                await lab.call(one, "end_job")
                report = await all_of(lab, other, k, sent := (await job)["sent"])
                counts = report["lost"], report["duplicated"], report["corrupt"], report["frames"]
                assert counts == (0, 0, 0, sent), (one, other, report)
            assert (await lab.keeper("status")).value["guests"][ord(guest[0]) - ord("a")]["path"] == paths[-1]

    run(main())


def test_a_guest_that_has_moved_outlives_nic_and_dom0_on_its_new_path(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "moved-on", PATIENT.format(engines=1) + GUESTS) as lab:
            mac = macs(lab)
            await lab.move("anna", "bypass")
            await lab.move("carl", "split")
            stream: dict[str, Any] = {"frame": 200, "stream": 1, "frames": 1 << 40, "pps": 5000}
            job = asyncio.ensure_future(lab.call("carl", "send_stream", mac=mac["anna"], **stream))
            for daemon in ("nic", "dom0", "nic"):
                before = await arrived(lab, "anna", 1)
                await kill(lab, daemon)
                await arrived(lab, "anna", 1, before)
            await lab.call("carl", "end_job")
            report = await all_of(lab, "anna", 1, (await job)["sent"])
            assert (report["lost"], report["corrupt"]) == (0, 0)

    run(main())


def test_moving_to_and_fro_uses_up_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        small = GUESTS.replace('name = "anna"', 'name = "anna"\nmemory = "5 MiB"')
        async with lab_of(tmp_path, "to-and-fro", PATIENT.format(engines=1) + small) as lab:
            for _ in range(6):  # its memory would do for two of its devices of either kind
                await lab.move("anna", "bypass")
                await lab.move("anna", "split")
            mac = macs(lab)
            await lab.call("dora", "send_stream", mac=mac["anna"], frame=64, stream=2, frames=100)
            await all_of(lab, "anna", 2, 100)
            assert await lab.call("hyp", "registrations", name="anna") == 0

    run(main())


def test_a_vif_that_is_given_back_leaves_no_page_granted(tmp_path: Path) -> None:
    """Of any queue, and of pools that were mapped for good: they are other devices' memory from then on."""

    async def main() -> None:
        more = 'queues = 2\ngrants = "persistent"\nmemory = "32 MiB"\n'
        text = PATIENT.format(engines=2) + GUESTS.replace('name = "anna"\n', f'name = "anna"\n{more}')
        async with lab_of(tmp_path, "given-back", text) as lab:
            shared = f"/dev/shm/xbl.{os.getuid()}.{lab.name}.anna"
            granted, pinned = np.memmap(f"{shared}.gnttab", GRANT_ENTRY, "r"), np.memmap(f"{shared}.active", np.uint64, "r")
            mac = macs(lab)
            for k in range(2):
                assert np.count_nonzero(granted["flags"]) == 2 * 514 + 2
                assert np.count_nonzero(pinned) == 2 * 514 + 1
                await lab.move("anna", "bypass")
                assert not granted["flags"].any()
                assert not pinned.any()
                await lab.move("anna", "split")
                await lab.call("dora", "send_stream", mac=mac["anna"], frame=64, stream=k, frames=100)
                await all_of(lab, "anna", k, 100)

    run(main())


@pytest.mark.parametrize(
    ("guest", "path", "why"),
    [
        ("anna", "split", "is on path split"),
        ("anna", "trapped", "between split and bypass only"),
        ("emil", "bypass", "between split and bypass only"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path, guest: str, path: str, why: str) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "refused", GUESTS + '[[guest]]\nname = "emil"\npath = "trapped"\n') as lab:
            with pytest.raises(Refused, match=why):
                await lab.move(guest, path)
            mac = macs(lab)
            await lab.call("dora", "send_stream", mac=mac[guest], frame=64, stream=2, frames=100)
            await all_of(lab, guest, 2, 100)

    run(main())


def test_a_device_that_cannot_be_connected_leaves_the_guest_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        text = '[[guest]]\nname = "tiny"\npath = "split"\nmemory = "4 MiB"\n' + GUESTS
        async with lab_of(tmp_path, "too-small", "[nic]\nqueue = 1024\n" + text) as lab:  # its RAM has no room for a second device
            mac = macs(lab)
            for _ in range(2):  # the first is undone, or the second would be refused for another reason
                with pytest.raises(Refused, match="do not fit"):
                    await lab.move("tiny", "bypass")
            await lab.call("dora", "send_stream", mac=mac["tiny"], frame=64, stream=2, frames=100)
            await all_of(lab, "tiny", 2, 100)

    run(main())


@pytest.mark.parametrize("aborted", [False, True])
def test_a_guest_that_keeps_the_device_that_it_is_to_give_back_has_it_no_more(tmp_path: Path, aborted: bool) -> None:
    """Of a path to which it has not come, or from which it has gone."""

    async def main() -> None:
        async with lab_of(tmp_path, "keeps", PATIENT.format(engines=1) + GUESTS) as lab:
            guest, domid, path = ("anna", 1, "bypass") if aborted else ("carl", 3, "split")
            doorbells = Path("/dev/shm").glob

            def contexts() -> int:
                return len(list(doorbells(f"xbl.{os.getuid()}.{lab.name}.{guest}.doorbell*")))

            await lab.call("dom0", "move_begin", domid=domid, path=path)
            await lab.call(guest, "move_connect", path=path)
            assert contexts() == 1
            if aborted:
                await lab.call("dom0", "move_abort", domid=domid)
            else:
                await lab.call("dom0", "move_switch", domid=domid)
                await lab.call(guest, "move_receive")
                await lab.call("dom0", "move_settle", domid=domid)
                await lab.call(guest, "move_send")
                await lab.call("dom0", "move_end", domid=domid)
            assert contexts() == 0
            mac = macs(lab)
            await lab.call("dora", "send_stream", mac=mac[guest], frame=64, stream=2, frames=100)
            await all_of(lab, guest, 2, 100)

    run(main())


@pytest.mark.parametrize("step", ["move_connect", "move_receive", "move_send", "move_close"])
def test_a_guest_that_does_not_do_its_part_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Before the switch it stays where it was; after it the old device is taken from it all the same."""

    async def main() -> None:
        async with lab_of(tmp_path, "silent", PATIENT.format(engines=1) + GUESTS) as lab:
            honest = lab.call

            async def call(process: str, op: str, /, **args: Any) -> Any:
                if op == step:
                    await asyncio.Event().wait()  # no answer
                return await honest(process, op, **args)

            monkeypatch.setattr(lab, "call", call)
            monkeypatch.setattr(move, "GUEST_S", 0.1)
            with pytest.raises(ControlError, match=f"carl has not answered {step}") as refused:
                await lab.move("carl", "split")
            moved = isinstance(refused.value, move.Moved)
            assert moved == (step != "move_connect")
            guests = (await lab.keeper("status")).value["guests"]
            assert next(one["path"] for one in guests if one["name"] == "carl") == ("split" if moved else "bypass")
            assert list(Path("/dev/shm").glob(f"xbl.{os.getuid()}.{lab.name}.carl.doorbell*")) == [] or not moved
            monkeypatch.setattr(move, "GUEST_S", 30.0)
            monkeypatch.setattr(lab, "call", honest)
            with pytest.raises(Refused, match="is on path split") if moved else contextlib.nullcontext():
                await lab.move("carl", "split")  # not on its way any more

    run(main())


def test_a_guest_that_has_given_up_its_new_device_stays_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "givesup", PATIENT.format(engines=1) + GUESTS) as lab:
            for guest, domid, path, back in (("anna", 1, "bypass", "split"), ("carl", 3, "split", "bypass")):
                await lab.call("dom0", "move_begin", domid=domid, path=path)
                await lab.call(guest, "move_connect", path=path)
                await lab.call(guest, "move_abort")
                with pytest.raises(Refused) as refused:
                    await lab.call("dom0", "move_switch", domid=domid)
                assert refused.value.name == "ENODEV"
                await lab.call("dom0", "move_abort", domid=domid)
                mac = macs(lab)
                await lab.call("dora", "send_stream", mac=mac[guest], frame=64, stream=2 * domid, frames=100)
                await all_of(lab, guest, 2 * domid, 100)
                assert lab.topology["guest"][domid - 1]["path"] == back

    run(main())


@pytest.mark.long
@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize(("guest", "domid", "path"), [("bert", 2, "bypass"), ("dora", 4, "split")])
def test_who_dies_on_its_way_begins_again_where_it_came_from_and_can_move(
    tmp_path: Path, guest: str, domid: int, path: str, switched: bool
) -> None:
    async def main() -> None:
        text = GUESTS.replace(f'name = "{guest}"', f'name = "{guest}"\nrestart = true')
        async with lab_of(tmp_path, "on-its-way", PATIENT.format(engines=1) + text) as lab:
            await lab.call("dom0", "move_begin", domid=domid, path=path)
            await lab.call(guest, "move_connect", path=path)
            if switched:
                await lab.call("dom0", "move_switch", domid=domid)
            await kill(lab, guest)
            mac = macs(lab)
            for stream in (0, 2):
                for k, sender in enumerate(("anna", "carl"), stream):
                    await lab.call(sender, "send_stream", mac=mac[guest], frame=200, stream=k, frames=100)
                    await all_of(lab, guest, k, 100)
                if stream == 0:
                    await lab.move(guest, path)

    run(main())


def test_the_command_says_how_long_it_took(tmp_path: Path) -> None:
    which = "--topology", unique("by-command")
    with staying_up(topology_file(tmp_path, "by-command", GUESTS)):
        moved = launch("move", "anna", "--path", "bypass", *which)
        assert moved.returncode == 0, moved.stderr
        assert moved.stdout.startswith("anna is on bypass; it sent nothing for ")
        found = {one["name"]: one for one in json.loads(launch("status", "--json").stdout)}[unique("by-command")]
        assert found["guests"][0]["path"] == "bypass"
        assert "anna stays where it is" in launch("move", "anna", "--path", "bypass", *which).stderr
        assert "has no guest 'nobody'" in launch("move", "nobody", "--path", "bypass", *which).stderr


def test_a_guest_is_started_again_and_has_what_it_had(tmp_path: Path) -> None:
    async def main() -> None:
        text = GUESTS.replace('name = "bert"', 'name = "bert"\nrestart = true').replace(
            'name = "dora"', 'name = "dora"\nrestart = true'
        )
        async with lab_of(tmp_path, "guests-again", PATIENT.format(engines=1) + text) as lab:
            mac = macs(lab)
            stream: dict[str, Any] = {"frame": 200, "frames": 1 << 40, "pps": 5000}
            job = asyncio.ensure_future(lab.call("anna", "send_stream", mac=mac["carl"], stream=1, **stream))
            for guest in ("bert", "dora", "bert"):
                await kill(lab, guest)
                await lab.call("carl", "send_stream", mac=mac[guest], frame=64, stream=3, frames=50)
                await all_of(lab, guest, 3, 50)
                await lab.call(guest, "send_stream", mac=mac["anna"], frame=64, stream=4, frames=50)
                await arrived(lab, "anna", 4)
            await lab.call("anna", "end_job")
            report = await all_of(lab, "carl", 1, (await job)["sent"])
            assert (report["lost"], report["duplicated"]) == (0, 0)
            assert (await received(lab, "carl", 1))["corrupt"] == 0

    run(main())
