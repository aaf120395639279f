"""A vif of several queues, with a front end that does as it is told: handshakes, spreading, queues that stop or do wrong."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dom0.engine import MOST_HELD
from dom0.state import STAGE
from domu.frontends.split import FIRST_REF, RX_REF, RX_SLOTS, TX_REF
from domu.frontends.split_state import QUEUE_REFS
from hyp.abi.grant import GTF_PERMIT_ACCESS
from hyp.abi.netif import RSP_OKAY
from hyp.abi.sizes import MAX_QUEUES
from tests.dom0.test_netback_states import off
from tests.dom0.test_rate import counts
from tests.support.driven_labs import (
    CLOSING,
    CONNECTED,
    DOMID,
    DRIVEN,
    INIT_WAIT,
    INITIALISING,
    Bert,
    Nodes,
    driven_lab,
    others,
    others_streaming,
)
from tests.support.drivers import compose
from tests.support.flow_model import flow_hash
from tests.support.labs import run, until
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

RINGS = 2  # pages of each queue that are mapped
MOST = 4  # queues that the front end has memory for
Body = Callable[[Bert], Awaitable[None]]


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Body], None]:
    """Runs a body in a topology whose bert does what it says. Afterwards bert's vif works, and nobody has more descriptors."""

    def runs(name: str, body: Body) -> None:
        async def main() -> None:
            async with driven_lab(tmp_path, monkeypatch, name) as bert:
                await again(bert, 1)
                await others(bert)
                before = bert.descriptors()
                await body(bert)
                await again(bert, 1)
                await send(bert, 0, 3)
                assert bert.held() == RINGS
                await bert.have_closed(before)

        run(main())

    return runs


Driven = Callable[[str, Body], None]


async def again(bert: Bert, queues: int, apart: bool = False) -> None:
    """A front end that begins anew with so many queues, whatever was before."""
    await bert.state(INITIALISING)
    await bert.connect(queues=queues, apart=apart)
    assert bert.held() == RINGS * queues


async def send(bert: Bert, queue: int, frames: int) -> None:
    """Frames from this queue to the wire, each answered there, and all of them arrived in order."""
    bert.stream += 1
    wire, page = str(bert.lab.topology["nic"]["wire"]["mac"]), (await bert.call("pools", queue=queue))["tx"]
    first = TX_REF + queue * QUEUE_REFS
    entries = [[first + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(frames)]
    contents = [[(page + k) * 4096, 100, wire, bert.stream, k] for k in range(frames)]
    requests = [[first + k, 0, 0, k, 100] for k in range(frames)]
    answers = await bert.call("transmit", entries=entries, frames=contents, requests=requests, queue=queue)
    assert answers == [[k, RSP_OKAY] for k in range(frames)]

    async def arrived() -> bool:
        report = (await bert.lab.call("nic", "wire_report", stream=bert.stream))["received"]
        return bool(report["frames"] == frames and report["lost"] == report["duplicated"] == 0)

    await until(arrived, "the frames on the wire")


def queue_for(bert: Bert, stream: int, queues: int) -> int:
    """The queue that anna's frames of a stream to bert belong in."""
    return flow_hash(compose(bert.macs[DRIVEN], bert.macs["anna"], 200, stream, 0)) % queues


async def post(bert: Bert, queue: int, first: int, count: int) -> None:
    """Receive requests `first` and so on, each with the page of its number."""
    page, ref = (await bert.call("pools", queue=queue))["rx"], RX_REF + queue * QUEUE_REFS
    entries = [[ref + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(first, first + count)]
    await bert.call("post", entries=entries, requests=[[k, ref + k] for k in range(first, first + count)], queue=queue)


async def took(bert: Bert, queue: int, expected: list[tuple[int, int]], first: int = 0) -> None:
    """Wait for frames of anna's in this queue: (stream, sequence) in this order, from receive request `first` on."""
    page = (await bert.call("pools", queue=queue))["rx"] + first
    frames = [[page + k, bert.macs["anna"], 200, stream, sequence] for k, (stream, sequence) in enumerate(expected)]
    found = await bert.call("received", count=len(expected), frames=frames, queue=queue)
    assert [[number, status, whole] for number, _, status, whole in found] == [[first + k, 200, True] for k in range(len(expected))]


async def stream_to(bert: Bert, stream: int, frames: int) -> None:
    """A stream of anna's to bert."""
    job = {"mac": bert.macs[DRIVEN], "frame": 200, "stream": stream, "frames": frames}
    assert (await bert.lab.call("anna", "send_stream", **job))["sent"] == frames


# --- handshakes -------------------------------------------------------------------------------------------------------

FRONT = Bert.front
SECOND = FIRST_REF + QUEUE_REFS
MISTAKES: dict[str, tuple[Nodes, str]] = {
    "no queue": ({"multi-queue-num-queues": "0"}, f"22 guest requested 0 queues, the maximum is {MAX_QUEUES}"),
    "too many": ({"multi-queue-num-queues": str(MAX_QUEUES + 1)}, f"22 guest requested {MAX_QUEUES + 1} queues, the maximum is"),
    "no number": ({"multi-queue-num-queues": "two"}, f"22 {FRONT}/multi-queue-num-queues is 'two', not a number"),
    "more than it has nodes for": ({"multi-queue-num-queues": "4"}, f"2 reading {FRONT}/queue-3/tx-ring-ref"),
    "a ring is missing": ({"queue-1/rx-ring-ref": None}, f"2 reading {FRONT}/queue-1/rx-ring-ref"),
    "the last queue is missing": ({"queue-2": None}, f"2 reading {FRONT}/queue-2/tx-ring-ref"),
    "no such grant": ({"queue-2/tx-ring-ref": "1999"}, "22 queue-2/tx-ring-ref 1999 cannot be mapped"),
    "one ring for two queues": ({"queue-1/tx-ring-ref": str(FIRST_REF)}, f"22 queue-1/tx-ring-ref {FIRST_REF} is the page"),
    "one page for both rings": ({"queue-1/rx-ring-ref": str(SECOND)}, f"22 queue-1/rx-ring-ref {SECOND} is the page"),
    "one channel of two is missing": ({"queue-1/event-channel-rx": None}, f"2 reading {FRONT}/queue-1/event-channel"),
    "a channel of nobody's": ({"queue-2/event-channel-tx": "88"}, "22 domain 0: port 88 of domain 2 is not open to it"),
    "flat nodes only": ({"queue-0": None, "queue-1": None, "queue-2": None}, f"2 reading {FRONT}/queue-0/tx-ring-ref"),
}  # fmt: skip
QUICK = ["too many", "one ring for two queues"]


@pytest.mark.parametrize("mistake", tiered(list(MISTAKES), QUICK))
def test_a_mistake_in_any_queue_takes_nothing_and_can_be_corrected(driven: Driven, mistake: str) -> None:
    changed, told = MISTAKES[mistake]

    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        await bert.ready(changed=changed, queues=3, apart=True)
        await bert.state(CONNECTED)
        await bert.told(CLOSING)
        assert (await bert.error() or "").startswith(told)
        await off(bert)
        await bert.ready(queues=3, apart=True)
        await bert.state(CONNECTED)
        await bert.told(CONNECTED)
        await bert.call("notifier")
        for queue in range(3):
            await send(bert, queue, 3)

    driven("mistake", body)


def test_two_queues_cannot_have_one_event_channel(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        await bert.ready(queues=2)
        port = await bert.read(f"{bert.front}/queue-0/event-channel")
        await bert.call("nodes", values={"queue-1/event-channel": port})
        await bert.state(CONNECTED)
        await bert.told(CLOSING)
        assert (await bert.error() or "").startswith(f"22 domain 0: port {port} of domain 2 is not open to it")
        await off(bert)

    driven("onechannel", body)


def test_what_is_offered(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        assert await bert.read(f"{bert.back}/multi-queue-max-queues") == str(MAX_QUEUES)
        assert await bert.read(f"{bert.back}/feature-split-event-channels") == "1"

    driven("offered", body)


@pytest.mark.parametrize("apart", [False, True], ids=["one channel", "split channels"])
@pytest.mark.parametrize("queues", tiered([1, 3], [3]))
def test_frames_go_both_ways_on_every_queue(driven: Driven, queues: int, apart: bool) -> None:
    async def body(bert: Bert) -> None:
        await again(bert, queues, apart)
        for queue in range(queues):
            await send(bert, queue, 5)
            stream = next(stream for stream in range(700, 900) if queue_for(bert, stream, queues) == queue)
            await post(bert, queue, 0, 4)
            await stream_to(bert, stream, 4)
            await took(bert, queue, [(stream, k) for k in range(4)])

    driven("bothways", body)


# --- spreading --------------------------------------------------------------------------------------------------------


def test_flows_are_spread_over_the_queues_and_each_stays_in_order_on_one(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await again(bert, MOST, apart=True)
        for queue in range(MOST):
            await post(bert, queue, 0, 200)
        expected: dict[int, list[tuple[int, int]]] = {queue: [] for queue in range(MOST)}
        for stream in range(1000, 1040):
            await stream_to(bert, stream, 5)
            expected[queue_for(bert, stream, MOST)] += [(stream, k) for k in range(5)]
        for queue, frames in expected.items():
            assert len(frames) >= 20
            await took(bert, queue, frames)

    driven("spread", body)


def test_a_flood_reaches_one_queue_of_the_vif(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await again(bert, 2)
        for queue in range(2):
            await post(bert, queue, 0, 8)
        before = (await bert.runner.lab.counters()).read()[f"dom0/vif2:{DRIVEN}"]["rx_frames"]
        for stream in range(50, 54):
            job = {"mac": "ff:ff:ff:ff:ff:ff", "frame": 200, "stream": stream, "frames": 1}
            assert (await bert.lab.call("anna", "send_stream", **job))["sent"] == 1

        async def there() -> bool:
            return bool((await bert.runner.lab.counters()).read()[f"dom0/vif2:{DRIVEN}"]["rx_frames"] == before + 4)

        await until(there, "four frames, once each")

    driven("flood", body)


# --- queues that stop, or do wrong ------------------------------------------------------------------------------------


def named(counters: dict[str, dict[str, int]]) -> dict[str, int]:
    """Drops and pauses in Dom0 by row and name."""
    return {
        f"{row}.{name}": n
        for row, columns in counters.items()
        for name, n in columns.items()
        if row.startswith("dom0/") and n and (name.startswith("drop_") or name == "pauses")
    }


def test_a_queue_whose_owner_stops_costs_each_sender_one_pause_and_the_other_queues_nothing(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await again(bert, 2, apart=True)
        dead = next(stream for stream in range(300, 400) if queue_for(bert, stream, 2) == 1)
        live = [stream for stream in range(400, 500) if queue_for(bert, stream, 2) == 0]
        await send(bert, 0, 1)  # the bridge learns where bert is
        await post(bert, 1, 0, 2)  # and no more, from here on
        counters = await bert.runner.lab.counters()
        before = counters.read()
        await stream_to(bert, dead, 50)
        await took(bert, 1, [(dead, 0), (dead, 1)])
        for turn, stream in enumerate(live[:6]):  # 20 frames to the live queue, 20 to the dead one, at a time
            await post(bert, 0, turn * 20, 20)
            await stream_to(bert, dead, 20)
            await stream_to(bert, stream, 20)
            await took(bert, 0, [(stream, k) for k in range(20)], first=turn * 20)
        after = counters.read()
        found = named({row: {name: n - before[row][name] for name, n in columns.items()} for row, columns in after.items()})
        assert found == {"dom0/vif1:anna.drop_no_buffer": 48 + 6 * 20, "dom0/vif1:anna.pauses": 1}
        await post(bert, 1, 2, 3)  # its owner is back
        await stream_to(bert, dead, 3)
        await took(bert, 1, [(dead, k) for k in range(3)], first=2)
        await others(bert)

    driven("stops", body)


@pytest.mark.parametrize("queue", tiered([0, 2], [2]))
@pytest.mark.parametrize("ring", tiered(["tx", "rx"], ["tx"]))
def test_a_queue_that_runs_away_closes_its_whole_vif(driven: Driven, ring: str, queue: int) -> None:
    async def body(bert: Bert) -> None:
        await again(bert, 3)
        await bert.call("overrun", ring=ring, queue=queue)
        if ring == "rx":  # which nobody looks at before there is a frame
            stream = next(stream for stream in range(300, 400) if queue_for(bert, stream, 3) == queue)
            await bert.lab.call("anna", "send_stream", mac=bert.macs[DRIVEN], frame=200, stream=stream, frames=1)
        await bert.told(CLOSING)
        assert (await bert.error() or "").startswith("5 a ring's producer index ran ahead")
        await off(bert)
        await again(bert, 2)
        for one in range(2):
            await send(bert, one, 2)

    driven("runaway", body)


# --- again and again --------------------------------------------------------------------------------------------------


def test_reconnecting_with_other_numbers_of_queues(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        for queues, apart in ((2, True), (4, False), (1, True), (3, True), (4, True), (1, False)):
            await again(bert, queues, apart)
            for queue in range(queues):
                await send(bert, queue, 2)

    driven("numbers", body)


@pytest.mark.long
def test_a_hundred_connects_with_all_queues_leave_nothing(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        async with others_streaming(bert):
            for number in range(100):
                await again(bert, MOST, apart=number % 2 == 0)
                if number % 10 == 0:
                    await send(bert, number // 10 % MOST, 3)

    driven("hundred", body)


def test_a_front_end_that_dies_in_the_middle_of_its_queues(driven: Driven) -> None:
    """Nodes of all but the last queue are right, each time for another last queue: what was taken of those before is given back."""

    async def body(bert: Bert) -> None:
        for last in range(1, MOST):
            changed: dict[str, Any] = {f"queue-{last}/event-channel": "99"}
            await bert.state(INITIALISING)
            await bert.told(INIT_WAIT)
            await bert.ready(changed=changed, queues=MOST)
            before = bert.descriptors()
            await bert.state(CONNECTED)
            await bert.told(CLOSING)
            assert bert.held() == 0
            await bert.have_closed(before)

    driven("middle", body)


def test_queues_that_wait_for_a_receiver_leave_others_their_buffers_and_their_time(driven: Driven) -> None:
    """Of all that they have posted Dom0 takes less in than MOST_HELD and a stage, and it sleeps until the receiver goes on."""
    frames = 256
    assert MOST * frames > RX_SLOTS + (MOST + 1) * STAGE, "each queue is to have something left"

    async def body(bert: Bert) -> None:
        await again(bert, MOST)
        thread = (await bert.lab.call("dom0", "threads"))["dom0"]
        carl = bert.runner.pids["carl"]

        async def sleeps() -> bool:
            return engine_state(bert.runner.pids["dom0"], thread) == "S"

        async def held() -> int:
            """Slots of bert's that have been taken in and not passed on."""
            mine, carls = [await counts(bert.runner, row) for row in (f"vif{DOMID}:{DRIVEN}", "vif3:carl")]
            assert mine["drop_no_buffer"] == 0, "carl has lost patience"
            return mine["tx_frames"] - carls["rx_frames"] - before

        async def as_many_as_may_be() -> bool:
            return await held() >= MOST_HELD

        before = 0
        before = await held()
        os.kill(carl, signal.SIGSTOP)
        try:
            sent = [asyncio.ensure_future(transmit(bert, queue, frames, "carl")) for queue in range(MOST)]
            await until(as_many_as_may_be, "Dom0 to have taken in what it may")
            await until(sleeps, "Dom0 to sleep")
            assert await held() < MOST_HELD + STAGE
        finally:
            os.kill(carl, signal.SIGCONT)
        for answers in await asyncio.gather(*sent):
            assert [number for number, _ in answers] == list(range(frames))

    driven("heldup", body)


def engine_state(pid: int, thread: int) -> str:
    """What the kernel says of a process's thread (proc(5)): R, S, …; `thread` is its number within the process's namespace."""
    tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    status = next(text for text in tasks if int(text.partition("NSpid:")[2].splitlines()[0].split()[-1]) == thread)
    return status.partition("\nState:")[2].split()[0]


async def transmit(bert: Bert, queue: int, frames: int, to: str) -> Any:
    """Frames from this queue to a guest, until all are answered."""
    bert.stream += 1
    stream, page = bert.stream, (await bert.call("pools", queue=queue))["tx"]
    first = TX_REF + queue * QUEUE_REFS
    entries = [[first + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(frames)]
    contents = [[(page + k) * 4096, 100, bert.macs[to], stream, k] for k in range(frames)]
    requests = [[first + k, 0, 0, k, 100] for k in range(frames)]
    return await bert.call("transmit", entries=entries, frames=contents, requests=requests, queue=queue)
