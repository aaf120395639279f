"""What `launch.py top` shows: a sample as a table, guest by guest and hop by hop. Pure: from a picture and a sample to lines.

Lines are put together here and not by rich, whose tables took 24 ms of CPU where these take less than one: a viewer shares the
machine with what it looks at (`python -m bench watching`).
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from rich.cells import cell_len, set_cell_size

from lab.figures import number, short
from lab.view.picture import Picture
from lab.view.samples import STOPPED, Sample

Hop = Mapping[str, Any]
SHARED = "shared"
"""The group of what is nobody's own."""
NARROW = 120
"""Columns of a terminal from which on headings are spelt out and all figures have room."""


_TOGETHER = "\u00a0"
"""Where a line is not to be folded."""
T = TypeVar("T")


class Look(Enum):
    """How a line is shown: attributes of SGR, colours among them."""

    USUAL = ""
    GUEST = "1"
    PICKED = "1;7"
    QUIET = "2"
    WARNING = "33"
    BAD = "1;31"


Line = tuple[str, Look]


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a hop."""

    heading: str
    brief: str
    """The heading in a narrow terminal; empty: it has no room there."""
    show: Callable[[Hop], str]


def _rate(key: str) -> Callable[[Hop], str]:
    return lambda hop: "–" if hop[key] is None else short(hop[key])


def _share(hop: Hop) -> str:
    return "" if hop["suppressed"] is None else f"{100 * hop['suppressed']:.0f}%"


def _under_way(hop: Hop) -> str:
    return "–" if hop["in_flight"] is None else str(hop["in_flight"])


def counted(names: Mapping[str, Mapping[str, Any]]) -> str:
    """Of drops or faults: how many in all, and a mark while there are more."""
    total = sum(one["total"] for one in names.values())
    shown = f"{total:,}" if total < 10_000 else short(total)
    return (shown if total else "") + ("!" if any(one["s"] != 0 for one in names.values()) else "")


COLUMNS = (
    Column("frames/s", "fr/s", _rate("fps")),
    Column("Gbit/s", "Gb/s", lambda hop: number(hop["gbps"])),
    Column("in flight", "fly", _under_way),
    Column("notified/s", "", _rate("notifications_s")),
    Column("suppressed", "supp", _share),
    Column("wake-ups/s", "wake", _rate("wakeups_s")),
    Column("calls/s", "", _rate("calls_s")),
    Column("drops", "drop", lambda hop: counted(hop["drops"])),
    Column("faults", "flt", lambda hop: counted(hop["faults"])),
)


@dataclass(frozen=True, slots=True)
class Group:
    """A guest and its own hops; or what guests share."""

    name: str
    about: str
    cpu: float | None
    state: str
    hops: list[tuple[str, Hop]] = field(default_factory=list)
    """(what it is called, its figures)"""

    @property
    def frames(self) -> float:
        return sum(hop["fps"] or 0 for _, hop in self.hops)

    @property
    def drops(self) -> int:
        return sum(one["total"] for _, hop in self.hops for one in hop["drops"].values())


SORTS: Mapping[str, Callable[[Group], Any] | None] = {
    "topology": None,
    "frames": lambda group: -group.frames,
    "drops": lambda group: -group.drops,
    "CPU": lambda group: -(group.cpu or 0),
    "name": lambda group: group.name,
}
"""By what guests can be sorted: "topology" is as they stand in it."""


def groups(picture: Picture, sample: Sample, sort: str = "topology") -> list[Group]:
    """The guests, sorted, and what they share behind them."""
    hops, processes = sample["hops"], sample["processes"]
    own: dict[str | None, list[tuple[str, Hop]]] = {}
    for hop in picture["hops"]:
        name = f"{hop['source']} → {hop['target']}"
        own.setdefault(hop["guest"], []).append((name, hops[hop["id"]]))

    def group(name: str, about: str, of: list[tuple[str, Hop]]) -> Group:
        process = processes.get(name)
        return Group(name, about, process["cpu"] if process else None, _state(process), of)

    guests = [group(path["guest"], path["path"], own.get(path["guest"], [])) for path in picture["paths"]]
    key = SORTS[sort]
    guests = sorted(guests, key=key) if key is not None else guests
    others = [node["id"] for node in picture["nodes"] if node["kind"] != "guest" and node["process"]]
    return [*guests, Group(SHARED, "", None, "", own.get(None, [])), *(group(name, "", []) for name in others)]


def _state(process: Mapping[str, Any] | None) -> str:
    if process is None or process["state"] == "":
        return "gone"
    return "stopped" if process["state"] in STOPPED else ""


def table(shown: Iterable[Group], width: int | None = None, picked: str | None = None) -> list[Line]:
    """All of it, a heading first: for a terminal `width` wide, or as wide as it gets."""
    narrow = width is not None and width < NARROW
    columns = [column for column in COLUMNS if column.brief or not narrow]
    rows = [(["hop", *(column.brief if narrow else column.heading for column in columns), "CPU"], Look.GUEST)]
    for group in shown:
        title = " ".join(filter(None, (group.name, group.about, group.state)))
        cpu = "" if group.cpu is None else f"{100 * group.cpu:.0f}%"
        look = Look.PICKED if group.name == picked else Look.BAD if group.state else Look.GUEST
        rows.append(([title, *[""] * len(columns), cpu], look))
        rows += [([f" {name}", *(column.show(hop) for column in columns), ""], _look(hop)) for name, hop in group.hops]
    return _aligned(rows, width, 1 if narrow else 2)


def _look(hop: Hop) -> Look:
    if any(one["s"] != 0 for what in ("drops", "faults") for one in hop[what].values()):
        return Look.WARNING
    return Look.USUAL if hop["fps"] else Look.QUIET


def _aligned(rows: Sequence[tuple[list[str], Look]], width: int | None, gap: int) -> list[Line]:
    """The first column to the left, in what room the others leave; the others to the right."""
    wide = [max(len(cells[index]) for cells, _ in rows) for index in range(len(rows[0][0]))]
    if width is not None:
        wide[0] = max(width - sum(one + gap for one in wide[1:]), 1)
    between = " " * gap
    lines = []
    for cells, look in rows:
        figures = (cell.rjust(one) for cell, one in zip(cells[1:], wide[1:], strict=True))
        lines.append((between.join([fitted(cells[0], wide[0]).ljust(wide[0]), *figures]), look))
    return lines


def fitted(text: str, width: int) -> str:
    """No wider than that many columns."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def detail(picture: Picture, sample: Sample, guest: str, width: int) -> list[Line]:
    """One guest, every hop of its way with what happens there, where, and what was dropped by which name."""
    path = next((path for path in picture["paths"] if path["guest"] == guest), None)
    if path is None:
        return []
    by_id = {hop["id"]: hop for hop in picture["hops"]}
    lines: list[Line] = [(f"{guest}, {path['path']}", Look.PICKED)]

    def say(text: str, look: Look, indent: str = "  ") -> None:
        folded = textwrap.wrap(text, max(width, 20), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        lines.extend((line.replace(_TOGETHER, " "), look) for line in folded)

    for way, title in (("tx", "out"), ("rx", "in")):
        for index, name in enumerate(path[way], 1):
            hop, now = by_id[name], sample["hops"][name]
            shared = "" if hop["guest"] else ", everybody's"
            marks = ", ".join(hop["marks"]) or "no copy"
            say(f"{title} {index}  {hop['source']} → {hop['target']}  ({marks}{shared})", Look.GUEST, "")
            figures = [(column.heading, column.show(now)) for column in COLUMNS[:-2]]
            say(
                "  ".join(
                    f"{heading}{_TOGETHER}{value}".replace(" ", _TOGETHER) for heading, value in figures if value not in ("", "–")
                ),
                Look.USUAL,
            )
            for what in ("drops", "faults"):
                if now[what]:
                    say(f"{what}: " + ", ".join(f"{one['total']:,} {called}" for called, one in now[what].items()), Look.WARNING)
            say(f"{hop['what']}: {hop['file']} {hop['code']}", Look.QUIET)
    return lines


def drawn(line: Line, width: int, colours: bool = True) -> str:
    """A line for a terminal, with its look."""
    text, look = line
    codes = [code for code in look.value.split(";") if code and (colours or not code.startswith("3"))]
    text = fitted(text, width)
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes else text


def window(lines: Sequence[T], around: int, room: int) -> list[T]:
    """As many lines as there is room for, the first (a heading) always, and that with the index `around` among them."""
    if len(lines) <= room or room < 2:
        return list(lines[: max(room, 0)])
    body = room - 1
    start = min(max(around - 1 - body // 2, 0), len(lines) - 1 - body)
    return [lines[0], *lines[1 + start : 1 + start + body]]
