"""Multicast control: what a front end adds and takes back, and which flooded frames reach it then."""

import struct
from pathlib import Path
from typing import Final

import pytest

from dom0.multicast import MOST_GROUPS
from domu.frontends.split import RX_REF
from hyp.abi.grant import GTF_PERMIT_ACCESS
from hyp.abi.netif import (
    EXTRA_FLAG_MORE,
    EXTRA_TYPE_MCAST_ADD,
    EXTRA_TYPE_MCAST_DEL,
    REQUEST_MULTICAST_CONTROL,
    RSP_ERROR,
    RSP_NULL,
    RSP_OKAY,
    TXF_EXTRA_INFO,
    TXF_MORE_DATA,
)
from tests.lab.test_paths import check
from tests.support.driven_labs import CONNECTED, INIT_WAIT, INITIALISING, Bert, driven_lab
from tests.support.labs import run, until, workload

pytestmark = pytest.mark.usefixtures("warm")

ADD, DELETE = EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL
MDNS, RIP, ROUTERS6, BROADCAST = "01:00:5e:00:00:fb", "01:00:5e:00:01:09", "33:33:00:00:00:02", "ff:ff:ff:ff:ff:ff"
NOBODY: Final = "02:00:00:00:77:77"


def dummy(kind: int, mac: str, *, flags: int = TXF_EXTRA_INFO, extra_flags: int = 0, number: int = 7) -> list[bytes]:
    """A request that is no frame, whatever it says of a page, and its extra info."""
    address = bytes.fromhex(mac.replace(":", ""))
    return [struct.pack("<IHHHH", 0xFFFF_FFFF, 4095, flags, number, 3), struct.pack("<BB6sI", kind, extra_flags, address, 0)]


async def change(bert: Bert, kind: int, *macs: str, queue: int = 0) -> list[int]:
    """Change the list; the statuses. The extra infos' slots are answered by RSP_NULL."""
    found = []
    for mac in macs:
        (number, status), (_, null) = await bert.call("slots", writes=[], slots=dummy(kind, mac), queue=queue)
        assert (number, null) == (7, RSP_NULL)
        found.append(status)
    return found


async def connect(bert: Bert, wanted: str | None, queues: int = 1) -> None:
    await bert.told(INIT_WAIT)
    await bert.ready(changed={REQUEST_MULTICAST_CONTROL: wanted}, queues=queues)
    await bert.state(CONNECTED)
    await bert.told(CONNECTED)
    await bert.call("notifier")


async def heard(bert: Bert, *groups: str) -> list[str]:
    """Which of these groups' frames reach bert. anna sends one to each, and then a broadcast; the connection ends with it."""
    sent, count = [*groups, BROADCAST], len(groups) + 1
    page = bert._pools["rx"]
    entries = [[RX_REF + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(count)]
    await bert.call("post", entries=entries, requests=[[k, RX_REF + k] for k in range(count)])
    before = await rows(bert)
    for group in sent:
        assert (await bert.lab.call("anna", "send_stream", mac=group, frame=100, stream=77, frames=1))["sent"] == 1

    async def flooded() -> bool:
        return (await rows(bert))["dom0/uplink"]["tx_frames"] - before["dom0/uplink"]["tx_frames"] == count

    await until(flooded, "the uplink to have had all")
    came = (await rows(bert))["dom0/vif2:bert"]["rx_frames"] - before["dom0/vif2:bert"]["rx_frames"]
    found: list[str] = []
    for response in await bert.call("responses", count=came):
        number, offset, _, status = struct.unpack("<HHHh", response)
        assert status == 100
        found.append(bytes(await bert.call("read", at=(page + number) * 4096 + offset, length=6)).hex(":"))
    assert found.pop() == BROADCAST
    await bert.state(INITIALISING)
    return found


async def rows(bert: Bert) -> dict[str, dict[str, int]]:
    """All counters."""
    return (await bert.lab.counters()).read()


def test_who_asks_hears_what_it_has_added_and_who_does_not_hears_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "mcast") as bert:
            assert await bert.read(f"{bert.back}/feature-multicast-control") == "1"
            bystander = (await rows(bert))["dom0/vif3:carl"]["rx_frames"]
            groups = (MDNS, RIP, ROUTERS6)
            for wanted in (None, "0"):
                await connect(bert, wanted)
                assert await change(bert, ADD, MDNS) == [RSP_OKAY]  # the list may be changed all the same
                assert await heard(bert, *groups) == [*groups]
            await connect(bert, "1")
            assert await heard(bert, *groups) == []
            await connect(bert, "1")
            assert await change(bert, ADD, MDNS, ROUTERS6) == [RSP_OKAY, RSP_OKAY]
            assert await heard(bert, *groups, NOBODY) == [MDNS, ROUTERS6]  # a frame for an unknown station is for trunks
            await connect(bert, "1")
            assert await change(bert, ADD, MDNS, RIP, RIP) == [RSP_OKAY] * 3
            assert await change(bert, DELETE, MDNS, RIP, ROUTERS6) == [RSP_OKAY] * 3  # RIP is still there
            assert await heard(bert, *groups) == [RIP]
            await connect(bert, "1")
            assert await heard(bert, *groups) == []  # a connection begins without any
            assert (await rows(bert))["dom0/vif3:carl"]["rx_frames"] - bystander == 6 * 4  # who stands by hears all
            await connect(bert, None)
            await bert.exchange()

    run(main())


def test_the_list_is_the_vifs_whichever_queue_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "mcastq") as bert:
            await connect(bert, "1", queues=3)
            assert await change(bert, ADD, MDNS, RIP, queue=2) == [RSP_OKAY] * 2
            assert await change(bert, DELETE, MDNS, queue=1) == [RSP_OKAY]
            before = await rows(bert)
            for group in (MDNS, RIP, BROADCAST):
                assert (await bert.lab.call("anna", "send_stream", mac=group, frame=100, stream=77, frames=1))["sent"] == 1

            async def flooded() -> bool:
                return (await rows(bert))["dom0/vif3:carl"]["rx_frames"] - before["dom0/vif3:carl"]["rx_frames"] == 3

            await until(flooded, "who stands by to have had all")
            after = (await rows(bert))["dom0/vif2:bert"]
            dropped = after["drop_queue_full"] - before["dom0/vif2:bert"]["drop_queue_full"]  # it has posted no buffers
            assert (after["rx_frames"] - before["dom0/vif2:bert"]["rx_frames"], dropped) == (0, 2), (
                "RIP and the broadcast were for it"
            )

    run(main())


def test_there_is_room_for_so_many_and_what_is_no_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "mcastfull", 'grants = "map"\n') as bert:
            await connect(bert, "1")
            many = [f"01:00:5e:00:00:{k:02x}" for k in range(MOST_GROUPS)]
            assert await change(bert, ADD, *many) == [RSP_OKAY] * MOST_GROUPS
            assert await change(bert, ADD, MDNS) == [RSP_ERROR]
            assert await change(bert, DELETE, many[5]) == [RSP_OKAY]
            assert await change(bert, ADD, MDNS, RIP) == [RSP_OKAY, RSP_ERROR]
            before = (await rows(bert))["dom0/vif2:bert"]
            # not alone, or with a fragment
            two = [*dummy(ADD, MDNS, extra_flags=EXTRA_FLAG_MORE), dummy(DELETE, MDNS)[1]]
            assert [status for _, status in await bert.call("slots", writes=[], slots=two)] == [RSP_ERROR, RSP_NULL, RSP_NULL]
            more = [*dummy(ADD, MDNS, flags=TXF_EXTRA_INFO | TXF_MORE_DATA), struct.pack("<IHHHH", 9, 0, 0, 8, 100)]
            assert [status for _, status in await bert.call("slots", writes=[], slots=more)] == [RSP_ERROR, RSP_NULL, RSP_ERROR]

            async def counted() -> bool:
                after = (await rows(bert))["dom0/vif2:bert"]
                return [after[name] - before[name] for name in ("faults_offload", "faults_chain", "drop_bad_frame")] == [1, 1, 2]

            await until(counted, "both to be counted")
            assert await heard(bert, many[4], many[5], MDNS, RIP) == [many[4], MDNS]
            await connect(bert, None)
            await bert.exchange()
            check(await bert.runner.run(workload("stream", "anna", "carl", frames=1000)))

    run(main())


@pytest.mark.parametrize("value", ["2", "yes"])
def test_what_may_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "mcastask") as bert:
            await bert.told(INIT_WAIT)
            await bert.ready(changed={REQUEST_MULTICAST_CONTROL: value})
            await bert.state(CONNECTED)
            await bert.told(5)
            assert REQUEST_MULTICAST_CONTROL in (await bert.error() or "")

    run(main())
