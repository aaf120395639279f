"""`launch.py new`: a commented topology to start from. What it writes is sound: tests/lab/test_new.py reads every choice back."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domu.programs.table import NAMED, program_of
from hyp.paths import PATHS
from lab.command.doing import FAILED, USAGE, fail, say
from lab.figures import plural
from lab.schema.values import NAME, WIRE

NAMES = {
    "native": ("nora", "nick"), "bypass": ("carl", "dora"), "cdna": ("cora", "cleo"), "split": ("anna", "bert"),
    "trapped": ("emil", "fred"),
}  # fmt: skip
"""What the lab's topologies call the first guests of a path."""
WORKLOADS = ("stream", "rr", "none")
MOST_GUESTS = 16
"""Of a path, here. A file may have more."""

_HEAD = """\
# {about}
# Every key: docs/topology.md. `launch.py check` says what is wrong with this file, `launch.py explain-topology` draws it.

name = "{name}"  # in `launch.py status`, and in the names of its shared memory

# What is commented out below is as it is anyway.

# confined = false  # true: guests get nothing from the machine but what the lab hands them (docs/isolation.md)

# [memory]
# backing = "posix"  # "sealed": memory that nobody else of this user can open, for guests that are not trusted

# [nic]
# engines = 1  # loops of the NIC, each with a thread of its own: 1 to 8
# queue = 256  # descriptors of each queue, a power of two
# mtu = 1500

# [nic.wire]
# mode = "sink"  # "reflect": sends every frame back. "generate": sends by itself. "tap": leads to this machine
# gbps = 0.0  # its bit rate; 0 is no limit
# delay_us = 0

# [spin]
# limit_us = "auto"  # how long loops look for work before they sleep; 0: not at all

# [supervisor]
# restart = true  # NIC, Dom0 and xenstored are started again when they die (docs/faults.md)
# restarts = 5  # who has died so often within within_s seconds is given up
# within_s = 10.0

# [model]
# price = {{}}  # what operations cost in addition to what they cost here: {{ hypercall_ns = 2000 }} (docs/model.md)
"""
_GUEST_MORE = {
    "split": '# grants = "copy"  # how netback gets at its pages: "map", "persistent" (docs/netif.md)\n',
    "bypass": '# iommu = "persistent"  # when its buffers are registered: "strict", "deferred", "copy"\n',
}
_WORKLOAD = """
[[workload]]
kind = "{kind}"  # {about}
from = "{sender}"
to = "{receiver}"  # a guest, or "wire"
frame = {frame}  # bytes of Ethernet, without its checksum
seconds = 1.0
"""
_ABOUT = {"stream": "frames one way, each verified", "rr": "a request and its answer, one at a time"}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the topology is to have. ValueError, saying what is wrong, from `check`."""

    paths: Sequence[str]
    guests: int
    workloads: Sequence[str]
    program: str

    def check(self) -> None:
        if unknown := [path for path in self.paths if path not in PATHS]:
            raise ValueError(f"--paths: {', '.join(unknown)!r} is not a path; there are {', '.join(PATHS)}")
        if len(set(self.paths)) != len(self.paths) or not self.paths:
            raise ValueError("--paths: name each path once, such as split,bypass")
        if unknown := [kind for kind in self.workloads if kind not in WORKLOADS]:
            raise ValueError(f"--workloads: {', '.join(unknown)!r} is no workload; there are {', '.join(WORKLOADS)}")
        if "none" in self.workloads and len(self.workloads) > 1:
            raise ValueError("--workloads: none, or some")
        if self.program not in NAMED:
            raise ValueError(f"--program: {self.program!r} is not a program; there are {', '.join(NAMED)}")

    @property
    def kinds(self) -> list[str]:
        """Kinds of workload: none where guests run programs of the user's own."""
        return [kind for kind in self.workloads if kind != "none" and program_of(self.program).workloads]


def names_of(path: str, guests: int) -> list[str]:
    """What so many guests of a path are called."""
    given = NAMES.get(path, ())
    return [given[k] if k < len(given) else f"{path}-{k + 1}" for k in range(guests)]


def text_of(name: str, choice: Choice) -> str:
    """The file."""
    addressed = program_of(choice.program).addressed
    parts = [_HEAD.format(about=_about(choice), name=name)]
    hosts = itertools.count(1)
    for path in choice.paths:
        parts.append(f"# --- {path}: {PATHS[path].about} ---\n")
        for guest in names_of(path, choice.guests):
            lines = [f'[[guest]]\nname = "{guest}"\npath = "{path}"\n']
            if addressed:
                lines.append(f'program = "{choice.program}"  # an eth0 for any program: `launch.py exec {guest} -- bash`\n')
                lines.append(f'address = "10.0.0.{next(hosts)}/24"\n')
            else:
                lines.append('# program = "traffic"  # the lab\'s own; "tap": an eth0 for any program, with an address\n')
            parts.append("".join([*lines, _GUEST_MORE.get(path, ""), '# memory = "16 MiB"\n']))
    return "\n".join(parts) + "".join(_workload(kind, *ends, frame) for kind, ends, frame in _loads(choice))


def _about(choice: Choice) -> str:
    paths = ", ".join(choice.paths)
    return f"Guests on {paths}." + (" For your own programs." if program_of(choice.program).addressed else "")


def _loads(choice: Choice) -> list[tuple[str, tuple[str, str], int]]:
    """The same for each path: to its neighbour if there is one, and to the wire."""
    found = []
    for kind in choice.kinds:
        for path in choice.paths:
            guests = names_of(path, choice.guests)
            frame = 1500 if kind == "stream" else 64
            found += [(kind, (guests[0], to), frame) for to in (*guests[1:2], WIRE)]
    return found


def _workload(kind: str, sender: str, receiver: str, frame: int) -> str:
    return _WORKLOAD.format(kind=kind, about=_ABOUT[kind], sender=sender, receiver=receiver, frame=frame)


def record_of(file: str, name: str, choice: Choice) -> dict[str, Any]:
    """The same in short, for --json."""
    guests = [guest for path in choice.paths for guest in names_of(path, choice.guests)]
    return {"file": file, "name": name, "guests": guests, "workloads": len(_loads(choice))}


def new(file: Path, paths: str, guests: int, workloads: str, program: str, *, as_json: bool) -> None:
    """Write it, and say so; exits with the reason if that can't be."""
    choice = Choice(_listed(paths), guests, _listed(workloads), program)
    try:
        choice.check()
    except ValueError as error:
        fail(f"new: {error}", USAGE)
    if str(file) == "-":
        print(text_of("lab", choice), end="")
        return
    name = name_of(file)
    try:
        with open(file, "x") as out:
            out.write(text_of(name, choice))
    except FileExistsError:
        fail(f"{file} is there already, and is not overwritten: name another file, or remove it", USAGE)
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}", FAILED)
    found = record_of(str(file), name, choice)
    told = f"{plural(len(found['guests']), 'guest')}, {plural(found['workloads'], 'workload')}"
    say(found, f"wrote {file}: {told}; launch.py run {file} starts it", as_json=as_json)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def name_of(file: Path) -> str:
    """What a topology in that file is called: the file's name, as far as that is one."""
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:31]
    return name if NAME.fullmatch(name) else "lab"
