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
        if found.mac == 0:
            return NO_CONTEXT
        if found.mac == mac:
            return found.context
        at = (at + 1) & (SWITCH_SLOTS - 1)
    return NO_CONTEXT


@compiled
def enter(table: int, mac: int, context: int) -> None:
    """Give `mac` to `context`; NO_CONTEXT takes it away. Address 0 is an empty place and nobody's."""
    if mac == 0:
        return
    at = _slot(mac)
    for _ in range(SWITCH_SLOTS):
        found = switch_entry_at(table + at * SWITCH_ENTRY_BYTES)
        if found.mac == mac or found.mac == 0:
            if context != NO_CONTEXT:
                found.mac = mac
                found.context = context
            elif found.mac == mac:
                _take_out(table, at)
            return
        at = (at + 1) & (SWITCH_SLOTS - 1)


@compiled
def _take_out(table: int, at: int) -> None:
    """Empty place `at` and close the gap: an entry behind it moves up unless that would put it in front of its own slot."""
    hole = at
    for _ in range(SWITCH_SLOTS):
        at = (at + 1) & (SWITCH_SLOTS - 1)
        found = switch_entry_at(table + at * SWITCH_ENTRY_BYTES)
        if found.mac == 0:
            break
        if ((at - _slot(found.mac)) & (SWITCH_SLOTS - 1)) >= ((at - hole) & (SWITCH_SLOTS - 1)):
            gap = switch_entry_at(table + hole * SWITCH_ENTRY_BYTES)
            gap.mac = found.mac
            gap.context = found.context
            hole = at
    gap = switch_entry_at(table + hole * SWITCH_ENTRY_BYTES)
    gap.mac = 0
    gap.context = NO_CONTEXT


@compiled
def forget(table: int, context: int) -> None:
    """Take all addresses of a context away."""
    at = 0
    while at < SWITCH_SLOTS:
        found = switch_entry_at(table + at * SWITCH_ENTRY_BYTES)
        if found.mac != 0 and found.context == context:
            _take_out(table, at)  # another one may be in this place now
        else:
            at += 1
