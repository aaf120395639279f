"""A split device that the toolstack makes anew under its running program, in a living Dom0: the program doesn't notice."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from dom0.toolstack.libxl import renew_vif
from domu.frontends.split_state import TX_SLOTS
from hyp.control import Refused
from hyp.xenstore.client import XenstoreError
from lab.owner import Lab
from tests.support.labs import run, until
from tests.support.streams import Stream, lab_of, macs, store_of
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

LAB = """
[nic]
pause_us = 1_000_000
mtu = 4000
[dom0]
max_queues = 2
[[guest]]
name = "anna"
path = "split"
{more}
[[guest]]
name = "bert"
path = "split"
{more}
[[guest]]
name = "carl"
path = "bypass"
"""


MOST = 40
"""Times that a vif is made anew before something was under way."""


async def resent(lab: Lab) -> int:
    """Frames that anna has sent again."""
    found = (await lab.counters()).read()
    return sum(row["resent"] for name, row in found.items() if name.startswith("anna/device"))


@pytest.mark.parametrize(
    "case",
    tiered(
        [('grants = "copy"', 64), ('grants = "map"', 1500), ('grants = "persistent"', 64), ("queues = 2", 64), ("", 30_000)],
        [('grants = "copy"', 64)],
    ),
)
def test_streams_go_on(tmp_path: Path, case: tuple[str, int]) -> None:
    """Nothing that its guest sends is lost; what is for it while nobody serves it is counted."""
    times, (more, frame) = 4, case

    async def main() -> None:
        async with lab_of(tmp_path, "anew", LAB.format(more=more)) as lab, store_of(lab) as store:
            sends = await Stream(lab, "anna", "carl", 1).start(frame)
            receives = await Stream(lab, "carl", "anna", 2).start(min(frame, 1500), 50_000)
            renewed = 0
            while renewed < times or (await resent(lab) == 0 and renewed < MOST):  # nothing may be under way just then
                await renew_vif(store, 1, 0, macs(lab)["anna"])
                renewed += 1
                for stream in (sends, receives):
                    await stream.goes_on()
            sent, report = await sends.end()
            assert (report["lost"], report["corrupt"], report["frames"]) == (0, 0, sent), report
            assert report["duplicated"] <= renewed * TX_SLOTS * 21, report
            report = await receives.report()
            found = (await lab.counters()).read()
            dropped = sum(n for row in found.values() for name, n in row.items() if name.startswith("drop_"))
            dropped += found["nic/wire0"]["rx_frames"]  # whom nobody knows is looked for outside
            assert (report["corrupt"], report["duplicated"]) == (0, 0)
            assert report["lost"] <= dropped
            assert await resent(lab) > 0

    run(main())


def test_a_program_that_does_not_run_its_loop_yet_or_sleeps(tmp_path: Path) -> None:
    """A guest that has nothing to do reconnects all the same, and is reached afterwards."""

    async def main() -> None:
        async with lab_of(tmp_path, "asleep", LAB.format(more="")) as lab, store_of(lab) as store:
            for _ in range(3):
                await renew_vif(store, 1, 0, macs(lab)["anna"])

                async def connected() -> bool:
                    ends = ("/local/domain/1/device/vif/0", "/local/domain/0/backend/vif/1/0")
                    return [await store.read(f"{end}/state") for end in ends] == ["4", "4"]

                await until(connected, "both ends to be connected again")
            stream = await Stream(lab, "carl", "anna", 1).start(64, 1000)
            sent, report = await stream.end()
            assert (report["frames"], report["lost"]) == (sent, 0)
            mapped = Path(f"/proc/{(await lab.pids())['dom0']}/maps").read_text()
            assert mapped.count(".anna.ram") == 1, "Dom0 maps a guest's RAM once, as often as its device is made"

    run(main())


def test_a_device_that_lacks_what_was_agreed_on_is_lost(tmp_path: Path) -> None:
    """The back end that is there now takes fewer queues: the sender is told, and does not hang."""

    async def main() -> None:
        async with lab_of(tmp_path, "fewer", LAB.format(more="queues = 2")) as lab, store_of(lab) as store:
            stream = await Stream(lab, "anna", "carl", 1).start(64, 1000)
            back = "/local/domain/0/backend/vif/1/0"
            job = stream.job()

            async def made_worse() -> None:
                """Somebody takes the node away before the guest has read it, sooner or later."""
                node = f"{back}/multi-queue-max-queues"
                async for _ in await store.watch(node, "worse"):
                    with suppress(XenstoreError):  # it is not there just now
                        if await store.read(node) != "1":
                            await store.write(node, "1")

            worse = asyncio.ensure_future(made_worse())
            while not job.done():
                await renew_vif(store, 1, 0, macs(lab)["anna"])
                await asyncio.wait({job}, timeout=0.2)
            worse.cancel()
            with pytest.raises(Refused, match="device has failed"):
                await job

    run(main())
