"""The control ring: static grant mappings by Xen's own protocol, what is refused, and what a front end can't get out of it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from dom0.control.mappings import MOST_ENTRIES, MOST_MAPPINGS
from domu.frontends.split import RX_REF, TX_REF
from domu.frontends.split_state import QUEUE_REFS
from hyp.abi.grant import GTF_PERMIT_ACCESS, GTF_READONLY
from hyp.abi.netif import (
    CTRL_STATUS_INVALID_PARAMETER,
    CTRL_STATUS_NOT_SUPPORTED,
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_DEL_GREF_MAPPING,
    CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    CTRLF_GREF_READONLY,
    EVENT_CHANNEL_CTRL,
    RSP_OKAY,
    TXF_MORE_DATA,
)
from tests.lab.test_paths import check
from tests.support.driven_labs import CLOSING, CONNECTED, INIT_WAIT, INITIALISING, Bert, driven_lab
from tests.support.driven_netfront import CONTROL_REF
from tests.support.labs import run, until, workload

pytestmark = pytest.mark.usefixtures("warm")

SIZE, ADD, DELETE = CTRL_TYPE_GET_GREF_MAPPING_SIZE, CTRL_TYPE_ADD_GREF_MAPPING, CTRL_TYPE_DEL_GREF_MAPPING
OKAY, INVALID, UNSUPPORTED = CTRL_STATUS_SUCCESS, CTRL_STATUS_INVALID_PARAMETER, CTRL_STATUS_NOT_SUPPORTED
TABLE_REF: Final = CONTROL_REF + 1
RINGS: Final = 3
READ: Final = CTRLF_GREF_READONLY
SENT, RECEIVED = [TX_REF + k for k in range(5)], [RX_REF + k for k in range(3)]


async def connect(bert: Bert, start: int = 0, changed: dict[str, str | None] | None = None, queues: int = 1) -> None:
    """With a control ring."""
    await bert.told(INIT_WAIT)
    nodes: dict[str, str | None] = dict(await bert.call("control", start=start))
    await bert.ready(changed={**nodes, **(changed or {})}, queues=queues)
    await bert.state(CONNECTED)
    await bert.told(CONNECTED)
    await bert.call("notifier")
    await bert.call("control_notifier")


async def ask(bert: Bert, kind: int, *data: int) -> tuple[int, int]:
    """(status, data) of one request."""
    ((number, answered, status, answer),) = await bert.call("ask", requests=[[77, kind, *data, *[0] * (3 - len(data))]])
    assert (number, answered) == (77, kind)
    return status, answer


async def mapping(bert: Bert, kind: int, *entries: tuple[int, int], queue: int = 0) -> tuple[int, int]:
    """Add or delete these (reference, flags)."""
    await bert.call("table", entries=[[ref, flags, 0xAAAA] for ref, flags in entries])
    return await ask(bert, kind, queue, TABLE_REF, len(entries))


async def grant(bert: Bert) -> None:
    """The pages of SENT, read-only, and RECEIVED."""
    pools = bert._pools
    sent = [[ref, GTF_PERMIT_ACCESS | GTF_READONLY, 0, pools["tx"] + k] for k, ref in enumerate(SENT)]
    await bert.call("transmit", entries=sent, frames=[], requests=[])
    received = [[ref, GTF_PERMIT_ACCESS, 0, pools["rx"] + k] for k, ref in enumerate(RECEIVED)]
    await bert.call("post", entries=received, requests=[])


async def bridge(bert: Bert) -> dict[str, int]:
    rows: dict[str, dict[str, int]] = (await bert.lab.counters()).read()
    return rows["dom0/bridge"]


async def chain(bert: Bert) -> None:
    """A frame of three fragments, the last of which is in a page that is not mapped."""
    wire, page = str(bert.lab.topology["nic"]["wire"]["mac"]), bert._pools["tx"]
    requests = [[SENT[0], 0, TXF_MORE_DATA, 0, 300], [SENT[1], 50, TXF_MORE_DATA, 1, 100], [TX_REF + 20, 0, 0, 2, 100]]
    content = [[page * 4096, 100, wire, 1, 0]]
    fresh = [[TX_REF + 20, GTF_PERMIT_ACCESS, 0, page + 20]]
    assert await bert.call("transmit", entries=fresh, frames=content, requests=requests) == [[k, RSP_OKAY] for k in range(3)]


@pytest.fixture
def controlled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a body in a topology whose bert has a control ring; afterwards he connects anew, and nobody holds more than before."""

    def runs(name: str, body: Callable[[Bert], Awaitable[None]], more: str = "") -> None:
        async def main() -> None:
            async with driven_lab(tmp_path, monkeypatch, name, more) as bert:
                await connect(bert)
                before = bert.descriptors()
                await body(bert)
                await bert.state(INITIALISING)
                await connect(bert, start=0xFFFF_FFFD)
                await bert.exchange()
                assert await ask(bert, 99) == (UNSUPPORTED, 0)
                assert bert.held() == RINGS
                await bert.have_closed(before)
                await bert.state(INITIALISING)
                await bert.told(INIT_WAIT)
                assert bert.held() == 0
                check(await bert.runner.run(workload("stream", "anna", "carl", frames=1000)))

        run(main())

    return runs


def test_static_mappings(controlled: Callable[..., None]) -> None:
    async def body(bert: Bert) -> None:
        assert await bert.read(f"{bert.back}/feature-ctrl-ring") == "1"
        assert await ask(bert, SIZE, 0) == (OKAY, MOST_MAPPINGS)
        await grant(bert)
        assert await mapping(bert, ADD, *((ref, READ) for ref in SENT), *((ref, 0) for ref in RECEIVED)) == (OKAY, 0)
        assert bert.held() == RINGS + len(SENT) + len(RECEIVED)
        before = await bridge(bert)
        await bert.call("transmit", entries=[], frames=[], requests=[])
        await bert.send_kept(3)
        for _ in range(3):
            await bert.receive_kept(3)
        after = await bridge(bert)
        assert after["grant_maps"] == before["grant_maps"]
        assert after["grant_unmaps"] == before["grant_unmaps"]
        copies = after["grant_copies"] - before["grant_copies"]
        assert copies <= 9 * 2  # of others: anna's frames
        # what was not named is mapped for its batch, among those that were
        await bert.send_kept(8)
        assert (await bridge(bert))["grant_maps"] - after["grant_maps"] == 3
        assert (await bridge(bert))["grant_unmaps"] - after["grant_unmaps"] == 3
        assert bert.held() == RINGS + len(SENT) + len(RECEIVED)
        await chain(bert)
        assert bert.held() == RINGS + len(SENT) + len(RECEIVED)
        # taken back, one that was never there and one twice among them
        assert await mapping(bert, DELETE, (SENT[0], 0), (TX_REF + 100, 0), (RECEIVED[0], 0), (SENT[0], READ)) == (OKAY, 2)
        assert await bert.call("statuses", count=4) == [OKAY, INVALID, OKAY, INVALID]
        assert bert.held() == RINGS + len(SENT) + len(RECEIVED) - 2
        assert not bert.active[[SENT[0], RECEIVED[0]]].any()
        await bert.send_kept(3)
        await bert.receive_kept(3)
        assert await mapping(bert, ADD, (SENT[0], READ)) == (OKAY, 0)
        await bert.send_kept(5)

    controlled("ctrl", body)


def test_what_is_refused_changes_nothing(controlled: Callable[..., None]) -> None:
    async def body(bert: Bert) -> None:
        await grant(bert)
        good = (SENT[0], READ)
        assert await mapping(bert, ADD, good) == (OKAY, 0)
        held = bert.held()
        assert held == RINGS + 1
        fresh = (SENT[1], READ)
        for entries in (
            [fresh, good],  # there already
            [fresh, fresh],
            [fresh, (SENT[2], 2)],  # no such flag
            [fresh, (SENT[2], 0)],  # granted for reading only
            [fresh, (TX_REF + 100, READ)],  # not granted
            [fresh, (1 << 20, READ)],
            [fresh, (0xFFFF_FFFF, READ)],
        ):
            assert await mapping(bert, ADD, *entries) == (INVALID, 0), entries
            assert bert.held() == held
        for kind in (ADD, DELETE):
            await bert.call("table", entries=[[SENT[1], READ, 0]])
            for data in ((1, TABLE_REF, 1), (0, TABLE_REF, 0), (0, TABLE_REF, MOST_ENTRIES + 1), (0, TABLE_REF, 0xFFFF_FFFF)):
                assert await ask(bert, kind, *data) == (INVALID, 0), data
            for table in (SENT[0], TX_REF + 100, 0xFFFF_FFFF):  # read-only, not granted, none
                assert await ask(bert, kind, 0, table, 1) == (INVALID, 0)
        assert await ask(bert, SIZE, 1) == (INVALID, 0)
        for kind in (0, 11, 0xFFFF):
            assert await ask(bert, kind, 1) == (UNSUPPORTED, 0)
        assert bert.held() == held
        many = [[n, SIZE, 0, 0, 0] for n in range(128)]  # a full ring, answered in its order
        assert [answer[0] for answer in await bert.call("ask", requests=many)] == [*range(128)]

    controlled("ctrlbad", body)


def test_a_ring_that_ran_away_costs_its_vif(controlled: Callable[..., None]) -> None:
    async def body(bert: Bert) -> None:
        await grant(bert)
        assert await mapping(bert, ADD, *((ref, READ) for ref in SENT)) == (OKAY, 0)
        await bert.call("run_away")
        await bert.told(CLOSING)
        assert "ran ahead" in (await bert.error() or "")
        assert bert.held() == 0

    controlled("ctrlrun", body)


def test_what_a_control_ring_needs(controlled: Callable[..., None]) -> None:
    async def body(bert: Bert) -> None:
        for changed in ({EVENT_CHANNEL_CTRL: None}, {EVENT_CHANNEL_CTRL: "999"}, {"ctrl-ring-ref": "77"}, {"ctrl-ring-ref": "x"}):
            await bert.state(INITIALISING)
            await bert.told(INIT_WAIT)
            nodes: dict[str, Any] = {**(await bert.call("control", start=0)), **changed}
            await bert.ready(changed=nodes)
            await bert.state(CONNECTED)
            await bert.told(CLOSING)
            assert await bert.error()
            assert bert.held() == 0

    controlled("ctrlneeds", body)


def test_each_queue_has_mappings_of_its_own(controlled: Callable[..., None]) -> None:
    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await connect(bert, queues=2)
        await grant(bert)
        rings = 2 * 2 + 1
        for queue in range(2):
            assert await ask(bert, SIZE, queue) == (OKAY, MOST_MAPPINGS)
        page = (await bert.call("pools", queue=1))["rx"]
        ref = RX_REF + QUEUE_REFS
        await bert.call("post", entries=[[ref, GTF_PERMIT_ACCESS, 0, page]], requests=[], queue=1)
        for queue in range(2):  # either may name it
            assert await mapping(bert, ADD, (ref, 0), queue=queue) == (OKAY, 0)
            assert await mapping(bert, ADD, (ref, 0), queue=queue) == (INVALID, 0)
        assert bert.held() == rings + 1
        assert await mapping(bert, DELETE, (ref, 0), (SENT[0], 0), queue=0) == (OKAY, 1)
        assert bert.held() == rings + 1
        assert await mapping(bert, ADD, *((ref, 0) for ref in RECEIVED), queue=0) == (OKAY, 0)
        assert await mapping(bert, DELETE, (ref, 0), (RECEIVED[0], 0), queue=1) == (OKAY, 1)
        assert bert.held() == rings + len(RECEIVED)
        for queue in (2, 0xFFFF_FFFF):
            assert await ask(bert, SIZE, queue) == (INVALID, 0)
            assert await mapping(bert, ADD, (ref, 0), queue=queue) == (INVALID, 0)
        await bert.send_kept(5)

    controlled("ctrlqueues", body)


def test_a_table_that_changes_under_the_copy_is_one_or_the_other(controlled: Callable[..., None]) -> None:
    """Whatever is written while a request is served: what is mapped is what can be deleted, and all of it goes."""

    async def body(bert: Bert) -> None:
        await grant(bert)
        chance = np.random.default_rng(7)
        for _ in range(60):
            count = int(chance.integers(1, 12))
            entries = [[int(chance.choice([*SENT, *RECEIVED, 9999])), int(chance.integers(0, 3)), 0] for _ in range(count)]
            await bert.call("table", entries=entries)
            kinds = [int(kind) for kind in chance.choice([ADD, DELETE], 4)]
            await bert.call("ask", requests=[[n, kind, 0, TABLE_REF, count] for n, kind in enumerate(kinds)])
        await mapping(bert, DELETE, *((ref, 0) for ref in (*SENT, *RECEIVED)))

        async def gone() -> bool:
            return bert.held() == RINGS

        await until(gone, "all to be unpinned")

    controlled("ctrlrace", body)
