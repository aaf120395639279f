"""What `launch.py top` shows: a sample as a table, guest by guest and hop by hop. Pure: from a picture and a sample to lines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lab.figures import number, short
from lab.view.picture import Picture
from lab.view.samples import STOPPED, Sample

Hop = Mapping[str, Any]
SHARED = "shared"
"""The group of what is nobody's own."""
NARROW = 120
"""Columns of a terminal from which on headings are spelt out and all figures have room."""


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


def table(shown: Iterable[Group], width: int | None = None, picked: str | None = None) -> Table:
    """All of it: for a terminal `width` wide, or as wide as it gets. A line is bold for a guest, reversed for the picked one."""
    narrow = width is not None and width < NARROW
    columns = [column for column in COLUMNS if column.brief or not narrow]
    made = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold", width=width)
    made.add_column("hop", no_wrap=True, overflow="ellipsis", ratio=1 if width else None)
    for column in columns:
        made.add_column(column.brief if narrow else column.heading, justify="right", no_wrap=True)
    made.add_column("CPU", justify="right", no_wrap=True)
    for group in shown:
        bad = group.state != ""
        title = " ".join(filter(None, (group.name, group.about, group.state)))
        cpu = "" if group.cpu is None else f"{100 * group.cpu:.0f}%"
        style = "reverse bold" if group.name == picked else "bold red" if bad else "bold"
        made.add_row(Text(title), *[""] * len(columns), cpu, style=style)
        for name, hop in group.hops:
            made.add_row(Text(f" {name}"), *(column.show(hop) for column in columns), "", style=_style(hop))
    return made


def _style(hop: Hop) -> str:
    if any(one["s"] != 0 for what in ("drops", "faults") for one in hop[what].values()):
        return "yellow"
    return "" if hop["fps"] else "dim"


def detail(picture: Picture, sample: Sample, guest: str) -> Table | None:
    """One guest, every hop of its way with what happens there, where, and what was dropped by which name."""
    path = next((path for path in picture["paths"] if path["guest"] == guest), None)
    if path is None:
        return None
    by_id = {hop["id"]: hop for hop in picture["hops"]}
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True)
    made.add_column(f"{guest}, {path['path']}", ratio=1)
    for way, title in (("tx", "out"), ("rx", "in")):
        for index, name in enumerate(path[way]):
            hop, now = by_id[name], sample["hops"][name]
            shared = "" if hop["guest"] else ", everybody's"
            head = f"{title} {index + 1}  {hop['source']} → {hop['target']}  ({', '.join(hop['marks']) or 'no copy'}{shared})"
            made.add_row(Text(head, "bold"))
            figures = [(column.heading, column.show(now)) for column in COLUMNS[:-2]]
            made.add_row(Text("  " + "  ".join(f"{heading} {value}" for heading, value in figures if value not in ("", "–"))))
            for what in ("drops", "faults"):
                if now[what]:
                    named = ", ".join(f"{one['total']:,} {called}" for called, one in now[what].items())
                    made.add_row(Text(f"  {what}: {named}", "yellow"))
            made.add_row(Text(f"  {hop['what']}: {hop['file']} {hop['code']}", "dim"))
    return made


def window(lines: Sequence[str], around: int, room: int) -> list[str]:
    """As many lines as there is room for, the first (a heading) always, and that with the index `around` among them."""
    if len(lines) <= room or room < 2:
        return list(lines[: max(room, 0)])
    body = room - 1
    start = min(max(around - 1 - body // 2, 0), len(lines) - 1 - body)
    return [lines[0], *lines[1 + start : 1 + start + body]]
