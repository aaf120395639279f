"""Multicast control of a vif: group addresses that its guest wants to hear of (Xen's io/netif.h, Linux's xenvif_mcast_*). Compiled.

The front end adds an address, or takes one back, by a dummy transmit request with an extra info (dom0/netback_chains.py). The list
is the engine's, has MOST_GROUPS entries, and is empty when the vif connects. As on Linux an address that is added twice is there
twice. If the front end has asked for it (``request-multicast-control`` 1 when it connects), frames to a group address that is not
in the list are not flooded to it; broadcast always is. Only frames that are flooded pay for it.
"""

from hyp.abi.netif import EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL
from hyp.abi.nic import BROADCAST, GROUP_BIT
from hyp.atomics import load64, store64
from hyp.kernels import compiled, outlined

MOST_GROUPS = 64
"""Addresses of a vif (Linux's XEN_NETBK_MCAST_MAX)."""


@compiled
def group_change(low, high):
    """The change that an extra info, of which these are the copied words, asks for; 0: none."""
    kind = low & 0xFF
    if kind != EXTRA_TYPE_MCAST_ADD and kind != EXTRA_TYPE_MCAST_DEL:
        return 0
    return kind | ((low >> 16) << 8) | (high << 24)


@outlined
def change_groups(p, change):
    """Carry out a `group_change`. False: the list is full. What is not in it can be taken back."""
    mac = change >> 8
    if change & 0xFF == EXTRA_TYPE_MCAST_ADD:
        if p.group_count == MOST_GROUPS:
            return False
        store64(p.groups + 8 * p.group_count, mac)
        p.group_count += 1
        return True
    k = _find(p, mac)
    if k < p.group_count:
        p.group_count -= 1
        store64(p.groups + 8 * k, load64(p.groups + 8 * p.group_count))
    return True


@compiled
def _find(p, mac):
    """Where an address is in the list; where that ends, if it isn't."""
    k = 0
    while k < p.group_count and load64(p.groups + 8 * k) != mac:
        k += 1
    return k


@outlined
def hears(p, destination):
    """True if a flooded frame is to reach port `p`, which filters."""
    if destination & GROUP_BIT == 0 or destination == BROADCAST:
        return True
    return _find(p, destination) < p.group_count
