"""Dom0 is killed, and started again: what split guests send arrives, their programs notice nothing, and bypass goes on."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from dom0.state import STAGE
from domu.frontends.split_state import TX_SLOTS
from hyp.control import Refused
from hyp.load.tcp import unit_for
from hyp.xenstore.client import XenstoreError
from lab.owner import Lab
from lab.stopping import stop
from tests.support.labs import a_moment, run, until
from tests.support.streams import ENDLESS, Stream, kill, lab_of, macs, store_of
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

MTU = 4000
LAB = f"""
[nic]
pause_us = 1_000_000
mtu = {MTU}
[dom0]
max_queues = 2
[[guest]]
name = "anna"
path = "split"
{{more}}
[[guest]]
name = "bert"
path = "split"
{{more}}
[[guest]]
name = "carl"
path = "bypass"
[[guest]]
name = "dora"
path = "bypass"
"""
PAIRS = (("anna", "bert"), ("bert", "carl"), ("carl", "dora"))
PPS = 50_000


async def counts(lab: Lab) -> dict[str, dict[str, int]]:
    return (await lab.counters()).read()


async def started(lab: Lab, frame: int, pps: int = 0) -> list[Stream]:
    return [await Stream(lab, *ends, number).start(frame, pps) for number, ends in enumerate(PAIRS, 1)]


async def all_there(streams: list[Stream], kills: int, frame: int) -> None:
    """End them: nothing is lost, and no more is there twice than the rings had slots for; of bypass nothing is."""
    pieces = -(-frame // unit_for(MTU)) if frame > MTU + 14 else 1
    for stream in streams:
        sent, report = await stream.end()
        assert (report["lost"], report["corrupt"], report["frames"]) == (0, 0, sent), (stream.sender, report)
        assert report["duplicated"] <= (0 if stream.sender == "carl" else kills * TX_SLOTS * pieces), (stream.sender, report)


@pytest.mark.parametrize(
    "case",
    tiered(
        [
            ('grants = "copy"', 64), ('grants = "map"', 1500), ('grants = "persistent"', 1500), ("queues = 2", 64),
            ("", MTU), ("", 30_000), ("offloads = []", 9000), ('rate = "80Mb/s"', 200),
            ('queues = 2\ngrants = "persistent"', 30_000),
        ],
        [('queues = 2\ngrants = "persistent"', 30_000)],
    ),
)  # fmt: skip
def test_nothing_of_a_guests_is_lost(tmp_path: Path, case: tuple[str, int]) -> None:
    """Streams at full speed, over several deaths at moments that the seed says. What was sent again is counted."""
    kills, (more, frame) = 4, case
    rng = random.Random(seed := frame)
    print("seed", seed)

    async def main() -> None:
        async with lab_of(tmp_path, "dom0-dies", LAB.format(more=more)) as lab:
            streams = await started(lab, frame)
            for _ in range(kills):
                await a_moment(rng)
                await kill(lab, "dom0")
                for stream in streams:
                    await stream.goes_on()
            await all_there(streams, kills, frame)
            found = await counts(lab)
            again = sum(found[row]["resent"] for row in found if row.startswith(("anna/device", "bert/device")))
            assert 0 < again <= 2 * kills * TX_SLOTS
            assert [row for row in found if any(n for name, n in found[row].items() if name.startswith("faults_"))] == []

    run(main())


def test_what_is_lost_of_the_wires_is_counted(tmp_path: Path) -> None:
    """By the NIC, as long as nobody has the address; of Dom0, what the NIC had given it and it had not taken."""
    kills = 3

    async def main() -> None:
        async with lab_of(tmp_path, "from-the-wire", LAB.format(more="")) as lab:
            stream = await Stream(lab, "wire", "anna", 1).start(200, PPS)
            for _ in range(kills):
                await kill(lab, "dom0")
                await stream.goes_on()
            report, found = await stream.report(), await counts(lab)
            named = found["dom0/uplink"]["lost"] + sum(
                n for row in found if row.startswith("nic/") for name, n in found[row].items() if name.startswith("drop_")
            )
            assert (report["corrupt"], report["duplicated"]) == (0, 0)
            assert 0 < report["lost"] <= named + kills * STAGE  # what it had in its hands in the turn in which it died
            assert report["lost"] >= named - kills * STAGE

    run(main())


@pytest.mark.long
def test_it_dies_again_while_front_ends_reconnect(tmp_path: Path) -> None:
    rng = random.Random(seed := 7)
    print("seed", seed)

    async def main() -> None:
        async with lab_of(tmp_path, "again", LAB.format(more="")) as lab, store_of(lab) as store:
            streams = await started(lab, 64, PPS)
            for _ in range(2):
                watch = await store.watch("/local/domain/0/backend/vif", "again")
                await anext(watch)  # as it is
                os.kill((await lab.pids())["dom0"], signal.SIGKILL)
                for _ in range(rng.randrange(1, 20)):  # the next one has made so many nodes
                    await anext(watch)
                await store.unwatch("/local/domain/0/backend/vif", "again")
                await kill(lab, "dom0")
                for stream in streams:
                    await stream.goes_on()
            await all_there(streams, 4, 64)

    run(main())


def test_a_guest_dies_meanwhile(tmp_path: Path) -> None:
    """It is cleared away by the next Dom0, and nobody waits for it longer than is said."""

    async def main() -> None:
        async with lab_of(tmp_path, "meanwhile", LAB.format(more="")) as lab, store_of(lab) as store:
            stream = await Stream(lab, "anna", "carl", 1).start(64, PPS)
            pids = await lab.pids()
            await stop(pids["dom0"])
            os.kill(pids["bert"], signal.SIGKILL)
            os.kill(pids["dom0"], signal.SIGKILL)
            await lab.restarted("dom0")
            await stream.goes_on()

            async def cleared() -> bool:
                try:
                    return "2" not in await store.directory("/local/domain/0/backend/vif")
                except XenstoreError as error:
                    return error.name == "ENOENT"

            await until(cleared, "the dead guest's nodes to be gone")
            await all_there([stream], 1, 64)

    run(main())


@pytest.mark.long
def test_it_stands_still_for_a_while(tmp_path: Path) -> None:
    """Bypass goes on; the others do as soon as it does, and nothing is lost, nor sent again."""

    async def main() -> None:
        async with lab_of(tmp_path, "still", LAB.format(more="")) as lab:
            streams = await started(lab, 1500, 5000)
            pid = (await lab.pids())["dom0"]
            await stop(pid)
            await streams[2].goes_on(5000)
            before = [(await stream.report())["frames"] for stream in streams[:2]]
            await streams[2].goes_on(500)
            assert [(await stream.report())["frames"] for stream in streams[:2]] == before
            os.kill(pid, signal.SIGCONT)
            for stream in streams:
                await stream.goes_on()
            await all_there(streams, 0, 1500)

    run(main())


@pytest.mark.long
def test_nobody_hangs_where_there_is_no_next_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "no-next-one", "[supervisor]\nrestart = false\n" + LAB.format(more="")) as lab:
            mac = macs(lab)
            job = asyncio.ensure_future(lab.call("anna", "send_stream", mac=mac["bert"], frame=64, stream=1, frames=ENDLESS))
            stream = await Stream(lab, "carl", "dora", 2).start(64)
            os.kill((await lab.pids())["dom0"], signal.SIGKILL)
            with pytest.raises(Refused, match="device has failed"):
                await job
            await stream.goes_on()
            await all_there([stream], 0, 64)

    run(main())
