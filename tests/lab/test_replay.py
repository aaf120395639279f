"""Replay: what is in a capture file goes through every path, and what comes out is what went in, byte for byte and in order."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from hyp.abi.nic import mac_bytes
from hyp.capture.read import CaptureReader
from lab.owner import Lab
from lab.workloads import WIRE, Runner
from tests.support import captures
from tests.support.labs import GUESTS, left_behind, run, topology, until
from tests.support.streams import kill, lab_of, macs

pytestmark = pytest.mark.usefixtures("warm")

PATHS: Final = ("native", "bypass", "cdna", "split", "trapped")
WAYS: Final = [
    *((f"{path}0", WIRE) for path in PATHS),
    *((WIRE, f"{path}0") for path in PATHS),
    *((f"{path}0", f"{path}1") for path in PATHS),
    ("split0", "bypass0"),
    ("bypass1", "trapped1"),
]


def replay(sender: str, receiver: str, file: Path, **more: Any) -> dict[str, Any]:
    load = {"kind": "replay", "from": sender, "to": receiver, "file": str(file), "speed": "max", "times": 1, "snapped": "pad"}
    return {**load, "frame": 64, "payload": "full", "seconds": None, "frames": None, **more}


def frames_of(path: Path) -> list[bytes]:
    with CaptureReader(path) as reader:
        return [frame.data for frame in reader if frame.data[12:14] != b"\x88\xb5"]  # announcements are test frames


def test_what_comes_out_of_every_path_is_what_went_in(tmp_path: Path) -> None:
    print(f"seed {captures.SEED}")
    frames, recorded = captures.traffic(), tmp_path / "wire.pcapng"
    file = captures.write(tmp_path / "in.pcapng", frames)
    guests = "".join(f'[[guest]]\nname = "{path}{k}"\npath = "{path}"\nmemory = "8 MiB"\n' for path in PATHS for k in range(2))
    table = topology(tmp_path, "replay", f'[nic.wire]\nmode = "record"\nfile = "{recorded}"\n{guests}')

    async def main() -> None:
        lab = Lab(table)
        await lab.start()
        try:
            runner = await Runner.open(lab)
            macs = {guest["name"]: mac_bytes(guest["mac"]) for guest in table["guest"]}
            macs[WIRE] = mac_bytes(table["nic"]["wire"]["mac"])
            seen = 0
            for sender, receiver in WAYS:
                load, way = replay(sender, receiver, file), f"{sender} → {receiver}"
                await runner.prepare(load)
                at_guest = tmp_path / f"{sender}-{receiver}.pcapng"
                if receiver != WIRE:
                    await lab.call(receiver, "record", file=str(at_guest))
                record = await runner.measure(load)
                expected = captures.replayed(frames, macs[sender], macs[receiver])
                assert record["errors"] == [], way
                assert (record["sent"], record["frames"], record["lost"]) == (len(expected), len(expected), 0), way
                about = record["replay"]
                assert (about["frames"], about["snapped"], about["oversize"], about["cut"]) == (300, 15, 6, None)
                if receiver != WIRE:
                    report = await lab.call(receiver, "record", file=None)
                    assert (report["missed"], report["error"]) == (0, "")
                    found = frames_of(at_guest)
                else:
                    await until(lambda: _written(lab), "the recorder to be done")
                    found = frames_of(recorded)[seen:]
                    seen += len(found)
                assert found == expected, way
        finally:
            await lab.stop()

    run(main())
    assert left_behind(table["name"]) == []


GENTLE: Final = "[nic]\npause_us = 1000000\n"
"""The machine may be busy: a receiver that gets no CPU for a while is to cost no frame."""


def test_the_wire_goes_on_replaying_and_recording_when_the_nic_has_been_restarted(tmp_path: Path) -> None:
    frames = captures.traffic(count=2000)
    file, out, back = (tmp_path / name for name in ("in.pcapng", "out.pcapng", "back.pcapng"))
    captures.write(file, frames)
    text = f'{GENTLE}[nic.wire]\nmode = "record"\nfile = "{out}"\n{GUESTS}'

    async def main() -> None:
        async with lab_of(tmp_path, "replay-goes-on", text) as lab:
            mac = macs(lab)
            await lab.call("dora", "record", file=str(back))
            await lab.call("dora", "expect_replay", mac=mac["wire"])
            job = {"file": str(file), "to": mac["dora"], "speed": 0.005, "stream": 7}  # 4 s
            await lab.call("nic", "wire_replay", **job)
            sending = asyncio.ensure_future(lab.call("carl", "send_replay", file=str(file), to=mac["wire"], speed=0.005))
            for _ in range(2):
                before = int((await lab.call("nic", "wire_report", stream=7))["sent"])
                await kill(lab, "nic")
                await until(lambda before=before: _sent_more(lab, before), "the next NIC to go on")  # type: ignore[misc]
            await sending
            await until(lambda: _all_sent(lab), "the replay to end")
            expected = captures.replayed(frames, mac_bytes(mac["wire"]), mac_bytes(mac["dora"]))
            await until(lambda: _replayed(lab, len(expected)), "all frames at dora")
            report = await lab.call("dora", "record", file=None)
            assert (report["missed"], report["error"]) == (0, "")
            assert frames_of(back) == expected
            await until(lambda: _written(lab), "the recorder to be done")
        sent = captures.replayed(frames, mac_bytes(mac["carl"]), mac_bytes(mac["wire"]))
        found = frames_of(out)
        assert list(dict.fromkeys(found)) == sent  # those that the NIC that died had not completed may have left twice
        assert len(found) - len(sent) <= 2 * 256

    run(main())


async def _sent_more(lab: Lab, than: int) -> bool:
    return int((await lab.call("nic", "wire_report", stream=7))["sent"]) > than


async def _replayed(lab: Lab, frames: int) -> bool:
    return int((await lab.call("dora", "replayed"))["frames"]) == frames


async def _all_sent(lab: Lab) -> bool:
    return int((await lab.call("nic", "wire_report", stream=7))["left"]) == 0


async def _written(lab: Lab) -> bool:
    report = await lab.call("nic", "wire_recorded")
    assert (report["missed"], report["error"]) == (0, "")
    return bool(report["written"])
