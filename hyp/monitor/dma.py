"""Mapping for DMA, a burst at a time: the hypervisor's code for bypass guests that do not keep their buffers registered.

A guest with ``iommu = "strict"`` or ``"deferred"`` lets the NIC at a buffer only as long as the NIC has it, as Linux's DMA API
does: each burst is mapped by a hypercall before it is posted and unmapped by one when it is completed. Its queues stay registered.

*Strict*: each buffer's unmap flushes, as Linux's does. It clears the entries, pays for the flush, and waits until the engine is
past the batch in which it may have looked them up (the shootdown of hyp/iommu.py, which polls the engine's epoch where the
hypervisor's process waits for a signal): the program gets its buffer back when nobody else can reach it.

*Deferred*: the entries are cleared at once, and one flush stands for `DEFERRED_PAGES` pages; until then an engine in the middle of
a batch may still use what it looked up.

As a hypercall runs on the caller's CPU, this code runs on the caller's thread, on the hypervisor's memory: the guest's IOMMU table,
and its *holds*, u16[pages of RAM]: how many mapped buffers lie in each page, since buffers are smaller than pages. It believes
nothing that the guest can write. What the model cannot show is that on hardware both are out of the guest's reach: a hostile
process can map any page of its own RAM for its own context, and no more, as the NIC takes frames of the owner's RAM only.

Entries are single (no runs: hyp/iommu.py), so that one can be cleared without its neighbours.
"""

from typing import Any, Final

import numpy as np

from hyp.abi.counters import FAULTS_ADDRESS, FAULTS_PROTOCOL, HYPERCALLS, IOMMU_FLUSHES, IOMMU_MAPS, IOMMU_UNMAPS
from hyp.abi.nic import DESC_BYTES, PAGE
from hyp.abi.platform import EPOCH, HYPERCALL_PRICE, IOMMU_FLUSH_PRICE, IOMMU_MAP_PRICE, IOMMU_UNMAP_PRICE
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    full_fence,
    load16,
    load64_acquire,
    load64_once,
    record_view,
    store16,
    store64_once,
    sys_getppid,
    sys_sched_yield,
)
from hyp.control import Answer, Refused
from hyp.counters import count
from hyp.frames import lies_within
from hyp.kernels import compiled
from hyp.model.price import charge
from hyp.monitor.arguments import own_context
from hyp.monitor.dispatch import Callers, hypercall
from hyp.monitor.domain import Domain
from hyp.monitor.system import System

REQUEST_BYTES: Final = DESC_BYTES
"""u64 address, u64 length."""
DEFERRED_PAGES: Final = 250
PAST_BATCH_NS: Final = 2 * 10**9
"""An engine that is in one batch for so long is stopped: the device is of no more use."""
LOOK_NS: Final = 10**7
"""As which a longer time between two looks counts: whoever looks did not run, and perhaps no more did the engine."""
LOOKS: Final = 200
"""At an engine's epoch before the CPU is offered to it."""
_PAGE_SHIFT: Final = 12

DMA = np.dtype(
    [
        ("table", "i8"),  # address of the guest's IOMMU table
        ("holds", "i8"),
        ("ram_bytes", "i8"),
        ("engine", "i8"),  # page of the engine that serves the context
        ("platform", "i8"),
        ("flush_at", "i8"),  # pages that are unmapped when a flush is due
        ("waiting", "i8"),  # pages unmapped since the last one
        ("counts", "i8"),
        ("counts_shared", "i8"),
    ]
)
"""What the hypercalls know of their caller; set by its front end, as a page table would be by the hypervisor."""
dma_at = record_view(DMA)


def holds_bytes(memory: int) -> int:
    """Size of the holds of a guest with so much RAM, in whole pages."""
    return -(-2 * (memory // PAGE) // PAGE) * PAGE


@hypercall(Callers.EVERY_DOMAIN, context=own_context)
def dma_attach(system: System, domain: Domain, context: int) -> Answer:
    """To map for one's context by hypercalls. fds: IOMMU table (read-write), holds (read-write), the engine's page (read-only)."""
    if domain.contexts[context].passthrough:
        raise Refused("EPERM", f"{domain.who}: the IOMMU lets context {context} through")
    if domain.backing != "posix":
        raise Refused("EPERM", f"{domain.who}: its IOMMU table is sealed: only the hypervisor writes it")
    engine = system.nic.engine_page(domain.contexts[context].engine)
    holds = domain.region("holds", holds_bytes(domain.memory))
    return Answer({}, fds=[domain.iommu_region().fd, holds.fd, engine], close=[engine])


@compiled
def _enter(c: Any) -> None:
    sys_getppid()
    charge(c.platform, HYPERCALL_PRICE, c.counts, HYPERCALLS, 1)


@compiled
def _request(c: Any, requests: int, k: int) -> tuple[int, int]:
    """Our copy of request `k` as (first page, pages); (0, 0): it is not inside the guest's RAM."""
    addr, length = load64_once(requests + k * REQUEST_BYTES), load64_once(requests + k * REQUEST_BYTES + 8)
    if length <= 0 or length > PAGE or not lies_within(addr, length, c.ram_bytes):
        count(c.counts, FAULTS_ADDRESS, 1)
        return 0, 0
    first = addr >> _PAGE_SHIFT
    return first, ((addr + length - 1) >> _PAGE_SHIFT) - first + 1


@compiled
def dma_map(c: Any, requests: int, n: int, rights: int) -> int:
    """Hypercall: let the NIC at `n` buffers. Returns `n`, or the number of the first that is no good."""
    _enter(c)
    done, written = 0, 0
    while done < n:
        first, pages = _request(c, requests, done)
        if pages == 0:
            break
        for page in range(first, first + pages):
            held = load16(c.holds + 2 * page)
            store16(c.holds + 2 * page, held + 1)
            if held == 0:
                store64_once(c.table + 8 * page, (page << _PAGE_SHIFT) | rights)
                written += 1
        done += 1
    charge(c.platform, IOMMU_MAP_PRICE, c.counts, IOMMU_MAPS, written)
    return done


@compiled
def dma_unmap(c: Any, requests: int, n: int) -> int:
    """Hypercall: take `n` buffers away from the NIC. 0; −1: the engine did not get past its batch in PAST_BATCH_NS."""
    _enter(c)
    cleared, stuck = 0, 0
    for k in range(n):
        first, pages = _request(c, requests, k)
        for page in range(first, first + pages):
            held = load16(c.holds + 2 * page)
            store16(c.holds + 2 * page, max(held - 1, 0))
            if held == 1:
                store64_once(c.table + 8 * page, 0)
                cleared += 1
                c.waiting += 1
        if c.waiting >= c.flush_at and stuck == 0:
            stuck = _flush(c)
    charge(c.platform, IOMMU_UNMAP_PRICE, c.counts, IOMMU_UNMAPS, cleared)
    return stuck


@compiled
def _flush(c: Any) -> int:
    """Wait until no engine uses what has been cleared."""
    c.waiting = 0
    charge(c.platform, IOMMU_FLUSH_PRICE, c.counts, IOMMU_FLUSHES, 1)
    full_fence()
    epoch = load64_acquire(c.engine + EPOCH)
    if epoch & 1 == 0:
        return 0
    looks, waited, before = 0, 0, clock_ns()
    while load64_acquire(c.engine + EPOCH) == epoch:
        looks += 1
        if looks % LOOKS != 0:
            cpu_relax()
            continue
        if waited > PAST_BATCH_NS:
            count(c.counts, FAULTS_PROTOCOL, 1)
            return -1
        sys_sched_yield()
        now = clock_ns()
        waited += min(now - before, LOOK_NS)
        before = now
    return 0
