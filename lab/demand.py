"""What a topology takes of the machine besides memory: descriptors of each process, and processes and threads together.

Descriptors, with G guests and E engines of the NIC; what depends on a guest's path is in `hyp.paths` (`takes`, and `further`
for each queue beyond the first):

    keeper     31 + 11 G (+ 1)      a console, a pidfd, both ends of two sockets, RAM and counters, what it prints, the log of that
                                    and its end, of each guest; for how long each was served; the counters of the device models
               + 2                  of each TAP guest: a pidfd of its init and what holds that
    forkserver 4
    hyp        30 + 4 E (+ 6)       (with device models) its loop's upcall and counters
               + `takes.hyp` each   a guest's regions and their mappings, upcall, socket, eventfds; a device model is a domain, too
    xenstored  17 + G               the socket at which it listens, the journal; a socket of each guest
    nic        22 + 8 E (+ 1)       its engines; the TAP of a wire to the host
               + `takes.nic` each   mappings of RAM (one a guest), IOMMU table and doorbell, the completion's eventfd
    dom0       27                   its own context, the upcall of control rings and what ends the wait at it
               + `takes.dom0` each  mappings of RAM and both grant tables, the event channel's eventfd
    a guest    `takes.guest` (+ 2)  its own regions and their mappings, sockets, loop; the TAP, what its init is held by,
                            (+ 1)   and an io_uring
    its init   4                    of a TAP guest
    launch.py  16 + 3 (G + 4)       consoles, and the counters of all processes, received and mapped

A mapping counts: Python's mmap keeps a descriptor of its own. tests/lab/test_demand.py counts those of running topologies. Each
process is allowed `SPARE` more, for clients, for programs (four each while they run) and for what is on its way.

A message's descriptors count against the sender's user while they are on their way, by the same number (RLIMIT_NOFILE, else
ETOOMANYREFS). A message has as many as there are processes at most, so that whoever may have them open may send them. Pending
signals and locked memory are not used.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from domu.programs.table import program_of
from hyp.abi.sizes import GUEST_EVENTS
from hyp.control import MAX_UNSENT_FDS
from hyp.limits import descriptor_limit, process_limits
from hyp.paths import PATHS, Takes

SPARE = 32  # descriptors of each process
SPARE_PROCESSES = 8  # who forks, who compiles along, a few programs in guests

_SYSTEM = 4  # processes that are no guests and can be asked: hyp, xenstored, nic, dom0


def descriptors(topology: Mapping[str, Any]) -> dict[str, int]:
    """Descriptors of each process by name, at rest. `topology` as `Topology.plain()` gives it."""
    guests, engines, mode = topology["guest"], topology["nic"]["engines"], topology["nic"]["wire"]["mode"]
    takes, emulates = [_takes(guest) for guest in guests], _emulates(topology)
    found = {
        "keeper": 31 + 11 * len(guests) + emulates + 2 * sum(map(_has_init, guests)),
        "forkserver": 4,
        "hyp": 30 + 4 * engines + 6 * emulates + sum(one.hyp for one in takes),
        "xenstored": 17 + len(guests),
        "nic": 22 + 8 * engines + (mode == "tap") + 2 * (mode == "record") + sum(one.nic for one in takes),
        "dom0": 27 + sum(one.dom0 for one in takes),
        "launch.py": 16 + 3 * (len(guests) + _SYSTEM),
    }
    for guest, own in zip(guests, takes, strict=True):
        found[guest["name"]] = own.guest
        if _has_init(guest):
            found[guest["name"]] += 2 + guest["batches"]  # an io_uring, where the kernel has it
            found[f"init:{guest['name']}"] = 4
    return found


def _has_init(guest: Mapping[str, Any]) -> bool:
    """It is a machine, with a process of its own for that (domu/machine.py)."""
    return program_of(guest["program"]).addressed


def _takes(guest: Mapping[str, Any]) -> Takes:
    """What a guest takes, with all its queues."""
    path, more = PATHS[guest["path"]], guest["queues"] - 1
    if path.further is None:
        return path.takes
    return Takes(
        **{field.name: getattr(path.takes, field.name) + more * getattr(path.further, field.name) for field in fields(Takes)}
    )


def _emulates(topology: Mapping[str, Any]) -> bool:
    """The hypervisor has a loop."""
    return any(PATHS[guest["path"]].shared_loop == "hyp" for guest in topology["guest"])


def threads(topology: Mapping[str, Any]) -> dict[str, int]:
    """Threads of each process by name, the first one included. launch.py, which is there already, is not.

    Who maps guests' memory has one that looks for holes in it (hyp/lost_memory.py); Dom0 has one that waits at the upcall of
    control rings; the keeper has one for each guest's output.
    """
    found = {"keeper-stub": 1, "keeper": 1 + len(topology["guest"]), "forkserver": 1, "xenstored": 1}
    found |= {"hyp": 2 + _emulates(topology), "nic": 2 + topology["nic"]["engines"], "dom0": 4}
    found |= {f"init:{guest['name']}": 1 for guest in topology["guest"] if _has_init(guest)}
    return found | {guest["name"]: _takes(guest).threads for guest in topology["guest"]}


def most_descriptors(topology: Mapping[str, Any]) -> tuple[str, int]:
    """The process that needs the most descriptors, and how many it must be allowed."""
    found = descriptors(topology)
    found["hyp"] += (GUEST_EVENTS + MAX_UNSENT_FDS) * len(topology["guest"])  # what guests may make it open
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
