"""netback and front ends of every kind, in real topologies: what they do, what netback answers, and that nothing is left behind."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dom0.toolstack.libxl import create_vif
from domu.frontends.split import FIRST_REF, RX_REF
from hyp.abi.grant import GTF_PERMIT_ACCESS
from hyp.control import ControlError
from hyp.xenstore.client import Transaction
from hyp.xenstore.xenbus import backend_path, frontend_path
from tests.lab.test_paths import check
from tests.support.driven_labs import (
    CLOSED,
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
from tests.support.labs import run, until, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

RINGS = 2  # pages of a connected vif that are mapped
WRAP = 1 << 32


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Bert], Awaitable[None]]], None]:
    """Runs a body in a topology whose bert does what it says. Afterwards bert's vif works, and nobody has more descriptors."""

    def runs(name: str, body: Callable[[Bert], Awaitable[None]]) -> None:
        async def main() -> None:
            async with driven_lab(tmp_path, monkeypatch, name) as bert:
                await bert.told(INIT_WAIT)
                await bert.connect()
                await bert.exchange()
                await others(bert)  # which asks all processes
                before = bert.descriptors()
                await body(bert)
                await bert.again()
                await bert.exchange()
                assert bert.held() == RINGS
                await bert.have_closed(before)

        run(main())

    return runs


Driven = Callable[[str, Callable[[Bert], Awaitable[None]]], None]


async def off(bert: Bert) -> None:
    """Nothing of the guest is held, and the others' traffic goes on."""
    assert bert.held() == 0
    await others(bert)


# --- front ends -------------------------------------------------------------------------------------------------------

WAYS: dict[str, list[tuple[int | None, int]]] = {
    "kexec": [(CLOSING, CLOSING), (CLOSED, CLOSED), (INITIALISING, INIT_WAIT)],  # Linux's xenbus_reset_frontend
    "a crash kernel": [(INITIALISING, INIT_WAIT)],
    "closed at once": [(CLOSED, CLOSED), (INITIALISING, INIT_WAIT)],
    "its state removed": [(None, CLOSED), (INITIALISING, INIT_WAIT)],
    "closing before it was connected": [
        (INITIALISING, INIT_WAIT), (CLOSING, CLOSING), (CLOSED, CLOSED), (INITIALISING, INIT_WAIT),
    ],
    "a state that is none": [(42, CLOSED), (INITIALISING, INIT_WAIT)],
    "closing twice": [(CLOSING, CLOSING), (CLOSED, CLOSED), (CLOSING, CLOSING), (CLOSED, CLOSED), (INITIALISING, INIT_WAIT)],
}  # fmt: skip


@pytest.mark.parametrize("way", tiered(list(WAYS), ["kexec"]))
def test_a_front_end_goes_and_comes_back(driven: Driven, way: str) -> None:
    async def body(bert: Bert) -> None:
        for front, back in WAYS[way]:
            await bert.state(front)
            await bert.told(back)
            await off(bert)
        await bert.connect()
        await bert.exchange()
        assert await bert.read(f"{bert.back}/online") == "1"
        if way == "its state removed":
            await bert.logged("vif 2.0 (bert): disconnected: the front end is gone")

    driven("comesback", body)


def test_a_front_end_that_stops_at_initialised_is_served_and_told_of(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        await bert.ready()
        await bert.state(3)
        await bert.told(CONNECTED)
        await bert.call("notifier")
        await bert.state(CONNECTED)
        await bert.exchange()
        await bert.logged("connected at Initialised, which Linux's netback would have ignored")

    driven("initialised", body)


@pytest.mark.parametrize("start", tiered([WRAP - 2, 12345], [WRAP - 2]))
def test_rings_that_were_in_use_elsewhere_go_on_where_they_are(driven: Driven, start: int) -> None:
    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.connect(start)
        await bert.exchange(frames=5)

    driven("resumed", body)


@pytest.mark.parametrize("slots", tiered([1, 4], [1]))
def test_few_receive_slots_are_enough(driven: Driven, slots: int) -> None:
    driven("slots", lambda bert: bert.exchange(frames=9, slots=slots))


def test_a_front_end_that_does_not_tell_of_receive_requests(driven: Driven) -> None:
    """feature-rx-notify 0: a frame that found no room goes into the slot that was posted without an event."""

    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        await bert.ready(changed={"feature-rx-notify": "0"})
        await bert.state(CONNECTED)
        await bert.told(CONNECTED)
        await bert.call("notifier")
        await bert.send(1)
        pages = (await bert.call("pools"))["rx"]
        slots = [[RX_REF + k, GTF_PERMIT_ACCESS, 0, pages + k] for k in range(2)]
        await bert.call("post", entries=slots, requests=[[0, RX_REF]])
        job = {"mac": bert.macs[DRIVEN], "frame": 200, "stream": 700, "frames": 2}
        sending = asyncio.create_task(bert.lab.call("anna", "send_stream", **job))
        for k in range(2):
            [[number, _, status, whole]] = await bert.call(
                "received", count=1, frames=[[pages + k, bert.macs["anna"], 200, 700, k]]
            )
            assert (number, status, whole) == (k, 200, True)
            if k == 0:
                await bert.call("post", entries=[], requests=[[1, RX_REF + 1]], quiet=True)
        assert (await sending)["sent"] == 2

    driven("quiet", body)


# --- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Nodes, str]] = {
    "ungranted": ({"tx-ring-ref": "999"}, "22 tx-ring-ref 999 cannot be mapped (grant status -1)"),
    "beyond the table": ({"rx-ring-ref": "4000000000"}, "22 rx-ring-ref 4000000000 cannot be mapped"),
    "no reference": ({"rx-ring-ref": None}, f"2 reading {Bert.front}/rx-ring-ref"),
    "no number": ({"tx-ring-ref": "8 "}, f"22 {Bert.front}/tx-ring-ref is '8 ', not a number"),
    "a port that is not open": ({"event-channel": "77"}, "22 domain 0: port 77 of domain 2 is not open to it"),
    "no port": ({"event-channel": None}, f"2 reading {Bert.front}/event-channel"),
    "page flipping": ({"request-rx-copy": "0"}, f"95 {Bert.front}/request-rx-copy is not 1"),
    "page flipping, tacitly": ({"request-rx-copy": None}, f"95 {Bert.front}/request-rx-copy is not 1"),
}


@pytest.mark.parametrize("mistake", tiered(list(MISTAKES), ["ungranted"]))
def test_a_mistake_is_told_and_can_be_corrected(driven: Driven, mistake: str) -> None:
    changed, told = MISTAKES[mistake]

    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        await bert.ready(changed=changed)
        await bert.state(CONNECTED)
        await bert.told(CLOSING)
        assert (await bert.error() or "").startswith(told)
        await bert.logged(f"vif 2.0 (bert): {told.partition(' ')[2]}")
        await off(bert)
        await bert.ready()
        await bert.state(CONNECTED)  # nothing else: the nodes are right now
        await bert.told(CONNECTED)
        await bert.call("notifier")
        await bert.exchange()

    driven("mistake", body)


@pytest.mark.parametrize("state", tiered([2, 7, 8], [7]))
def test_a_state_that_is_not_a_front_ends(driven: Driven, state: int) -> None:
    async def body(bert: Bert) -> None:
        await bert.state(state)
        await bert.told(CLOSING)
        assert await bert.error() == f"22 saw state {state} at frontend"
        await off(bert)

    driven("nostate", body)


@pytest.mark.parametrize("ring", tiered(["tx", "rx"], ["rx"]))
def test_a_ring_that_runs_away_closes_its_vif(driven: Driven, ring: str) -> None:
    async def body(bert: Bert) -> None:
        await bert.call("overrun", ring=ring)
        if ring == "rx":  # which nobody looks at before there is a frame
            await bert.lab.call("anna", "send_stream", mac=bert.macs[DRIVEN], frame=64, stream=900, frames=1)
        await bert.told(CLOSING)
        assert (await bert.error() or "").startswith("5 a ring's producer index ran ahead")
        await off(bert)

    driven("runaway", body)


def test_a_ring_that_has_run_away_already_is_not_connected(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await bert.state(INITIALISING)
        await bert.told(INIT_WAIT)
        await bert.ready()
        await bert.call("overrun", ring="tx")
        await bert.state(CONNECTED)
        await bert.told(CLOSING)
        assert await bert.error() == f"5 tx-ring-ref {FIRST_REF}: more is requested than the ring has slots"
        await off(bert)

    driven("ahead", body)


# --- the toolstack, and death -------------------------------------------------------------------------------------------


async def tell(bert: Bert, back: str, online: int, state: int) -> None:
    """Write a back end's nodes, as the toolstack."""

    async def write(transaction: Transaction) -> None:
        await transaction.write(f"{back}/online", str(online))
        await transaction.write(f"{back}/state", str(state))

    await bert.dom0.retry(write)


async def take_back(bert: Bert, back: str = Bert.back) -> None:
    """As xl network-detach begins."""
    await tell(bert, back, 0, CLOSING)


async def give(bert: Bert) -> None:
    """As xl network-attach does, but for nodes that are the same."""
    await tell(bert, bert.back, 1, INITIALISING)


def test_the_toolstack_takes_a_device_back_and_gives_it_again(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await take_back(bert)

        async def let_go() -> bool:
            return bert.held() == 0

        await until(let_go, "the vif to be disconnected, though its front end does nothing")
        await bert.state(CONNECTED)  # it can't have it back by itself
        await off(bert)
        assert await bert.read(f"{bert.back}/state") == str(CLOSING)
        await bert.state(CLOSED)
        await bert.told(CLOSED)
        await bert.state(INITIALISING)
        await off(bert)
        assert await bert.read(f"{bert.back}/state") == str(CLOSED)
        await give(bert)
        await bert.told(INIT_WAIT)
        await bert.connect()
        await bert.exchange()

    driven("takeback", body)


def test_the_toolstack_removes_a_device_by_force_and_makes_it_anew(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await take_back(bert)
        await bert.dom0.rm(bert.front)  # the front end does not answer
        await bert.told(CLOSED)
        await bert.dom0.rm(bert.back)
        await off(bert)
        await create_vif(bert.dom0, DOMID, 0, bert.macs[DRIVEN])
        await bert.told(INIT_WAIT)

    driven("byforce", body)


def test_back_end_nodes_removed_while_connected(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        await bert.dom0.rm(bert.back)

        async def let_go() -> bool:
            return bert.held() == 0

        await until(let_go, "the vif to be disconnected")
        await off(bert)
        await create_vif(bert.dom0, DOMID, 0, bert.macs[DRIVEN])
        await bert.told(INIT_WAIT)

    driven("removed", body)


def test_our_own_front_end_follows_a_toolstack_that_takes_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "follows") as bert:
            front, back = frontend_path(1, "vif", 0), backend_path(0, "vif", 1, 0)
            await take_back(bert, back)

            async def both_closed() -> bool:
                return [await bert.read(f"{path}/state") for path in (front, back)] == [str(CLOSED)] * 2

            await until(both_closed, "both ends to be closed")
            with pytest.raises(ControlError, match="device"):
                await bert.lab.call("anna", "send_stream", mac=bert.macs["carl"], frame=64, stream=901, frames=10)
            check(await bert.runner.run(workload("stream", "carl", "wire", frames=2000)))

    run(main())


def test_a_killed_guest_leaves_no_nodes_and_nothing_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "killed") as bert:
            await others(bert)
            idle = bert.descriptors()
            await bert.connect()
            await bert.exchange()
            os.kill(bert.runner.pids[DRIVEN], signal.SIGKILL)
            homes = [bert.back, f"/local/domain/0/backend/vif/{DOMID}", f"/local/domain/{DOMID}", f"/libxl/{DOMID}"]

            async def gone() -> bool:
                return [await bert.read(path) for path in homes] == [None] * len(homes)

            await until(gone, "its nodes to be removed")
            await off(bert)
            assert len(await bert.dom0.directory("/vm")) == 2
            after = bert.descriptors()
            assert after["dom0"] == idle["dom0"]
            assert after["hyp"] < idle["hyp"]

    run(main())


# --- any of it, and much of it -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_hundred_reconnections_cost_the_others_nothing(driven: Driven) -> None:
    async def body(bert: Bert) -> None:
        ways = [way for way in WAYS.values() if None not in dict(way)]
        async with others_streaming(bert):
            for number in range(100):
                for front, back in ways[number % len(ways)]:
                    await bert.state(front)
                    await bert.told(back)
                await bert.connect(start=number * 999_999_999 % WRAP)
                if number % 10 == 0:
                    await bert.send(3)

    driven("hundred", body)


@pytest.mark.parametrize("seed", tiered(range(8), [0]))
def test_random_front_ends_and_toolstacks_leave_a_vif_that_works(driven: Driven, seed: int) -> None:
    """Sequences of six: states, nodes right and wrong, nodes removed, rings that run away, the toolstack's meddling."""
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def body(bert: Bert) -> None:
        async def right() -> None:
            await bert.ready(start=chance.randrange(WRAP))

        async def wrong() -> None:
            await bert.ready(changed=chance.choice(list(MISTAKES.values()))[0])

        async def ahead() -> None:
            await bert.call("overrun", ring=chance.choice(["tx", "rx"]))

        acts = [right, right, wrong, ahead, lambda: take_back(bert), lambda: give(bert)]
        for _ in range(25):
            for _ in range(6):
                if chance.random() < 0.75:
                    await bert.state(chance.choice([None, "", "x", *range(9), CONNECTED, CONNECTED, INITIALISING]))
                else:
                    await chance.choice(acts)()
                if chance.random() < 0.3:
                    await bert.call("store", op="read", path=f"{bert.back}/state")  # lets Dom0 come in between
        await bert.state(INITIALISING)  # else Dom0, which may be late, could connect what was before while we wait for what comes
        await give(bert)
        await bert.ready()

    driven("random", body)
