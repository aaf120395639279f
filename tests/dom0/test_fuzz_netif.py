"""netif requests and the grants behind them, good ones and lies in any mixture, against a slow model of netback.

A guest whose front end posts what it is told (tests/support/fuzz_netfront.py) in a real topology: Dom0's loop, its hypercalls and
the bridge are what they always are. The model judges one request after the other, field by field; both have to agree on each
response, on what arrives, and on every drop and fault by name.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st

from domu.frontends.split import GRANT_FRAMES, RX_REF, RX_SLOTS, TX_REF, TX_SLOTS
from hyp.abi.counters import DROPS, FAULTS
from hyp.abi.frame import MIN_TEST_FRAME
from hyp.abi.grant import (
    ENTRY_BYTES,
    GTF_ACCEPT_TRANSFER,
    GTF_INVALID,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_SUB_PAGE,
    GTF_TRANSITIVE,
    GTF_TYPE_MASK,
    GTF_WRITING,
    PAGE_BYTES,
)
from hyp.abi.netif import RSP_ERROR, RSP_OKAY, TXF_DATA_VALIDATED
from hyp.abi.nic import DEFAULT_MTU, LINK_HEADER, MIN_FRAME
from hyp.paths import GRANT_MODES
from lab import owner
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.workloads import Runner
from tests.lab.test_paths import running
from tests.support.fuzz import TIERS, fuzz
from tests.support.labs import run, until, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

INPUTS: Final = 60
MOST: Final = 24
"""Requests of one input."""
REFS: Final = GRANT_FRAMES * PAGE_BYTES // ENTRY_BYTES
ROLE: Final = "tests.support.fuzz_netfront"
MOST_BYTES: Final = DEFAULT_MTU + LINK_HEADER
NAMES: Final = {column.name.lower() for column in (*DROPS, *FAULTS)}
LAB: Final = "[nic]\npause_us = 0\n[dom0]\nageing_s = 86400\n" + "".join(
    f'[[guest]]\nname = "{name}"\npath = "split"\n{more}' for name, more in (("anna", ""), ("bert", "{more}"), ("carl", "{more}"))
)


@asynccontextmanager
async def fuzzed_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants: str) -> AsyncIterator[Runner]:
    """anna is honest, bert and carl post what they are told."""

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(topology)
        for process in processes:
            if process["name"] in ("bert", "carl"):
                process["module"] = ROLE
        return processes

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, ROLE])
    text = LAB.format(more=f'grants = "{grants}"\n')
    async with running(tmp_path, f"netif{grants[0]}", text) as runner:
        yield runner


class Model:
    """netback, for one vif: what becomes of each request. Pages that were mapped for good are what they were then."""

    def __init__(self, pools: dict[str, int], persistent: bool) -> None:
        self.ram = pools["ram"]
        self.mapped: dict[tuple[int, bool], int] = {}
        if persistent:
            self.mapped |= {(TX_REF + k, False): pools["tx"] + k for k in range(TX_SLOTS)}
            self.mapped |= {(RX_REF + k, write): pools["rx"] + k for k in range(RX_SLOTS) for write in (False, True)}
        self.counts: Counter[str] = Counter()

    def page(self, gref: int, entry: list[int] | None, *, write: bool) -> int | None:
        """The frame that Dom0 may use by this reference now; `entry`: what its entry says (flags, domid, frame). None: refused."""
        if (gref, write) in self.mapped:
            return self.mapped[gref, write]
        if gref >= REFS or entry is None:
            return None
        flags, domid, frame = entry
        if flags & GTF_TYPE_MASK != GTF_PERMIT_ACCESS or flags & GTF_SUB_PAGE or domid != 0 or frame >= self.ram:
            return None
        if write and flags & GTF_READONLY:
            return None
        return frame

    def transmit(self, request: list[int], entry: list[int] | None, *, back: bool) -> int:
        """The status of a transmit request. `back`: its frame is for its own sender."""
        gref, offset, flags, _, size = request
        if flags & ~TXF_DATA_VALIDATED or size < MIN_FRAME or offset + size > PAGE_BYTES:
            self.counts.update(["faults_descriptor", "drop_bad_frame"])
            return RSP_ERROR
        if size > MOST_BYTES:
            self.counts["drop_oversize"] += 1
            return RSP_ERROR
        if self.page(gref, entry, write=False) is None:
            self.counts.update(["faults_grant", "drop_bad_address"])
            return RSP_ERROR
        if back:
            self.counts["drop_same_port"] += 1
        return RSP_OKAY

    def receive(self, gref: int, entry: list[int] | None, length: int) -> int:
        """The status of a receive request whose turn it is for a frame."""
        if self.page(gref, entry, write=True) is None:
            self.counts.update(["faults_grant", "drop_bad_address"])
            return RSP_ERROR
        return length


class Vif:
    """A guest that is fuzzed, its model, and where frames go."""

    def __init__(self, runner: Runner, name: str, number: int, pools: dict[str, int], persistent: bool) -> None:
        self.runner, self.name, self.pools = runner, name, pools
        self.row = f"dom0/vif{number}:{name}"
        self.model = Model(pools, persistent)
        self.mac = str(next(guest["mac"] for guest in runner.lab.topology["guest"] if guest["name"] == name))
        self.wire = str(runner.lab.topology["nic"]["wire"]["mac"])
        self.streams = 0
        self.before: Counter[str] = Counter()

    async def counts(self) -> dict[str, int]:
        """Its drops and faults since it began, those that are not zero."""
        row = (await self.runner.lab.counters()).read()[self.row]
        return dict(Counter({name: n for name, n in row.items() if name in NAMES}) - self.before)

    async def begin(self) -> None:
        """Let the bridge learn where it is."""
        self.before = Counter(await self.counts())
        await self.transmit(TEACHES)

    async def arrived(self) -> int:
        """Good frames of the present stream on the wire."""
        report = await self.runner.lab.call("nic", "wire_report", stream=self.streams)
        return int(report["received"]["frames"])

    async def transmit(self, shapes: list[Any]) -> None:
        """Post transmit requests, and compare their responses and what reaches the wire with the model."""
        self.streams += 1
        entries, frames, requests, statuses, good = [], [], [], [], 0
        for k, ((kind, flags, domid, frame), (offset, size, odd), number, back) in enumerate(shapes):
            ref = TX_REF + k
            entry = [flags, domid, frame_of(frame, self.pools, k)]
            gref = gref_of(kind, ref)
            request = [gref, offset, odd, number, size]
            status = self.model.transmit(request, entry if gref == ref else None, back=back)
            page = self.model.page(gref, entry, write=False) if status == RSP_OKAY else None
            if page is not None:
                frames.append([page * PAGE_BYTES + offset, size, self.mac if back else self.wire, self.streams, k])
                good += size >= MIN_TEST_FRAME and not back
            entries.append([ref, *entry])
            requests.append(request)
            statuses.append([number, status])
        assert await self.runner.lab.call(self.name, "transmit", entries=entries, frames=frames, requests=requests) == statuses

        async def all_arrived() -> bool:
            return await self.arrived() >= good

        if good:
            await until(all_arrived, f"{good} frames on the wire")
            assert await self.arrived() == good
        assert await self.counts() == dict(self.model.counts)

    async def receive(self, shapes: list[Any], length: int) -> None:
        """Post receive requests, have anna send as many frames, and compare the responses and the pages with the model."""
        self.streams += 1
        entries, requests, wanted, places = [], [], [], []
        for k, ((kind, flags, domid, frame), number) in enumerate(shapes):
            ref = RX_REF + k
            entry = [flags, domid, frame_of(frame, self.pools, k, writable=True)]
            gref = gref_of(kind, ref)
            status = self.model.receive(gref, entry if gref == ref else None, length)
            page = self.model.page(gref, entry, write=True) if status > 0 else None
            entries.append([ref, *entry])
            requests.append([number, gref])
            wanted.append([number, status, status > 0])
            anna = str(self.runner.lab.topology["guest"][0]["mac"])
            places.append([page if page is not None else 0, anna, length, self.streams, k])
        lab = self.runner.lab
        await lab.call(self.name, "post", entries=entries, requests=requests)
        job = {"mac": self.mac, "frame": length, "stream": self.streams, "frames": len(shapes)}
        assert (await lab.call("anna", "send_stream", **job))["sent"] == len(shapes)
        found = await lab.call(self.name, "received", count=len(shapes), frames=places)
        assert [[number, status, whole] for number, _, status, whole in found] == wanted
        assert await self.counts() == dict(self.model.counts)


def gref_of(kind: str, own: int) -> int:
    """The reference that a request names."""
    return {"own": own, "reserved": 3, "beyond": REFS, "far": 1 << 31, "-1": (1 << 32) - 1}[kind]


def frame_of(where: str, pools: dict[str, int], k: int, writable: bool = False) -> int:
    """The frame that an entry names: a page of this request's own in either pool, or none in RAM."""
    first, second = ("rx", "tx") if writable else ("tx", "rx")
    return {"own": pools[first] + k, "other": pools[second] + k, "beyond": pools["ram"], "far": (1 << 32) - 1}[where]


READABLE: Final = GTF_PERMIT_ACCESS | GTF_READONLY
ODD_FLAGS: Final = [
    GTF_INVALID, GTF_ACCEPT_TRANSFER, GTF_TRANSITIVE, READABLE, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, GTF_PERMIT_ACCESS | GTF_READING,
    GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING, READABLE | 0x8000,
]  # fmt: skip


def grants() -> st.SearchStrategy[Any]:
    """(which reference, flags, domid, frame), mostly good."""
    return st.tuples(
        st.sampled_from(["own"] * 20 + ["reserved", "beyond", "far", "-1"]),
        st.sampled_from([GTF_PERMIT_ACCESS] * 16 + ODD_FLAGS),
        st.sampled_from([0] * 20 + [1, 7, 0x7FF0, 0xFFFF]),
        st.sampled_from(["own"] * 12 + ["other"] * 4 + ["beyond", "far"]),
    )


PLACES: Final = st.tuples(
    st.one_of(st.integers(0, PAGE_BYTES - 1500), st.just(0), st.integers(0, 0xFFFF)),
    st.one_of(
        st.integers(MIN_TEST_FRAME, 1514),
        st.just(64),
        st.sampled_from([0, MIN_FRAME - 1, MIN_FRAME, MOST_BYTES, MOST_BYTES + 1, PAGE_BYTES, 0xFFFF]),
    ),
    st.sampled_from([0] * 20 + [TXF_DATA_VALIDATED] * 4 + [0x10, 0x8000]),
)
TRANSMITS: Final = st.lists(
    st.tuples(grants(), PLACES, st.integers(0, 0xFFFF), st.sampled_from([False] * 7 + [True])), min_size=1, max_size=MOST
)
RECEIVES: Final = st.lists(st.tuples(grants(), st.integers(0, 0xFFFF)), min_size=1, max_size=MOST)
CASES: Final = st.tuples(TRANSMITS, RECEIVES, st.sampled_from([48, 64, 1514]))
TEACHES: Final = [(("own", GTF_PERMIT_ACCESS, 0, "own"), (0, 64, 0), 1, False)]
"""The bridge learns where its sender is."""


KINDS = {f"faults_{what}" for what in ("descriptor", "grant", "protocol")}
KINDS |= {f"drop_{what}" for what in ("bad_frame", "bad_address", "oversize", "same_port", "no_buffer", "down")}
"""All that a split guest can bring upon itself or its neighbour; what else has a name is for floods, other devices, the NIC."""


async def left_unserved(vif: Vif) -> Counter[str]:
    """anna sends a frame to a guest that has no room for it. What is counted for her by that."""

    async def counts() -> Counter[str]:
        row = (await vif.runner.lab.counters()).read()["dom0/vif1:anna"]
        return Counter({name: n for name, n in row.items() if name in NAMES})

    async def is_counted() -> bool:
        return (await counts()).total() > before.total()

    before = await counts()
    assert (await vif.runner.lab.call("anna", "send_stream", mac=vif.mac, frame=64, stream=999, frames=1))["sent"] == 1
    await until(is_counted, "the drop to be counted")
    return await counts() - before


async def overrun(vif: Vif, ring: str, seen: Counter[str]) -> None:
    """An index that ran away takes the vif out of service, when Dom0 looks at it; a frame on its way to it drops by name."""
    missed = await left_unserved(vif)
    assert missed == {"drop_no_buffer": 1}
    await vif.runner.lab.call(vif.name, "overrun", ring=ring)

    async def has_failed() -> bool:
        return (await vif.counts()).get("faults_protocol") == 1

    down = Counter[str]()
    if ring == "rx":  # it is the frame that has Dom0 look
        down = await left_unserved(vif)
        assert down == {"drop_down": 1}
    await until(has_failed, "Dom0 to see the overrun")
    seen.update(missed + down + Counter(faults_protocol=1))


@TIERS
@pytest.mark.parametrize("grants", tiered(GRANT_MODES, ["map"]))
def test_netback_does_what_the_model_does_with_any_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int, grants: str
) -> None:
    seen: Counter[str] = Counter()

    async def main() -> None:
        async with fuzzed_lab(tmp_path, monkeypatch, grants) as runner:
            pools = {name: await runner.lab.call(name, "pools") for name in ("bert", "carl")}
            bert, carl = (
                Vif(runner, name, number, pools[name], grants == "persistent") for number, name in ((2, "bert"), (3, "carl"))
            )
            await runner.run(workload("stream", "wire", "anna", frames=10))  # the bridge learns: nothing is flooded from here on
            for vif in (bert, carl):
                await vif.begin()
            loop = asyncio.get_running_loop()

            async def exchange(transmits: list[Any], receives: list[Any], length: int) -> None:
                await bert.transmit(transmits)
                await bert.receive(receives, length)

            def body(case: Any) -> None:  # hypothesis has a thread, the topology has this loop
                asyncio.run_coroutine_threadsafe(exchange(*case), loop).result()

            await asyncio.to_thread(fuzz, body, CASES, INPUTS * examples)
            seen.update(bert.model.counts)
            await overrun(bert, "tx", seen)
            await overrun(carl, "rx", seen)

    run(main())
    print(dict(seen))
    assert seen.keys() == KINDS
