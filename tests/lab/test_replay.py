"""Replay: what is in a capture file goes through every path, and what comes out is what went in, byte for byte and in order."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from hyp.abi.nic import mac_bytes
from hyp.capture.read import CaptureReader
from hyp.load.mix import SIMPLE_IMIX
from lab.owner import Lab
from lab.workloads import WIRE, Runner
from tests.support import captures
from tests.support.labs import GUESTS, left_behind, run, topology, until, workload
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


GENTLE: Final = "[nic]\npause_us = 1000000\n"
"""The machine may be busy: a receiver that gets no CPU for a while is to cost no frame."""


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


def test_a_wire_replays_by_a_map_of_addresses_and_to_all_what_is_for_all(tmp_path: Path) -> None:
    frames = captures.traffic(count=200)
    for number in range(0, 200, 10):
        frames[number] = replace(frames[number], data=b"\xff" * 6 + frames[number].data[6:])
    captures.write(tmp_path / "in.pcapng", frames)
    lines = [
        'mode = "replay"', f'file = "{tmp_path}/in.pcapng"', "speed = 50", "times = 2", 'snapped = "cut"',
        f'rewrite = {{ "{captures.A.hex(":")}" = "anna", "{captures.B.hex(":")}" = "carl" }}',
    ]  # fmt: skip
    text = GENTLE + "[nic.wire]\n" + "\n".join(lines) + "\n" + GUESTS

    async def main() -> None:
        async with lab_of(tmp_path, "replay-map", text) as lab:
            mac = {name: mac_bytes(one) for name, one in macs(lab).items()}
            for name in ("anna", "carl"):
                await lab.call(name, "record", file=str(tmp_path / f"{name}.pcapng"))
                await lab.call(name, "expect_replay", mac="")
            await lab.start_generator()
            new = {captures.A: mac["anna"], captures.B: mac["carl"]}
            sent = [
                b"".join(new.get(one, one) for one in (frame.data[:6], frame.data[6:12])) + frame.data[12:] for frame in 2 * frames
            ]
            sent = [data for data in sent if len(data) <= 1518]
            for name in ("anna", "carl"):
                expected = [data for data in sent if data[:6] in (mac[name], b"\xff" * 6)]
                await until(partial(_replayed, lab, len(expected), name), f"all frames at {name}")
                await lab.call(name, "record", file=None)
                assert frames_of(tmp_path / f"{name}.pcapng") == expected, name
            report = await lab.call("nic", "wire_report", stream=0)
            assert (report["sent"], report["left"], report["file"]["snapped"]) == (400, 0, 10)
            assert report["oversize"] == 2 * sum(len(frame.data) > 1518 for frame in frames)
            assert report["max_lag_ns"] >= 0

    run(main())


def test_a_mix_of_sizes_is_sent_in_its_order_both_ways_and_verified(tmp_path: Path) -> None:
    frames = captures.traffic(count=100)
    file, out, back = (tmp_path / name for name in ("in.pcapng", "out.pcapng", "back.pcapng"))
    captures.write(file, frames)
    sizes = [min(max(frame.length, 60), 1514) for frame in frames]
    text = f'{GENTLE}[nic.wire]\nmode = "record"\nfile = "{out}"\n{GUESTS}'

    async def main() -> None:
        async with lab_of(tmp_path, "mix", text) as lab:
            runner, seen = await Runner.open(lab), 0
            for traffic, expected in ((str(file), sizes), ("imix", list(SIMPLE_IMIX))):
                for sender, receiver in (("carl", WIRE), ("anna", WIRE), (WIRE, "carl"), (WIRE, "anna"), ("anna", "carl")):
                    load = {**workload("stream", sender, receiver, frames=1000), "payload": "full", "traffic": traffic}
                    await runner.prepare(load)
                    await until(lambda: _written(lab), "announcements to be recorded")
                    seen = len(lengths_of(out))
                    if receiver != WIRE:
                        await lab.call(receiver, "record", file=str(back))
                    record = await runner.measure(load)
                    assert record["errors"] == []
                    assert (record["frames"], record["lost"]) == (1000, 0)
                    await until(lambda: _written(lab), "the recorder to be done")
                    if receiver != WIRE:
                        await lab.call(receiver, "record", file=None)
                    found = lengths_of(out)[seen:] if receiver == WIRE else lengths_of(back)
                    assert found == [expected[k % len(expected)] for k in range(1000)], (traffic, sender, receiver)

    run(main())


def lengths_of(path: Path) -> list[int]:
    with CaptureReader(path) as reader:
        return [frame.length for frame in reader]


@pytest.mark.long
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
                await until(partial(_sent_more, lab, before), "the next NIC to go on")
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


async def _replayed(lab: Lab, frames: int, guest: str = "dora") -> bool:
    return int((await lab.call(guest, "replayed"))["frames"]) == frames


async def _all_sent(lab: Lab) -> bool:
    return int((await lab.call("nic", "wire_report", stream=7))["left"]) == 0


async def _written(lab: Lab) -> bool:
    report = await lab.call("nic", "wire_recorded")
    assert (report["missed"], report["error"]) == (0, "")
    return bool(report["written"])
