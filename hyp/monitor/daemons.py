"""A daemon that hypercalls depend on: whether it is there, and who asks it for something meanwhile.

The NIC, or Dom0's toolstack, may die and be started again (docs/faults.md):

    daemon                     `ready`        requests
    ------------------------   ------------   ------------------------------------------------------
    not there yet              pending        wait, at most SETUP_TIMEOUT_S
    ready                      done           go to it
    channel closed             pending        wait; those under way too, and then go to the next one
    given up                   ENODEV         refused
"""

import asyncio
from contextlib import suppress
from typing import Any

from hyp.control import Channel, PeerGone, Refused, Reply

SETUP_TIMEOUT_S = 20.0


class Daemon:
    """One of them. `channel` is there from its connection on, and None when there will be no other one."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.channel: Channel | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def is_ready(self) -> None:
        """Requests may go to it from now on."""
        if not self.ready.done():
            self.ready.set_result(None)

    def closed(self) -> None:
        """Its channel has ended: it is dead, or as good as that. Whether there will be another one the keeper says."""
        if self.ready.done() and self.ready.exception() is None:
            self.ready = asyncio.get_running_loop().create_future()

    def gone(self) -> None:
        """It is dead, and there will be no other one: whoever waits for it is refused."""
        self.channel = None
        if self.ready.done():
            self.ready = asyncio.get_running_loop().create_future()
        self.ready.set_exception(Refused("ENODEV", f"{self.who} is gone"))
        self.ready.exception()  # there may be nobody to hear of it

    async def ask(self, op: str, /, fds: tuple[int, ...] = (), **args: Any) -> Reply:
        """A request to the one that there is, ready or not. PeerGone if it dies over it."""
        assert self.channel is not None  # else `ready` has raised
        return await self.channel.call(op, fds=fds, **args)


class Toolstack(Daemon):
    """Dom0's: it says what a guest may have."""

    def __init__(self) -> None:
        super().__init__("Dom0's toolstack")

    async def authorize(self, question: str, domid: int) -> tuple[str, bool, int]:
        """What a domain may have: its MAC address, whether the IOMMU lets its contexts pass, how many queues. Refused: none."""
        while True:
            await asyncio.shield(self.ready)
            with suppress(PeerGone):  # the next one is asked
                reply = await self.ask(question, domid=domid)
                return str(reply.value["mac"]), bool(reply.value["passthrough"]), int(reply.value["queues"])
