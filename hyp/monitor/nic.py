"""What the NIC's process is to the hypervisor: its engines, calls to it, and the shootdown of translations that they may use."""

import asyncio
import os
from contextlib import suppress
from typing import Any

from hyp.control import Channel, PeerGone, Refused, Reply
from hyp.events import new_eventfd
from hyp.iommu import Shootdown
from hyp.memory import Mapping, Region
from hyp.monitor.daemons import SETUP_TIMEOUT_S, Daemon
from hyp.monitor.event_channels import Upcall


class Nic(Daemon):
    """The one NIC of a topology. Its engines' pages and upcalls outlive its process, as do its contexts (contexts.py)."""

    def __init__(self, platform: Mapping) -> None:
        super().__init__("the NIC")
        self._platform = platform
        self.max_frame = 0  # bytes of a frame that it takes if that is not to be segmented
        self.to_host = False  # its wire leads there
        self._engine_regions: list[Region] = []
        self._engine_pages: list[Mapping] = []
        self._engine_upcalls: list[Upcall] = []
        self._engine_past: list[int] = []
        self._shootdowns: list[tuple[Shootdown, asyncio.Future[None]]] = []

    # -- engines --

    def engine(self, index: int, page: Region) -> tuple[int, int]:
        """Engine `index`, taken up at the first call; returns its upcall's epoll descriptor and the eventfd by which it
        says that it is past a batch.
        """
        if index == len(self._engine_pages):
            self._engine_regions.append(page)
            self._engine_pages.append(Mapping(page.fd, page.size, writable=False))
            self._engine_upcalls.append(Upcall())
            self._engine_past.append(new_eventfd())
            past = self._engine_past[index]
            asyncio.get_running_loop().add_reader(past, self._check_shootdowns, past)
        return self._engine_upcalls[index].epoll.fileno(), self._engine_past[index]

    @property
    def engines(self) -> int:
        """How many there are."""
        return len(self._engine_pages)

    def engine_page(self, index: int) -> int:
        """A read-only descriptor of an engine's page, for who waits for its epoch. The caller closes it."""
        return self._engine_regions[index].readonly_fd()

    def engine_upcall(self, index: int) -> Upcall:
        """By which an engine is woken."""
        return self._engine_upcalls[index]

    # -- calls --

    async def call(self, op: str, /, fds: tuple[int, ...] = (), **args: Any) -> Reply:
        """A request, of which nothing is left if the NIC dies over it: the next one is asked then.

        Refused (ENODEV, ETIMEDOUT) if there is no NIC, or not soon.
        """
        while True:
            try:
                async with asyncio.timeout(SETUP_TIMEOUT_S):
                    await asyncio.shield(self.ready)
            except TimeoutError:
                raise Refused("ETIMEDOUT", f"the NIC was not there for {SETUP_TIMEOUT_S:g} s") from None
            with suppress(PeerGone):
                return await self.ask(op, fds=fds, **args)

    # -- its death --

    def restarts(self, channel: Channel) -> None:
        """It is about to start: the first one, or another one in the place of one that has been reaped."""
        self._nothing_uses_translations()
        if self.channel is not None:
            self.channel.close()
        self.closed()
        self.channel = channel

    def gone(self) -> None:
        """It died, and there will be no other one: whatever waited for it is over."""
        self._nothing_uses_translations()
        super().gone()

    # -- translations --

    async def shootdown(self) -> None:
        """Wait until no engine uses a translation that was taken away before the call."""
        if self.channel is None or self.channel.closed.done():
            return
        wait = Shootdown(self._platform, self._engine_pages)
        if not wait.is_over():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._shootdowns.append((wait, future))
            await future

    def _nothing_uses_translations(self) -> None:
        for _, future in self._shootdowns:
            if not future.done():
                future.set_result(None)
        self._shootdowns.clear()

    def _check_shootdowns(self, past: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(past)
        waiting, self._shootdowns = self._shootdowns, []
        for wait, future in waiting:
            if not wait.is_over():
                self._shootdowns.append((wait, future))
            elif not future.done():
                future.set_result(None)
