"""Replay: what is in a capture file goes through every path, and what comes out is what went in, byte for byte and in order."""

from pathlib import Path
from typing import Any, Final

import pytest

from hyp.abi.nic import mac_bytes
from hyp.capture.read import CaptureReader
from lab.owner import Lab
from lab.workloads import WIRE, Runner
from tests.support import captures
from tests.support.labs import left_behind, run, topology, until

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


async def _written(lab: Lab) -> bool:
    report = await lab.call("nic", "wire_recorded")
    assert (report["missed"], report["error"]) == (0, "")
    return bool(report["written"])
