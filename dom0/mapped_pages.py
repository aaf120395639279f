"""Granted pages that netback has mapped, and copies itself: a vif's grant mode, if that is not grant copy. Compiled.

==========  =============================================================  ====================================================
mode        pages to transmit                                              pages to receive
==========  =============================================================  ====================================================
copy        grant copy                                                     grant copy
map         mapped for the batch that uses them, one hypercall for all;    grant copy
            read; unmapped, by another one with a TLB flush, before their
            requests are answered
persistent  mapped at first use, and then for good                         the same, for writing
==========  =============================================================  ====================================================

docs/netif.md (Grants) says which real thing each is. Persistent is Xen's blkif ``feature-persistent``, applied to netif: the front
end grants each page of its pools once, send pages read-only and receive pages writable, and revokes none while it is connected
(domu/frontends/split.py). No hypercall, no grant and no revocation per frame. The price is isolation. Dom0 can read and write
those pages at any time while the vif is up, so a guest must trust Dom0 not to change a frame that it has been handed, as blkif
guests do.

Who owns what: the control plane (dom0/vif_connection.py) allocates two tables per queue, `tx_pages` (pinned for reading) and
`rx_pages` (for writing), one word per grant reference, before the port is added. It keeps them, and the mapping of the guest's RAM,
until the port is removed. In between only the engine touches them. A word of them::

    0                          not pinned
    0 -> address of the page   persistent, at first use: one map hypercall; refused: stays 0, and the next use asks again
    address -> 0               the port is removed, or fails: one unmap hypercall each

An address says which page was judged when it was pinned, and that page stays the guest's RAM in our mapping, whatever the
guest does to its grant entry afterwards: it can only redirect what has not been pinned yet. So what a guest can still do is
change the bytes under a copy, as with grant copy. A reference beyond the table, or one that cannot be mapped, costs the guest
that frame, no more. If Dom0 dies, the hypervisor gives its pins back (`hyp.grants.release_mapper`).

A page that is mapped for a batch stands in no table: it is on the list `passing` of its port, from which `let_pass` unpins it.

Static grant mappings (Xen's io/netif.h; dom0/control/mappings.py) are the same tables with another owner: the control plane pins
what the front end names on its control ring, `enter_pages` takes it up between two batches, and the pins stay the control plane's.
From the first one on all the vif's copies are made here, and pages that were not named are mapped for their batch, either way.
"""

import numpy as np

from hyp.abi.counters import GRANT_FLUSHES, GRANT_MAPS, GRANT_UNMAPS, HYPERCALLS
from hyp.abi.domids import DOM0
from hyp.abi.grant import GNTST_BAD_GNTREF, GNTST_OKAY
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
    return address if address != 0 else _pin_page(e, p, pages, gref, write)


@outlined
def _pin_page(e, p, pages, gref, write):
    # The pages of a batch are mapped by one hypercall, a page that stays pinned by one of its own
    platform = _enter(e) if p.keeps != 0 or p.passing_count == 0 else wait_at(e.wait).platform
    charge(platform, GRANT_MAP_PRICE, e.counts, GRANT_MAPS, 1)
    address = map_grant_at(e.views, e.view_count, DOM0, p.domid, gref, write)
    if address > 0 and p.keeps != 0:
        store64(pages + 8 * gref, address)
    elif address > 0:
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
    """Unpin everything that the port's tables hold. What cannot be unpinned, by a bug of ours, stays for `dom0.vifs` to see."""
    if p.passing_count != 0:
        let_pass(e, p)
    if p.keeps == 0:
        p.tx_refs, p.rx_refs = 0, 0
        return
    for write in range(2):
        pages = p.rx_pages if write else p.tx_pages
        for gref in range(p.table_refs):
            if load64(pages + 8 * gref) != 0:
                platform = _enter(e)
                charge(platform, GRANT_UNMAP_PRICE, e.counts, GRANT_UNMAPS, 1)
                charge(platform, GRANT_FLUSH_PRICE, e.counts, GRANT_FLUSHES, 1)
                if unmap_grant_at(e.views, e.view_count, DOM0, p.domid, gref, write) == GNTST_OKAY:
                    store64(pages + 8 * gref, 0)


@compiled
def _enter(e):
    """Make one hypercall. Returns the address of the platform page."""
    sys_getppid()
    platform = wait_at(e.wait).platform
    charge(platform, HYPERCALL_PRICE, e.counts, HYPERCALLS, 1)
    return platform
