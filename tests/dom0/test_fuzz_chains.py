"""netif frames of any number of slots, sound ones and lies in any mixture, against a slow model of netback, byte for byte.

bert posts the slots that he is told (tests/support/fuzz_netfront.py), to guests who have accepted different features and post as
many receive requests as the model (tests/support/netback_model.py) says. Both agree on each response, on every byte that arrives,
on each drop and fault.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st

from domu.frontends.split import RX_REF, TX_REF
from hyp.abi.counters import DROPS, FAULTS
from hyp.abi.grant import GTF_PERMIT_ACCESS, PAGE_BYTES
from hyp.abi.netif import RSP_NULL, RSP_OKAY
from hyp.abi.nic import mac_to_int
from lab import owner
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.workloads import Runner
from tests.lab.test_paths import running
from tests.support.drivers import header
from tests.support.fuzz import TIERS, fuzz
from tests.support.labs import run, until, workload
from tests.support.netback_model import CSUM_BLANK, EXTRA, HASH, MORE, RECEIVERS, VALIDATED, Delivery, Model
from tests.support.plain_packets import ETHERNET, TCP, UDP, Packet
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

ROLE: Final = "tests.support.fuzz_netfront"
NAMES: Final = {column.name.lower() for column in (*DROPS, *FAULTS)}
SLOTS: Final = 256
INPUTS: Final = 8
BAD_GREF: Final = 2000


# --- the frames --------------------------------------------------------------------------------------------------------

TROUBLES: Final = (
    "none", "unknown flag", "later extra", "empty", "many", "short size", "long size", "short head", "over page", "gref",
    "extra type", "extras", "gso zero", "gso type", "gso small", "no packet", "wrong version", "unvalidated",
    "hash behind", "hash ahead", "only a hash",
)  # fmt: skip
SHAPES: Final = st.fixed_dictionaries(
    {
        "to": st.sampled_from([*RECEIVERS] * 3 + ["wire", "bert"]),
        "kind": st.sampled_from(["raw", "tcp4", "tcp4", "tcp6", "udp4", "udp6"]),
        "gso": st.sampled_from([0, 0, 48, 536, 1448, 1460, 9000]),
        "parts": st.integers(1, 40),
        "octets": st.integers(0, 1500),
        "cuts": st.lists(st.integers(1, PAGE_BYTES), max_size=17),
        "offset": st.integers(0, PAGE_BYTES),
        "options": st.sampled_from([0, 0, 12, 40]),
        "flags": st.sampled_from([0x10, 0x19, 0x98]),
        "sequence": st.sampled_from([0, 1, (1 << 32) - 1000]),
        "trouble": st.sampled_from(["none"] * 20 + list(TROUBLES)),
        "number": st.integers(0, 0xFFFF),
    }
)
CASES: Final = st.lists(SHAPES, min_size=1, max_size=5)
SOUND: Final = {
    "to": "whole", "kind": "tcp4", "gso": 1448, "parts": 12, "octets": 700, "cuts": [60, 3000], "offset": 77, "options": 12,
    "flags": 0x99, "sequence": (1 << 32) - 5000, "trouble": "none", "number": 0xFFFE,
}  # fmt: skip
SWEEP = [[SOUND | {"trouble": trouble, "kind": kind}, SOUND] for trouble in TROUBLES for kind in ("tcp4", "tcp6")]
SWEEP += [
    [SOUND | {"to": to, "kind": kind}] for to in (*RECEIVERS, "wire", "bert") for kind in ("raw", "tcp4", "tcp6", "udp4", "udp6")
]
SWEEP += [[SOUND | {"to": to, "kind": kind, "parts": 1}] for to in (*RECEIVERS, "wire") for kind in ("tcp4", "tcp6")]
SWEEP += [[SOUND | {"gso": 9000}]]
"""Each trouble, with a sound frame behind it; each kind of frame to each guest; one that is to be segmented, and is one segment."""


def content_of(shape: dict[str, Any], to: bytes, sender: bytes) -> tuple[bytes, int, int]:
    """(frame, segment size, 1 if its checksum is blank)."""
    kind, segment = shape["kind"], shape["gso"] if shape["kind"].startswith("tcp") else 0
    size = min(segment * (shape["parts"] - 1) + shape["octets"] % (segment or 1501) + 1, 65000) if segment else shape["octets"]
    payload = bytes((k * 7 + size + (k >> 8)) & 0xFF for k in range(size))
    if kind == "raw" or shape["trouble"] == "no packet":
        return to + sender + b"\x88\xb6" + payload, segment, 1 if shape["trouble"] == "no packet" else 0
    packet = Packet(
        to, sender, int(kind[-1]), TCP if kind.startswith("tcp") else UDP, payload, shape["sequence"], shape["number"],
        shape["flags"], shape["options"] if kind.startswith("tcp") else 0,
    )  # fmt: skip
    if segment and shape["trouble"] == "unvalidated":  # a peer that doesn't say that the checksum is blank, and leaves it empty
        return packet.headers(0) + payload, segment, 0
    return packet.blank(), segment, 1


def cut_up(frame: bytes, cuts: list[int], most: int = 18) -> list[bytes]:
    """The frame in fragments: at the places that are drawn, and where a page is full."""
    pieces: list[bytes] = []
    at = 0
    for cut in [*cuts, *[PAGE_BYTES] * 32]:
        left = len(frame) - at
        needed = -(-left // PAGE_BYTES)
        n = min(cut if len(pieces) + 1 + needed <= most else PAGE_BYTES, left)
        n = max(n, ETHERNET) if not pieces else n
        pieces.append(frame[at : at + n])
        at += n
        if at >= len(frame):
            break
    return pieces


def slots_of(
    shape: dict[str, Any], frame: bytes, segment: int, blank: int, first_page: int
) -> tuple[list[bytes], dict[int, tuple[int, bytes]]]:
    """The transmit slots of a frame, and what is in which page where: {page: (offset, bytes)}."""
    trouble, version = shape["trouble"], 6 if shape["kind"].endswith("6") else 4
    pieces = cut_up(frame, shape["cuts"])
    if trouble == "short head" and len(frame) > 20:
        pieces = [frame[:10], *cut_up(frame[10:], [])]
    if trouble == "many" and len(frame) > 40:
        pieces = [frame[:14], *(frame[k : k + 1] for k in range(14, 31 + shape["octets"] % 6)), frame[31 + shape["octets"] % 6 :]]
        pieces = [piece[:PAGE_BYTES] for piece in pieces]
    requests, contents = [], {}
    for k, piece in enumerate(pieces):
        offset = shape["offset"] % (PAGE_BYTES - len(piece) + 1)
        contents[first_page + k] = (offset, piece)
        flags = MORE if k < len(pieces) - 1 else 0
        requests.append([TX_REF + first_page + k, offset, flags, (shape["number"] + k) & 0xFFFF, len(piece)])
    requests[0][4] = sum(len(piece) for piece in pieces)
    requests[0][2] |= (CSUM_BLANK | VALIDATED if blank else 0) | (EXTRA if segment else 0)
    extras = [[1, 0, segment, 2 if version == 6 else 1, 0, 0]] if segment else []
    last = requests[-1]
    if trouble == "unknown flag":
        last[2] |= 0x20
    elif trouble == "later extra" and len(requests) > 1:
        last[2] |= EXTRA
    elif trouble == "empty" and len(requests) > 1:
        last[4] = 0
    elif trouble == "short size":
        requests[0][4] = max(requests[0][4] - 1 - shape["octets"], 0)
    elif trouble == "long size":
        requests[0][4] = min(requests[0][4] + 1, 0xFFFF)
    elif trouble == "over page":
        last[1] = PAGE_BYTES - len(pieces[-1]) + 1
    elif trouble == "gref":
        last[0] = BAD_GREF
    elif extras:
        extra = extras[0]
        if trouble == "extra type":
            extra[0] = (0, 2, 3, 4, 5, 200)[shape["octets"] % 6]
        elif trouble == "extras":
            extras = [[*extra[:1], 1, *extra[2:]] for _ in range(4 + shape["octets"] % 2)] + [extra]
        elif trouble == "gso zero":
            extra[2] = 0
        elif trouble == "gso small":
            extra[2] = 47
        elif trouble == "gso type":
            extra[3] = (0, 3)[shape["octets"] % 2]
        elif trouble == "wrong version":
            extra[3] = 3 - extra[3]
        elif trouble == "hash behind":
            extras = [[1, 1, *extra[2:]], [HASH, 0, 0x101, 9, 9, 9]]
        elif trouble == "hash ahead":
            extras = [[HASH, 1, 0, 0, 0, 0], extra]
        elif trouble == "only a hash":
            extras = [[HASH, 0, 0, 0, 0, 0]]
    raw = [struct.pack("<IHHHH", *request) for request in requests]
    return [raw[0], *(struct.pack("<BBHBBHI", *extra, 0xFFFFFFFF) for extra in extras), *raw[1:]], contents


# --- the lab -----------------------------------------------------------------------------------------------------------


class Posting:
    """A guest whose front end posts what it is told."""

    def __init__(self, runner: Runner, name: str, pools: dict[str, int]) -> None:
        self.runner, self.name, self.pools = runner, name, pools
        guests = runner.lab.topology["guest"]
        self.number = next(k for k, guest in enumerate(guests, 1) if guest["name"] == name)
        self.mac = mac_to_int(guests[self.number - 1]["mac"]).to_bytes(6, "little")
        self.posted = self.answered = 0

    async def call(self, op: str, **args: Any) -> Any:
        return await self.runner.lab.call(self.name, op, **args)

    async def counts(self) -> Counter[str]:
        row = (await self.runner.lab.counters()).read()[f"dom0/vif{self.number}:{self.name}"]
        return Counter({name: n for name, n in row.items() if name in NAMES and n})

    async def post(self, count: int) -> None:
        """So many receive requests: request k has page k, by turns."""
        pages = [(self.posted + k) % SLOTS for k in range(count)]
        entries = [[RX_REF + page, GTF_PERMIT_ACCESS, 0, self.pools["rx"] + page] for page in pages] if self.posted < SLOTS else []
        await self.call(
            "post", entries=entries, requests=[[self._id(self.posted + k), RX_REF + page] for k, page in enumerate(pages)]
        )
        self.posted += count

    @staticmethod
    def _id(k: int) -> int:
        return (k * 37 + 5) & 0xFFFF

    async def expect(self, deliveries: list[Delivery]) -> None:
        """They have arrived, or do: slot by slot, and byte by byte."""
        raw = await self.call("responses", count=sum(one.slots for one in deliveries))
        at = 0
        for one in deliveries:
            pages = range(-(-len(one.content) // PAGE_BYTES))
            found = bytearray()
            for k in pages:
                number, offset, flags, status = struct.unpack("<HHHh", raw[at])
                assert number == self._id(self.answered)
                assert flags == (one.flags if k == 0 else 0) | (MORE if k < len(pages) - 1 else 0)
                assert status == min(PAGE_BYTES, len(one.content) - k * PAGE_BYTES)
                assert offset + status <= PAGE_BYTES
                page = self.pools["rx"] + self.answered % SLOTS
                found += await self.call("read", at=page * PAGE_BYTES + offset, length=status)
                at, self.answered = at + 1, self.answered + 1
                if k == 0 and one.extra:
                    assert raw[at] == one.extra
                    at, self.answered = at + 1, self.answered + 1
            assert bytes(found) == one.content


class World:
    """All of them, with bert, who sends."""

    def __init__(self, runner: Runner, guests: dict[str, Posting], most: int) -> None:
        self.runner, self.guests, self.bert, self.most = runner, guests, guests["bert"], most
        self.wire = mac_to_int(runner.lab.topology["nic"]["wire"]["mac"]).to_bytes(6, "little")
        self.macs = {name: guest.mac for name, guest in guests.items()} | {"wire": self.wire}
        self.counted = Counter[str]()
        self._markers = 0

    async def begin(self) -> None:
        """The bridge learns where everybody is."""
        await self.runner.run(workload("stream", "wire", "anna", frames=10))
        for guest in self.guests.values():
            page = guest.pools["tx"]
            entries = [[TX_REF + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(SLOTS)]
            await guest.call("transmit", entries=entries, frames=[], requests=[])
            assert await self.says_that_it_is_there(guest, guest.mac) == [[1, RSP_OKAY]]
        self.counted = await self.bert.counts()  # copies of what was flooded until now

    async def says_that_it_is_there(self, guest: Posting, mac: bytes) -> list[list[int]]:
        """A station of that address, behind a guest, sends a frame to the wire. Returns [id, status] of its slot."""
        text = [":".join(f"{octet:02x}" for octet in one) for one in (self.wire, mac)]
        writes = [[guest.pools["tx"] * PAGE_BYTES, header(*text) + bytes(50)]]
        answers: list[list[int]] = await guest.call("slots", writes=writes, slots=[struct.pack("<IHHHH", TX_REF, 0, 0, 1, 64)])
        return answers

    async def exchange(self, shapes: list[dict[str, Any]]) -> Counter[str]:
        """Post the frames, and compare everything with the model. Returns what it counted, and who got what."""
        slots: list[bytes] = []
        pages: dict[int, bytearray] = {}
        page = 0
        for shape in shapes:
            frame, segment, blank = content_of(shape, self.macs[shape["to"]], self.bert.mac)
            more, contents = slots_of(shape, frame, segment, blank, page)
            writes = []
            for number, (offset, piece) in contents.items():
                whole = bytearray((number + k) & 0xFF for k in range(PAGE_BYTES))
                whole[offset : offset + len(piece)] = piece
                pages[TX_REF + number] = whole
                writes.append([(self.bert.pools["tx"] + number) * PAGE_BYTES, bytes(whole)])
            await self.bert.call("slots", writes=writes, slots=[])
            slots += more
            page += len(contents)
        model = Model(self.most, {mac: name for name, mac in self.macs.items()})
        model.transmit(slots, pages)
        for name, deliveries in model.got.items():
            if name in RECEIVERS:
                await self.guests[name].post(sum(one.slots for one in deliveries))
        before = await self._on_wire()
        answers = await self.bert.call("slots", writes=[], slots=slots)
        assert [status for _, status in answers] == model.statuses
        requests = [k for k, status in enumerate(model.statuses) if status != RSP_NULL]
        assert [answers[k][0] for k in requests] == [struct.unpack("<IHHHH", slots[k])[3] for k in requests]
        for name, deliveries in model.got.items():
            if name in RECEIVERS:
                await self.guests[name].expect(deliveries)
        sent = len(model.got.get("wire", ()))
        await self._until_on_wire(before + sent)
        self.counted += model.counts
        assert await self.bert.counts() == self.counted
        kinds = Counter(f"{name} {'GSO' if one.extra else one.flags}" for name, found in model.got.items() for one in found)
        return model.counts + kinds

    async def _on_wire(self) -> int:
        return (await self.runner.lab.counters()).read()["nic/wire0"]["rx_frames"]

    async def nothing_is_under_way(self) -> bool:
        """True if a frame that anna sends now has reached the wire, hence all before it, or they were dropped."""
        self._markers += 1
        stream = 8 + self._markers % 32
        to = self.runner.lab.topology["nic"]["wire"]["mac"]
        await self.runner.lab.call("anna", "send_stream", mac=to, frame=64, stream=stream, frames=1)
        return bool((await self.runner.lab.call("nic", "wire_report", stream=stream))["received"]["frames"])

    async def _until_on_wire(self, frames: int) -> None:
        async def arrived() -> bool:
            return await self._on_wire() >= frames

        await until(arrived, "frames on the wire")
        assert await self._on_wire() == frames


@asynccontextmanager
async def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants: str, mtu: int, *, ageing_s: int = 86400, trunk: str = ""
) -> AsyncIterator[World]:
    """anna is honest; bert and the RECEIVERS post what they are told. `trunk`: who of these has other stations behind it."""
    names = {"bert": RECEIVERS["whole"], **RECEIVERS}

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(topology)
        for process in processes:
            if process["name"] in names:
                process["module"] = ROLE
        return processes

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, ROLE])
    text = f'[nic]\npause_us = 1_000_000\nmtu = {mtu}\n[dom0]\nageing_s = {ageing_s}\n[[guest]]\nname = "anna"\npath = "split"\n'
    for name, features in names.items():
        text += f'[[guest]]\nname = "{name}"\npath = "split"\noffloads = {sorted(features)}\n'
        text += f'grants = "{grants}"\ntrunk = {str(name == trunk).lower()}\n'
    async with running(tmp_path, f"chains{grants[0]}", text) as runner:
        guests = {name: Posting(runner, name, await runner.lab.call(name, "pools")) for name in names}
        there = World(runner, guests, mtu + 18)
        await there.begin()
        yield there


# --- the tests ---------------------------------------------------------------------------------------------------------

SEEN: Final = {f"faults_{what}" for what in ("descriptor", "chain", "offload", "grant")}
SEEN_DROPS: Final = {f"drop_{what}" for what in ("bad_frame", "bad_address", "oversize", "same_port")}
SEEN_KINDS: Final = {"whole GSO", "whole 3", "cut 3", "fill 0", "lone 3", "plain 0"}


@TIERS
@pytest.mark.parametrize("mode", tiered([("copy", 1500), ("map", 9000), ("persistent", 9000)], [("map", 9000)]), ids=str)
def test_netback_does_what_the_model_does_with_any_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int, mode: tuple[str, int]
) -> None:
    seen: Counter[str] = Counter()

    async def main() -> None:
        async with world(tmp_path, monkeypatch, *mode) as there:
            loop = asyncio.get_running_loop()

            def body(case: Any) -> None:  # hypothesis has a thread, the topology has this loop
                seen.update(asyncio.run_coroutine_threadsafe(there.exchange(case), loop).result())

            for case in SWEEP:
                seen.update(await there.exchange(case))
            await asyncio.to_thread(fuzz, body, CASES, INPUTS * examples)

    run(main())
    print(dict(seen))
    assert seen.keys() >= SEEN | SEEN_DROPS | SEEN_KINDS
