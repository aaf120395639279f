"""The hypervisor process: it owns every region, the domain table, event channels, IOMMU tables, and serves hypercalls.

The keeper, over the console channel, creates and destroys domains; a domain's hypercall socket arrives with its creation.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hyp import lost_memory
from hyp.abi.counters import place_of, read_rows
from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.control import Channel, Refused, close_all, describe
from hyp.control.served import Served
from hyp.grants import release_mapper
from hyp.memory import Region
from hyp.monitor.domain import Domain
from hyp.monitor.emulation import Emulation
from hyp.monitor.hypercalls import calls_for
from hyp.monitor.system import System
from hyp.process import Process, adopt_socket
from hyp.trace.points import TracePoints

log = logging.getLogger(__name__)

UPLINK_CONTEXT = "ctx0:dom0"
"""The row in which the NIC counts for Dom0's context."""
LET_GO_S, LOOK_S = 2.0, 0.01


class Hypervisor:
    """Domains' lives: the keeper creates and destroys them."""

    def __init__(self, process: Process, config: dict[str, Any], served: Served | None = None) -> None:
        self._process, self._served = process, served or Served()
        self.system = System(str(config["name"]), str(config["memory"]["backing"]), int(config.get("generation", 1)))
        self.system.set_spin_limit(int(config["spin_limit_us"]))
        self.system.set_fair_notification(int(config["fair_notify_ns"]))
        self.system.nic.to_host = bool(config.get("to_host", False))
        self.system.set_price(**config.get("price", {}))
        self.system.emulation = Emulation(
            self.system.contexts,
            self.system.platform_page,
            lambda domain: calls_for(self.system, domain),
            self._hold,
            TracePoints(process).add,
        )

        self._former: dict[int, Domain] = {}
        """Ended domains, by number, of which something may have to be closed still."""
        self._going_down = False

    async def _hold(self, key: str, fd: int) -> None:
        await self._process.console.call("hold", key=key, fds=[fd])

    async def domain_create(self, domid: int, name: str, memory: int, fds: list[int]) -> None:
        """Create a domain; fds: the hypervisor's end of its hypercall socket.

        EBUSY if one of that number has ended, and a process that it has left keeps us from closing what it had: else each life
        would leave more of that.
        """
        if domid in self.system.domains:
            close_all(fds)
            raise Refused("EEXIST", f"domain {domid} exists")
        if not await self._is_let_go(domid):
            close_all(fds)
            raise Refused("EBUSY", f"domain {domid} ({name}): a process that its last life has left holds on to what it had")
        await self._create(Domain(domid, name, self.system.topology, self.system.backing, memory), fds)

    async def _is_let_go(self, domid: int) -> bool:
        """Whether nothing is held any more of the last domain of that number; waits for that, for a while."""
        until = asyncio.get_running_loop().time() + LET_GO_S
        while (former := self._former.get(domid)) is not None and not former.is_let_go:
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def domain_restart(self, domid: int, name: str, memory: int, restarts: int, fds: list[int]) -> None:
        """A daemon's process has been reaped, and the `restarts`-th other one is about to be forked; fds: as for `domain_create`.

        The NIC's domain goes on, with all that it has. Dom0's ends, as any domain's that died, and begins anew; its counters go on.
        """
        if domid == DOMID_NIC:
            self._connect(self.system.domains[domid], fds[0], restarts)
            return
        counters = self.system.domains[domid].give_up("counters") if domid in self.system.domains else None
        await self._destroy(domid)
        domain = Domain(domid, name, self.system.topology, self.system.backing, memory)
        if counters is not None:
            self._count_lost(counters)
            domain.take_over(counters, "counters")
        await self._create(domain, fds, restarts)

    def _count_lost(self, counters: Region) -> None:
        """The frames that the NIC has given to Dom0s which did not take them: `lost` of the uplink's row.

        What one had taken of its receive queue in the turn in which it died is not among them: at most what is staged at a time.
        """
        if DOMID_NIC not in self.system.domains:
            return
        given = read_rows(self.system.domains[DOMID_NIC].counters.map().array).get(UPLINK_CONTEXT)
        page = counters.map()
        taken = read_rows(page.array).get("uplink")
        if given is not None and taken is not None:
            page.words("<i8", place_of(page.array, "uplink", "lost"), 1)[0] = max(given["rx_frames"] - taken["rx_frames"], 0)

    async def _create(self, domain: Domain, fds: list[int], restarts: int = 0) -> None:
        held: dict[str, int] = {}
        try:
            # Read-only, and opened before the guest has them: nothing of a guest's is opened later, as it may hold a lease on that
            held[f"{domain.name}.counters"] = domain.counters.readonly_fd()
            if domain.domid != DOMID_NIC:
                held[f"{domain.name}.ram"] = domain.ram.readonly_fd()
            self._connect(domain, fds[0], restarts)
            for key, fd in held.items():
                await self._hold(key, fd)
        except OSError:
            close_all(fds)
            domain.close()
            raise
        finally:
            close_all(list(held.values()))

    def _connect(self, domain: Domain, fd: int, restarts: int) -> None:
        """Enter a domain into the table, and serve its socket."""
        self.system.domains[domain.domid] = domain
        on_close = partial(self._hung_up, domain, restarts) if domain.trusted else None
        domain.channel = Channel(
            adopt_socket(fd), calls_for(self.system, domain), name=domain.who,
            generation=self.system.generation, untrusted=not domain.trusted, bills=not domain.trusted,
            served=None if domain.trusted else self._served.of(domain.domid), on_close=on_close,
        )  # fmt: skip
        if domain.domid == DOMID_NIC:
            self.system.nic.restarts(domain.channel)
        elif domain.domid == DOM0:
            self.system.toolstack.channel = domain.channel

    def _hung_up(self, daemon: Domain, restarts: int) -> None:
        """A daemon's channel has ended: it is dead, or lives on and is of no use to anybody, of which the keeper makes an end."""
        one = self.system.nic if daemon.domid == DOMID_NIC else self.system.toolstack
        if self._going_down:
            one.gone()
        else:
            one.closed()
        self._process.console.tell("hung_up", name=daemon.name, restarts=restarts)

    def going_down(self) -> None:
        """The topology ends: whoever goes from now on does not come back."""
        self._going_down = True

    async def domain_destroy(self, domid: int) -> None:
        """End a domain that died: nothing of it stays reachable. The NIC's death is no domain's end but is noted here.

        What fails in it, by whatever the dead has done to its memory, is logged, and the rest goes on.
        """
        if domid == DOM0:
            self.system.toolstack.gone()
        if domid in (DOM0, DOMID_NIC):
            self._tell_guests("daemon_lost", role="dom0" if domid == DOM0 else "nic")
        await self._destroy(domid)

    def _tell_guests(self, event: str, **args: Any) -> None:
        for domain in self.system.domains.values():
            if domain.domid not in (DOM0, DOMID_NIC) and domain.channel is not None:
                domain.channel.tell(event, **args)

    async def _destroy(self, domid: int) -> None:
        domain = self.system.domains.get(domid)
        if domain is None or domain.dying:
            return
        domain.dying = True
        for what, step in self._steps(domain):
            try:
                under_way = step()
                if isinstance(under_way, Awaitable):
                    await under_way
            except Exception as error:
                log.error("the end of domain %d (%s): %s: %s", domid, domain.name, what, describe(error)[1])

    def _steps(self, domain: Domain) -> list[tuple[str, Callable[[], Any]]]:
        """What ends a domain, in this order: who uses something of it lets go before it is taken away."""
        domid, contexts, toolstack = domain.domid, self.system.contexts, self.system.toolstack
        steps: list[tuple[str, Callable[[], Any]]] = [("what waits for it", self.system.nic.gone)] if domid == DOMID_NIC else []
        if domain.channel is not None:  # it may have left a child that goes on calling
            steps.append(("its channel", domain.channel.close))
        steps += [
            ("its emulated device", lambda: self.system.emulation.detach(domid)),
            ("its contexts", partial(contexts.close_contexts, domain)),
            ("its translations", lambda: self._clear_translations(domain)),
            ("its event channels", lambda: self.system.events.close_all(domid)),
            *((f"grants of {other.who}", partial(self._release_pins, other, domid)) for other in self.system.domains.values()),
            ("its RAM at the keeper", lambda: self._process.console.call("let_go", key=f"{domain.name}.ram")),  # not its counters
            ("its memory", domain.close),
            ("its contexts' numbers", lambda: contexts.forget(domain.name)),
            ("its place", partial(self._take_out, domid)),
        ]
        if domid not in (DOM0, DOMID_NIC) and toolstack.channel is not None:
            steps.append(("Dom0", partial(toolstack.channel.tell, "domain_gone", domid=domid)))
        return steps

    def _take_out(self, domid: int) -> None:
        self._former[domid] = self.system.domains.pop(domid)

    async def _clear_translations(self, domain: Domain) -> None:
        if domain.iommu is not None:
            domain.iommu.clear()
            await self.system.nic.shootdown()

    @staticmethod
    def _release_pins(domain: Domain, mapper: int) -> None:
        """The grant pins that a dead domain has in another one's table are given back."""
        regions = domain.regions()
        if "active" in regions and "gnttab" in regions:
            release_mapper(regions["gnttab"].map(), regions["active"].map(), mapper)


async def main(process: Process, config: dict[str, Any]) -> None:
    """Serve until the keeper ends the topology."""
    lost_memory.guard()
    hypervisor = Hypervisor(process, config, Served.adopt(process.sockets.pop("served")))
    system = hypervisor.system
    process.serve("domain_create", hypervisor.domain_create, takes_fds=True)
    process.serve("domain_restart", hypervisor.domain_restart, takes_fds=True)
    process.serve("domain_destroy", hypervisor.domain_destroy)
    process.serve("going_down", hypervisor.going_down)
    process.serve("spin_limit", system.set_spin_limit)
    process.serve("price", system.set_price)
    process.serve("registrations", system.registrations)
    process.serve("ablate", system.set_ablation)
    process.serve("threads", system.emulation.threads)
    process.serve("pin", system.emulation.pin)
    process.ready()
    await process.stopped.wait()
    await system.emulation.stop()
    for domain in system.domains.values():
        domain.close()
    system.platform.close()
