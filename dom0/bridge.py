"""The bridge's table: which port a MAC address is behind (IEEE 802.1D, filtering database).

Entries are *static* or *learnt*. The addresses that the topology gives are static: they are in the table from the start on, a
guest's behind its vif or, if it is not split, behind the uplink, as the wire's is; no frame of anybody's moves or displaces them.
The toolstack does, when a guest changes its path.
Others are learnt from the frames of the uplink and of trunks, and age.

A hash table with bounded probing: a lookup takes at most PROBES steps whatever addresses are invented, and a new address that finds
its places taken replaces the learnt one that was seen longest ago.
"""

import numpy as np

from hyp.abi.nic import GROUP_BIT
from hyp.atomics import record_view
from hyp.kernels import compiled, entry, i64

FDB_SLOTS = 1024
PROBES = 8
ENTRY = np.dtype([("mac", "i8"), ("port", "i8"), ("seen_ns", "i8")])
ENTRY_BYTES = ENTRY.itemsize
NO_PORT = -1
STATIC = 1 << 62
"""`seen_ns` of a static entry: later than any clock says."""

_entry_at = record_view(ENTRY)


@compiled
def _entry(fdb, mac, probe):
    slot = (((mac * 0x1E3779B97F4A7C15) >> 40) + probe) & (FDB_SLOTS - 1)
    return _entry_at(fdb + slot * ENTRY_BYTES)


@compiled
def _enter(fdb, mac, port, seen_ns):
    """True unless `mac` is behind another port for good."""
    oldest = _entry(fdb, mac, 0)
    for probe in range(PROBES):
        found = _entry(fdb, mac, probe)
        if found.mac == mac:
            if found.seen_ns == STATIC:
                return found.port == port
            found.port = port
            found.seen_ns = seen_ns
            return True
        if found.seen_ns < oldest.seen_ns:
            oldest = found
    if oldest.seen_ns != STATIC:
        oldest.mac, oldest.port, oldest.seen_ns = mac, port, seen_ns
    return True


@compiled
def learn(fdb: int, mac: int, port: int, now_ns: int) -> bool:
    """`mac` has just been seen behind `port`. False: it is another port's for good, or, a group's or 0, no station's."""
    if mac & GROUP_BIT or mac == 0:
        return False
    return _enter(fdb, mac, port, now_ns)


@entry(i64(i64, i64, i64))
def add_static(fdb: int, mac: int, port: int) -> int:
    """`mac` is behind `port` for good; before the engine runs. 0 if the table has no room for it, or another port has it."""
    if not _enter(fdb, mac, port, STATIC):
        return 0
    for probe in range(PROBES):
        found = _entry(fdb, mac, probe)
        if found.mac == mac:
            return 1
    return 0


@compiled
def move_static(fdb: int, mac: int, port: int) -> None:
    """`mac`, which has a static entry, is behind `port` from now on."""
    for probe in range(PROBES):
        found = _entry(fdb, mac, probe)
        if found.mac == mac and found.seen_ns == STATIC:
            found.port = port


@compiled
def whereabouts(fdb: int, mac: int, now_ns: int, ageing_ns: int) -> int:
    """The port that `mac` is behind, or NO_PORT if it was never seen or not for `ageing_ns`. Address 0 marks an empty found."""
    if mac == 0:
        return NO_PORT
    for probe in range(PROBES):
        found = _entry(fdb, mac, probe)
        if found.mac == mac:
            return found.port if now_ns - found.seen_ns < ageing_ns else NO_PORT
    return NO_PORT


@compiled
def forget_port(fdb: int, port: int) -> None:
    """A port went away: nothing is behind it any more but what is its own for good."""
    for slot in range(FDB_SLOTS):
        found = _entry_at(fdb + slot * ENTRY_BYTES)
        if found.port == port and found.seen_ns != STATIC:
            found.mac, found.seen_ns, found.port = 0, 0, NO_PORT
