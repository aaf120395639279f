"""A guest's granted pages, mapped and unmapped by the control plane: what it costs is charged, and published at once. Compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from hyp.abi.counters import GRANT_FLUSHES, GRANT_MAPS, GRANT_UNMAPS
from hyp.abi.domids import DOM0
from hyp.abi.platform import GRANT_FLUSH_PRICE, GRANT_MAP_PRICE, GRANT_UNMAP_PRICE
from hyp.atomics import memcpy
from hyp.counters import commit
from hyp.grants import map_grant_at, unmap_grant_at
from hyp.kernels import entry, i64, void
from hyp.model.price import charge

Grants = tuple[int, ...]
"""What both take before the reference: platform page; the control plane's row, private and shared; views, their number; domain."""


@entry(i64(i64, i64, i64, i64, i64, i64, i64, i64))
def map_page(platform: int, counts: int, shared: int, views: int, count: int, domid: int, gref: int, write: int) -> int:
    """Address of the granted page, or a negative grant status."""
    charge(platform, GRANT_MAP_PRICE, counts, GRANT_MAPS, 1)
    commit(counts, shared)
    return map_grant_at(views, count, DOM0, domid, gref, write)


@entry(i64(i64, i64, i64, i64, i64, i64, i64, i64))
def unmap_page(platform: int, counts: int, shared: int, views: int, count: int, domid: int, gref: int, write: int) -> int:
    """Undo `map_page` with the same arguments."""
    charge(platform, GRANT_UNMAP_PRICE, counts, GRANT_UNMAPS, 1)
    charge(platform, GRANT_FLUSH_PRICE, counts, GRANT_FLUSHES, 1)
    commit(counts, shared)
    return unmap_grant_at(views, count, DOM0, domid, gref, write)


@entry(void(i64, i64, i64))
def _copy(to: int, source: int, size: int) -> None:
    memcpy(to, source, size)


@contextmanager
def mapped(grants: Grants, gref: int, write: int) -> Iterator[int]:
    """A page while it is looked at: its address, or a negative grant status."""
    page = map_page(*grants, gref, write)
    try:
        yield page
    finally:
        if page >= 0:
            unmap_page(*grants, gref, write)


def fetch(array: "npt.NDArray[np.generic]", page: int) -> None:
    """Fill `array`, of no more bytes than a page has, with one copy of what a mapped page begins with."""
    _copy(int(array.ctypes.data), page, array.nbytes)
