"""A split front end has its pools mapped for good: its back end does, says why it does not, or leaves before it has."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dom0.toolstack.libxl import create_domain, create_vif
from dom0.xenstore.server import Xenstored
from domu.frontends.split import _have_mapped
from domu.frontends.split_mappings import Unmapped
from hyp.control import Refused
from hyp.xenstore.client import XenstoreClient
from hyp.xenstore.xenbus import XenbusError, XenbusState, backend_path, switch_state

GUEST = {"domid": 1, "name": "anna", "mac": "02:00:00:00:00:01", "memory": 1 << 24, "grants": "persistent", "rate": None}
BACK = backend_path(0, "vif", 1, 0)


class Asked:
    """What asks the back end, and comes to what the test says."""

    def __init__(self, outcome: Callable[[], Awaitable[None]]) -> None:
        self.map_pools = outcome


async def have_mapped(outcome: Callable[[], Awaitable[None]], meanwhile: Callable[[XenstoreClient], Awaitable[None]]) -> None:
    """By a front end whose back end is Connected."""
    server, ends = Xenstored(), {domid: socket.socketpair() for domid in (0, 1)}
    for domid, (_, far) in ends.items():
        server.expect(domid, far)
    dom0, guest = [await XenstoreClient.open(near) for near, _ in ends.values()]
    await create_domain(dom0, GUEST)
    await create_vif(dom0, 1, 0, str(GUEST["mac"]))
    await dom0.introduce(1)
    await switch_state(dom0, BACK, XenbusState.CONNECTED)
    asked: Any = Asked(outcome)
    waiting = asyncio.ensure_future(_have_mapped(guest, BACK, asked))
    try:
        for _ in range(10):  # its watch has been set, and its first event seen
            await guest.read(f"{BACK}/state")
        await meanwhile(dom0)
        async with asyncio.timeout(60):
            await waiting
    finally:
        waiting.cancel()
        await dom0.close()
        await guest.close()
        server.close()


async def nothing(dom0: XenstoreClient) -> None:
    """Nothing happens meanwhile."""


async def mapped() -> None:
    """It answers."""


def test_it_answers() -> None:
    asyncio.run(have_mapped(mapped, nothing))


@pytest.mark.parametrize(("error", "why"), [(Unmapped("status 2"), "status 2"), (Refused("ENOTCONN", "port 3"), "port 3")])
def test_it_says_why_not(error: Exception, why: str) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises((XenbusError, Refused), match=why):
        asyncio.run(have_mapped(fails, nothing))


@pytest.mark.parametrize("state", ["CLOSING", "CLOSED", "INITIALISING", "INIT_WAIT", None])
def test_it_leaves_without_an_answer(state: str | None) -> None:
    """Whoever waits for the answer is not left waiting."""
    ended = []

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def leaves(dom0: XenstoreClient) -> None:
        if state is None:
            await dom0.rm(BACK)
        else:
            await switch_state(dom0, BACK, XenbusState[state])

    with pytest.raises(XenbusError, match="removed" if state is None else "left before it had mapped all pages"):
        asyncio.run(have_mapped(never, leaves))
    assert ended == [True]
