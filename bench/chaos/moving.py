"""A guest that moves to and fro under traffic, and what became of the traffic.

A *session* is traffic that begins before the first of some moves and ends, at rest, after the last one: what was sent is compared
with what arrived, frame for frame, and with what each path's ledger says that the guest has sent by it.
"""

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.chaos.world import HANG_S, PAUSE_US
from bench.method.contenders import run_name
from bench.method.progress import Steps
from bench.peers import PeerError
from bench.programs.ends import GuestEnds
from bench.programs.running import run_client
from bench.programs.suite import IperfTcp
from hyp.abi.frame import HEADER_ONLY
from lab.counters import CounterReader
from lab.ledger import drops
from lab.owner import Lab
from lab.topology import parse

MOVED, STAYS = "mover", {"split": "stays-split", "bypass": "stays-bypass"}
ROUND_TRIP = ("bypass", "split")
FRAME, FRAMES = 200, 1 << 40
EARLIEST_S, LATEST_S = 0.02, 0.2
LOOK_S = 0.01
LONGEST_S = 20
"""A run of iperf3: it is given up as hanging after half a minute (bench/programs/running.py)."""


@dataclass(slots=True)
class Session:
    """Moves, as (to which path, seconds without sending), and frames. `sent`: by the guest that moved, as its device counts."""

    moves: list[tuple[str, float]] = field(default_factory=list)
    sent: int = 0
    by_split: int = 0
    by_bypass: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupt: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    """By anybody, by the names of the counters."""
    resent: int = 0
    """TCP segments that its sender has sent again, for whatever reason."""

    @property
    def by_neither(self) -> int:
        """Frames that were sent, and are in neither path's ledger."""
        return self.sent - self.by_split - self.by_bypass


def _sent(reader: CounterReader, guest: str) -> tuple[Counter[str], Counter[str]]:
    """So far: frames sent by a guest, as the fields of a Session; and frames dropped by anybody, by name."""
    rows = reader.read()
    split, bypass = (
        sum(counts["tx_frames"] for row, counts in rows.items() if row.startswith(start) and row.endswith(f":{guest}"))
        for start in ("dom0/vif", "nic/ctx")
    )
    return Counter(sent=rows[f"{guest}/device"]["tx_frames"], by_split=split, by_bypass=bypass), Counter(drops(rows))


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition; TimeoutError after HANG_S."""
    async with asyncio.timeout(HANG_S):
        while not await condition():
            await asyncio.sleep(LOOK_S)


async def _counted(reader: CounterReader, guest: str, before: tuple[Counter[str], Counter[str]], session: Session) -> None:
    """Fill in what the ledgers say, once they are at rest."""

    async def at_rest() -> bool:
        now = _sent(reader, guest)
        sent, dropped = now[0] - before[0], now[1] - before[1]
        session.sent, session.by_split, session.by_bypass = (sent[name] for name in ("sent", "by_split", "by_bypass"))
        session.drops = dict(dropped)
        await asyncio.sleep(LOOK_S)
        return _sent(reader, guest) == now

    await _until(at_rest)


# --- verified streams ------------------------------------------------------------------------------------------------


class _Stream:
    """One without end, as fast as it goes."""

    def __init__(self, lab: Lab, sender: str, receiver: str, number: int) -> None:
        self._lab, self._sender, self._receiver, self._number = lab, sender, receiver, number
        self._job: asyncio.Future[Any] | None = None

    async def report(self) -> dict[str, Any]:
        return dict(await self._lab.call(self._receiver, "received", stream=self._number))

    async def more(self) -> None:
        """Begin, if it has not, and wait until more has arrived than until now."""
        before = (await self.report())["frames"]
        if self._job is None:
            mac = next(one["mac"] for one in self._lab.topology["guest"] if one["name"] == self._receiver)
            job = self._lab.call(self._sender, "send_stream", mac=mac, frame=FRAME, stream=self._number, frames=FRAMES)
            self._job = asyncio.ensure_future(job)

        async def moved() -> bool:
            return bool((await self.report())["frames"] > before)

        await _until(moved)

    async def end(self, session: Session) -> None:
        """End it, wait until all of it is there or nothing more comes, and add it up."""
        assert self._job is not None
        await self._lab.call(self._sender, "end_job")
        sent = (await self._job)["sent"]
        try:
            async with asyncio.timeout(HANG_S):
                while (await self.report())["frames"] < sent:
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            pass  # it is lost
        report = await self.report()
        session.lost += sent - report["frames"]
        session.duplicated += report["duplicated"]
        session.corrupt += report["corrupt"]


async def moves_under_streams(moves: int, seed: int, progress: Steps) -> list[Session]:
    """As many moves, two a session, while the guest sends to one that stays on bypass and receives from one that stays on split."""
    tables = [{"name": MOVED, "path": "split"}, *({"name": name, "path": path} for path, name in STAYS.items())]
    name = run_name("moves", os.getpid())
    chance, numbers, done = random.Random(seed), itertools.cycle(range(1, HEADER_ONLY)), []
    async with Lab(parse({"name": name, "nic": {"pause_us": PAUSE_US}, "guest": tables}).plain()) as lab:
        reader = await lab.counters()
        for number in range(-(-moves // len(ROUND_TRIP))):
            progress.step(f"verified streams, round {number + 1}", len(ROUND_TRIP) * number / moves)
            session, before = Session(), _sent(reader, MOVED)
            streams = [
                _Stream(lab, MOVED, STAYS["bypass"], next(numbers)),
                _Stream(lab, STAYS["split"], MOVED, next(numbers)),
            ]
            for path in ROUND_TRIP:
                for stream in streams:
                    await stream.more()
                await asyncio.sleep(chance.uniform(EARLIEST_S, LATEST_S))
                session.moves.append((path, await lab.move(MOVED, path)))
            for stream in streams:
                await stream.more()
            for stream in streams:
                await stream.end(session)
            await _counted(reader, MOVED, before, session)
            done.append(session)
    return done


# --- TCP -------------------------------------------------------------------------------------------------------------


async def moves_under_tcp(moves: int, seed: int, progress: Steps, *, reverse: bool) -> list[Session]:
    """As many moves of iperf3's client while it sends or, in `reverse`, receives: one run of it after the other until all are done.

    PeerError if it fails.
    """
    ends, program, chance = GuestEnds("split", pause_us=PAUSE_US), IperfTcp(), random.Random(seed)
    to, done = _told(moves, progress), list[Session]()
    try:
        await ends.start()
        server = await program.serve(ends)
        try:
            reader = await ends.lab.counters()
            while (moved := sum(len(session.moves) for session in done)) < moves:
                seconds = min(1 + int((moves - moved) * (LATEST_S + EARLIEST_S)), LONGEST_S)
                argv = ["iperf3", "-c", ends.address, "-p", str(program.port), "-J", "-t", str(seconds)]
                done.append(await _tcp_session(ends, [*argv, *(["-R"] if reverse else [])], reader, to, chance))
                if not done[-1].moves:
                    raise PeerError("iperf3 has ended before the first move")
        finally:
            server.stop()
    finally:
        await ends.stop()
    return done


def _told(moves: int, progress: Steps) -> Iterator[str]:
    """Where each move leads, and how far it is."""
    for number, path in enumerate(itertools.islice(itertools.cycle(ROUND_TRIP), moves)):
        progress.step(f"TCP, move {number + 1}", number / moves)
        yield path


async def _tcp_session(
    ends: GuestEnds, argv: list[str], reader: CounterReader, to: Iterator[str], chance: random.Random
) -> Session:
    """One run of iperf3, and its client's moves until it ends, or all are done."""
    client, session = ends.guests[0], Session()
    before, follow = _sent(reader, client), reader.follow(client, "device", "tx_frames")
    running = asyncio.ensure_future(run_client(ends, argv))

    async def flows() -> bool:
        return running.done() or follow() > before[0]["sent"] + 1000

    try:
        await _until(flows)
        while True:
            await asyncio.sleep(chance.uniform(EARLIEST_S, LATEST_S))
            if running.done() or (path := next(to, None)) is None:
                break
            session.moves.append((path, await ends.lab.move(client, path)))
        end = json.loads((await running).output)["end"]
    finally:
        running.cancel()
    session.resent = int(end["sum_sent"].get("retransmits", 0))
    if not end["sum_received"]["bytes"]:
        raise PeerError("iperf3 has moved nothing")
    await _counted(reader, client, before, session)
    return session
