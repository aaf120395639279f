"""The operations that have a price: how each is called, the column of the ledger that counts it, and when it is paid.

Everybody who must know them reads this table: the platform page's offsets (price.py), topology files, records, profiles, the bench.
docs/model.md says who pays on which path, and how often. Read by processes that must not import numpy: plain Python only.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Operation:
    """`price`: its name, which ends in the unit. `column`: of the counters, in rows whose names begin with `rows`."""

    price: str
    column: str
    about: str
    rows: str = ""

    @property
    def per_byte(self) -> bool:
        """The price is in picoseconds a byte, not in nanoseconds an operation."""
        return self.price.endswith(PER_BYTE)

    def cost_ns(self, price: float, times: float) -> float:
        """What `times` operations (or bytes) cost at a price."""
        return price * times / (1000 if self.per_byte else 1)


PER_BYTE: Final = "_ps_per_byte"

_ROWS = (
    Operation("hypercall_ns", "hypercalls", "entering and leaving the hypervisor, once a batch"),
    Operation("vm_exit_ns", "traps", "a VM exit: a register write of an emulated NIC", rows="hyp/vmm"),
    Operation("event_send_ns", "events", "sending an event, its hypercall included"),
    Operation("domain_switch_ns", "domain_switches", "the switch to a domain that slept and takes an event"),
    Operation("interrupt_ns", "interrupts", "delivering an interrupt of a NIC to a domain"),
    Operation("grant_map_ns", "grant_maps", "mapping a granted page"),
    Operation("grant_unmap_ns", "grant_unmaps", "unmapping a granted page, without the flush"),
    Operation("grant_flush_ns", "grant_flushes", "flushing TLBs after unmapping, once a hypercall"),
    Operation("grant_copy_ns", "grant_copies", "one operation of a batch of grant copies, without its bytes"),
    Operation("grant_copy_ps_per_byte", "grant_copied_bytes", "a byte of a grant copy"),
    Operation("iommu_map_ns", "iommu_maps", "entering a page into an IOMMU table"),
    Operation("iommu_unmap_ns", "iommu_unmaps", "taking a page out of an IOMMU table, without the flush"),
    Operation("iommu_flush_ns", "iommu_flushes", "flushing the IOTLB, waited for"),
    Operation("dma_ps_per_byte", "dma_bytes", "a byte that the NIC reads from or writes to a domain's memory"),
)

OPERATIONS: Final = {operation.price: operation for operation in _ROWS}
"""By the name of the price, in the order of tables and of the platform page."""
