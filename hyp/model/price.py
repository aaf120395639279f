"""The price model: time spun in addition to what an operation costs here, so that a lab can be calibrated to a real hypervisor.

The prices are in the platform page (hyp/abi/platform.py), 0 by default. Whoever makes an operation *charges* it, which counts it
in its row and spins its price on its thread: so what was paid is what the ledger says, at any price (hyp/model/operations.py has
the list, docs/model.md who charges what). Where it is 0, that is one load, and callers charge once a batch.

It is the clock's time: who loses its CPU in the middle has paid with that.
"""

from typing import Final

from hyp.abi.platform import PRICES_AT
from hyp.abi.sizes import MAX_PRICE
from hyp.atomics import clock_ns, cpu_relax, load64_once
from hyp.counters import count
from hyp.kernels import compiled
from hyp.model.operations import OPERATIONS

PRICES: Final = {name: PRICES_AT + 8 * k for k, name in enumerate(OPERATIONS)}
"""Name → offset in the platform page."""


@compiled
def spin_ns(nanoseconds: int) -> None:
    """Use up the CPU for a time."""
    until = clock_ns() + nanoseconds
    while clock_ns() < until:
        cpu_relax()


@compiled
def charge(platform: int, price: int, counts: int, column: int, n: int) -> None:
    """`n` operations: count them in `column` of the private row `counts`, and spin n times the price at offset `price`."""
    count(counts, column, n)
    nanoseconds = load64_once(platform + price)
    if nanoseconds > 0:
        spin_ns(min(nanoseconds, MAX_PRICE) * n)


@compiled
def charge_bytes(platform: int, price: int, counts: int, column: int, octets: int) -> None:
    """`charge` for bytes, whose price is in picoseconds."""
    count(counts, column, octets)
    picoseconds = load64_once(platform + price)
    if picoseconds > 0:
        spin_ns(min(picoseconds, MAX_PRICE) * octets // 1000)
