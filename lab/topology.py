"""The topology file: what a user writes in TOML, checked, with every default filled in. Its manual is docs/topology.md.

Everything that is wrong with a file is reported in one go, each problem with the key it is about, so that a user
corrects a file once. Each table is therefore validated on its own, and then what holds between tables is checked; a
guest with a bad MAC address does not make the workloads that name it look wrong too.

For `launch.py` and `bench` only: other processes get `Topology.plain`. Do not import numpy here (it starts threads).
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from domu.confinement.confine import lacking
from domu.programs.table import PROGRAMS, program_of, those
from hyp.abi.sizes import MAX_GUESTS
from hyp.model.profile import ProfileError, profile
from hyp.paths import PATHS, dom0_needs, guest_needs
from lab.cpus import named_cpus
from lab.demand import shortages
from lab.errors import LabError
from lab.schema import captures
from lab.schema.guest import RENAMED, Guest
from lab.schema.tables import Cpu, Dom0, Memory, Model, Nic, Price, Spin, Topology, Wire, Workload
from lab.schema.values import HEADER, NAME, NAME_RULE, WIRE, Table
from lab.schema.words import GIB, KIB, MIB, show_size, suggest

__all__ = [
    "PATHS", "Guest", "Topology", "TopologyError", "Workload", "check_machine", "check_workload", "derived_mac", "load",
    "parse", "shipped",
]  # fmt: skip


class TopologyError(LabError):
    """A topology that cannot be used. `problems` is a list of (key, reason); the text names the file and lists all."""

    def __init__(self, file: str, problems: list[tuple[str, str]]) -> None:
        self.file, self.problems = file, problems
        lines = [f"  {key}: {reason}" if key else f"  {reason}" for key, reason in problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([f"{file}: {count}", *lines]))


# --- reading ---------------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"'([^']*)'")
_TableT = TypeVar("_TableT", bound=Table)


def _reason(error: ErrorDetails, model: type[BaseModel]) -> str:
    """What pydantic found, in our words."""
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        if (key := error["loc"][-1]) in RENAMED:
            return f"is not a key any more: {RENAMED[str(key)]}"
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"is not a key{suggest(key, known) or '; there are ' + ', '.join(known)}"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        expected = str(error["ctx"]["expected"])
        return f"must be {expected}, not {given!r}{suggest(given, _QUOTED.findall(expected))}"
    return f"{error['msg'].replace('Input should be', 'must be')}, not {given!r}"


class _Reader:
    """Reads the tables of one file and notes every problem on the way."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def refuse(self, key: str, reason: str) -> None:
        self.problems.append((key, reason))

    def table(self, model: type[_TableT], table: object, key: str) -> _TableT | None:
        """`table` as a `model`; None, with its problems noted, if it is not sound."""
        if not isinstance(table, dict):
            self.refuse(key, f"must be a table ([{key}]), not {table!r}")
            return None
        try:
            return model.model_validate(table)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                inner = ".".join(str(part) for part in details["loc"])
                self.refuse(f"{key}.{inner}" if key else inner, _reason(details, model))
            return None

    def array(self, tables: object, key: str) -> list[dict[str, Any]]:
        """An array of tables; empty, with the problem noted, if it is not one."""
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.refuse(key, f"must be an array of tables ([[{key}]])")
            return []
        if key == "guest" and not 1 <= len(tables) <= MAX_GUESTS:
            self.refuse(key, f"a topology has 1 to {MAX_GUESTS} guests, not {len(tables)}")
        return tables

    def unique(self, values: Iterable[tuple[str, str]]) -> None:
        """Refuse the second and later of equal values; `values` are (key, value)."""
        first: dict[str, str] = {}
        for key, value in values:
            if first.setdefault(value, key) != key:
                self.refuse(key, f"{value!r} is {first[value]}'s already")


def derived_mac(position: int) -> str:
    """The MAC address of the guest at `position` (from 0) when the file gives none."""
    return f"02:00:00:00:{position + 1 >> 8:02x}:{position + 1 & 255:02x}"


def _strings(tables: list[dict[str, Any]], array: str, key: str) -> list[tuple[str, str]]:
    """(dotted key, value) of each string under `key`."""
    found = ((f"{array}[{index}].{key}", table.get(key)) for index, table in enumerate(tables))
    return [(where, value) for where, value in found if isinstance(value, str)]


def _host(address: str) -> str:
    """An address without its prefix, in its shortest form."""
    host = address.partition("/")[0]
    try:
        return str(ip_address(host))
    except ValueError:  # which its own key is refused for
        return host


def _check_guests(reader: _Reader, tables: list[dict[str, Any]], wire: Wire) -> None:
    """What holds between guests, and between them and the wire."""
    names = _strings(tables, "guest", "name")
    reader.unique(names)
    # derived addresses go first, so that the one refused is one that is in the file
    derived = [(f"guest[{index}].mac", derived_mac(index)) for index, table in enumerate(tables) if "mac" not in table]
    written = [(key, value.lower()) for key, value in _strings(tables, "guest", "mac")]
    reader.unique([*derived, ("nic.wire.mac", wire.mac), *written])
    for name in ("address", "address6"):
        own = [] if (given := getattr(wire, name)) is None else [(f"nic.wire.{name}", given)]
        reader.unique((key, _host(value)) for key, value in [*own, *_strings(tables, "guest", name)])
    known = [name for _, name in names]
    if wire.to is not None and wire.to not in known:
        reader.refuse("nic.wire.to", f"{wire.to!r} is not a guest{suggest(wire.to, known)}")


def _check_workloads(reader: _Reader, tables: list[dict[str, Any]], guests: list[dict[str, Any]], wire: Wire) -> None:
    """Both ends of a workload exist and run the traffic program; the wire answers round trips and begins none."""
    for index, table in enumerate(tables):
        if table.get("kind") == "rr" and table.get("from") == WIRE:
            reader.refuse(f"workload[{index}].from", "the wire answers round trips, it does not begin any")
    programs = {name: table.get("program") for table in guests if isinstance(name := table.get("name"), str)}
    for key, peer in _strings(tables, "workload", "from") + _strings(tables, "workload", "to"):
        if peer == WIRE:
            if wire.mode == "tap":
                reader.refuse(key, 'the wire leads to the host (nic.wire.mode = "tap"), which takes part in no workload')
            continue
        if peer not in programs:
            reader.refuse(key, f"{peer!r} is neither a guest nor {WIRE!r}{suggest(peer, [*programs, WIRE])}")
        elif isinstance(program := programs[peer], dict) or (
            isinstance(program, str) and program in PROGRAMS and not program_of(program).workloads
        ):
            shown = f'"{program}"' if isinstance(program, str) else "{ argv = … }"
            reader.refuse(
                key, f"guest {peer!r} has program = {shown}; a workload needs program = {those('workloads')} at both ends"
            )


def _check_frames(reader: _Reader, wire: Wire, guests: Iterable[Guest], workloads: dict[int, Workload]) -> None:
    """No frame is longer than the MTU of a guest at either end, but for guests' streams: they are cut (hyp/load/tcp.py)."""
    mtu = {guest.name: guest.mtu for guest in guests}
    frames = [
        (f"workload[{index}].frame", load.frame, (load.from_, load.to), load.kind == "stream" and load.from_ != WIRE)
        for index, load in workloads.items()
    ]
    for key, frame, peers, cut in [("nic.wire.frame", wire.frame, (wire.to,), False), *frames]:
        least = min((peer for peer in peers if peer in mtu), key=lambda peer: mtu[peer], default=None)
        if least is not None and not cut and frame > (longest := mtu[least] + HEADER):
            reader.refuse(key, f"{frame} bytes are too long for guest {least!r}, whose mtu allows {longest}")


def _check_captures(reader: _Reader, wire: Wire, known: list[str], loads: dict[int, Workload]) -> None:
    """Capture files that are to be replayed are there, and are some; whom frames are for is known."""
    for key, reason in captures.problems(wire, known, loads):
        reader.refuse(key, reason)


def _check_mtu(reader: _Reader, nic: Nic | None, guests: dict[int, Guest]) -> None:
    """No guest sends what the NIC would not take."""
    for index, guest in guests.items():
        if nic is not None and guest.mtu > nic.mtu:
            reader.refuse(f"guest[{index}].mtu", f"{guest.mtu} is more than nic.mtu = {nic.mtu}")


def _check_room(reader: _Reader, nic: Nic | None, dom0: Dom0 | None, guests: dict[int, Guest]) -> None:
    """RAM holds what the domain's driver puts there. Looks at sound tables only."""
    if nic is None:
        return
    if dom0 is not None and dom0.memory < (need := dom0_needs(nic.queue)):
        reader.refuse("dom0.memory", f"{_exact_size(dom0.memory)} is too small for nic.queue = {nic.queue}: {_needed(need)}")
    for index, guest in guests.items():
        if guest.memory < (need := guest_needs(PATHS[guest.path], nic.queue, guest.queues)):
            what = f"path {guest.path!r} with nic.queue = {nic.queue}" + (
                f" and queues = {guest.queues}" if guest.queues > 1 else ""
            )
            reader.refuse(f"guest[{index}].memory", f"{_exact_size(guest.memory)} is too small for {what}: {_needed(need)}")


def _check_confined(reader: _Reader, memory: Memory | None, guests: dict[int, Guest], everybody: bool) -> None:
    """Who can truncate its memory is not confined."""
    if memory is not None and memory.backing != "sealed":
        for key in ["confined"] * everybody + [f"guest[{index}].confined" for index, guest in guests.items() if guest.confined]:
            reader.refuse(key, f'takes memory.backing = "sealed", not "{memory.backing}"')


def _check_iommu(reader: _Reader, memory: Memory | None, guests: dict[int, Guest]) -> None:
    """Who maps by hypercalls writes the table on its own thread, which a sealed one does not allow."""
    for index, guest in guests.items():
        if memory is not None and memory.backing == "sealed" and guest.iommu in ("strict", "deferred"):
            reader.refuse(f"guest[{index}].iommu", f'{guest.iommu!r} takes memory.backing = "posix": a sealed table is not written')


def _check_cpu(reader: _Reader, cpu: Cpu | None, nic: Nic | None, guests: list[str]) -> None:
    """`[cpu]` is about processes that there are."""
    if cpu is None:
        return
    for name in cpu.guests:
        if name not in guests:
            reader.refuse(f"cpu.guests.{name}", f"there is no such guest{suggest(name, guests)}")
    loops = ["hyp", "dom0", "nic", *guests]
    for name in cpu.spin or ():
        if name not in loops:
            reader.refuse("cpu.spin", f"{name!r} has no loop; there are {', '.join(loops)}{suggest(name, loops)}")
    engines = [part for part in cpu.nic or () if isinstance(part, list)]
    if engines and nic is not None and len(engines) != nic.engines:
        reader.refuse("cpu.nic", f"has lists for {len(engines)} engines, and nic.engines is {nic.engines}")


def _exact_size(size: int) -> str:
    """A number of bytes as the file may have it: in the largest unit that loses nothing."""
    unit, name = next((u, n) for u, n in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if size % u == 0)
    return f"{size // unit} {name}"


def _needed(size: int) -> str:
    return f'needs at least "{_exact_size(size)}"'


def _read(file: str, stem: str, data: dict[str, Any]) -> Topology:
    reader = _Reader()
    if "name" not in data and not NAME.fullmatch(stem):
        reader.refuse("name", f"is required, since the file's own name cannot stand in for it: {NAME_RULE}")
    nic = data.get("nic", {})
    wire = reader.table(Wire, nic.get("wire", {}), "nic.wire") if isinstance(nic, dict) else None
    wire = wire or Wire()
    guest_tables = reader.array(data.get("guest", []), "guest")
    load_tables = reader.array(data.get("workload", []), "workload")
    guests: dict[int, Guest] = {}
    for index, table in enumerate(guest_tables):
        if guest := reader.table(Guest, {"mac": derived_mac(index), **table}, f"guest[{index}]"):
            guests[index] = guest
    loads: dict[int, Workload] = {}
    for index, table in enumerate(load_tables):
        if workload := reader.table(Workload, table, f"workload[{index}]"):
            loads[index] = workload
    model = data.get("model", {})
    price = reader.table(Price, _priced(reader, model, Path(file).parent), "model.price") if isinstance(model, dict) else None
    parts: dict[str, Any] = {
        "memory": reader.table(Memory, data.get("memory", {}), "memory"),
        "nic": reader.table(Nic, {**nic, "wire": wire} if isinstance(nic, dict) else nic, "nic"),
        "dom0": reader.table(Dom0, data.get("dom0", {}), "dom0"),
        "spin": reader.table(Spin, data.get("spin", {}), "spin"),
        "cpu": reader.table(Cpu, data.get("cpu", {}), "cpu"),
        "model": reader.table(Model, {**model, "price": price or Price()} if isinstance(model, dict) else model, "model"),
    }
    _check_guests(reader, guest_tables, wire)
    _check_workloads(reader, load_tables, guest_tables, wire)
    _check_frames(reader, wire, guests.values(), loads)
    _check_captures(reader, wire, [name for _, name in _strings(guest_tables, "guest", "name")], loads)
    _check_mtu(reader, parts["nic"], guests)
    _check_room(reader, parts["nic"], parts["dom0"], guests)
    _check_iommu(reader, parts["memory"], guests)
    _check_confined(reader, parts["memory"], guests, data.get("confined") is True)
    _check_cpu(reader, parts["cpu"], parts["nic"], [name for _, name in _strings(guest_tables, "guest", "name")])
    # Parts that are not sound stand as their defaults here: what is left to find are a bad name and unknown keys.
    rest = {key: value for key, value in data.items() if key not in parts}
    sound = {key: part for key, part in parts.items() if part is not None}
    arrays = {"guest": tuple(guests.values()), "workload": tuple(loads.values())}
    name = stem if NAME.fullmatch(stem) else "unnamed"
    topology = reader.table(Topology, {"name": name, **rest, **sound, **arrays}, "")
    if topology is None or reader.problems:
        raise TopologyError(file, reader.problems)
    topology._file = file
    return topology


def _priced(reader: _Reader, model: dict[str, Any], folder: Path) -> object:
    """The table ``[model] price``, on top of what the profile says, whose file is relative to `folder`."""
    name, price = model.get("profile"), model.get("price", {})
    if not isinstance(name, str) or not isinstance(price, dict):
        return price
    try:
        return profile(name, folder).prices | price
    except ProfileError as error:
        reader.refuse("model.profile", str(error))
        return price


def _with_folder(data: dict[str, Any], folder: str) -> dict[str, Any]:
    """The tables of a file, in which programs of the user's own know the file's folder, where they are started."""
    data = captures.with_files(data, folder)
    guests = data.get("guest")
    if not isinstance(guests, list):
        return data
    found = []
    for table in guests:
        own = table.get("program") if isinstance(table, dict) else None
        found.append({**table, "program": {**own, "cwd": folder}} if isinstance(own, dict) and "cwd" not in own else table)
    return {**data, "guest": found}


def load(path: str | Path, more: Mapping[str, Any] = MappingProxyType({})) -> Topology:
    """Read and check the file `path`, with `more` keys at the top in place of its own. TopologyError lists every problem."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # editors begin files with a mark
    except OSError as error:
        raise TopologyError(str(path), [("", f"cannot be read: {error.strerror}")]) from error
    except (ValueError, RecursionError) as error:  # syntax, encoding, a number or nesting without end
        raise TopologyError(str(path), [("", f"is not a TOML file: {error}")]) from error
    return _read(str(path), path.stem, _with_folder({**data, **more}, str(path.resolve().parent)))


def parse(data: dict[str, Any]) -> Topology:
    """A topology given as plain tables, as a TOML file would hold them; `data` has a name. TopologyError lists every problem."""
    return _read(str(data.get("name")), "", _with_folder(data, os.getcwd()))


def check_workload(topology: Topology, table: dict[str, Any]) -> dict[str, Any]:
    """A workload that is not in the file, checked as if it were; returns it with all defaults. TopologyError says what is wrong."""
    reader = _Reader()
    load = reader.table(Workload, table, "")
    _check_workloads(reader, [table], [guest.model_dump(mode="json") for guest in topology.guests], topology.nic.wire)
    _check_frames(reader, Wire(), topology.guests, {} if load is None else {0: load})
    _check_captures(reader, Wire(), [], {} if load is None else {0: load})
    if load is None or reader.problems:
        raise TopologyError(topology.name, [(key.removeprefix("workload[0]."), reason) for key, reason in reader.problems])
    return load.model_dump(mode="json", by_alias=True)


def shipped() -> Path:
    """The folder of the topologies that come with the lab: the repository's, or where pip has put them."""
    root = Path(__file__).resolve().parent
    installed = root / "topologies"
    return installed if installed.is_dir() else root.parent / "topologies"


# --- is the machine large enough? ------------------------------------------------------------------------------------


def available_shm() -> int:
    """Bytes free in /dev/shm, or 0 if there is none."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory to be had without swapping, from the machine and in the control groups (v2) that we are in.

    `root` is where /proc and /sys are found.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * KIB for line in lines if line.startswith("MemAvailable:"))
    membership = root / "proc/self/cgroup"
    groups = membership.read_text().splitlines() if membership.exists() else []
    folder = next((group[3:].strip("/") for group in groups if group.startswith("0::")), "")
    group = root / "sys/fs/cgroup" / folder
    for level in (group, *group.parents):
        try:
            limit = (level / "memory.max").read_text().strip()
            stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
        except OSError:  # the root has no limit, and above it is something else
            continue
        if limit != "max":  # files' cached pages can be had back, so they do not count as taken
            available = min(available, max(0, int(limit) - int(stat["anon"]) - int(stat["shmem"])))
    return available


def check_machine(topology: Topology) -> None:
    """Called before anything is spawned: TopologyError, with what is needed and what there is, for all that is short."""
    if problems := [*_absent_cpus(topology), *_memory_shortages(topology), *shortages(topology.plain()), *_unconfined(topology)]:
        raise TopologyError(topology.file, problems)


def _absent_cpus(topology: Topology) -> list[tuple[str, str]]:
    """What `[cpu]` names that this process may not use."""
    allowed = sorted(os.sched_getaffinity(0))
    listed = ", ".join(map(str, allowed))
    return [
        (f"cpu.{key}", f"CPU {cpu} can't be used here; those that can are {listed}")
        for key, cpu in named_cpus(topology.cpu.model_dump())
        if cpu not in allowed
    ]


def _unconfined(topology: Topology) -> list[tuple[str, str]]:
    """Guests that are to be confined where the kernel, or what is installed, has not all that it takes."""
    keys = ["confined"] if topology.confined else []
    keys += [f"guest[{index}].confined" for index, guest in enumerate(topology.guests) if guest.confined]
    return [(keys[0], f"guests cannot be confined here: {reason}")] if keys and (reason := lacking()) else []


def _memory_shortages(topology: Topology) -> list[tuple[str, str]]:
    needed = topology.shared_memory_bytes()
    stores = [("memory", available_memory(), "")]
    if topology.memory.backing == "posix":
        # a tmpfs promises what memory may not hold, so both are looked at
        size = f"{-(-needed // GIB)}g"
        enlarge = f"enlarge it (mount -o remount,size={size} /dev/shm; docker run --shm-size={size})"
        remedy = f', {enlarge}, or use backing = "sealed"'
        stores.insert(0, ("/dev/shm", available_shm(), remedy))
    for store, available, remedy in stores:
        if available < needed:
            reason = (
                f'"{topology.memory.backing}" needs {show_size(needed)} ({needed} bytes) and {store} has '
                f"{show_size(available)} ({available} bytes) available; give guests or dom0 less memory{remedy}"
            )
            return [("memory.backing", reason)]
    return []
