"""The hypervisor process: it owns every region, the domain table, event channels, IOMMU tables, and serves hypercalls.

The keeper, over the console channel, creates and destroys domains; a domain's hypercall socket arrives with its creation.
"""

import logging
from typing import Any

from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.control import Channel, ControlError, Refused, close_all
from hyp.grants import release_mapper
from hyp.monitor.domain import Domain
from hyp.monitor.emulation import Emulation
from hyp.monitor.hypercalls import calls_for
from hyp.monitor.system import System
from hyp.process import Process, adopt_socket

log = logging.getLogger(__name__)


class Hypervisor:
    """Domains' lives: the keeper creates and destroys them."""

    def __init__(self, process: Process, config: dict[str, Any]) -> None:
        self._process = process
        self.system = System(str(config["name"]), str(config["memory"]["backing"]), int(config.get("generation", 1)))
        self.system.set_spin_limit(int(config["spin_limit_us"]))
        self.system.set_price(**config.get("price", {}))
        self.system.emulation = Emulation(
            self.system.devices, self.system.platform_page, lambda domain: calls_for(self.system, domain), self._hold
        )

    async def _hold(self, key: str, fd: int) -> None:
        await self._process.console.call("hold", key=key, fds=[fd])

    async def domain_create(self, domid: int, name: str, memory: int, fds: list[int]) -> None:
        """Create a domain; fds: the hypervisor's end of its hypercall socket."""
        if domid in self.system.domains:
            close_all(fds)
            raise Refused("EEXIST", f"domain {domid} exists")
        domain = Domain(domid, name, self.system.topology, self.system.backing, memory)
        try:
            held = {f"{name}.counters": domain.counters.fd}
            if domid != DOMID_NIC:
                held[f"{name}.ram"] = domain.ram.fd
        except OSError:
            close_all(fds)
            domain.close()
            raise
        self.system.domains[domid] = domain
        handlers = calls_for(self.system, domain)
        domain.channel = Channel(adopt_socket(fds[0]), handlers, name=f"domain {domid} ({name})", generation=self.system.generation)
        if domid == DOMID_NIC:
            self.system.devices.nic = domain.channel
        elif domid == DOM0:
            self.system.devices.toolstack = domain.channel
        for key, fd in held.items():
            await self._hold(key, fd)

    async def domain_destroy(self, domid: int) -> None:
        """End a domain that died: nothing of it stays reachable. The NIC's death is no domain's end but is noted here."""
        domain = self.system.domains.get(domid)
        if domain is None or domain.dying:
            return
        domain.dying = True
        if domid == DOMID_NIC:
            self.system.devices.nic_gone()
        await self.system.emulation.detach(domid)
        try:
            await self.system.devices.close_contexts(domain)
        except ControlError as error:
            log.warning("contexts of domain %d: %s", domid, error)
        if domain.iommu is not None:
            domain.iommu.clear()
            await self.system.devices.shootdown()
        self.system.events.close_all(domid)
        self._release_pins(domid)
        if domain.channel is not None:
            domain.channel.close()
        await self._process.console.call("let_go", key=f"{domain.name}.ram")  # its counters outlive it
        domain.close()
        del self.system.domains[domid]
        toolstack = self.system.devices.toolstack
        if domid not in (DOM0, DOMID_NIC) and toolstack is not None:
            toolstack.tell("domain_gone", domid=domid)

    def _release_pins(self, mapper: int) -> None:
        """A dead domain's grant pins are given back, wherever they are."""
        for domain in self.system.domains.values():
            regions = domain.regions()
            if "active" in regions:
                gnttab, active = regions["gnttab"], regions["active"]
                release_mapper(gnttab.map(), active.map(), mapper)


async def main(process: Process, config: dict[str, Any]) -> None:
    """Serve until the keeper ends the topology."""
    hypervisor = Hypervisor(process, config)
    system = hypervisor.system
    process.serve("domain_create", hypervisor.domain_create, takes_fds=True)
    process.serve("domain_destroy", hypervisor.domain_destroy)
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
