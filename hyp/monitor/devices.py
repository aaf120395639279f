"""The hypervisor's side of the NIC: contexts, their descriptors, and the shootdown of translations.

A context's life: `open_context` (toolstack allows, doorbell page and eventfds are made, NIC creates it) → the guest registers
memory → `start_context` → traffic, in which nothing of this file takes part → `close_context`
(the NIC's engine lets go of it first).

A number is given out again once its context is closed. So whatever travels or waits while that may happen says which *generation*
of the number it means, never the number alone: what the NIC is asked here, and frames on their way to an engine (nic/crossing.py).
"""

import asyncio
import itertools
import os
from contextlib import ExitStack
from typing import Any

from hyp.abi.domids import DOM0
from hyp.abi.nic import CONTEXTS, PAGE
from hyp.control import Channel, PeerGone, Refused, Reply
from hyp.events import Upcall, new_eventfd
from hyp.iommu import Shootdown
from hyp.memory import Mapping, Region, create_region
from hyp.monitor.domain import DEVICE_MODEL, Context, Domain

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
        self._kept: dict[int, tuple[str, int]] = {}  # number → the domain that has had it, and for which of its queues
        self._generations = itertools.count(1)
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
        waiting, self._shootdowns = self._shootdowns, []
        for wait, future in waiting:
            if not wait.is_over():
                self._shootdowns.append((wait, future))
            elif not future.done():
                future.set_result(None)

    # -- contexts --

    async def open_context(self, domain: Domain, upcall: Upcall, queue: int = 0) -> Context:
        """A context for queue `queue` of `domain`, whose completions arrive at `upcall`. Refused if it has that, or may not.

        They are opened in their order, and lie on different engines of the NIC, as far as there are so many.
        """
        mac, passthrough, queues = await self.policy_for(domain, emulated=domain.device_model)
        # Checked after the wait: another call of the same guest, or its end, may have come in between.
        who, opened = f"domain {domain.domid} ({domain.name})", sorted(context.queue for context in domain.contexts.values())
        if queue in opened:
            raise Refused("EBUSY", f"{who} has a context already" + (f" for queue {queue}" if queue > 0 else ""))
        if queue >= queues:
            raise Refused("EPERM", f"the toolstack gives {who} {queues} queues: there is no queue {queue}")
        if queue != len(opened):
            raise Refused("EINVAL", f"{who} asks for queue {queue}, and has opened {len(opened)}: they are opened in their order")
        if not all(context.ready and context.closing is None for context in domain.contexts.values()):
            # It would belong to one that is perhaps no more
            raise Refused("EBUSY", f"{who} has a context that is being opened or closed")
        if domain.dying:
            raise Refused("ESRCH", f"{who} has ended")
        upcall.check()
        if self.nic is None:
            raise Refused("ENODEV", "the NIC is gone")
        first = min(domain.contexts, key=lambda number: domain.contexts[number].queue, default=None)
        fresh = (domain.name, queue) not in self._kept.values()
        number = self._free_number(domain, queue, None if first is None else first + queue)
        first = number if first is None else first
        engine = number % len(self._engine_upcalls)
        with ExitStack() as made:  # what there is of it, if not all can be had
            region = create_region(self.backing, self.topology, domain.name, f"doorbell{number}", PAGE)
            made.callback(region.close)
            doorbell_fd = new_eventfd()
            made.callback(os.close, doorbell_fd)
            context = Context(
                number, next(self._generations), mac, region, doorbell_fd, new_eventfd(), engine, upcall, passthrough, queue
            )  # fmt: skip
            made.pop_all()
        self._contexts[number] = domain
        domain.contexts[number] = context
        try:
            self._engine_upcalls[engine].deliver(context.doorbell_fd, number)
            upcall.deliver(context.completion_fd, number)
            iommu = domain.iommu_region().readonly_fd()
            fds = (domain.ram.fd, iommu, region.fd, context.completion_fd)
            try:
                created = await self.call(
                    "context_create", fds=fds, context=number, generation=context.generation, name=domain.name,
                    memory=domain.memory, mac=mac, privileged=domain.domid == DOM0, passthrough=passthrough,
                    first=first, queue=queue, fresh=fresh,
                )  # fmt: skip
            finally:
                os.close(iommu)
            context.features, context.ready = int(created.value["features"]), True
            if domain.contexts.get(number) is not context or context.closing is not None:
                raise Refused("ESRCH", f"domain {domain.domid} ({domain.name}): the context was closed while it was opened")
            upcall.wake(context.completion_fd)
        except BaseException:
            if context.closing is None:  # else who closes it releases it, when the NIC has let go: its number is not free before
                self._release(domain, context)
            raise
        return context

    async def start_context(self, domain: Domain, number: int, **what: Any) -> None:
        """Let the NIC serve a context of `domain`. Refused if it is just being opened or closed."""
        context = domain.contexts[number]
        if context.closing is not None or not context.ready:
            raise Refused("EBUSY", f"domain {domain.domid} ({domain.name}): context {number} is being opened or closed")
        await self.call("context_start", context=number, generation=context.generation, **what)

    async def close_context(self, domain: Domain, number: int) -> None:
        """Take a context away, and before it those of later queues; the NIC's engine is past it when this returns.

        There is one close of a context under way: another one is refused (EBUSY).
        """
        going = self._with_later_queues(domain, number)
        if any(one.closing is not None for one in going):
            raise Refused("EBUSY", f"domain {domain.domid} ({domain.name}): context {number} is being closed already")
        # The calls are not the caller's: it may be cancelled, and the number stays taken until the NIC has answered
        closing = asyncio.get_running_loop().create_task(self._close(domain, going))
        for one in going:
            one.closing = closing
        await asyncio.shield(closing)

    async def close_contexts(self, domain: Domain) -> None:
        """Take all contexts of a domain that opens no more away; waits for what is being closed already."""
        while domain.contexts:
            number, context = min(domain.contexts.items(), key=lambda item: item[1].queue)
            closing = next((one.closing for one in self._with_later_queues(domain, number) if one.closing is not None), None)
            if closing is None:
                await self.close_context(domain, context.number)
            else:
                await asyncio.wait({closing})
                closing.result()

    @staticmethod
    def _with_later_queues(domain: Domain, number: int) -> list[Context]:
        """A context and those of the domain's later queues, the last one first; none if there is no such context."""
        context = domain.contexts.get(number)
        if context is None:
            return []
        return sorted((one for one in domain.contexts.values() if one.queue >= context.queue), key=lambda one: -one.queue)

    async def _close(self, domain: Domain, going: list[Context]) -> None:
        for one in going:
            try:
                if self.nic is not None and not self.nic.closed.done():
                    await self.call("context_destroy", context=one.number, generation=one.generation)
            except PeerGone:
                pass  # nobody uses it any more
            self._release(domain, one)

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

    async def policy_for(self, domain: Domain, *, emulated: bool) -> tuple[str, bool, int]:
        """What `domain` may have, once all are there: its contexts' MAC address, whether the IOMMU lets them pass, how many.

        Of an `emulated` NIC, the context of its device model. Refused, if the toolstack gives it none.
        """
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await asyncio.shield(self.nic_ready)
                if domain.domid == DOM0:
                    return "00:00:00:00:00:00", False, 1
                await asyncio.shield(self.toolstack_ready)
                return await self._authorize(domain, "emulation_authorize" if emulated else "context_authorize")
        except TimeoutError:
            raise Refused("ETIMEDOUT", f"NIC and toolstack did not answer for {SETUP_TIMEOUT_S:g} s") from None

    async def _authorize(self, domain: Domain, question: str) -> tuple[str, bool, int]:
        if self.toolstack is None:
            raise Refused("ENODEV", "Dom0's toolstack is gone")
        reply = await self.toolstack.call(question, domid=domain.domid)
        return str(reply.value["mac"]), bool(reply.value["passthrough"]), int(reply.value["queues"])

    def forget(self, name: str) -> None:
        """The numbers that were kept for domain `name`, which is no more, and for its device model, are anybody's."""
        self._kept = {number: owner for number, owner in self._kept.items() if owner[0].removesuffix(DEVICE_MODEL) != name}

    def _free_number(self, domain: Domain, queue: int, like: int | None = None) -> int:
        """The context that is kept for a domain's queue, or else one that nobody has, and which is kept for it from now on.

        That bounds what is named by both, such as rows of counters, however often a guest opens and closes. A new one is on the
        engine that would have context `like`, if there is such a one.
        """
        if domain.domid == DOM0:
            return 0
        engines, owner = len(self._engine_upcalls), (domain.name, queue)
        for number, kept_for in self._kept.items():
            if kept_for == owner and number not in self._contexts:
                return number
        free = [number for number in range(1, CONTEXTS) if number not in self._contexts and number not in self._kept]
        if not free:
            raise Refused("ENOSPC", f"all {CONTEXTS} contexts of the NIC are taken")
        found = next((number for number in free if like is not None and (number - like) % engines == 0), free[0])
        self._kept[found] = owner
        return found
