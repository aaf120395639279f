"""netif frames of several slots that netback can't pass on at once or whole: cut off, without room, half cut when a receiver goes.

In the world of test_fuzz_chains.py: bert posts the slots that he is told.
"""

import asyncio
import os
import signal
import struct
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from domu.frontends.split import TX_REF
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import RSP_NULL, RSP_OKAY
from hyp.fairness.cutting import CREDIT_NS, PART_NS
from hyp.paths import GRANT_MODES
from lab.ledger import unbalanced
from tests.dom0.test_fuzz_chains import SLOTS, SOUND, Posting, content_of, slots_of, world
from tests.support.labs import run, until, wait_until
from tests.support.netback_model import EXTRA, MORE, RECEIVERS, RX_BLANK, RX_VALIDATED, Delivery
from tests.support.plain_packets import read
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")


CUT_OFF: Final = {
    "no second fragment": [struct.pack("<IHHHH", TX_REF, 0, MORE, 1, 200)],
    "no extra info": [struct.pack("<IHHHH", TX_REF, 0, EXTRA, 1, 200)],
    "no end of extra infos": [struct.pack("<IHHHH", TX_REF, 0, EXTRA, 1, 200), struct.pack("<BBHBBHI", 1, 1, 1448, 1, 0, 0, 0)],
    "a ring of fragments": [struct.pack("<IHHHH", TX_REF, 0, MORE, k, 200) for k in range(SLOTS)],
    "a ring of extra infos": [
        struct.pack("<IHHHH", TX_REF, 0, EXTRA, 1, 200),
        *[struct.pack("<BBHBBHI", 1, 1, 99, 1, 0, 0, 0)] * 255,
    ],
}


@pytest.mark.parametrize("grants", tiered(GRANT_MODES, ["map"]))
def test_a_frame_that_is_cut_off_costs_the_vif_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants: str
) -> None:
    """One guest after the other sends one, behind a good frame, while anna sends to the wire; then a good frame to a bystander."""

    async def main() -> None:
        async with world(tmp_path, monkeypatch, grants, 1500) as there:
            runner = there.runner
            for name, slots in zip(RECEIVERS, CUT_OFF.values(), strict=True):
                guest = there.guests[name]
                stream = asyncio.create_task(runner.lab.call("anna", "send_stream", mac=runner.lab.topology["nic"]["wire"]["mac"],
                                                             frame=64, stream=7, frames=20_000))  # fmt: skip
                before = await guest.counts()
                await guest.call("publish", slots=slots)

                async def has_failed(guest: Posting = guest, before: Counter[str] = before) -> bool:
                    return (await guest.counts() - before).get("faults_chain") == 1

                await until(has_failed, "Dom0 to see it")
                assert await guest.counts() - before == {"faults_chain": 1}
                assert (await stream)["sent"] == 20_000
                report = await runner.lab.call("nic", "wire_report", stream=7)
                assert report["received"]["corrupt"] == 0
            await until(there.nothing_is_under_way, "a frame behind anna's to be on the wire")
            shape = SOUND | {"to": "wire"}
            assert await there.exchange([shape]) == {"wire 0": 12}

    run(main())


def test_a_frame_waits_for_room_for_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer requests than it takes: nothing is written. When the last one is there it arrives, and what waits behind it."""

    async def main() -> None:
        async with world(tmp_path, monkeypatch, "copy", 1500) as there:
            whole, sound = there.guests["whole"], SOUND | {"parts": 20}
            frame, segment, blank = content_of(sound, whole.mac, there.bert.mac)
            slots, contents = slots_of(sound, frame, segment, blank, 0)
            packet = read(frame)
            assert packet is not None
            got = Delivery(packet.blank(), RX_VALIDATED | RX_BLANK | EXTRA, struct.pack("<BBHBBH", 1, 0, segment, 1, 0, 0))
            writes = [[(there.bert.pools["tx"] + k) * PAGE_BYTES + at, piece] for k, (at, piece) in contents.items()]
            for missing in range(1, got.slots + 1):
                await whole.post(got.slots - missing)
                paused = (await there.runner.lab.counters()).read()["dom0/vif2:bert"]["pauses"]
                answers = asyncio.create_task(there.bert.call("slots", writes=writes, slots=slots))

                async def waits(paused: int = paused) -> bool:
                    return (await there.runner.lab.counters()).read()["dom0/vif2:bert"]["pauses"] > paused

                await until(waits, "bert to pause")
                assert (await there.runner.lab.counters()).read()[f"dom0/vif{whole.number}:whole"]["rx_frames"] == missing - 1
                await whole.post(missing)
                await whole.expect([got])
                assert {status for _, status in await answers} == {RSP_OKAY, RSP_NULL}

    run(main())


def test_a_frame_half_cut_whose_receiver_goes_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of it has arrived, and the rest, which has nowhere to go any more. The next one is cut from its beginning."""

    async def main() -> None:
        async with world(tmp_path, monkeypatch, "copy", 1500) as there:
            runner, cut, arrive, whole = there.runner, there.guests["cut"], 3, 12
            frame, segment, blank = content_of(SOUND | {"parts": whole}, cut.mac, there.bert.mac)
            slots, contents = slots_of(SOUND, frame, segment, blank, 0)
            writes = [[(there.bert.pools["tx"] + k) * PAGE_BYTES + at, piece] for k, (at, piece) in contents.items()]
            await cut.post(arrive)
            answers = asyncio.create_task(there.bert.call("slots", writes=writes, slots=slots))

            async def waits() -> bool:
                return (await runner.lab.counters()).read()[f"dom0/vif{cut.number}:cut"]["rx_frames"] == arrive

            await until(waits, "the first segments to arrive")
            os.kill(runner.pids["cut"], signal.SIGKILL)
            await answers
            after = await there.bert.counts() - there.counted
            there.counted += after
            lost = sum(after.values())
            assert lost in (1, whole - arrive), after  # it drops whole, as nobody has its address, or by segments
            del there.macs["cut"]
            assert await there.exchange([SOUND | {"to": "plain", "gso": 536}])

            def balances() -> bool:
                return not [str(one) for one in unbalanced(reader.read()) if one.hop == "Dom0"]

            reader = await runner.lab.counters()
            await asyncio.to_thread(wait_until, balances, "Dom0's equation to hold")

    run(main())


def test_the_frame_after_one_half_cut_whose_station_is_forgotten_is_cut_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The station is forgotten while its frame is held up: what of that has not arrived is flooded, and finds no room."""

    async def main() -> None:
        async with world(tmp_path, monkeypatch, "copy", 1500, ageing_s=1, trunk="cut") as there:
            cut, arrive, whole = there.guests["cut"], 3, 12
            station = bytes([2, 0, 0, 0, 9, 9])
            frame, segment, blank = content_of(SOUND | {"parts": whole}, station, there.bert.mac)
            slots, contents = slots_of(SOUND, frame, segment, blank, 0)
            writes = [[(there.bert.pools["tx"] + k) * PAGE_BYTES + at, piece] for k, (at, piece) in contents.items()]
            await cut.post(arrive)
            assert await there.says_that_it_is_there(cut, station) == [[1, RSP_OKAY]]
            row, reader = f"dom0/vif{cut.number}:cut", await there.runner.lab.counters()
            before = reader.read()[row]
            answers = await there.bert.call("slots", writes=writes, slots=slots)
            assert {status for _, status in answers} == {RSP_OKAY, RSP_NULL}
            after = reader.read()[row]
            assert after["rx_frames"] - before["rx_frames"] == arrive
            assert after["drop_queue_full"] - before["drop_queue_full"] == 1, "it was flooded, and not given up"
            assert await there.bert.counts() == there.counted
            await cut.call("responses", count=arrive)
            cut.answered += arrive
            assert await there.exchange([SOUND | {"to": "cut", "parts": whole}]) == {f"cut {RX_VALIDATED | RX_BLANK}": whole}

    run(main())


def test_frames_that_the_nic_makes_over_a_thousand_of_wait_and_get_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is more than may be ahead of the NIC: Dom0 goes on by itself, and what comes behind them does, too."""
    shape = SOUND | {"to": "wire", "gso": 48, "parts": 1300}
    assert 1300 * PART_NS > CREDIT_NS

    async def main() -> None:
        async with world(tmp_path, monkeypatch, "copy", 1500) as there:
            assert await there.exchange([shape] * 4) == {"wire 0": 4 * 1300}
            await until(there.nothing_is_under_way, "a frame behind them to be on the wire")
            assert await there.exchange([SOUND]) == {"whole GSO": 1}

    run(main())
