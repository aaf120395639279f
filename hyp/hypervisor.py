"""The hypervisor process: it owns every region, the domain table, event channels, IOMMU tables, and serves hypercalls.

The keeper, over the console channel, creates and destroys domains; a domain's hypercall socket arrives with its creation.
"""

import logging
from typing import Any

from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.abi.nic import PAGE
from hyp.abi.platform import GENERATION, PLATFORM_BYTES, SPIN_LIMIT_NS
from hyp.ablation import SWITCHES
from hyp.control import Channel, PeerGone, Refused, close_all
from hyp.devices import Devices
from hyp.domain import Domain
from hyp.emulation import Emulation
from hyp.events import EventChannels
from hyp.grants import release_mapper
from hyp.hypercalls import DeviceCalls, calls_for
from hyp.memory import create_region
from hyp.price import MAX_PRICE_NS, PRICES
from hyp.process import Process, adopt_socket

log = logging.getLogger(__name__)


class Hypervisor:
    """Domain table and tables of everything; one per topology."""

    def __init__(self, process: Process, config: dict[str, Any]) -> None:
        self._process = process
        self.topology, self.backing = str(config["name"]), str(config["memory"]["backing"])
        self.generation = int(config.get("generation", 1))
        self.domains: dict[int, Domain] = {}
        self.events = EventChannels()
        self.platform = create_region(self.backing, self.topology, "hyp", "platform", PLATFORM_BYTES)
        self._platform_page = self.platform.map()
        self.platform.seal_writes()
        self._platform_page.words("<u8", GENERATION, 1)[0] = self.generation
        self.set_spin_limit(int(config["spin_limit_us"]))
        self.set_price(**config.get("price", {}))
        self.devices = Devices(self.topology, self.backing, self._platform_page)
        self.emulation = Emulation(self, self._platform_page, self._hold)

    def set_spin_limit(self, limit_us: int) -> None:
        """How long loops may spin, in µs; every loop reads it from the platform page."""
        self._platform_page.words("<u8", SPIN_LIMIT_NS, 1)[0] = limit_us * 1000

    def set_price(self, **prices: int) -> dict[str, int]:
        """Set some prices of the model, in ns (hyp/price.py); returns all as they are now. EINVAL if one is unknown or not sane."""
        for name, price in prices.items():
            if name not in PRICES or not isinstance(price, int) or isinstance(price, bool) or not 0 <= price <= MAX_PRICE_NS:
                known = ", ".join(PRICES)
                raise Refused("EINVAL", f"price {name} = {price!r}: prices are {known}, integers in [0, {MAX_PRICE_NS}]")
        for name, price in prices.items():
            self._platform_page.words("<u8", PRICES[name], 1)[0] = price
        return {name: int(self._platform_page.words("<u8", offset, 1)[0]) for name, offset in PRICES.items()}

    def set_ablation(self, **switches: int) -> None:
        """Turn parts of paths off, or on again: those not named are on (hyp/ablation.py). EINVAL for what there is not."""
        for name, value in switches.items():
            if name not in SWITCHES or not isinstance(value, int) or not 0 <= value <= PAGE:
                raise Refused("EINVAL", f"ablation {name} = {value!r}: there are {', '.join(SWITCHES)}, integers in [0, {PAGE}]")
        for name, offset in SWITCHES.items():
            self._platform_page.words("<u8", offset, 1)[0] = switches.get(name, 0)

    def registrations(self, name: str) -> int:
        """Number of memory regions that a domain has registered with the IOMMU."""
        return next(len(domain.registrations) for domain in self.domains.values() if domain.name == name)

    async def _hold(self, key: str, fd: int) -> None:
        await self._process.console.call("hold", key=key, fds=[fd])

    async def domain_create(self, domid: int, name: str, memory: int, fds: list[int]) -> None:
        """Create a domain; fds: the hypervisor's end of its hypercall socket."""
        if domid in self.domains:
            close_all(fds)
            raise Refused("EEXIST", f"domain {domid} exists")
        domain = Domain(domid, name, self.topology, self.backing, memory)
        try:
            held = {f"{name}.counters": domain.counters.fd}
            if domid != DOMID_NIC:
                held[f"{name}.ram"] = domain.ram.fd
        except OSError:
            close_all(fds)
            domain.close()
            raise
        self.domains[domid] = domain
        handlers = DeviceCalls(self, domain).handlers() if domid == DOMID_NIC else calls_for(self, domain)
        domain.channel = Channel(adopt_socket(fds[0]), handlers, name=f"domain {domid} ({name})", generation=self.generation)
        if domid == DOMID_NIC:
            self.devices.nic = domain.channel
        elif domid == DOM0:
            self.devices.toolstack = domain.channel
        for key, fd in held.items():
            await self._hold(key, fd)

    async def domain_destroy(self, domid: int) -> None:
        """End a domain that died: nothing of it stays reachable. The NIC's death is no domain's end but is noted here."""
        domain = self.domains.get(domid)
        if domain is None or domain.dying:
            return
        domain.dying = True
        if domid == DOMID_NIC:
            self.devices.nic_gone()
        await self.emulation.detach(domid)
        for number in list(domain.contexts):
            try:
                await self.devices.close_context(domain, number)
            except (Refused, PeerGone) as error:
                log.warning("context %d of domain %d: %s", number, domid, error)
        if domain.iommu is not None:
            domain.iommu.clear()
            await self.devices.shootdown()
        self.events.close_all(domid)
        self._release_pins(domid)
        if domain.channel is not None:
            domain.channel.close()
        await self._process.console.call("let_go", key=f"{domain.name}.ram")  # its counters outlive it
        domain.close()
        del self.domains[domid]
        toolstack = self.devices.toolstack
        if domid not in (DOM0, DOMID_NIC) and toolstack is not None:
            toolstack.tell("domain_gone", domid=domid)

    def _release_pins(self, mapper: int) -> None:
        """A dead domain's grant pins are given back, wherever they are."""
        for domain in self.domains.values():
            regions = domain.regions()
            if "active" in regions:
                gnttab, active = regions["gnttab"], regions["active"]
                release_mapper(gnttab.map(), active.map(), mapper)


async def main(process: Process, config: dict[str, Any]) -> None:
    """Serve until the keeper ends the topology."""
    hypervisor = Hypervisor(process, config)
    process.serve("domain_create", hypervisor.domain_create, takes_fds=True)
    process.serve("domain_destroy", hypervisor.domain_destroy)
    process.serve("spin_limit", hypervisor.set_spin_limit)
    process.serve("price", hypervisor.set_price)
    process.serve("registrations", hypervisor.registrations)
    process.serve("ablate", hypervisor.set_ablation)
    process.serve("threads", hypervisor.emulation.threads)
    process.serve("pin", hypervisor.emulation.pin)
    process.ready()
    await process.stopped.wait()
    await hypervisor.emulation.stop()
    for domain in hypervisor.domains.values():
        domain.close()
    hypervisor.platform.close()
