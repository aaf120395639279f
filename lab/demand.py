"""What a topology takes of the machine besides memory: descriptors of each process, and processes and threads together.

Descriptors, E engines of the NIC, G guests, S of them split, C with a context of the NIC (T trapped, B bypass or native):

    keeper     27 + 8 G (+ 1)       a console, a pidfd, both ends of two sockets, RAM and counters, of each guest; the counters of
                                    the device models
    forkserver 4
    hyp        27 + 4 E (+ 6)       (with trapped guests) its loop's upcall and counters
               + 8 S + 9 B + 23 T   a guest's regions and their mappings, upcall, socket, eventfds; a device model is a domain, too
    xenstored  14 + G               a socket
    nic        20 + 6 E + 4 C       mappings of RAM, IOMMU table and doorbell, the completion's eventfd
    dom0       24 + 4 S             mappings of RAM and both grant tables, the event channel's eventfd
    a guest    27, split 28,        its own regions and their mappings, sockets, loop
               trapped 29 (+ 1)     the TAP
    launch.py  16 + 3 (G + 4)       consoles, and the counters of all processes, received and mapped

A mapping counts: Python's mmap keeps a descriptor of its own. tests/lab/test_demand.py counts those of running topologies. Each
process is allowed `SPARE` more, for clients, for programs (four each while they run) and for what is on its way.

A message's descriptors count against the sender's user while they are on their way, by the same number (RLIMIT_NOFILE, else
ETOOMANYREFS). A message has as many as there are processes at most, so that whoever may have them open may send them. Pending
signals and locked memory are not used.
"""

from collections.abc import Mapping
from typing import Any

from hyp.limits import descriptor_limit, process_limits

SPARE = 32  # descriptors of each process
SPARE_PROCESSES = 8  # who forks, who compiles along, a few programs in guests

_HYP = {"split": 8, "bypass": 9, "native": 9, "trapped": 23}
_CONTEXT = {"split": 0, "bypass": 4, "native": 4, "trapped": 4}
_VIF = {"split": 4, "bypass": 0, "native": 0, "trapped": 0}
_GUEST = {"split": 28, "bypass": 27, "native": 27, "trapped": 29}
_THREADS = {"split": 2, "bypass": 2, "native": 2, "trapped": 3}  # of a guest
_SYSTEM = 4  # processes that are no guests and can be asked: hyp, xenstored, nic, dom0


def descriptors(topology: Mapping[str, Any]) -> dict[str, int]:
    """Descriptors of each process by name, at rest. `topology` as `Topology.plain()` gives it."""
    guests, engines = topology["guest"], topology["nic"]["engines"]
    paths = [guest["path"] for guest in guests]
    trapped = "trapped" in paths
    found = {
        "keeper": 27 + 8 * len(guests) + trapped,
        "forkserver": 4,
        "hyp": 27 + 4 * engines + 6 * trapped + sum(_HYP[path] for path in paths),
        "xenstored": 14 + len(guests),
        "nic": 20 + 6 * engines + sum(_CONTEXT[path] for path in paths),
        "dom0": 24 + sum(_VIF[path] for path in paths),
        "launch.py": 16 + 3 * (len(guests) + _SYSTEM),
    }
    return found | {guest["name"]: _GUEST[guest["path"]] + (guest["program"] == "tap") for guest in guests}


def threads(topology: Mapping[str, Any]) -> dict[str, int]:
    """Threads of each process by name, the first one included. launch.py, which is there already, is not."""
    guests = topology["guest"]
    trapped = any(guest["path"] == "trapped" for guest in guests)
    found = {"keeper-stub": 1, "keeper": 1, "forkserver": 1, "hyp": 1 + trapped, "xenstored": 1, "dom0": 2}
    return found | {"nic": 1 + topology["nic"]["engines"]} | {guest["name"]: _THREADS[guest["path"]] for guest in guests}


def most_descriptors(topology: Mapping[str, Any]) -> tuple[str, int]:
    """The process that needs the most descriptors, and how many it must be allowed."""
    found = descriptors(topology)
    found["keeper"] += len(topology["guest"]) + _SYSTEM  # opened for a client that asks for all counters
    name = max(found, key=lambda one: found[one])
    return name, found[name] + SPARE


def processes(topology: Mapping[str, Any]) -> int:
    """How many more processes and threads there must be room for."""
    return sum(threads(topology).values()) + SPARE_PROCESSES


def shortages(topology: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what is short, a sentence that names the limit, what there is and what is needed), for every limit that won't do."""
    found = []
    name, needed = most_descriptors(topology)
    if (most := descriptor_limit()) < needed:
        reason = f"{name} needs {needed}, and the hard limit of one process (ulimit -Hn) is {most}; raise it, or have fewer guests"
        found.append(("descriptors", reason))
    needed = processes(topology)
    for limit in process_limits():
        if limit.free < needed:
            reason = f"{needed} processes and threads are needed, and {limit}; {limit.remedy}, or have fewer guests"
            found.append(("processes", reason))
    return found
