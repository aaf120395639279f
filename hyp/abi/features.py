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
device's DEVICE record (domu/device.py). There is no feature yet: the word is 0 everywhere.
"""

from typing import Final

NONE: Final = 0
NAMES: Final[dict[int, str]] = {}
"""Bit → name of the feature. A feature has the same bit on every path."""
NIC_OFFERS: Final = NONE
"""What the NIC's contexts, and the NIC that the hypervisor emulates, can do."""
NETIF_OFFERS: Final = NONE
"""What netback can do."""
MAX_WORD: Final = 2**63 - 1

NETIF_NODES: Final[dict[int, tuple[str, str]]] = {}
"""Feature → the nodes by which the back end offers it and the front end accepts it, under their own directories."""


def unoffered(offered: int, accepted: int) -> int:
    """What is in `accepted` and has not been `offered`; 0 if all is well."""
    return accepted & ~offered
