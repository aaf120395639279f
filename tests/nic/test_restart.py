"""The NIC is killed, and started again: no frame of anybody's is lost, on any path, and no driver has to do anything."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from hyp.abi.frame import HEADER_ONLY
from hyp.control import Refused
from lab.owner import Lab
from lab.stopping import stop
from tests.support.labs import GUESTS, a_moment, run, topology
from tests.support.patience import patient
from tests.support.streams import all_of, arrived, kill, lab_of, macs, received
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")
RESTARTS = 3
LIMIT = f"[supervisor]\nrestarts = {RESTARTS}\nwithin_s = 3600.0\n"
"""However slow the machine."""

EVERY_PATH = "".join(
    f'[[guest]]\nname = "{path}{k}"\npath = "{path}"\n'
    for path in ("native", "bypass", "cdna", "split", "trapped")
    for k in range(2)
)
PATIENT = "[nic]\nengines = {engines}\npause_us = 1000000\nmtu = 4000\n"
"""The machine may be busy with other tests: a receiver that gets no CPU for a while is to cost nobody a frame."""


@pytest.mark.parametrize("engines", tiered([1, 2], [2]))
@pytest.mark.parametrize("frame", tiered([64, 1500], [1500]))
def test_nothing_is_lost_on_any_path(tmp_path: Path, engines: int, frame: int) -> None:
    rng = random.Random(seed := 64 * engines + frame)
    print("seed", seed)

    async def main() -> None:
        async with lab_of(tmp_path, "nic-dies", PATIENT.format(engines=engines) + EVERY_PATH) as lab:
            mac = macs(lab)
            pairs = [(f"{path}0", f"{path}1") for path in ("native", "bypass", "cdna", "split", "trapped")]
            jobs = {
                pair: asyncio.ensure_future(
                    lab.call(pair[0], "send_stream", mac=mac[pair[1]], frame=frame, stream=k, frames=1 << 40)
                )
                for k, pair in enumerate(pairs, 1)
            }
            for _ in range(4):
                before = [await arrived(lab, other, k) for k, (_, other) in enumerate(pairs, 1)]
                await a_moment(rng)
                await kill(lab, "nic")
                for k, ((_, other), frames) in enumerate(zip(pairs, before, strict=True), 1):
                    await arrived(lab, other, k, frames)
            for k, ((one, other), job) in enumerate(jobs.items(), 1):
                await lab.call(one, "end_job")
                sent = (await job)["sent"]
                report = await all_of(lab, other, k, sent)
                assert (report["lost"], report["corrupt"], report["frames"]) == (0, 0, sent), (one, report)
                assert report["duplicated"] <= 4 * 256, (one, report)

    run(main())


@pytest.mark.long
def test_the_wire_outlives_the_nic(tmp_path: Path) -> None:
    async def main() -> None:
        text = PATIENT.format(engines=2) + '[nic.wire]\nmode = "sink"\ngbps = 5.0\ndelay_us = 200\n' + GUESTS
        async with lab_of(tmp_path, "wire-stays", text) as lab:
            mac = macs(lab)
            await lab.call("nic", "wire_generate", mac="ff:ff:ff:ff:ff:ff", frame=64, stream=4, frames=1)
            await arrived(lab, "anna", 4)  # the bridge knows where the wire is: what it floods never waits for room
            out = [asyncio.ensure_future(lab.call(one, "send_stream", mac=mac["wire"], frame=300, stream=k, frames=1 << 40))
                   for k, one in ((1, "anna"), (2, "carl"))]  # fmt: skip
            due = 200_000
            await lab.call("nic", "wire_generate", mac=mac["dora"], frame=200, stream=3, frames=due, pps=100_000)
            for _ in range(3):
                before = [await arrived(lab, *one) for one in (("wire", 1), ("wire", 2), ("dora", 3))]
                await kill(lab, "nic")
                for one, frames in zip((("wire", 1), ("wire", 2), ("dora", 3)), before, strict=True):
                    await arrived(lab, *one, frames if one[0] == "wire" else min(frames, due - 1))  # it may have had all of them
            for stream, sender, job in zip((1, 2), ("anna", "carl"), out, strict=True):
                await lab.call(sender, "end_job")
                report = await all_of(lab, "wire", stream, sent := (await job)["sent"])
                assert (report["lost"], report["corrupt"], report["frames"]) == (0, 0, sent)
            report = await all_of(lab, "dora", 3, due)
            assert (report["lost"], report["corrupt"]) == (0, 0)

    run(main())


def test_set_up_waits_for_the_next_nic(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "set-up-waits", GUESTS) as lab:
            pid = (await lab.pids())["nic"]
            await stop(pid)
            call = asyncio.ensure_future(lab.call("carl", "time_registration", size=4096, rounds=3))  # each asks every engine
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            assert len((await call)["register"]) == 3
            await lab.restarted("nic")

    run(main())


@pytest.mark.long
def test_who_dies_again_and_again_is_given_up_and_its_guests_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        events: list[str] = []
        lab = Lab(topology(tmp_path, "given-up", GUESTS + LIMIT), lambda kind, details: events.append(kind))
        async with lab:
            mac = macs(lab)
            jobs = {
                one: asyncio.ensure_future(
                    lab.call(one, "send_stream", mac=mac[other], frame=64, stream=HEADER_ONLY - k, frames=1 << 40)
                )
                for k, (one, other) in enumerate((("carl", "dora"), ("anna", "bert")), 1)
            }
            for _ in range(RESTARTS):
                await kill(lab, "nic")
            os.kill((await lab.pids())["nic"], signal.SIGKILL)
            assert "nic died (signal 9)" in await lab.death_of({"nic"})
            with pytest.raises(Refused, match="device has failed"):  # no sender hangs
                await asyncio.wait_for(jobs["carl"], patient(20))
            await arrived(lab, "bert", HEADER_ONLY - 2, (await received(lab, "bert", HEADER_ONLY - 2))["frames"])
            await lab.call("anna", "end_job")
            await jobs["anna"]
            status = (await lab.keeper("status")).value
            assert status["state"] == "degraded"
            assert next(process["restarts"] for process in status["processes"] if process["name"] == "nic") == RESTARTS
            assert (events.count("restarted"), events.count("died")) == (RESTARTS, RESTARTS + 1)

    run(main())
