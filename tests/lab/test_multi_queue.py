"""Guests of several queues in real topologies: streams on each queue, all hops balanced, and queues whose owner stops."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from lab import owner
from lab.ledger import difference, drops, unbalanced
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.topology import TopologyError, load
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.labs import run, topology_file, until, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

ROLE: Final = "tests.support.stopping_guest"
PATHS: Final = ["split split", "split bypass", "bypass split", "bypass bypass"]
"""Of anna and bert."""


def lab(one: str, other: str, queues: int, more: str = "", engines: int = 2) -> str:
    """anna and bert, with so many queues each; carl, with one."""
    text = f"[nic]\nengines = {engines}\npause_us = 1_000_000\n[dom0]\nageing_s = 86400\n"
    for name, path, count in (("anna", one, queues), ("bert", other, queues), ("carl", "split", 1), ("dora", "bypass", 1)):
        text += f'[[guest]]\nname = "{name}"\npath = "{path}"\nqueues = {count}\n' + (more if path == "split" else "")
    return text


async def everything_at_a_time(runner: Runner, queues: int) -> None:
    """A stream on each queue of anna's to bert, verified; then the other way; then each with guests of one queue, and the wire."""
    for one, other in (("anna", "bert"), ("bert", "anna")):
        record = await runner.run(*(workload("stream", one, other, 64 + 100 * k, frames=3000) for k in range(queues)))
        check(record)
        assert record["shares"] == [3000] * queues
        assert record["drops"] == {}
    for peer in ("carl", "dora", "wire"):
        check(await runner.run(workload("stream", "anna", peer, 300, frames=2000)))
        check(await runner.run(workload("stream", peer, "bert", 300, frames=2000)))
    for peer in ("bert", "carl", "wire"):
        for _ in range(2 * queues):  # the answers come to the queue that asked, whichever it is
            record = await runner.run(workload("rr", "anna", peer, frames=50))
            check(record)
            assert record["frames"] == 50
    await runner._settled()
    assert unbalanced(runner._counters.read()) == []


async def used(runner: Runner, guest: str, queues: int) -> dict[str, int]:
    """Frames that each queue of a guest's has sent and received."""
    rows = runner._counters.read()
    names = [f"{guest}/device", *(f"{guest}/device.{k}" for k in range(1, queues))]
    return {name: min(rows[name]["tx_frames"], rows[name]["rx_frames"]) for name in names}


@pytest.mark.parametrize("queues", tiered([2, 3], [2]))
@pytest.mark.parametrize("paths", tiered(PATHS, ["split bypass"]))
def test_a_stream_on_each_queue_at_a_time(tmp_path: Path, paths: str, queues: int) -> None:
    async def main() -> None:
        one, other = paths.split()
        async with running(tmp_path, f"mq{one}{other}", lab(one, other, queues)) as runner:
            await everything_at_a_time(runner, queues)
            for guest in ("anna", "bert"):
                assert all(n >= 3000 for n in (await used(runner, guest, queues)).values())

    run(main())


def test_persistent_grants_of_several_queues(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "mqpersist", lab("split", "split", 2, 'grants = "persistent"\n', engines=1)) as runner:
            await everything_at_a_time(runner, 2)

    run(main())


def test_frames_of_64_kib_and_their_segments_stay_on_their_queue(tmp_path: Path) -> None:
    async def main() -> None:
        text = lab("split", "split", 2) + "offloads = []\n"  # dora
        async with running(tmp_path, "mqgso", text) as runner:
            for one, other in (("anna", "bert"), ("anna", "dora"), ("dora", "bert"), ("anna", "wire")):
                record = await runner.run(workload("stream", one, other, 65535, frames=200))
                check(record)
                assert record["lost"] == 0

    run(main())


def test_netback_offers_fewer_than_a_guest_has(tmp_path: Path) -> None:
    async def main() -> None:
        text = lab("split", "split", 4, 'memory = "32 MiB"\n').replace("[dom0]\n", "[dom0]\nmax_queues = 2\n")
        async with running(tmp_path, "mqfewer", text) as runner:
            assert set(await runner.lab.call("anna", "threads")) == {"anna", "anna.1"}
            await everything_at_a_time(runner, 2)

    run(main())


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('path = "trapped"\nqueues = 2', "more than one takes path = "),
        ('path = "split"\nqueues = 2\nprogram = "tap"\naddress = "10.0.0.1/24"', 'more than one takes program = "traffic"'),
        ('path = "bypass"\niommu = "strict"\nqueues = 2', 'more than one takes iommu = "persistent"'),
        ('path = "split"\nqueues = 0', "must be greater than or equal to 1"),
        ('path = "split"\nqueues = 9', "must be less than or equal to 8"),
        ('path = "split"\nqueues = 8', 'with nic.queue = 256 and queues = 8: needs at least "16452 KiB"'),
    ],
)  # fmt: skip
def test_queues_that_cannot_be_are_refused(tmp_path: Path, table: str, told: str) -> None:
    file = topology_file(tmp_path, "refused", f'[[guest]]\nname = "anna"\n{table}\n')
    with pytest.raises(TopologyError) as caught:
        load(file)
    assert told in str(caught.value)


# --- a queue whose owner stops ----------------------------------------------------------------------------------------


@asynccontextmanager
async def stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> AsyncIterator[Runner]:
    """A topology whose bert can be told to stop a queue's owner."""

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(topology)
        next(process for process in processes if process["name"] == "bert")["module"] = ROLE
        return processes

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, ROLE])
    async with running(tmp_path, name, text) as runner:
        yield runner


def standing_still(runner: Runner) -> Callable[[], Awaitable[bool]]:
    """A condition: nothing was counted between two looks."""
    seen: list[list[bytes]] = []

    async def condition() -> bool:
        seen.append(runner._counters.raw(frozenset()))
        return seen[-2:-1] == seen[-1:]

    return condition


@pytest.mark.parametrize("path", tiered(["split", "bypass"], ["split"]))
def test_a_queue_whose_owner_stops_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Only what is for the stopped queue drops, under a name; streams to the others, and of others, arrive whole.

    From split to bypass or back all would share a queue that pauses: the uplink's.
    """

    async def main() -> None:
        async with stopping(tmp_path, monkeypatch, f"mqstop{path}", lab(path, path, 2)) as runner:
            lab_, macs = runner.lab, {guest["name"]: guest["mac"] for guest in runner.lab.topology["guest"]}
            await runner.prepare(workload("stream", "anna", "bert"))
            await runner.prepare(workload("stream", "carl", "bert"))

            async def stream(sender: str, number: int, frames: int) -> None:
                job = {"mac": macs["bert"], "frame": 200, "stream": number, "frames": frames}
                assert (await lab_.call(sender, "send_stream", **job))["sent"] == frames

            async def arrived(*which: tuple[str, int]) -> list[int]:
                """Frames of these streams, all good; once nothing moves any more."""
                await until(standing_still(runner), "the counters to stand still")
                found = [await lab_.call("bert", "received", stream=numbers[one]) for one in which]
                assert all(one["lost"] == one["corrupt"] == one["duplicated"] == 0 for one in found)
                return [int(one["frames"]) for one in found]

            numbers: dict[tuple[str, int], int] = {}  # a stream for each sender and queue of bert's; of "again", carl's later ones
            for sender, mac, first in (("anna", macs["anna"], 0), ("carl", macs["carl"], 20), ("again", macs["carl"], 40)):
                for number in range(5056 + first, 5076 + first):  # bert chooses as they do: as many queues, by the same hash
                    queue = await lab_.call("bert", "queue", mac=mac, frame=200, stream=number)
                    numbers.setdefault((sender, queue), number)
            await lab_.call("bert", "stop_queue", queue=1)
            before = runner._counters.read()
            streams = (("anna", 0), ("anna", 1), ("carl", 0))
            await asyncio.gather(*(stream(sender, numbers[sender, k], 20_000) for sender, k in streams))
            assert await arrived(("anna", 0), ("carl", 0)) == [20_000] * 2
            named = drops(difference(runner._counters.read(), before))
            assert set(named) == {"no_buffer"}
            assert 0 < named["no_buffer"] <= 20_000
            await stream("carl", numbers["again", 1], 5000)  # drops at once: it has stalled
            await stream("carl", numbers["again", 0], 5000)
            assert await arrived(("again", 0)) == [5000]

    run(main())
