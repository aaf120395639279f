"""The price model: time spun in addition to what an operation costs here, so that a lab can be calibrated to a real hypervisor.

The prices are in the platform page (hyp/abi/platform.py), 0 by default; whoever makes the operation pays on its thread:

==============  =======================================================================================================
hypercall_ns    each batch of grant copies
grant_map_ns    each grant mapped or unmapped
event_ns        each event-channel notification sent (split, both directions), and each wake-up for a completion of the
                NIC, which Xen delivers as an event too (bypass guests, Dom0)
trap_ns         each register write of an emulated device, on the hypervisor's thread while the guest waits
==============  =======================================================================================================

It is the clock's time: who loses its CPU in the middle has paid with that.
"""

from typing import Final

from hyp.abi.platform import EVENT_PRICE, GRANT_MAP_PRICE, HYPERCALL_PRICE, TRAP_PRICE
from hyp.atomics import clock_ns, cpu_relax, load64_once
from hyp.kernels import compiled

PRICES: Final = {
    "hypercall_ns": HYPERCALL_PRICE, "trap_ns": TRAP_PRICE, "grant_map_ns": GRANT_MAP_PRICE, "event_ns": EVENT_PRICE,
}  # fmt: skip
"""Name → offset in the platform page."""
MAX_PRICE_NS: Final = 10**6


@compiled
def spin_ns(nanoseconds: int) -> None:
    """Use up the CPU for a time."""
    until = clock_ns() + nanoseconds
    while clock_ns() < until:
        cpu_relax()


@compiled
def pay(platform: int, price: int) -> None:
    """Pay the price at offset `price` of the platform page. Where it is 0, that is one load."""
    nanoseconds = load64_once(platform + price)
    if nanoseconds > 0:
        spin_ns(min(nanoseconds, MAX_PRICE_NS))
