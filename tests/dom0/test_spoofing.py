"""A split guest that sends in others' names, or in invented ones: nobody's traffic comes to it, and nobody believes it."""

from pathlib import Path

import pytest

from domu.frontends.split import RX_REF, TX_REF
from hyp.abi.grant import GTF_PERMIT_ACCESS
from hyp.abi.netif import RSP_OKAY
from tests.lab.test_paths import check
from tests.support.driven_labs import DRIVEN, Bert, driven_lab
from tests.support.labs import run, until, workload

pytestmark = pytest.mark.usefixtures("warm")

BYPASS = '[[guest]]\nname = "dora"\npath = "bypass"\n'
BROADCAST = "ff:ff:ff:ff:ff:ff"
PAIRS = (("anna", "carl"), ("anna", "dora"), ("dora", "carl"), ("carl", "wire"), ("wire", "dora"))


async def send_as(bert: Bert, sources: list[str], to: str) -> None:
    """A frame in each of these names; all are answered, as frames that the bridge has dropped are."""
    entries = [[TX_REF, GTF_PERMIT_ACCESS, 0, bert._pools["tx"]]]
    for source in sources:
        frames = [[bert._pools["tx"] * 4096, 100, to, 400, 0]]
        answers = await bert.call("transmit", entries=entries, frames=frames, requests=[[TX_REF, 0, 0, 1, 100]], source=source)
        assert answers == [[1, RSP_OKAY]]


async def counted(bert: Bert, column: str) -> int:
    return int((await bert.lab.counters()).read()[f"dom0/vif2:{DRIVEN}"][column])


async def whole_streams(bert: Bert) -> None:
    """Between all others, and with the wire: all of it arrives, and bert sees none of it (but ends' announcements)."""
    for sender, receiver in PAIRS:
        record = await bert.runner.run(workload("stream", sender, receiver, 200, frames=2000))
        check(record)
        assert (record["frames"], record["lost"]) == (2000, 0)
    seen = await counted(bert, "rx_frames") + await counted(bert, "drop_queue_full")
    assert seen < 100


def test_a_guest_that_lies_about_its_address_gets_nothing_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another split guest's, a bypass guest's, the wire's, a group's and 1,500 invented addresses."""

    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "spoof", carl=BYPASS) as bert:
            await bert.connect()
            stolen = [bert.macs["anna"], bert.macs["dora"], str(bert.runner.lab.topology["nic"]["wire"]["mac"]), BROADCAST]
            invented = [f"06:00:00:00:{k >> 8:02x}:{k & 255:02x}" for k in range(1500)]
            await send_as(bert, stolen, bert.macs["carl"])
            await send_as(bert, stolen + invented, BROADCAST)
            assert await counted(bert, "drop_spoofed") == 2 * len(stolen) + len(invented)
            await whole_streams(bert)
            await bert.exchange()

    run(main())


def test_a_trunk_has_other_stations_behind_it_and_no_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "trunk", more="trunk = true\n", carl=BYPASS) as bert:
            await bert.connect()
            station, wire = "06:00:00:00:00:01", str(bert.runner.lab.topology["nic"]["wire"]["mac"])
            stolen = [bert.macs["anna"], bert.macs["dora"], wire, BROADCAST]
            await send_as(bert, [*stolen, station], bert.macs["carl"])
            assert await counted(bert, "drop_spoofed") == len(stolen)
            await whole_streams(bert)
            entries = [[RX_REF, GTF_PERMIT_ACCESS, 0, bert._pools["rx"]]]
            await bert.call("post", entries=entries, requests=[[0, RX_REF]])
            before = await counted(bert, "rx_frames")
            job = {"mac": station, "frame": 200, "stream": 401, "frames": 1}
            assert (await bert.lab.call("anna", "send_stream", **job))["sent"] == 1

            async def arrived() -> bool:
                return await counted(bert, "rx_frames") == before + 1

            await until(arrived, "a frame for the station behind the trunk")

    run(main())
