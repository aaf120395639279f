"""The hypervisor's side of the NIC: contexts, their descriptors, and the shootdown of translations.

A context's life: `open_context` (toolstack allows, doorbell page and eventfds are made, NIC creates it) → the guest registers
memory → `context_start` → traffic, in which nothing of this file takes part → `close_context`
(the NIC's engine lets go of it first).
"""

import asyncio
import os
from typing import Any

from hyp.abi.domids import DOM0
from hyp.abi.nic import CONTEXTS, PAGE
from hyp.control import Channel, Refused, Reply
from hyp.events import Upcall, new_eventfd, raise_event
from hyp.iommu import Shootdown
from hyp.memory import Mapping, Region, create_region
from hyp.monitor.domain import Context, Domain

SETUP_TIMEOUT_S = 20.0


class Devices:
    """Everything the hypervisor holds for the one NIC of a topology."""

    def __init__(self, topology: str, backing: str, platform: Mapping) -> None:
        self.topology, self.backing, self._platform = topology, backing, platform
        loop = asyncio.get_running_loop()
        self.nic_ready: asyncio.Future[None] = loop.create_future()
        self.toolstack_ready: asyncio.Future[None] = loop.create_future()
        self.nic: Channel | None = None
        self.toolstack: Channel | None = None
        self._engine_regions: list[Region] = []
        self._engine_pages: list[Mapping] = []
        self._engine_upcalls: list[Upcall] = []
        self._past_batch = Upcall()  # engines signal here that they are past a batch
        self._shootdowns: list[tuple[Shootdown, asyncio.Future[None]]] = []
        self._contexts: dict[int, Domain] = {}
        loop.add_reader(self._past_batch.epoll.fileno(), self._check_shootdowns)

    # -- engines --

    def add_engine(self, page: Region, upcall: Upcall) -> int:
        """Take up one engine of the NIC; returns the eventfd by which it says that it is past a batch."""
        self._engine_regions.append(page)
        self._engine_pages.append(Mapping(page.fd, page.size, writable=False))
        self._engine_upcalls.append(upcall)
        eventfd = new_eventfd()
        self._past_batch.deliver(eventfd, len(self._engine_pages))
        return eventfd

    def engine_page(self, index: int) -> int:
        """A read-only descriptor of an engine's page, for who waits for its epoch. The caller closes it."""
        return self._engine_regions[index].readonly_fd()

    async def call(self, op: str, /, fds: tuple[int, ...] = (), **args: Any) -> Reply:
        """A request to the NIC."""
        if self.nic is None:
            raise Refused("ENODEV", "the NIC is gone")
        return await self.nic.call(op, fds=fds, **args)

    async def shootdown(self) -> None:
        """Wait until no engine uses a translation that was taken away before the call."""
        if self.nic is None or self.nic.closed.done():
            return
        wait = Shootdown(self._platform, self._engine_pages)
        if not wait.is_over():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._shootdowns.append((wait, future))
            await future

    def nic_gone(self) -> None:
        """The NIC died: whatever waited for it is over."""
        self.nic = None
        for _, future in self._shootdowns:
            if not future.done():
                future.set_result(None)
        self._shootdowns.clear()

    def _check_shootdowns(self) -> None:
        self._past_batch.epoll.poll(0)
        over = [(wait, future) for wait, future in self._shootdowns if wait.is_over()]
        self._shootdowns = [item for item in self._shootdowns if item not in over]
        for _, future in over:
            if not future.done():
                future.set_result(None)

    # -- contexts --

    async def open_context(self, domain: Domain, upcall: Upcall) -> Context:
        """A context for `domain` whose completions arrive at `upcall`. Refused if it has one, or the toolstack says no."""
        mac, passthrough = await self._policy_for(domain)
        # Checked after the wait: another call of the same guest, or its end, may have come in between.
        if domain.contexts:
            raise Refused("EBUSY", f"domain {domain.domid} ({domain.name}) has a context already")
        if domain.dying:
            raise Refused("ESRCH", f"domain {domain.domid} ({domain.name}) has ended")
        if self.nic is None:
            raise Refused("ENODEV", "the NIC is gone")
        number = self._free_number(domain)
        engine = number % len(self._engine_upcalls)
        region = create_region(self.backing, self.topology, domain.name, f"doorbell{number}", PAGE)
        context = Context(number, mac, region, new_eventfd(), new_eventfd(), engine, upcall, passthrough)
        self._contexts[number] = domain
        domain.contexts[number] = context
        try:
            self._engine_upcalls[engine].deliver(context.doorbell_fd, number)
            upcall.deliver(context.completion_fd, number)
            iommu = domain.iommu_region().readonly_fd()
            fds = (domain.ram.fd, iommu, region.fd, context.completion_fd)
            try:
                created = await self.call(
                    "context_create", fds=fds, context=number, name=domain.name, memory=domain.memory, mac=mac,
                    privileged=domain.domid == DOM0, passthrough=passthrough,
                )  # fmt: skip
            finally:
                os.close(iommu)
            context.features = int(created.value["features"])
            if domain.contexts.get(number) is not context:
                raise Refused("ESRCH", f"domain {domain.domid} ({domain.name}): the context was closed while it was opened")
            raise_event(context.completion_fd)
        except BaseException:
            self._release(domain, context)
            raise
        return context

    async def close_context(self, domain: Domain, number: int) -> None:
        """Take a context away; the NIC's engine is past it when this returns."""
        context = domain.contexts.get(number)
        if context is None:
            return
        if self.nic is not None and not self.nic.closed.done():
            await self.call("context_destroy", context=number)
        self._release(domain, context)

    def _release(self, domain: Domain, context: Context) -> None:
        """Let go of everything a context had; nothing happens if that was done already."""
        if domain.contexts.get(context.number) is not context:
            return
        domain.contexts.pop(context.number)
        self._contexts.pop(context.number, None)
        if self._engine_upcalls:
            self._engine_upcalls[context.engine].forget(context.doorbell_fd)
        context.upcall.forget(context.completion_fd)
        os.close(context.doorbell_fd)
        os.close(context.completion_fd)
        context.doorbell.close()

    async def _policy_for(self, domain: Domain) -> tuple[str, bool]:
        """MAC address of the context that `domain` may have, and whether the IOMMU lets it pass (native); once all are there."""
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await asyncio.shield(self.nic_ready)
                if domain.domid == DOM0:
                    return "00:00:00:00:00:00", False
                await asyncio.shield(self.toolstack_ready)
                return await self._authorize(domain)
        except TimeoutError:
            raise Refused("ETIMEDOUT", f"NIC and toolstack did not answer for {SETUP_TIMEOUT_S:g} s") from None

    async def _authorize(self, domain: Domain) -> tuple[str, bool]:
        if self.toolstack is None:
            raise Refused("ENODEV", "Dom0's toolstack is gone")
        question = "emulation_authorize" if domain.device_model else "context_authorize"
        reply = await self.toolstack.call(question, domid=domain.domid)
        return str(reply.value["mac"]), bool(reply.value["passthrough"])

    def _free_number(self, domain: Domain) -> int:
        if domain.domid == DOM0:
            return 0
        for number in range(1, CONTEXTS):
            if number not in self._contexts:
                return number
        raise Refused("ENOSPC", f"all {CONTEXTS} contexts of the NIC are taken")
