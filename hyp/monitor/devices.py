"""The hypervisor's side of the NIC: contexts, their descriptors, and the shootdown of translations.

A context's life: `open_context` (toolstack allows, doorbell page and eventfds are made, NIC creates it) → the guest registers
memory → `start_context` → traffic, in which nothing of this file takes part → `close_context`
(the NIC's engine lets go of it first).

The NIC may die and be started again (docs/faults.md): what its contexts are made of is ours, and is handed to the next one, which
sees from the queues themselves how far the dead one was. Until it is ready, calls to the NIC wait (`call`), and what was under
way is asked of the next one. Each operation is recorded here once the NIC has carried it out, so that nothing is done twice:

    NIC                        nic_ready      calls
    ------------------------   ------------   ------------------------------------------------------
    not there yet              pending        wait, at most SETUP_TIMEOUT_S
    ready                      done           go to it
    channel closed             pending        wait; those under way too, and then go to the next one
    given up                   ENODEV         refused
    next one: `nic_restarts`   pending        wait
    next one: `nic_resumes`    done           contexts and filters have been handed over before

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
from hyp.control import Channel, PeerGone, Refused, Reply
from hyp.control.debt import unpaid
from hyp.events import new_eventfd
from hyp.iommu import Shootdown
from hyp.memory import Mapping, Region, create_region
from hyp.monitor.domain import DEVICE_MODEL, Context, Domain
from hyp.monitor.event_channels import Upcall

log = logging.getLogger(__name__)

SETUP_TIMEOUT_S = 20.0


def _pending_anew(ready: "asyncio.Future[None]") -> "asyncio.Future[None]":
    """What takes the place of `ready` when who was ready has gone: nothing, if that was said already, or there will be nobody."""
    if ready.done() and ready.exception() is None:
        return asyncio.get_running_loop().create_future()
    return ready


def _refuse(ready: "asyncio.Future[None]", why: Refused) -> "asyncio.Future[None]":
    """`ready`, or what takes its place, when there will be nobody any more: whoever waits for it is refused."""
    refused: asyncio.Future[None] = asyncio.get_running_loop().create_future() if ready.done() else ready
    refused.set_exception(why)
    refused.exception()  # there may be nobody to hear of it
    return refused


class Devices:
    """Everything the hypervisor holds for the one NIC of a topology."""

    def __init__(self, topology: str, backing: str, platform: Mapping) -> None:
        self.topology, self.backing, self._platform = topology, backing, platform
        loop = asyncio.get_running_loop()
        self.nic_ready: asyncio.Future[None] = loop.create_future()
        self.toolstack_ready: asyncio.Future[None] = loop.create_future()
        self.nic: Channel | None = None
        self.max_frame = 0  # bytes of a frame that the NIC takes if it is not to be segmented
        self.ending = False  # the topology goes down: who goes is not waited for
        self.toolstack: Channel | None = None
        self._engine_regions: list[Region] = []
        self._engine_pages: list[Mapping] = []
        self._engine_upcalls: list[Upcall] = []
        self._engine_past: list[int] = []
        self._filters: dict[int, int] = {}  # MAC address → context, of those that the toolstack has set
        self._shootdowns: list[tuple[Shootdown, asyncio.Future[None]]] = []
        self._contexts: dict[int, Domain] = {}
        self._kept: dict[int, tuple[str, int]] = {}  # number → the domain that has had it, and for which of its queues
        self._generations = itertools.count(1)

    # -- engines --

    def engine(self, index: int, page: Region) -> tuple[int, int]:
        """Engine `index` of the NIC, taken up at the first call; returns its upcall's epoll descriptor and the eventfd by which it
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

    def engine_page(self, index: int) -> int:
        """A read-only descriptor of an engine's page, for who waits for its epoch. The caller closes it."""
        return self._engine_regions[index].readonly_fd()

    async def call(self, op: str, /, fds: tuple[int, ...] = (), **args: Any) -> Reply:
        """A request to the NIC, of which nothing is left if the NIC dies over it: the next one is asked then.

        Refused (ENODEV, ETIMEDOUT) if there is no NIC, or not soon.
        """
        while True:
            try:
                async with asyncio.timeout(SETUP_TIMEOUT_S):
                    await asyncio.shield(self.nic_ready)
            except TimeoutError:
                raise Refused("ETIMEDOUT", f"the NIC was not there for {SETUP_TIMEOUT_S:g} s") from None
            assert self.nic is not None  # else nic_ready has raised
            with suppress(PeerGone):
                return await self.nic.call(op, fds=fds, **args)

    def nic_closed(self) -> None:
        """The NIC's channel has ended: it is dead, or as good as that. Whether there will be another one the keeper says."""
        if self.ending:
            self.nic_gone()
        else:
            self.nic_ready = _pending_anew(self.nic_ready)

    def nic_restarts(self, nic: Channel) -> None:
        """Another NIC is about to start, in the place of one that has been reaped."""
        self._nothing_uses_translations()
        if self.nic is not None:
            self.nic.close()
        self.nic_closed()
        self.nic = nic

    async def nic_resumes(self) -> None:
        """The NIC's engines run: hand the contexts over that there are, with what was set up for them; then calls may go on."""
        if not self.nic_ready.done():
            for number, domain in sorted(self._contexts.items(), key=lambda item: self._place(*item)):
                await self._hand_over(domain, domain.contexts[number])
            for number in set(self._filters.values()):
                macs = [mac for mac, owner in self._filters.items() if owner == number]
                generation = self._contexts[number].contexts[number].generation
                with suppress(Refused):  # it could not go on
                    await self._ask("filter_change", context=number, generation=generation, add=macs, remove=[])
        if not self.nic_ready.done():
            self.nic_ready.set_result(None)

    @staticmethod
    def _place(number: int, domain: Domain) -> int:
        """Contexts of one domain in the order of their queues."""
        return domain.contexts[number].queue

    async def _hand_over(self, domain: Domain, context: Context) -> None:
        """Let a new NIC go on with a context, as far as its domain had come with it."""
        if not context.ready:  # whoever opens it asks again
            return
        try:
            await self._create(domain, context, self._ask)
            if context.started is not None:
                what = context.started
                await self._ask("context_start", context=context.number, generation=context.generation, resume=True, **what)
        except (Refused, OSError) as error:  # its memory is cut off, for instance, or has a lease on it: its own affair
            log.error("context %d of domain %d (%s) cannot go on: %s", context.number, domain.domid, domain.name, error)
        context.upcall.wake(context.completion_fd)

    async def _ask(self, op: str, /, fds: tuple[int, ...] = (), **args: Any) -> Reply:
        """A request to a NIC that is not ready yet."""
        assert self.nic is not None
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
        """The NIC died, and there will be no other one: whatever waited for it is over."""
        self.nic = None
        self._nothing_uses_translations()
        self.nic_ready = _refuse(self.nic_ready, Refused("ENODEV", "the NIC is gone"))

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

    def toolstack_closed(self) -> None:
        """The toolstack's channel has ended: who wants to know something of it waits for the next one."""
        if self.ending:
            self.toolstack_gone()
        else:
            self.toolstack_ready = _pending_anew(self.toolstack_ready)

    def toolstack_gone(self) -> None:
        """There will be no other one."""
        self.toolstack = None
        self.toolstack_ready = _refuse(self.toolstack_ready, Refused("ENODEV", "Dom0's toolstack is gone"))

    # -- contexts --

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
        if self.nic is None:
            raise Refused("ENODEV", "the NIC is gone")
        fresh = (domain.name, queue) not in self._kept.values()
        number = self._free_number(domain, queue, self._first(domain) + queue if domain.contexts else None)
        engine = number % len(self._engine_upcalls)
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
            self._engine_upcalls[engine].deliver(context.doorbell_fd, number, upcall)
            upcall.deliver(context.completion_fd, number)
            with unpaid() if fresh else nullcontext():  # the NIC maps its RAM, perhaps
                created = await self._create(domain, context, self.call)
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
        await self.call("context_start", context=number, generation=context.generation, resume=False, **what)
        context.started = what

    async def change_filters(self, domain: Domain, add: list[int], remove: list[int]) -> None:
        """Give MAC addresses to a domain's first context, take others away.

        Refused, ENODEV, if it has none, or none any more when the NIC is told: its number may be somebody else's by then.
        """
        context = domain.contexts[self._first(domain)] if domain.contexts else None
        if context is None or context.closing is not None or not context.ready:
            raise Refused("ENODEV", f"{domain.who} has no open context")
        number = context.number
        await self.call("filter_change", context=number, generation=context.generation, add=add, remove=remove)
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
        if self.nic is not None:
            self.nic.tell("ram_let_go", owner=domain.name)

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
                await self.call("context_destroy", context=one.number, generation=one.generation, drain=drain)
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
        self._engine_upcalls[context.engine].forget(rings, upcall, partial(upcall.close_eventfd, rings))
        upcall.forget(completes, upcall, partial(upcall.close_eventfd, completes))
        context.doorbell.close()

    def hush(self, number: int, generation: int) -> None:
        """Let a context's doorbell not wake the NIC for HUSH_NS; nothing happens if there is no such context."""
        domain = self._contexts.get(number)
        context = None if domain is None else domain.contexts[number]
        if domain is None or context is None or context.generation != generation:
            return
        self._engine_upcalls[context.engine].forget(context.doorbell_fd, context.upcall)
        asyncio.get_running_loop().call_later(HUSH_NS / 1e9, self._listen_again, domain, context)

    def _listen_again(self, domain: Domain, context: Context) -> None:
        if domain.contexts.get(context.number) is not context:
            return
        if (owes_s := domain.debt.wait_s()) > 0:  # for the time that its eventfd has been waited for, perhaps
            asyncio.get_running_loop().call_later(owes_s, self._listen_again, domain, context)
        else:
            self._engine_upcalls[context.engine].deliver_later(context.doorbell_fd, context.upcall)

    async def settle(self, domain: Domain, what: str) -> dict[str, list[int]]:
        """Wait until what is under way of the domain's contexts has arrived: "sent", what they have posted, or "arriving".

        Returns how many receive completions each has been given, in the order of queues.
        """
        contexts = sorted(domain.contexts.values(), key=lambda one: one.queue)
        given = [await self.call("context_settle", context=one.number, generation=one.generation, what=what) for one in contexts]
        return {"received": [int(reply.value["received"]) for reply in given]}

    async def policy_for(self, domain: Domain, *, emulated: bool) -> tuple[str, bool, int]:
        """What `domain` may have, once all are there: its contexts' MAC address, whether the IOMMU lets them pass, how many.

        Of an `emulated` NIC, the context of its device model. Refused, if the toolstack gives it none.
        """
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await asyncio.shield(self.nic_ready)
                if domain.domid == DOM0:
                    return "00:00:00:00:00:00", False, 1
                return await self._authorize(domain, "emulation_authorize" if emulated else "context_authorize")
        except TimeoutError:
            raise Refused("ETIMEDOUT", f"NIC and toolstack did not answer for {SETUP_TIMEOUT_S:g} s") from None

    async def _authorize(self, domain: Domain, question: str) -> tuple[str, bool, int]:
        while True:
            await asyncio.shield(self.toolstack_ready)
            assert self.toolstack is not None  # else toolstack_ready has raised
            with suppress(PeerGone):  # the next one is asked
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
