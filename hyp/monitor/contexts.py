"""The contexts that the NIC has for domains: who has which, what each is made of, and what a NIC that was started again is given.

A context's life: `open_context` (toolstack allows, doorbell page and eventfds are made, NIC creates it) → the guest registers
memory → `start_context` → traffic, in which nothing of this file takes part → `close_context`
(the NIC's engine lets go of it first).

The NIC may die and be started again (docs/faults.md): what its contexts are made of is ours, and is handed to the next one
(`resume`), which sees from the queues themselves how far the dead one was. Until that has been done, calls to the NIC wait (nic.py,
daemons.py). Each operation is recorded here once the NIC has carried it out, so that nothing is done twice.

A number is given out again once its context is closed. So whatever travels or waits while that may happen says which *generation*
of the number it means, never the number alone: what the NIC is asked here, and frames on their way to an engine (nic/crossing.py).
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from typing import Any

from hyp.abi.domids import DOM0
from hyp.abi.nic import CONTEXTS, HUSH_NS, PAGE
from hyp.control import Refused, Reply
from hyp.control.debt import unpaid
from hyp.events import new_eventfd
from hyp.memory import create_region
from hyp.monitor.daemons import SETUP_TIMEOUT_S, Toolstack
from hyp.monitor.domain import DEVICE_MODEL, Context, Domain
from hyp.monitor.event_channels import Upcall
from hyp.monitor.nic import Nic

log = logging.getLogger(__name__)


class Contexts:
    """All of them, by number."""

    def __init__(self, topology: str, backing: str, nic: Nic, toolstack: Toolstack) -> None:
        self.topology, self.backing, self.nic, self._toolstack = topology, backing, nic, toolstack
        self._contexts: dict[int, Domain] = {}
        self._kept: dict[int, tuple[str, int]] = {}  # number → the domain that has had it, and for which of its queues
        self._filters: dict[int, int] = {}  # MAC address → context, of those that the toolstack has set
        self._generations = itertools.count(1)

    # -- a NIC that was started again --

    async def resume(self) -> None:
        """The NIC's engines run: hand the contexts over that there are, with what was set up for them; then calls may go on."""
        if not self.nic.ready.done():
            for number, domain in sorted(self._contexts.items(), key=lambda item: self._place(*item)):
                if number in domain.contexts:
                    await self._hand_over(domain, domain.contexts[number])
            for number in set(self._filters.values()):
                macs = [mac for mac, owner in self._filters.items() if owner == number]
                if not macs:  # closed meanwhile
                    continue
                generation = self._contexts[number].contexts[number].generation
                with suppress(Refused):  # it could not go on
                    await self.nic.ask("filter_change", context=number, generation=generation, add=macs, remove=[])
        self.nic.is_ready()

    @staticmethod
    def _place(number: int, domain: Domain) -> int:
        """Contexts of one domain in the order of their queues."""
        return domain.contexts[number].queue

    async def _hand_over(self, domain: Domain, context: Context) -> None:
        """Let a new NIC go on with a context, as far as its domain had come with it."""
        if not context.ready:  # whoever opens it asks again
            return
        try:
            await self._create(domain, context, self.nic.ask)
            if context.started is not None:
                what = context.started
                await self.nic.ask("context_start", context=context.number, generation=context.generation, resume=True, **what)
        except (Refused, OSError) as error:  # its memory is cut off, for instance, or has a lease on it: its own affair
            log.error("context %d of domain %d (%s) cannot go on: %s", context.number, domain.domid, domain.name, error)
        if domain.contexts.get(context.number) is context:
            context.upcall.wake(context.completion_fd)
        else:  # it was closed meanwhile, by who did not wait for this NIC, and its descriptors with it
            with suppress(Refused):  # the NIC has not got it
                await self.nic.ask("context_destroy", context=context.number, generation=context.generation, drain=False)

    # -- a context's life --

    async def open_context(self, domain: Domain, upcall: Upcall, queue: int = 0) -> Context:
        """A context for queue `queue` of `domain`, whose completions arrive at `upcall`. Refused if it has that, or may not.

        They are opened in their order, and lie on different engines of the NIC, as far as there are so many.
        """
        self._check_open(domain, queue)
        revoked = domain.revoked
        mac, passthrough, queues = await self.policy_for(domain, emulated=domain.device_model)
        await upcall.paid()
        self._check_open(domain, queue)  # another call of the same guest, or its end, may have come in between
        if domain.revoked != revoked:
            raise Refused("EPERM", f"the toolstack allows {domain.who} no context any more")
        if queue >= queues:
            raise Refused("EPERM", f"the toolstack gives {domain.who} {queues} queues: there is no queue {queue}")
        if queue != len(domain.contexts):
            opened = len(domain.contexts)
            raise Refused("EINVAL", f"{domain.who} asks for queue {queue}, and has opened {opened}: they are opened in their order")
        upcall.check()
        if self.nic.channel is None:
            raise Refused("ENODEV", "the NIC is gone")
        fresh = (domain.name, queue) not in self._kept.values()
        number = self._free_number(domain, queue, self._first(domain) + queue if domain.contexts else None)
        engine = number % self.nic.engines
        with ExitStack() as made:  # what there is of it, if not all can be had
            region = create_region(self.backing, self.topology, domain.name, f"doorbell{number}", PAGE)
            made.callback(region.close)
            doorbell_fd = new_eventfd()
            made.callback(os.close, doorbell_fd)
            context = Context(
                number, next(self._generations), mac, region, doorbell_fd, new_eventfd(), engine, upcall, passthrough, queue, fresh
            )  # fmt: skip
            made.pop_all()
        self._contexts[number] = domain
        domain.contexts[number] = context
        try:
            self.nic.engine_upcall(engine).deliver(context.doorbell_fd, number, upcall)
            upcall.deliver(context.completion_fd, number)
            with unpaid() if fresh else nullcontext():  # the NIC maps its RAM, perhaps
                created = await self._create(domain, context, self.nic.call)
            context.features, context.ready = int(created.value["features"]), True
            if domain.contexts.get(number) is not context or context.closing is not None:
                raise Refused("ESRCH", f"{domain.who}: the context was closed while it was opened")
            upcall.wake(context.completion_fd)
        except BaseException:
            if context.closing is None:  # else who closes it releases it, when the NIC has let go: its number is not free before
                self._release(domain, context)
            raise
        return context

    @staticmethod
    def _check_open(domain: Domain, queue: int) -> None:
        """Refuse what this domain may not have opened now, whatever the toolstack says: nobody is asked for that."""
        if any(context.queue == queue for context in domain.contexts.values()):
            raise Refused("EBUSY", f"{domain.who} has a context already" + (f" for queue {queue}" if queue > 0 else ""))
        if not all(context.ready and context.closing is None for context in domain.contexts.values()):
            # It would belong to one that is perhaps no more
            raise Refused("EBUSY", f"{domain.who} has a context that is being opened or closed")
        if domain.dying:
            raise Refused("ESRCH", f"{domain.who} has ended")

    async def _create(self, domain: Domain, context: Context, ask: Callable[..., Awaitable[Reply]]) -> Reply:
        """Let the NIC map what a context is made of; `ask` asks it."""
        iommu = domain.iommu_region().readonly_fd()
        try:
            return await ask(
                "context_create", fds=(domain.ram.fd, iommu, context.doorbell.fd, context.completion_fd), context=context.number,
                generation=context.generation, name=domain.name, memory=domain.memory, mac=context.mac,
                privileged=domain.domid == DOM0, passthrough=context.passthrough, first=self._first(domain), queue=context.queue,
                fresh=context.fresh, doorbell_data=context.doorbell_fd,
            )  # fmt: skip
        finally:
            os.close(iommu)

    @staticmethod
    def _first(domain: Domain) -> int:
        """The number of a domain's context for its first queue."""
        return min(domain.contexts, key=lambda number: domain.contexts[number].queue)

    async def start_context(self, domain: Domain, number: int, **what: Any) -> None:
        """Let the NIC serve a context of `domain`. Refused if it is just being opened or closed."""
        context = domain.contexts[number]
        if context.closing is not None or not context.ready:
            raise Refused("EBUSY", f"{domain.who}: context {number} is being opened or closed")
        await self.nic.call("context_start", context=number, generation=context.generation, resume=False, **what)
        context.started = what

    async def change_filters(self, domain: Domain, add: list[int], remove: list[int]) -> None:
        """Give MAC addresses to a domain's first context, take others away.

        Refused, ENODEV, if it has none, or none any more when the NIC is told: its number may be somebody else's by then.
        """
        context = domain.contexts[self._first(domain)] if domain.contexts else None
        if context is None or context.closing is not None or not context.ready:
            raise Refused("ENODEV", f"{domain.who} has no open context")
        number = context.number
        await self.nic.call("filter_change", context=number, generation=context.generation, add=add, remove=remove)
        for mac in remove:
            if self._filters.get(mac) == number:
                del self._filters[mac]
        if domain.contexts.get(number) is context:
            self._filters.update(dict.fromkeys(add, number))

    async def close_context(self, domain: Domain, number: int) -> None:
        """Take a context away, and before it those of later queues; the NIC's engine is past it when this returns.

        There is one close of a context under way: another one is refused, EBUSY; ENODEV if it has ended since it was asked for.
        """
        going = self._with_later_queues(domain, number)
        if not going:
            raise Refused("ENODEV", f"{domain.who}: context {number} is closed already")
        if any(one.closing is not None for one in going):
            raise Refused("EBUSY", f"{domain.who}: context {number} is being closed already")
        # The calls are not the caller's: it may be cancelled, and the number stays taken until the NIC has answered
        closing = asyncio.get_running_loop().create_task(self._close(domain, going))
        for one in going:
            one.closing = closing
        await asyncio.shield(closing)

    async def close_contexts(self, domain: Domain) -> None:
        """Take all contexts of a domain that opens no more away; waits for what is being closed already.

        Of Dom0's what has been posted is sent first: it has answered for those frames, which are its guests'.
        """
        await self.revoke_contexts(domain)
        if self.nic.channel is not None:
            self.nic.channel.tell("ram_let_go", owner=domain.name)

    async def revoke_contexts(self, domain: Domain) -> None:
        """Take all contexts of a domain away, as `close_contexts` does; it may open others, if the toolstack allows them anew."""
        domain.revoked += 1
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
                drain = domain.domid == DOM0
                await self.nic.call("context_destroy", context=one.number, generation=one.generation, drain=drain)
            except Refused as error:
                if error.name not in ("ENODEV", "ETIMEDOUT"):  # there is no NIC, hence nobody who uses it
                    raise
            self._release(domain, one)

    def _release(self, domain: Domain, context: Context) -> None:
        """Let go of everything a context had; nothing happens if that was done already."""
        if domain.contexts.get(context.number) is not context:
            return
        domain.contexts.pop(context.number)
        self._contexts.pop(context.number, None)
        self._filters = {mac: owner for mac, owner in self._filters.items() if owner != context.number}
        upcall, rings, completes = context.upcall, context.doorbell_fd, context.completion_fd
        self.nic.engine_upcall(context.engine).forget(rings, upcall, partial(upcall.close_eventfd, rings))
        upcall.forget(completes, upcall, partial(upcall.close_eventfd, completes))
        context.doorbell.close()

    def hush(self, number: int, generation: int) -> None:
        """Let a context's doorbell not wake the NIC for HUSH_NS; nothing happens if there is no such context."""
        domain = self._contexts.get(number)
        context = None if domain is None else domain.contexts[number]
        if domain is None or context is None or context.generation != generation:
            return
        self.nic.engine_upcall(context.engine).forget(context.doorbell_fd, context.upcall)
        asyncio.get_running_loop().call_later(HUSH_NS / 1e9, self._listen_again, domain, context)

    def _listen_again(self, domain: Domain, context: Context) -> None:
        if domain.contexts.get(context.number) is not context:
            return
        if (owes_s := domain.debt.wait_s()) > 0:  # for the time that its eventfd has been waited for, perhaps
            asyncio.get_running_loop().call_later(owes_s, self._listen_again, domain, context)
        else:
            self.nic.engine_upcall(context.engine).deliver_later(context.doorbell_fd, context.upcall)

    async def settle(self, domain: Domain, what: str) -> dict[str, list[int]]:
        """Wait until what is under way of the domain's contexts has arrived: "sent", what they have posted, or "arriving".

        Returns how many receive completions each has been given, in the order of queues.
        """
        contexts = sorted(domain.contexts.values(), key=lambda one: one.queue)
        given = [
            await self.nic.call("context_settle", context=one.number, generation=one.generation, what=what) for one in contexts
        ]
        return {"received": [int(reply.value["received"]) for reply in given]}

    async def policy_for(self, domain: Domain, *, emulated: bool) -> tuple[str, bool, int]:
        """What `domain` may have, once all are there: its contexts' MAC address, whether the IOMMU lets them pass, how many.

        Of an `emulated` NIC, the context of its device model. Refused, if the toolstack gives it none.
        """
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await asyncio.shield(self.nic.ready)
                if domain.domid == DOM0:
                    return "00:00:00:00:00:00", False, 1
                return await self._toolstack.authorize("emulation_authorize" if emulated else "context_authorize", domain.domid)
        except TimeoutError:
            raise Refused("ETIMEDOUT", f"NIC and toolstack did not answer for {SETUP_TIMEOUT_S:g} s") from None

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
        engines, owner = self.nic.engines, (domain.name, queue)
        for number, kept_for in self._kept.items():
            if kept_for == owner and number not in self._contexts:
                return number
        free = [number for number in range(1, CONTEXTS) if number not in self._contexts and number not in self._kept]
        if not free:
            raise Refused("ENOSPC", f"all {CONTEXTS} contexts of the NIC are taken")
        found = next((number for number in free if like is not None and (number - like) % engines == 0), free[0])
        self._kept[found] = owner
        return found
