"""What a device and its driver agree on: one word of features a device, offered by the device, accepted in part by its driver.

A feature changes what the two may write to each other, so neither uses one that has not been both offered and accepted. The word
travels as each path's set-up does:

==================  ==========================================================  =================================================
path                offered                                                     accepted
==================  ==========================================================  =================================================
a NIC context       `features` in the answer to `context_open`                  argument `features` of `context_start`
an emulated NIC     `features` in the answer to `emulation_attach`              argument `features` of `emulation_start`
netif               the back end's nodes of `NETIF_NODES`, with the value 1     the front end's nodes, before its Initialised
==================  ==========================================================  =================================================

A driver that accepts what was not offered is refused (EINVAL; on netif the vif is not connected). Programs find the word in their
device's DEVICE record (domu/device.py).

=====  ====  ========================================================================================================
SG     1     frames of several fragments (hyp/abi/fragment.py): the driver may send them, and the device deliver them
CSUM   2     checksums left blank, both ways
TSO4   4     TCP over IPv4 left unsegmented, both ways. Wants CSUM, and SG for more than fits into a buffer
TSO6   8     the same over IPv6
CSUM6  16    netif alone, where CSUM is of IPv4: checksums over IPv6. A front end of the lab accepts both, or neither
=====  ====  ========================================================================================================

For a driver that did not accept one, the device does the work itself: it fills checksums in and segments.

On netif (Xen's io/netif.h) an end's nodes say what may be sent *to* it: netback takes all that it offers, whatever the front end's
nodes are. CSUM is there unless `NO_CSUM_OFFLOAD` is 1, the others are not there unless their nodes are.
"""

from collections.abc import Iterable
from typing import Final

NONE: Final = 0
SG: Final = 1
CSUM: Final = 2
TSO4: Final = 4
TSO6: Final = 8
CSUM6: Final = 16
NAMES: Final[dict[int, str]] = {SG: "sg", CSUM: "csum", TSO4: "tso4", TSO6: "tso6", CSUM6: "csum6"}
"""Bit → name of the feature. A feature has the same bit on every path."""
OFFLOADS: Final[dict[str, int]] = {"sg": SG, "csum": CSUM, "tso": TSO4 | TSO6}
"""What a guest's `offloads` in the topology are called, and their features."""
NIC_OFFERS: Final = SG | CSUM | TSO4 | TSO6
"""What the NIC's contexts can do."""
EMULATION_OFFERS: Final = SG | CSUM | TSO4 | TSO6
"""What the NIC that the hypervisor emulates can do."""
NETIF_OFFERS: Final = SG | CSUM | CSUM6 | TSO4 | TSO6
"""What netback can do."""
MAX_WORD: Final = 2**63 - 1

NETIF_NODES: Final[dict[int, tuple[str, str]]] = {
    SG: ("feature-sg", "feature-sg"),
    TSO4: ("feature-gso-tcpv4", "feature-gso-tcpv4"),
    TSO6: ("feature-gso-tcpv6", "feature-gso-tcpv6"),
    CSUM6: ("feature-ipv6-csum-offload", "feature-ipv6-csum-offload"),
}
"""Feature → the nodes by which the back end offers it and the front end accepts it, under their own directories."""
NO_CSUM_OFFLOAD: Final = "feature-no-csum-offload"
"""Node of either end: 1 if it can't do without checksums over IPv4, which is CSUM's absence."""


def unoffered(offered: int, accepted: int) -> int:
    """What is in `accepted` and has not been `offered`; 0 if all is well."""
    return accepted & ~offered


def wanted(offloads: Iterable[str]) -> int:
    """The features of a guest with these `offloads` (names of `OFFLOADS`)."""
    word = NONE
    for name in offloads:
        word |= OFFLOADS[name]
    return int(word)
