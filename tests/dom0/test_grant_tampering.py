"""A front end that takes grants back, and rewrites slots and bytes, while netback is at its chains; in each grant mode.

bert floods carl, the wire and everybody with chains whose checksums netback fills in or whose segments it makes, while a second
thread of his rewrites what may just be read. anna's stream of long frames to carl, who accepts no offloads, goes the same way, and
arrives whole. Afterwards nothing is pinned, no descriptor more is open, and bert's vif works.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from domu.frontends.split import RX_REF, RX_SLOTS, TX_REF
from hyp.abi.grant import GTF_PERMIT_ACCESS, GTF_READONLY
from hyp.abi.netif import (
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_DEL_GREF_MAPPING,
    CTRLF_GREF_READONLY,
    RSP_ERROR,
    RSP_OKAY,
)
from hyp.paths import GRANT_MODES
from tests.dom0.test_control_ring import mapping
from tests.dom0.test_fuzz_chains import SOUND, content_of, slots_of
from tests.support.driven_labs import CLOSING, DRIVEN, INIT_WAIT, INITIALISING, Bert, driven_lab, others
from tests.support.driven_netfront import KEPT
from tests.support.labs import run, until
from tests.support.patience import effort
from tests.support.plain_packets import ETHERNET
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

RINGS: Final = {"copy": 2, "map": 2, "persistent": 3 + 2 * 256}
"""Pages that are mapped as long as bert is connected: his rings', and, all of which he names on a third one, his pools'."""
FRAGMENTS: Final = 18
PAGES: Final = 256
OFFLOADS: Final = {"feature-sg": "1", "feature-gso-tcpv4": "1"}


@asynccontextmanager
async def tampering_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants: str) -> AsyncIterator[Bert]:
    """bert in this mode, connected; afterwards he connects anew, everything works, and nothing is held that was not before."""
    text = f'grants = "{grants}"\n'
    async with driven_lab(tmp_path, monkeypatch, f"tamper{grants[0]}", text, carl='offloads = ["sg"]\n') as bert:
        await others(bert)
        await connect(bert, grants)
        before = bert.descriptors()
        yield bert
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        assert bert.held() == 0
        await connect(bert, grants)
        await bert.exchange()
        await bert.have_closed(before)
        await others(bert)


async def connect(bert: Bert, grants: str) -> None:
    await bert.told(INIT_WAIT)
    keeps = grants == "persistent"
    await bert.ready(changed={**OFFLOADS, **(await bert.call("control", start=0) if keeps else {})})
    await bert.state(4)
    await bert.told(4)
    await bert.call("notifier")
    pages = bert._pools
    sent = [[TX_REF + k, GTF_PERMIT_ACCESS | GTF_READONLY, 0, pages["tx"] + k] for k in range(PAGES)]
    await bert.call("transmit", entries=sent, frames=[], requests=[])
    received = [[RX_REF + k, GTF_PERMIT_ACCESS, 0, pages["rx"] + k] for k in range(RX_SLOTS)]
    await bert.call("post", entries=received, requests=[], quiet=True)
    if keeps:
        await bert.call("control_notifier")
        pools = [(ref, CTRLF_GREF_READONLY) for ref, *_ in sent] + [(ref, 0) for ref, *_ in received]
        assert await mapping(bert, CTRL_TYPE_ADD_GREF_MAPPING, *pools) == (CTRL_STATUS_SUCCESS, 0)


def mac_of(bert: Bert, name: str) -> bytes:
    text = {"wire": str(bert.lab.topology["nic"]["wire"]["mac"]), "all": "ff:ff:ff:ff:ff:ff"}.get(name) or bert.macs[name]
    return bytes.fromhex(text.replace(":", ""))


async def chain(bert: Bert, to: str, first_page: int, **shape: Any) -> list[bytes]:
    """The slots of a sound frame, whose bytes are in its pages."""
    wanted = SOUND | {"offset": KEPT - ETHERNET, **shape}
    frame, segment, blank = content_of(wanted, mac_of(bert, to), mac_of(bert, DRIVEN))
    slots, contents = slots_of(wanted, frame, segment, blank, first_page)
    writes = [[(bert._pools["tx"] + page) * 4096 + at, piece] for page, (at, piece) in contents.items()]
    await bert.call("slots", writes=writes, slots=[])
    return slots


async def vif_row(bert: Bert) -> dict[str, int]:
    rows: dict[str, dict[str, int]] = (await bert.lab.counters()).read()
    return rows[f"dom0/vif2:{DRIVEN}"]


@pytest.mark.parametrize("grants", tiered(GRANT_MODES, ["map"]))
def test_a_grant_that_is_missing_within_a_chain_costs_that_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants: str
) -> None:
    """Whichever fragment it is; the next frame is unharmed, and what had been mapped of the chain is mapped no more."""

    async def main() -> None:
        async with tampering_lab(tmp_path, monkeypatch, grants) as bert:
            shape = {"kind": "raw", "octets": 1400, "cuts": [80] * (FRAGMENTS - 1), "gso": 0}
            sound = await chain(bert, "wire", 0, **shape)
            before, first = await vif_row(bert), FRAGMENTS
            for bad in (0, 1, FRAGMENTS // 2, FRAGMENTS - 1):
                slots = await chain(bert, "carl", first, **shape)
                assert len(slots) == FRAGMENTS
                gone = [[TX_REF + first + bad, 0, 0, 0]]
                if grants == "persistent":
                    delete = CTRL_TYPE_DEL_GREF_MAPPING
                    assert await mapping(bert, delete, (TX_REF + first + bad, 0)) == (CTRL_STATUS_SUCCESS, 1)
                await bert.call("transmit", entries=gone, frames=[], requests=[])
                answers = await bert.call("slots", writes=[], slots=slots + sound)
                assert [status for _, status in answers] == [RSP_ERROR] * FRAGMENTS + [RSP_OKAY] * FRAGMENTS
                first += FRAGMENTS
            grown = {name: n - before[name] for name, n in (await vif_row(bert)).items() if name.startswith(("drop_", "faults_"))}
            assert {name: n for name, n in grown.items() if n} == {"faults_grant": 4, "drop_bad_address": 4}
            assert bert.held() == RINGS[grants] - (4 if grants == "persistent" else 0)

    run(main())


class Bystanders:
    """anna's stream of long frames to carl, one after the other until `stop`: each is cut up by netback, and arrives whole."""

    def __init__(self, bert: Bert) -> None:
        self._bert, self.streams, self._stopping = bert, 0, False
        self._task = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        lab = self._bert.lab
        while not self._stopping:
            stream = 3000 + self.streams
            sent = await lab.call("anna", "send_stream", mac=self._bert.macs["carl"], frame=9000, stream=stream, frames=300)

            async def arrived(stream: int = stream, sent: int = int(sent["sent"])) -> bool:
                report = await lab.call("carl", "received", stream=stream)
                rows = (await lab.counters()).read()
                named = {name: {what: n for what, n in row.items() if n and what.startswith("drop_")} for name, row in rows.items()}
                assert report["lost"] == report["duplicated"] == report["corrupt"] == 0, (report, named)
                return bool(report["frames"] == sent)

            await until(arrived, "anna's frames")
            self.streams += 1

    async def stop(self) -> None:
        self._stopping = True
        await self._task
        assert self.streams > 0


SEEN: Final = {"grants": "drop_bad_address", "slots": "drop_bad_frame", "flags": "drop_bad_frame", "bytes": "faults_offload"}
"""What netback has to have said of a kind of tampering; where it has mapped all pages it never asks for one again."""


@pytest.mark.parametrize("grants", tiered(list(GRANT_MODES), []))
def test_what_is_rewritten_under_a_flood_of_chains_harms_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grants: str
) -> None:
    async def main() -> None:
        async with tampering_lab(tmp_path, monkeypatch, grants) as bert:
            bystanders = Bystanders(bert)
            flood = [
                *await chain(bert, "carl", 0, kind="tcp4", gso=0, octets=1200, cuts=[60, 300, 300]),
                *await chain(bert, "wire", 10, kind="tcp6"),
                *await chain(bert, "carl", 20, kind="tcp4"),
                *await chain(bert, "all", 30, kind="udp6", gso=0, octets=1300, cuts=[70] * 12),
                *await chain(bert, "carl", 45, kind="udp4", gso=0, octets=900, cuts=[42, 1]),
                *await chain(bert, "anna", 50, kind="tcp6", gso=536),
            ]
            for seed, what in enumerate((["grants"], ["slots"], ["bytes"], ["flags"], list(SEEN))):
                before, goes_on, rewrites = await vif_row(bert), effort(1.0), 0
                names = {SEEN[one] for one in what if grants != "persistent" or one != "grants"}
                await bert.call("tamper", what=what, seed=seed)
                after = before
                while goes_on(all(after[name] > before[name] for name in names)):
                    await bert.call("refill")
                    await bert.lab.call("nic", "wire_generate", mac=bert.macs[DRIVEN], frame=200, stream=77, frames=20)
                    await bert.call("publish", slots=flood)
                    if not await is_answered(bert):  # a chain was cut off, or looked so: the vif is out of service
                        rewrites += await bert.call("calm")
                        await bert.state(INITIALISING)
                        await connect(bert, grants)
                        await bert.call("tamper", what=what, seed=seed)
                    after = await vif_row(bert)
                rewrites += await bert.call("calm")
                assert [name for name in names if after[name] == before[name]] == []
                assert rewrites > 0
            await bystanders.stop()

    run(main())


async def is_answered(bert: Bert) -> bool:
    """Wait until all that bert has published is answered. False: netback has closed instead."""
    closed = False

    async def either() -> bool:
        nonlocal closed
        closed = await bert.read(f"{bert.back}/state") == str(CLOSING)
        return closed or bool(await bert.call("settled"))

    await until(either, "answers, or netback to close")
    return not closed
