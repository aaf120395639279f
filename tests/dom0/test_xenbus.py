"""XenBus: front and back end through their states, waits that end, and states that are none."""

import asyncio
import contextlib
import socket

import pytest

from hyp.abi.xs_wire import MessageType
from hyp.xenstore.client import Transaction, XenstoreClient
from hyp.xenstore.xenbus import XenbusError, XenbusState, backend_path, frontend_path, switch_state, wait_for_state
from tests.support.xenstored_process import LOOPS, fails, forked, succeeded, with_clients, xenstored

FRONT, BACK = frontend_path(5, "vif", 0), backend_path(0, "vif", 5, 0)


async def create_device(dom0: XenstoreClient) -> None:
    """What the toolstack does."""

    async def create(tx: Transaction) -> None:
        for path, peer, owner, reader in ((FRONT, BACK, 5, 0), (BACK, FRONT, 0, 5)):
            await tx.mkdir(path)
            await tx.set_perms(path, [f"n{owner}", f"r{reader}"])
            await tx.write(f"{path}/{'backend' if owner else 'frontend'}", peer)
            await tx.write(f"{path}/state", str(int(XenbusState.INITIALISING)))

    await dom0.retry(create)


async def frontend(sock: socket.socket) -> None:
    async with await XenstoreClient.open(sock) as client:
        backend = await client.read("device/vif/0/backend")
        await wait_for_state(client, backend, [XenbusState.INIT_WAIT], 20)
        await client.write("device/vif/0/tx-ring-ref", "8")
        await switch_state(client, FRONT, XenbusState.INITIALISED)
        await wait_for_state(client, backend, [XenbusState.CONNECTED], 20)
        await switch_state(client, FRONT, XenbusState.CONNECTED)
        await wait_for_state(client, backend, [XenbusState.CLOSING, XenbusState.CLOSED], 20)
        await switch_state(client, FRONT, XenbusState.CLOSED)


async def backend(sock: socket.socket) -> None:
    async with await XenstoreClient.open(sock) as client:
        await create_device(client)
        await switch_state(client, BACK, XenbusState.INIT_WAIT)
        wanted = [XenbusState.INITIALISED, XenbusState.CONNECTED]
        assert await wait_for_state(client, FRONT, wanted, 20) == XenbusState.INITIALISED
        assert await client.read(f"{FRONT}/tx-ring-ref") == "8"
        await switch_state(client, BACK, XenbusState.CONNECTED)
        await wait_for_state(client, FRONT, [XenbusState.CONNECTED], 20)
        await switch_state(client, BACK, XenbusState.CLOSING)
        await wait_for_state(client, FRONT, [XenbusState.CLOSED], 20)
        await switch_state(client, BACK, XenbusState.CLOSED)


@pytest.mark.parametrize("loop", LOOPS)
def test_front_and_back_end_connect_and_close(loop: str) -> None:
    with xenstored([0, 0, 5], loop) as served:
        dom0 = served.raw(0)
        back = forked(lambda: LOOPS[loop](backend(served.clients[0][0])))
        dom0.call(MessageType.WATCH, FRONT, "t")
        while dom0.call(MessageType.READ, f"{FRONT}/state") == b"ENOENT\0":
            while dom0.receive().type != MessageType.WATCH_EVENT:
                pass
        front = forked(lambda: LOOPS[loop](frontend(served.clients[5][0])))
        assert [succeeded(back), succeeded(front)] == [True, True]
        assert dom0.call(MessageType.READ, f"{FRONT}/state") == b"6"
        assert dom0.call(MessageType.READ, f"{BACK}/state") == b"6"


def test_wait_says_what_it_saw_and_what_it_wanted() -> None:
    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        await create_device(dom0)
        seen = r"backend/vif/5/0/state: .*INITIALISING, wanted CONNECTED or CLOSED"
        with pytest.raises(XenbusError, match=seen) as late:
            await wait_for_state(guest, BACK, [XenbusState.CLOSED, XenbusState.CONNECTED], 0.05)
        assert (late.value.path, late.value.seen) == (BACK, XenbusState.INITIALISING)
        waiting = asyncio.ensure_future(wait_for_state(guest, BACK, [XenbusState.CONNECTED], 20))
        await asyncio.sleep(0)
        await guest.read("device")  # the wait has sent its watch before this
        await dom0.rm(BACK)
        with pytest.raises(XenbusError, match="removed"):
            await waiting
        await fails("ENOENT", switch_state(dom0, BACK, XenbusState.CLOSED))
        await fails("ENOENT", dom0.read(BACK))
        with pytest.raises(XenbusError, match="not there"):
            await wait_for_state(guest, BACK, [XenbusState.CONNECTED], 0.05)

    with_clients("uvloop", [0, 5], body)


@pytest.mark.parametrize("wait", [0, 1e-4])
def test_what_is_cancelled_leaves_neither_watches_nor_transactions(wait: float) -> None:
    async def body(guest: XenstoreClient) -> None:
        await guest.write(f"{FRONT}/state", "1")
        for _ in range(300):  # more than the quotas allow at once
            with pytest.raises(XenbusError):
                await wait_for_state(guest, FRONT, [XenbusState.CONNECTED], wait)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(switch_state(guest, FRONT, XenbusState.INITIALISED), wait)
            switching = asyncio.ensure_future(switch_state(guest, FRONT, XenbusState.INITIALISED))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            switching.cancel()
        await asyncio.gather(*[guest.watch(f"w{n}", "t") for n in range(128)])
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                await stack.enter_async_context(guest.transaction())

    with_clients("uvloop", [5], body)


@pytest.mark.parametrize("garbage", ["", "9", "-1", "4 ", "44", "٤", "connected", "\udcff"])
def test_a_state_that_is_none_is_unknown(garbage: str) -> None:
    async def body(dom0: XenstoreClient, guest: XenstoreClient) -> None:
        await guest.write(f"{FRONT}/state", garbage)
        assert await wait_for_state(dom0, FRONT, [XenbusState.UNKNOWN], 20) == XenbusState.UNKNOWN

    with_clients("uvloop", [0, 5], body)
