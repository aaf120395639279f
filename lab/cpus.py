"""Who runs on which CPU, and who may spin, from a topology's start on: what its `[cpu]` says, or what suits TAP guests.

The scheduler lets loops that sleep and wake wander, and lays a guest's loop on another CPU than the program that it serves: each
frame then wakes a CPU that idles. Tried between two TAP guests on two cores, split and bypass in turns, with iperf3 TCP, redis GET
and round trips: anywhere, all on one CPU, the device or back end apart, loops on one CPU and programs on the other or anywhere,
each guest on a CPU with its programs; some with loops that spin, too, which nearly always cost more than it gained, at worst more
than half of the rate. *Each guest on a CPU with its programs, what is between guests on the last one*, as machines with one virtual
CPU are laid out, had the best medians for TCP and was about level with the best for redis; a single round trip at a time is faster
with all on one CPU. So that is the rule where loops and programs outnumber CPUs. Where they don't, the scheduler has room.

Standard library alone: what a topology means is known before anything is loaded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from domu.programs.table import program_of
from hyp.paths import PATHS

HYP, DOM0, NIC = "hyp", "dom0", "nic"


@dataclass(frozen=True)
class Seats:
    """CPUs by process, with which it is born; who is not in it runs anywhere that the lab may.

    `engines`: of each NIC engine. `programs`: of programs in each guest. `spinning`: who alone may spin; None: everybody, as far as
    `[spin]` lets them. `said`: by `[cpu]`, which nothing overrides.
    """

    processes: dict[str, list[int]] = field(default_factory=dict)
    engines: list[list[int]] = field(default_factory=list)
    programs: dict[str, list[int]] = field(default_factory=dict)
    spinning: frozenset[str] | None = None
    said: bool = False

    def plain(self) -> dict[str, Any]:
        """For clients of the keeper."""
        return {"processes": self.processes, "programs": self.programs, "placement": self.text}

    @property
    def text(self) -> str:
        """In words: who shares which CPUs, in order, and who may spin."""
        if not self.processes:
            return "anywhere"
        shared: dict[tuple[int, ...], list[str]] = {}
        for name, cpus in self.processes.items():
            shared.setdefault(tuple(cpus), []).append(name)
        for guest, cpus in self.programs.items():
            if cpus != self.processes[guest]:
                shared.setdefault(tuple(cpus), []).append(f"programs of {guest}")
        parts = [f"{', '.join(names)} on CPU {', '.join(map(str, cpus))}" for cpus, names in sorted(shared.items())]
        if self.spinning is not None:
            parts.append(f"may spin: {', '.join(sorted(self.spinning)) or 'nobody'}")
        return "; ".join(parts)


def seats(topology: Mapping[str, Any], allowed: Sequence[int]) -> Seats:
    """Who runs where in a topology (as `Topology.plain()` gives it), on these CPUs, of which `[cpu]` names no other."""
    said = {key: value for key, value in topology["cpu"].items() if value not in (None, {})}
    spinning = frozenset(said["spin"]) if "spin" in said else None
    if said.keys() - {"spin"}:
        return _as_said(topology, said, spinning, allowed)
    guests = [guest["name"] for guest in topology["guest"] if program_of(guest["program"]).addressed]
    if len(guests) < len(topology["guest"]) or busy(topology) <= len(allowed):
        return Seats(spinning=spinning)
    own = {guest: [allowed[number % len(allowed)]] for number, guest in enumerate(guests)}
    last = [allowed[-1]]
    return Seats({HYP: last, DOM0: last, NIC: last, **own}, [last] * int(topology["nic"]["engines"]), own, spinning)


def busy(topology: Mapping[str, Any]) -> int:
    """Who may want a CPU at a time: engines, guests' queues, what is between them and the NIC, a program in each TAP guest."""
    guests = topology["guest"]
    shared = {DOM0} | {loop for guest in guests if (loop := PATHS[guest["path"]].shared_loop)}
    programs = sum(program_of(guest["program"]).addressed for guest in guests)
    return int(topology["nic"]["engines"]) + len(shared) + sum(int(guest["queues"]) for guest in guests) + programs


def _as_said(
    topology: Mapping[str, Any], said: Mapping[str, Any], spinning: frozenset[str] | None, allowed: Sequence[int]
) -> Seats:
    """As `[cpu]` says: named CPUs are their owners' alone, and who is not named has the others, or all if none are left."""
    engines = _engines(said.get(NIC), int(topology["nic"]["engines"]))
    own: dict[str, list[int]] = {name: sorted(said[name]) for name in (HYP, DOM0) if name in said}
    own |= {name: sorted(cpus) for name, cpus in said.get("guests", {}).items()}
    if engines:
        own[NIC] = sorted({cpu for cpus in engines for cpu in cpus})
    taken = {cpu for cpus in own.values() for cpu in cpus} | set(said.get("programs", ()))
    rest = [cpu for cpu in allowed if cpu not in taken] or list(allowed)
    guests = [guest["name"] for guest in topology["guest"]]
    processes = {name: own.get(name, rest) for name in (HYP, DOM0, NIC, *guests)}
    programs = {guest["name"] for guest in topology["guest"] if program_of(guest["program"]).addressed}
    where = {guest: sorted(said.get("programs", processes[guest])) for guest in guests if guest in programs}
    spinning = frozenset(_alone(processes, where.values())) if spinning is None else spinning
    return Seats(processes, engines or [processes[NIC]] * int(topology["nic"]["engines"]), where, spinning, said=True)


def _engines(nic: Sequence[Any] | None, engines: int) -> list[list[int]]:
    """`nic` of the table: CPUs of all engines, or a list of each one's."""
    if not nic:
        return []
    return [sorted(cpus) for cpus in nic] if isinstance(nic[0], list) else [sorted(nic)] * engines


def _alone(processes: Mapping[str, Sequence[int]], programs: Iterable[Sequence[int]]) -> list[str]:
    """Who shares no CPU with another loop or with programs."""
    others = [set(cpus) for cpus in programs]
    return [
        name
        for name, cpus in processes.items()
        if not any(set(cpus) & set(more) for other, more in processes.items() if other != name)
        and not any(set(cpus) & more for more in others)
    ]


def named_cpus(cpu: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(key, CPU) for all that a plain `[cpu]` names."""
    found = [(key, one) for key in (HYP, DOM0, "programs") for one in cpu[key] or ()]
    found += [(NIC, one) for part in cpu[NIC] or () for one in (part if isinstance(part, list) else [part])]
    return found + [(f"guests.{name}", one) for name, cpus in cpu["guests"].items() for one in cpus]


def checked_cpus(value: object) -> object:
    """What a table says are CPUs. ValueError, saying why, if they can't be."""
    numbers = isinstance(value, list) and value and all(type(cpu) is int and cpu >= 0 for cpu in value)
    if not numbers or not isinstance(value, list):
        raise ValueError(f"must be a list of CPU numbers, such as [0, 1], not {value!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"names a CPU twice: {value}")
    return value


def checked_nic_cpus(value: object) -> object:
    """CPUs of all engines, or a list for each."""
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return [checked_cpus(part) for part in value]
    return checked_cpus(value)
