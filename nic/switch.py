"""The embedded switch's table: which context has which MAC address. One copy per engine, changed through its mailbox."""

from hyp.abi.nic import NO_CONTEXT
from hyp.kernels import compiled
from nic.state import SWITCH_ENTRY_BYTES, SWITCH_SLOTS, switch_entry_at

MAX_FILTERS = SWITCH_SLOTS // 2


@compiled
def _slot(mac: int) -> int:
    return ((mac * 0x1E3779B97F4A7C15) >> 40) & (SWITCH_SLOTS - 1)


@compiled
def lookup(table: int, mac: int) -> int:
    """The context that has `mac`, or NO_CONTEXT. At most SWITCH_SLOTS steps."""
    at = _slot(mac)
    for _ in range(SWITCH_SLOTS):
        found = switch_entry_at(table + at * SWITCH_ENTRY_BYTES)
        if found.mac == mac:
            return found.context
        if found.mac == 0:
            return NO_CONTEXT
        at = (at + 1) & (SWITCH_SLOTS - 1)
    return NO_CONTEXT


@compiled
def enter(table: int, mac: int, context: int) -> None:
    """Give `mac` to `context`; NO_CONTEXT takes it away (its place stays, for the chain behind it)."""
    at = _slot(mac)
    for _ in range(SWITCH_SLOTS):
        found = switch_entry_at(table + at * SWITCH_ENTRY_BYTES)
        if found.mac == mac or found.mac == 0:
            found.mac = mac
            found.context = context
            return
        at = (at + 1) & (SWITCH_SLOTS - 1)


@compiled
def forget(table: int, context: int) -> None:
    """Take all addresses of a context away."""
    for at in range(SWITCH_SLOTS):
        found = switch_entry_at(table + at * SWITCH_ENTRY_BYTES)
        if found.mac != 0 and found.context == context:
            found.context = NO_CONTEXT
