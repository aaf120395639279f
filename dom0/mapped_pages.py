"""Granted pages that netback has mapped, and copies itself, where it does not have the hypervisor copy (grant copy). Compiled.

==========  =============================================================  ====================================================
a page      to transmit                                                    to receive
==========  =============================================================  ====================================================
copy        grant copy                                                     grant copy
map         mapped for the batch that uses it, one hypercall for all;      grant copy
            read; unmapped, by another one with a TLB flush, before its
            request is answered
static      mapped for good, when the front end asked for it               the same, for writing
==========  =============================================================  ====================================================

Copy or map is the topology's to say (`grants`; docs/netif.md, Grants). Static grant mappings (Xen's io/netif.h) are the front
end's: it names the pages on its control ring, and the control plane maps them (dom0/control/mappings.py). From a queue's first one
on all its copies are made here, and pages that were not named are mapped for their batch, either way.

Who owns what: the control plane (dom0/vif_connection.py) allocates two tables per queue, `tx_pages` (pinned for reading) and
`rx_pages` (for writing), one word per grant reference: the address of a page that has a static mapping, else 0. It keeps them, and
the mapping of the guest's RAM, until the port is removed. In between only the engine touches them (`enter_pages`, between two
batches), but their pins are the control plane's. A page that is mapped for a batch stands in no table: it is on the list `passing`
of its port, from which `let_pass` unpins it.

An address says which page was judged when it was pinned, and that page stays the guest's RAM in our mapping, whatever the guest
does to its grant entry afterwards: it can only redirect what has not been pinned yet. So what a guest can still do is change the
bytes under a copy, as with grant copy. A reference beyond the table, or one that cannot be mapped, costs the guest that frame, no
more. If Dom0 dies, the hypervisor gives its pins back (`hyp.grants.release_mapper`).
"""

import numpy as np

from hyp.abi.counters import GRANT_FLUSHES, GRANT_MAPS, GRANT_UNMAPS, HYPERCALLS
from hyp.abi.domids import DOM0
from hyp.abi.grant import GNTST_BAD_GNTREF
from hyp.abi.platform import GRANT_FLUSH_PRICE, GRANT_MAP_PRICE, GRANT_UNMAP_PRICE, HYPERCALL_PRICE
from hyp.atomics import load64, record_view, store64, sys_getppid
from hyp.events import wait_at
from hyp.grants import map_grant_at, unmap_grant_at
from hyp.kernels import compiled, outlined
from hyp.model.price import charge

STATIC_PAGE = np.dtype([("gref", "i8"), ("address", "i8"), ("write", "i8")])
"""A page that the control plane has pinned, for reading only or for writing too; address 0: it is to be forgotten."""
STATIC_PAGE_BYTES = STATIC_PAGE.itemsize
static_page_at = record_view(STATIC_PAGE)


@compiled
def pinned_page(e, p, pages, refs, gref, write):
    """Address of the page that the guest grants under `gref`, pinned by now; or a negative grant status.

    `pages`: p's table, of `refs` words.
    """
    if gref < 0 or gref >= refs:
        return GNTST_BAD_GNTREF
    address = load64(pages + 8 * gref)
    return address if address != 0 else _pin_page(e, p, gref, write)


@outlined
def _pin_page(e, p, gref, write):
    platform = _enter(e) if p.passing_count == 0 else wait_at(e.wait).platform  # one hypercall for the pages of a batch
    charge(platform, GRANT_MAP_PRICE, e.counts, GRANT_MAPS, 1)
    address = map_grant_at(e.views, e.view_count, DOM0, p.domid, gref, write)
    if address > 0:
        store64(p.passing + 8 * p.passing_count, gref | (write << 32))
        p.passing_count += 1
    return address


@outlined
def let_pass(e, p):
    """The batch is done: unpin the pages that were pinned for it, by one hypercall."""
    platform = _enter(e)
    charge(platform, GRANT_UNMAP_PRICE, e.counts, GRANT_UNMAPS, p.passing_count)
    charge(platform, GRANT_FLUSH_PRICE, e.counts, GRANT_FLUSHES, 1)
    for k in range(p.passing_count):
        word = load64(p.passing + 8 * k)
        unmap_grant_at(e.views, e.view_count, DOM0, p.domid, word & 0xFFFFFFFF, word >> 32)
    p.passing_count = 0


@outlined
def enter_pages(p, entries, count):
    """Take up `count` STATIC_PAGE records at address `entries`, which the control plane has pinned, or will unpin (address 0)."""
    p.tx_refs, p.rx_refs = p.table_refs, p.table_refs
    for k in range(count):
        entry = static_page_at(entries + k * STATIC_PAGE_BYTES)
        store64(p.tx_pages + 8 * entry.gref, entry.address)
        if entry.write != 0:
            store64(p.rx_pages + 8 * entry.gref, entry.address)


@outlined
def release_pages(e, p):
    """Use no page of the port any more, and unpin those that were pinned for a batch."""
    if p.passing_count != 0:
        let_pass(e, p)
    p.tx_refs, p.rx_refs = 0, 0


@compiled
def _enter(e):
    """Make one hypercall. Returns the address of the platform page."""
    sys_getppid()
    platform = wait_at(e.wait).platform
    charge(platform, HYPERCALL_PRICE, e.counts, HYPERCALLS, 1)
    return platform
