"""What one guest does with its own rings and memory is no other guest's affair: Dom0. Bystanders exchange verified traffic."""

import asyncio
from pathlib import Path

import pytest

from domu.frontends.split import RX_REF
from hyp.abi.grant import GTF_PERMIT_ACCESS
from tests.attacks import harm, trial
from tests.support.driven_labs import DRIVEN, Bert, driven_lab
from tests.support.labs import run, until, workload
from tests.support.patience import effort

pytestmark = pytest.mark.usefixtures("warm")

PAUSE_S = 0.1
LAB = f"[nic]\npause_us = {PAUSE_S * 1e6:.0f}\n[dom0]\nageing_s = 86400\n" + "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\n'
    for name, path in (("anna", "split"), (DRIVEN, "split"), ("carl", "bypass"), ("dora", "bypass"))
)


def test_who_drips_buffers_holds_up_nobody_behind_the_uplink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "drips", text=LAB) as bert:
            await bert.connect()
            await bert.runner.prepare(workload("stream", "carl", "anna"))
            dripping = asyncio.create_task(drip(bert))
            flood = {"mac": bert.macs[DRIVEN], "frame": 64, "stream": 300, "seconds": 3600.0}
            flooding = asyncio.create_task(bert.lab.call("dora", "send_stream", **flood))
            counters = await bert.runner.lab.counters()

            async def held_up() -> bool:
                return counters.read()["dom0/uplink"]["pauses"] >= 3

            await until(held_up, "the uplink waits for who drips")
            # At the pace of who drips it would take minutes: Dom0 takes in 64 frames at a time, and half of them are his
            await arrives_whole(bert, "carl", "anna", 301, 20_000)
            dripping.cancel()
            await bert.lab.call("dora", "end_job")
            assert (await flooding)["sent"] > 1000

    run(main())


def test_who_polls_its_upcall_many_times_over_is_told_seldom() -> None:
    async def main() -> None:
        goes_on, dear = effort(0.0), 0
        async with trial("split", ["duplicate polls"]) as one:
            while goes_on(dear > 0):
                assert await harm(one, "duplicate polls") == []
                dear = sum(counts["notify_ns"] for row, counts in one._reader.read().items() if row.startswith("dom0/vif"))
        assert dear > 0, "no notification was dear"

    run(main())


async def arrives_whole(bert: Bert, sender: str, receiver: str, stream: int, frames: int) -> None:
    """A stream between bystanders, whatever else is going on."""
    await bert.lab.call(sender, "send_stream", mac=bert.macs[receiver], frame=64, stream=stream, frames=frames)

    async def there() -> bool:
        report = await bert.lab.call(receiver, "received", stream=stream)
        assert (report["lost"], report["corrupt"], report["duplicated"]) == (0, 0, 0)
        return bool(report["frames"] == frames)

    await until(there, "the bystanders' frames")


async def drip(bert: Bert) -> None:
    """A buffer, a frame, and then nothing for a bit less than a sender waits."""
    while True:
        await bert.call("post", entries=[[RX_REF, GTF_PERMIT_ACCESS, 0, bert._pools["rx"]]], requests=[[0, RX_REF]])
        await bert.call("received", count=1, frames=[[bert._pools["rx"], bert.macs["dora"], 64, 300, 0]])
        await asyncio.sleep(0.75 * PAUSE_S)  # not for anything: this is the attack
