"""Hash control: a front end says how what it receives is spread over its queues; what it is told of each frame, what is refused.

bert is that front end (tests/support/driven_netfront.py), with four queues; anna sends him what she is told, carl is a bystander.
"""

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from dom0.control.hashing import MOST_ENTRIES, TYPES
from domu.frontends.split import RX_REF, TX_REF
from domu.frontends.split_state import QUEUE_REFS
from hyp.abi.grant import GTF_PERMIT_ACCESS, GTF_READONLY
from hyp.abi.netif import (
    CTRL_STATUS_BUFFER_OVERFLOW,
    CTRL_STATUS_INVALID_PARAMETER,
    CTRL_STATUS_NOT_SUPPORTED,
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_GET_HASH_FLAGS,
    CTRL_TYPE_GET_HASH_MAPPING_SIZE,
    CTRL_TYPE_SET_HASH_ALGORITHM,
    CTRL_TYPE_SET_HASH_FLAGS,
    CTRL_TYPE_SET_HASH_KEY,
    CTRL_TYPE_SET_HASH_MAPPING,
    CTRL_TYPE_SET_HASH_MAPPING_SIZE,
    RSP_NULL,
    RSP_OKAY,
    RXF_CSUM_BLANK,
    RXF_DATA_VALIDATED,
    RXF_EXTRA_INFO,
    TXF_CSUM_BLANK,
    TXF_EXTRA_INFO,
)
from hyp.offload.toeplitz import KEY_BYTES
from hyp.xenstore.xenbus import XenbusState, backend_path, wait_for_state
from tests.dom0.test_control_ring import TABLE_REF, ask, bridge, connect, mapping
from tests.lab.test_paths import check
from tests.support.driven_labs import CONNECTED, DRIVEN, INIT_WAIT, INITIALISING, ROLE, Bert, driven_lab
from tests.support.flow_model import flow_hash
from tests.support.labs import run, until, workload
from tests.support.patience import patient
from tests.support.plain_packets import TCP, UDP, Packet
from tests.support.tiers import tiered
from tests.support.toeplitz_model import IPV4, IPV4_TCP, KEY, frame_hash

pytestmark = pytest.mark.usefixtures("warm")

OKAY, UNSUPPORTED = CTRL_STATUS_SUCCESS, CTRL_STATUS_NOT_SUPPORTED
INVALID, OVERFLOW = CTRL_STATUS_INVALID_PARAMETER, CTRL_STATUS_BUFFER_OVERFLOW
ALGORITHM, FLAGS, SET_KEY = CTRL_TYPE_SET_HASH_ALGORITHM, CTRL_TYPE_SET_HASH_FLAGS, CTRL_TYPE_SET_HASH_KEY
SIZE, MAPPING = CTRL_TYPE_SET_HASH_MAPPING_SIZE, CTRL_TYPE_SET_HASH_MAPPING
TOEPLITZ: Final = 1
QUEUES: Final = 4


@pytest.fixture
def hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a body with bert connected, then another front end of his, for which nothing is hashed. Throughout carl sends."""

    def runs(name: str, body: "Callable[[Bert, Anna], Awaitable[None]]", more: str = "", **nodes: str) -> None:
        async def main() -> None:
            async with driven_lab(tmp_path, monkeypatch, name, more, roles={"anna": ROLE}) as bert:
                changed: dict[str, str | None] = {name.replace("_", "-"): value for name, value in nodes.items()}
                anna = await Anna.connected(bert)
                await join(bert, QUEUES, changed)
                streaming = asyncio.create_task(bert.runner.run(workload("stream", "carl", "wire", frames=200_000)))
                await body(bert, anna)
                record = await streaming
                for reason in ("queue_full", "down", "no_buffer"):  # a body may flood, and send to who is away, or takes nothing
                    record["drops"].pop(reason, None)
                check(record)
                await bert.state(INITIALISING)
                await join(bert, 2, start=0xFFFF_FFFE)
                assert await ask(bert, CTRL_TYPE_GET_HASH_FLAGS) == (UNSUPPORTED, 0)
                assert await ask(bert, MAPPING, TABLE_REF, 1, 0) == (INVALID, 0)
                await delivered(bert, anna, 0, None, queues=2)
                await bert.state(INITIALISING)
                await bert.told(INIT_WAIT)
                assert bert.held() == 0

        run(main())

    return runs


async def join(bert: Bert, queues: int, changed: dict[str, str | None] | None = None, start: int = 0) -> None:
    """Connect, with a control ring, and let the bridge learn."""
    await connect(bert, start, changed, queues)
    await bert.send(1)


class Anna:
    """She sends what she is told."""

    def __init__(self, bert: Bert) -> None:
        self._bert = bert

    @classmethod
    async def connected(cls, bert: Bert) -> "Anna":
        """With a front end that does no more than to send."""
        call, back = bert.lab.call, backend_path(0, "vif", 1, 0)
        await wait_for_state(bert.dom0, back, [XenbusState.INIT_WAIT], patient(20))
        await call("anna", "nodes", values=await call("anna", "setup", start=0))
        await call("anna", "state", value=str(CONNECTED))
        await wait_for_state(bert.dom0, back, [XenbusState.CONNECTED], patient(20))
        await call("anna", "notifier")
        return cls(bert)

    def mac(self, name: str) -> bytes:
        return bytes.fromhex(self._bert.macs[name].replace(":", ""))

    def packet(self, number: int, payload: int = 300) -> bytes:
        """A packet of a flow of its own to bert."""
        version, protocol = ((4, TCP), (4, UDP), (6, TCP), (6, UDP))[number % 4]
        frame = bytearray(Packet(self.mac(DRIVEN), self.mac("anna"), version, protocol, bytes(payload)).blank())
        frame[26 if version == 4 else 22 + 14] = number & 0xFF  # part of the source address
        frame[34 if version == 4 else 54] = number >> 8 & 0xFF  # and of its port
        return bytes(frame)

    async def send(self, frame: bytes, flags: int = 0, *extras: bytes) -> list[tuple[int, ...]]:
        """One frame of one request, with these extra infos; its responses."""
        page = (await self._bert.lab.call("anna", "pools"))["tx"]
        entries = [[TX_REF, GTF_PERMIT_ACCESS | GTF_READONLY, 0, page]]
        await self._bert.lab.call("anna", "transmit", entries=entries, frames=[], requests=[])
        flags |= TXF_EXTRA_INFO if extras else 0
        chained = [bytes([extra[0], k + 1 < len(extras)]) + extra[2:] for k, extra in enumerate(extras)]
        slots = [struct.pack("<IHHHH", TX_REF, 0, flags, 7, len(frame)), *(extra.ljust(12, b"\0") for extra in chained)]
        answers: list[tuple[int, ...]] = await self._bert.lab.call("anna", "slots", writes=[[page * 4096, frame]], slots=slots)
        return [tuple(answer) for answer in answers]


async def post(bert: Bert, queue: int, count: int, first: int = 0) -> None:
    """Receive requests with pages of their own."""
    page, ref = (await bert.call("pools", queue=queue))["rx"], RX_REF + queue * QUEUE_REFS
    entries = [[ref + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(first, first + count)]
    await bert.call("post", entries=entries, requests=[[k, ref + k] for k in range(first, first + count)], queue=queue)


async def have_mapped(bert: Bert, queue: int, count: int) -> None:
    """The first pages for a queue's receive requests are mapped for good."""
    page, ref = (await bert.call("pools", queue=queue))["rx"], RX_REF + queue * QUEUE_REFS
    entries = [[ref + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(count)]
    await bert.call("post", entries=entries, requests=[], queue=queue)
    assert await mapping(bert, CTRL_TYPE_ADD_GREF_MAPPING, *((ref + k, 0) for k in range(count)), queue=queue) == (OKAY, 0)


async def take(bert: Bert, queue: int, count: int) -> list[bytes]:
    """The next responses of a queue."""
    found: list[bytes] = await bert.call("responses", count=count, queue=queue)
    return found


async def content(bert: Bert, queue: int, response: bytes) -> tuple[int, bytes]:
    """(flags, the bytes that it tells of)."""
    number, offset, flags, status = struct.unpack("<HHHh", response)
    page = (await bert.call("pools", queue=queue))["rx"] + number
    return flags, await bert.call("read", at=page * 4096 + offset, length=status)


def extra_info(value: int, kind: int) -> bytes:
    return struct.pack("<BBBBI", 4, 0, kind, TOEPLITZ, value)


async def delivered(bert: Bert, anna: Anna, types: int, mapping: list[int] | None, queues: int = QUEUES, key: bytes = KEY) -> None:
    """Twelve flows of anna's each arrive in the queue that they belong in, with the hash that belongs to them, and whole.

    `types` 0: nothing is hashed. `mapping` None: the remainder is the queue.
    """
    posted = dict.fromkeys(range(queues), 0)
    for number in range(12):
        frame = anna.packet(number * 37)
        value, kind = frame_hash(frame, types, key)
        chosen = value % queues if mapping is None else mapping[value % len(mapping)]
        queue = flow_hash(frame) % queues if types == 0 else chosen
        extras = [] if kind < 0 else [extra_info(value, kind)]
        needed = 1 + len(extras)
        await post(bert, queue, needed, posted[queue])
        posted[queue] += needed
        assert await anna.send(frame) == [(7, RSP_OKAY)]
        first, *rest = await take(bert, queue, needed)
        assert await content(bert, queue, first) == (RXF_EXTRA_INFO if kind >= 0 else 0, frame)
        assert rest == extras


async def fill(bert: Bert, kind: int, data: bytes, *more: int) -> tuple[int, int]:
    """A request whose data are in a page."""
    await bert.call("fill", content=data)
    return await ask(bert, kind, TABLE_REF, *more)


async def set_up(bert: Bert, types: int, mapping: list[int] | None = None) -> None:
    for kind, data in ((ALGORITHM, TOEPLITZ), (FLAGS, types)):
        assert await ask(bert, kind, data) == (OKAY, 0)
    assert await fill(bert, SET_KEY, KEY, len(KEY)) == (OKAY, 0)
    assert await ask(bert, SIZE, len(mapping or [])) == (OKAY, 0)
    if mapping is not None:
        assert await fill(bert, MAPPING, struct.pack(f"<{len(mapping)}I", *mapping), len(mapping), 0) == (OKAY, 0)


def test_the_queue_is_the_front_ends_choice_and_the_hash_comes_with_the_frame(hashing: Callable[..., None]) -> None:
    async def body(bert: Bert, anna: Anna) -> None:
        await delivered(bert, anna, 0, None)
        await set_up(bert, TYPES)
        await delivered(bert, anna, TYPES, None)
        mapping = [3, 1, 0, 2, 2, 1, 3]
        await set_up(bert, TYPES, mapping)
        await delivered(bert, anna, TYPES, mapping)
        await set_up(bert, IPV4, mapping)
        await delivered(bert, anna, IPV4, mapping)
        assert await fill(bert, MAPPING, struct.pack("<2I", 0, 3), 2, 5) == (OKAY, 0)  # a part of it
        await delivered(bert, anna, IPV4, [*mapping[:5], 0, 3])
        assert await ask(bert, SIZE, 9) == (OKAY, 0)  # all of the new one is 0
        await delivered(bert, anna, IPV4, [0] * 9)
        assert await ask(bert, SET_KEY, 0, 0) == (OKAY, 0)  # no key: all hashes are 0
        await delivered(bert, anna, IPV4, [0] * 9, QUEUES, b"")
        await set_up(bert, TYPES, [2])
        flooded = b"\xff" * 6 + anna.packet(1)[6:]
        await post(bert, 2, 2)
        assert await anna.send(flooded) == [(7, RSP_OKAY)]
        first, extra = await take(bert, 2, 2)
        assert (await content(bert, 2, first), extra) == ((RXF_EXTRA_INFO, flooded), extra_info(*frame_hash(flooded, TYPES)))
        for kind, data in ((FLAGS, 0), (ALGORITHM, 0)):  # either ends it
            await set_up(bert, TYPES, mapping)
            assert await ask(bert, kind, data) == (OKAY, 0)
            await delivered(bert, anna, 0, None)

    hashing("hash", body)


def test_what_is_refused_changes_nothing(hashing: Callable[..., None]) -> None:
    async def body(bert: Bert, anna: Anna) -> None:
        mapping = [2, 0, 3]
        assert await ask(bert, CTRL_TYPE_GET_HASH_MAPPING_SIZE) == (OKAY, MOST_ENTRIES)
        assert await ask(bert, CTRL_TYPE_GET_HASH_FLAGS) == (UNSUPPORTED, 0)
        assert await ask(bert, FLAGS, IPV4) == (INVALID, 0)  # no algorithm yet
        await set_up(bert, TYPES, mapping)
        assert await ask(bert, CTRL_TYPE_GET_HASH_FLAGS) == (OKAY, TYPES)
        await bert.call("fill", content=struct.pack("<8I", 1, 1, 1, 4, 1, 1, 1, 1))
        for kind, *data, status in (
            (ALGORITHM, 2, INVALID),
            (ALGORITHM, 0xFFFF_FFFF, INVALID),
            (FLAGS, TYPES + 1, INVALID),
            (FLAGS, 0x8000_0000, INVALID),
            (SET_KEY, TABLE_REF, KEY_BYTES + 1, OVERFLOW),
            (SET_KEY, TABLE_REF, 0xFFFF_FFFF, OVERFLOW),
            (SET_KEY, TX_REF + 100, 4, INVALID),  # not granted
            (SET_KEY, 0xFFFF_FFFF, 4, INVALID),
            (SIZE, MOST_ENTRIES + 1, INVALID),
            (SIZE, 0xFFFF_FFFF, INVALID),
            (MAPPING, TABLE_REF, 4, 0, INVALID),  # more than the size that was set
            (MAPPING, TABLE_REF, 1, 3, INVALID),
            (MAPPING, TABLE_REF, 2, 0xFFFF_FFFF, INVALID),
            (MAPPING, TABLE_REF, MOST_ENTRIES + 1, 0, OVERFLOW),
            (MAPPING, TX_REF + 100, 1, 0, INVALID),
            (MAPPING, 0xFFFF_FFFF, 1, 0, INVALID),
        ):
            assert await ask(bert, kind, *data) == (status, 0), (kind, data)
        await bert.call("fill", content=struct.pack("<3I", 1, 1, QUEUES))  # no such queue, behind two that are there
        assert await ask(bert, MAPPING, TABLE_REF, 3, 0) == (INVALID, 0)
        await delivered(bert, anna, TYPES, mapping)
        # of no entries no page is looked at; a page may be granted for reading only
        assert await ask(bert, MAPPING, 0xFFFF_FFFF, 0, 3) == (OKAY, 0)
        empty = [TX_REF + 50, GTF_PERMIT_ACCESS | GTF_READONLY, 0, bert._pools["tx"] + 50]
        await bert.call("transmit", entries=[empty], frames=[], requests=[])
        assert await ask(bert, MAPPING, TX_REF + 50, 2, 1) == (OKAY, 0)
        await delivered(bert, anna, TYPES, [2, 0, 0])

    hashing("hashbad", body)


@pytest.mark.parametrize("mapped", tiered([False, True], [True]))
def test_a_hash_goes_with_segmentation_and_with_each_segment(hashing: Callable[..., None], mapped: bool) -> None:
    """A TCP frame of 3000 bytes: with one extra info behind the other, then (next front end) cut up, each part with its hash.

    Into pages that are a grant copy each, or have been mapped for that queue.
    """

    async def body(bert: Bert, anna: Anna) -> None:
        await set_up(bert, TYPES, [1])
        if mapped:
            await have_mapped(bert, 1, 6)
        before = await bridge(bert)
        packet = Packet(anna.mac(DRIVEN), anna.mac("anna"), 4, TCP, bytes(3000))
        frame, gso = packet.blank(), struct.pack("<BBHBBH", 1, 0, 1448, 1, 0, 0)
        value, kind = frame_hash(frame, TYPES)
        await post(bert, 1, 4)
        assert await anna.send(frame, TXF_CSUM_BLANK, gso, extra_info(1, 1)) == [(7, RSP_OKAY), (0, RSP_NULL), (0, RSP_NULL)]
        first, *extras = await take(bert, 1, 3)
        blank = RXF_CSUM_BLANK | RXF_DATA_VALIDATED
        assert await content(bert, 1, first) == (blank | RXF_EXTRA_INFO, frame)
        assert extras == [gso[:1] + b"\1" + gso[2:], extra_info(value, kind)]
        await bert.call("nodes", values={"feature-gso-tcpv4": None})
        await bert.state(INITIALISING)
        await join(bert, QUEUES)
        await set_up(bert, TYPES, [1])
        if mapped:
            await have_mapped(bert, 1, 6)
        await post(bert, 1, 6)
        assert await anna.send(frame, 0, extra_info(1, 1), gso) == [(7, RSP_OKAY), (0, RSP_NULL), (0, RSP_NULL)]
        found = await take(bert, 1, 6)
        parts = [part.blank() for part in packet.segments(1448)]
        assert [await content(bert, 1, found[k]) for k in (0, 2, 4)] == [(blank | RXF_EXTRA_INFO, part) for part in parts]
        assert found[1::2] == [extra_info(value, kind)] * 3
        assert (await bridge(bert))["grant_maps"] == before["grant_maps"]
        await bert.call("nodes", values={"feature-sg": None})

    hashing("hashgso", body, feature_sg="1", feature_gso_tcpv4="1")


def test_a_frame_waits_for_the_slot_of_its_hash(hashing: Callable[..., None]) -> None:
    async def body(bert: Bert, anna: Anna) -> None:
        await set_up(bert, TYPES, [2])
        await post(bert, 2, 1)
        frame = anna.packet(4)
        sending = asyncio.create_task(anna.send(frame))
        counters = await bert.runner.lab.counters()

        async def paused() -> bool:
            return counters.read()["dom0/vif1:anna"]["pauses"] > 0

        await until(paused, "a pause for the second slot")
        await post(bert, 2, 1, 1)
        first, extra = await take(bert, 2, 2)
        assert await content(bert, 2, first) == (RXF_EXTRA_INFO, frame)
        assert extra == extra_info(*frame_hash(frame, TYPES))
        assert await sending == [(7, RSP_OKAY)]

    hashing("hashwait", body)


def test_any_requests_in_any_order_under_traffic_are_as_a_model_says(hashing: Callable[..., None]) -> None:
    async def body(bert: Bert, anna: Anna) -> None:
        chance = random.Random(11)
        algorithm, types, mapping = 0, 0, list[int]()
        await set_up(bert, 0, [])
        await ask(bert, ALGORITHM, 0)
        for turn in range(6):
            for _ in range(25):
                kind = chance.choice([ALGORITHM, FLAGS, SIZE, MAPPING])
                words = [chance.choice([0, 1, 2, 5, 15, 16, MOST_ENTRIES, 1 << 31]) for _ in range(2)]
                if kind == MAPPING:
                    table = [chance.choice([0, 1, 2, 3, 3, 3, QUEUES + (turn & 1) - 1]) for _ in range(8)]
                    await bert.call("fill", content=struct.pack("<8I", *table))
                    count, first = chance.randrange(9), words[0]
                    entered = table[:count]
                    good = first + count <= len(mapping) and all(queue < QUEUES for queue in entered)
                    mapping[first : first + count] = entered if good else mapping[first : first + count]
                    expected = OKAY if good else INVALID
                    assert await ask(bert, kind, TABLE_REF, count, first) == (expected, 0)
                    continue
                good = {ALGORITHM: words[0] < 2, FLAGS: words[0] < 16 and algorithm == 1, SIZE: words[0] <= MOST_ENTRIES}[kind]
                if good and kind == ALGORITHM:
                    algorithm = words[0]
                elif good and kind == FLAGS:
                    types = words[0]
                elif good:
                    mapping = [0] * words[0]
                assert await ask(bert, kind, *words) == (OKAY if good else INVALID, 0)
            await delivered(bert, anna, types if algorithm else 0, mapping or None)

    hashing("hashany", body)


def test_who_connects_again_under_traffic_shows_the_bridge_nothing_of_before(hashing: Callable[..., None]) -> None:
    """The table by which queues were chosen goes with its connection; frames for the guest go on coming meanwhile."""

    async def body(bert: Bert, anna: Anna) -> None:
        counters = await bert.lab.counters()

        async def carl_sends() -> bool:  # who begins to measure has the wire send a frame of its own, and nothing else
            return counters.read()["nic/wire0"]["rx_frames"] > 1000

        async def is_over() -> bool:
            return bool((await bert.lab.call("nic", "wire_report", stream=9))["left"] == 0)

        await until(carl_sends, "the wire to have carl's frames")
        await bert.lab.call("nic", "wire_generate", mac=bert.macs[DRIVEN], frame=64, stream=9, frames=300_000, pps=150_000)
        for number in range(6):
            await set_up(bert, TYPES, [number % QUEUES] * (MOST_ENTRIES >> number))
            await bert.state(INITIALISING)
            await bert.told(INIT_WAIT)
            await join(bert, QUEUES, start=number)
        await until(is_over, "the wire's frames to be gone")
        await set_up(bert, TYPES, [2])
        await delivered(bert, anna, TYPES, [2])

    hashing("hashagain", body)


@pytest.mark.long
def test_one_queue_is_served_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it asks for: there is nothing to choose, and no frame has an extra info."""

    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "hashone", roles={"anna": ROLE}) as bert:
            anna = await Anna.connected(bert)
            await join(bert, 1)
            await set_up(bert, IPV4_TCP, [0])
            await bert.call("fill", content=struct.pack("<I", 1))
            assert await ask(bert, MAPPING, TABLE_REF, 1, 0) == (INVALID, 0)  # there is no second queue
            await delivered(bert, anna, 0, None, queues=1)

    run(main())
