"""The learning bridge's table: which port a MAC address was last seen behind (IEEE 802.1D, filtering database).

A hash table with bounded probing: a lookup takes at most PROBES steps whatever addresses a guest invents, and a new
address that finds its places taken replaces the one that was seen longest ago.
"""

import numpy as np

from hyp.abi.nic import GROUP_BIT
from hyp.atomics import record_view
from hyp.kernels import compiled

FDB_SLOTS = 1024
PROBES = 8
ENTRY = np.dtype([("mac", "i8"), ("port", "i8"), ("seen_ns", "i8")])
ENTRY_BYTES = ENTRY.itemsize
NO_PORT = -1

_entry_at = record_view(ENTRY)


@compiled
def _entry(fdb, mac, probe):
    slot = (((mac * 0x1E3779B97F4A7C15) >> 40) + probe) & (FDB_SLOTS - 1)
    return _entry_at(fdb + slot * ENTRY_BYTES)


@compiled
def learn(fdb: int, mac: int, port: int, now_ns: int) -> None:
    """`mac` has just been seen behind `port`. Group addresses are nobody's."""
    if mac & GROUP_BIT or mac == 0:
        return
    oldest = _entry(fdb, mac, 0)
    for probe in range(PROBES):
        entry = _entry(fdb, mac, probe)
        if entry.mac == mac:
            entry.port = port
            entry.seen_ns = now_ns
            return
        if entry.seen_ns < oldest.seen_ns:
            oldest = entry
    oldest.mac, oldest.port, oldest.seen_ns = mac, port, now_ns


@compiled
def whereabouts(fdb: int, mac: int, now_ns: int, ageing_ns: int) -> int:
    """The port that `mac` is behind, or NO_PORT if it was never seen or not for `ageing_ns`. Address 0 marks an empty entry."""
    if mac == 0:
        return NO_PORT
    for probe in range(PROBES):
        entry = _entry(fdb, mac, probe)
        if entry.mac == mac:
            return entry.port if now_ns - entry.seen_ns < ageing_ns else NO_PORT
    return NO_PORT


@compiled
def forget_port(fdb: int, port: int) -> None:
    """A port went away: nothing is behind it any more."""
    for slot in range(FDB_SLOTS):
        entry = _entry_at(fdb + slot * ENTRY_BYTES)
        if entry.port == port:
            entry.mac, entry.seen_ns, entry.port = 0, 0, NO_PORT
