"""What the hypervisor holds: the domain table, event channels, the platform page, the NIC's and the emulated devices' tables.

Hypercalls act upon it (hypercalls.py); domains come and go in it by the keeper's word (hypervisor.py).
"""

from hyp.abi.nic import PAGE
from hyp.abi.platform import FAIR_NOTIFY_NS, GENERATION, PLATFORM_BYTES, SPIN_LIMIT_NS
from hyp.abi.sizes import MAX_PRICE
from hyp.control import Refused
from hyp.memory import create_region
from hyp.model.ablation import SWITCHES
from hyp.model.price import PRICES
from hyp.monitor.contexts import Contexts
from hyp.monitor.daemons import Toolstack
from hyp.monitor.domain import Domain
from hyp.monitor.emulation import Emulation
from hyp.monitor.event_channels import EventChannels
from hyp.monitor.nic import Nic


class System:
    """Domain table and tables of everything; one per topology."""

    emulation: Emulation

    def __init__(self, topology: str, backing: str, generation: int) -> None:
        self.topology, self.backing, self.generation = topology, backing, generation
        self.domains: dict[int, Domain] = {}
        self.events = EventChannels()
        self.platform = create_region(backing, topology, "hyp", "platform", PLATFORM_BYTES, one_writer=True)
        self.platform_page = self.platform.map()
        self.platform.seal_writes()
        self.platform_page.words("<u8", GENERATION, 1)[0] = generation
        self.nic, self.toolstack = Nic(self.platform_page), Toolstack()
        self.contexts = Contexts(topology, backing, self.nic, self.toolstack)

    def set_spin_limit(self, limit_us: int) -> None:
        """How long loops may spin, in µs; every loop reads it from the platform page."""
        self.platform_page.words("<u8", SPIN_LIMIT_NS, 1)[0] = limit_us * 1000

    def set_fair_notification(self, ns: int) -> None:
        """What a notification may take before its waiter owes for it; loops that notify guests read it when they are made."""
        self.platform_page.words("<u8", FAIR_NOTIFY_NS, 1)[0] = ns

    def set_price(self, **prices: int) -> dict[str, int]:
        """Set some prices of the model; returns all as they are now. EINVAL if one is unknown or not sane."""
        for name, price in prices.items():
            if name not in PRICES or not isinstance(price, int) or isinstance(price, bool) or not 0 <= price <= MAX_PRICE:
                known = ", ".join(PRICES)
                raise Refused("EINVAL", f"price {name} = {price!r}: prices are {known}, integers in [0, {MAX_PRICE}]")
        for name, price in prices.items():
            self.platform_page.words("<u8", PRICES[name], 1)[0] = price
        return {name: int(self.platform_page.words("<u8", offset, 1)[0]) for name, offset in PRICES.items()}

    def set_ablation(self, **switches: int) -> None:
        """Turn parts of paths off, or on again: those not named are on (hyp/model/ablation.py). EINVAL for what there is not."""
        for name, value in switches.items():
            if name not in SWITCHES or not isinstance(value, int) or not 0 <= value <= PAGE:
                raise Refused("EINVAL", f"ablation {name} = {value!r}: there are {', '.join(SWITCHES)}, integers in [0, {PAGE}]")
        for name, offset in SWITCHES.items():
            self.platform_page.words("<u8", offset, 1)[0] = switches.get(name, 0)

    def registrations(self, name: str) -> int:
        """Number of memory regions that a domain has registered with the IOMMU."""
        return next(len(domain.registrations) for domain in self.domains.values() if domain.name == name)
