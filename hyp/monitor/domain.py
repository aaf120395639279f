"""A domain as the hypervisor knows it: its memory, its upcalls, its registrations with the IOMMU, its device contexts."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.debts import MOST_NS
from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.abi.nic import PAGE
from hyp.control import Channel
from hyp.control.aside import Aside
from hyp.control.debt import Debt
from hyp.iommu import IommuTable
from hyp.memory import Mapping, Region, create_region, create_sparse
from hyp.monitor.event_channels import Upcall

log = logging.getLogger(__name__)
FAIR_ASIDE_NS = 2_000_000
"""Which a change of a domain's upcalls may take."""

MAX_UPCALLS = 16
MAX_REGISTRATIONS = 4096
DEVICE_MODEL = ".vmm"  # behind a guest's name: its device model's


@dataclass(slots=True)
class Registration:
    """A memory region registered with the IOMMU: its translations are pinned until it is dropped."""

    addr: int
    length: int
    writable: bool


@dataclass(slots=True)
class Context:
    """A NIC context granted to a domain. `doorbell_fd` wakes the NIC, `completion_fd` wakes the domain."""

    number: int
    generation: int  # of the number, which is somebody else's afterwards: no two contexts of a topology have the same
    mac: str
    doorbell: Region
    doorbell_fd: int
    completion_fd: int
    engine: int
    upcall: Upcall
    passthrough: bool  # the IOMMU lets it through
    queue: int = 0  # which of the domain's contexts it is: they are queues of one device, with one MAC address
    fresh: bool = True  # the domain has had none before for that queue
    features: int = 0  # offered by the NIC
    ready: bool = False  # the NIC has made it
    started: dict[str, Any] | None = None  # with what the driver had it started
    closing: "asyncio.Task[None] | None" = None  # the one close that is under way


@dataclass(slots=True)
class Domain:
    """One domain. Regions are made on demand by `region` and are closed together by `close`."""

    domid: int
    name: str
    topology: str
    backing: str
    memory: int
    channel: Channel | None = None
    upcalls: list[Upcall] = field(default_factory=list)
    registrations: dict[int, Registration] = field(default_factory=dict)
    contexts: dict[int, Context] = field(default_factory=dict)
    iommu: IommuTable | None = None
    dying: bool = False
    revoked: int = 0  # how often all its contexts have been taken away: what was allowed before is not any more
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)  # one of its calls at a time asks toolstack and NIC for a device
    debt: Debt = field(default_factory=Debt)  # for notifications of the hypervisor's own
    aside: Aside = field(init=False)  # what may wait for locks that it has, for as long as it likes
    bells: Aside = field(init=False)  # what may spin for the lock of an eventfd that it has, no longer than one write takes
    device_model: bool = False  # a pseudo-domain of the hypervisor's own (hyp/monitor/emulation.py); `domid` is its guest's
    _regions: dict[str, Region] = field(default_factory=dict)
    _next_key: int = 1

    def __post_init__(self) -> None:
        self.aside, self.bells = (Aside(self._owes_for) for _ in range(2))

    def _owes_for(self, taken_ns: int) -> None:
        self.debt.owe(min(taken_ns, MOST_NS) - FAIR_ASIDE_NS)

    def charge(self, ns: int) -> None:
        """A hypercall of its has had others work for so long."""
        if self.channel is not None:
            self.channel.charge(ns)

    @property
    def is_let_go(self) -> bool:
        """Whether all that its own threads were asked to close, and the like, is done."""
        return self.aside.is_done and self.bells.is_done

    @property
    def trusted(self) -> bool:
        """Dom0 or the NIC, which serve others."""
        return self.domid in (DOM0, DOMID_NIC) and not self.device_model

    def region(self, purpose: str, size: int, *, one_writer: bool = False) -> Region:
        """The domain's region for `purpose`, made at the first call."""
        if purpose not in self._regions:
            self._regions[purpose] = create_region(self.backing, self.topology, self.name, purpose, size, one_writer=one_writer)
        return self._regions[purpose]

    def kept(self, size: int) -> Region:
        """Memory of the domain's process that the next one of the domain finds as it was left; made at the first call."""
        if "kept" not in self._regions:
            self._regions["kept"] = create_sparse(self.topology, self.name, "kept", size)
        return self._regions["kept"]

    @property
    def who(self) -> str:
        """It, as causes name it."""
        return f"domain {self.domid} ({self.name})"

    @property
    def ram(self) -> Region:
        return self.region("ram", self.memory)

    @property
    def counters(self) -> Region:
        return self.region("counters", COUNTERS_BYTES)

    @property
    def pages(self) -> int:
        """RAM size in pages."""
        return self.memory // PAGE

    def iommu_region(self) -> Region:
        """The domain's IOMMU table, made (and mapped by the hypervisor) at the first call."""
        region = self.region("iommu", self.pages * 8, one_writer=True)
        if self.iommu is None:
            self.iommu = IommuTable(Mapping(region.fd, region.size), self.pages)
            region.seal_writes()
        return region

    def add_registration(self, registration: Registration) -> int:
        """Remember a registration under a new key."""
        key, self._next_key = self._next_key, self._next_key + 1
        self.registrations[key] = registration
        return key

    def drop_region(self, purpose: str) -> None:
        """Close and unlink one region, if it exists."""
        if purpose in self._regions:
            self._regions.pop(purpose).close()

    def give_up(self, purpose: str) -> Region:
        """A region that is not to end with the domain, but is another one's from now on."""
        return self._regions.pop(purpose)

    def take_over(self, region: Region, purpose: str) -> None:
        """Have a region that was another domain's."""
        self._regions[purpose] = region

    def regions(self) -> dict[str, Region]:
        """All regions by purpose."""
        return dict(self._regions)

    def close(self) -> None:
        """Let go of everything the domain had, each for itself."""
        for close in [one.close for one in self.upcalls] + [one.close for one in self._regions.values()]:
            try:
                close()
            except OSError as error:
                log.error("domain %d (%s): %s", self.domid, self.name, error)
        self._regions.clear()
        self.upcalls.clear()
        self.iommu = None  # its mapping has a descriptor of its own, and memory: this object may be garbage only much later
