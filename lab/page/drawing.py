"""The drawing of a topology: its picture (lab/view/picture.py) as SVG. Who has figures puts them in by the names given here.

Left to right: guests, Dom0, NIC, wire; the hypervisor beneath. Split guests stand beside Dom0, those that go past it below, trapped
ones next to the hypervisor, so that no way crosses another. Each guest has two lanes, what it sends above what it receives.

    <g class="node" data-node="anna">                 with the classes of its kind and path
    <g class="hop path-split" data-hop="anna>dom0">   a button; in it `track`, `flow` (the frames), `head`, `marks`, and
      <text data-rate="anna>dom0">                    room for a rate
    <text data-cpu="dom0">, <text data-state="dom0">  room for CPU and state of a process

Two sizes of the same: `WIDE` has marks and rates in words, `NARROW` (390 px) marks as letters, and rates in the guest's box. Every
word of a guest is text of an element: nothing that it says is markup. Colours are the page's; without them, paths are told by words
and by the dashes of their lanes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from hyp.paths import PATHS, Attachment
from lab.view.picture import Hop, Picture
from lab.view.ways import ABOUT, DOM0, HYP, NIC, WIRE, Mark

MOST_GUESTS: Final = 24
"""That are drawn. Of further ones the drawing says how many there are; tables have them."""
LETTERS: Final[Mapping[Mark, str]] = {Mark.TRAP: "T", Mark.HYPERCALL: "H", Mark.COPY: "C", Mark.DMA: "D", Mark.WAKEUP: "W"}
_ORDER: Final = (Attachment.VIF, None, Attachment.EMULATION)
"""From top to bottom; None: those with a context of their own."""


@dataclass(frozen=True, slots=True)
class Size:
    """Measures, in px: (x, width) of each column, height of a guest's row, its lanes' distance, fonts."""

    name: str
    width: int
    guest: tuple[int, int]
    dom0: tuple[int, int]
    nic: tuple[int, int]
    wire: tuple[int, int]
    row: int
    box: int
    lanes: int
    slab: int
    in_words: bool
    turn: int
    """Between two ways that turn down to the hypervisor."""


WIDE: Final = Size("wide", 912, (26, 128), (372, 116), (686, 108), (864, 44), 96, 80, 42, 62, True, 22)
NARROW: Final = Size("narrow", 372, (10, 96), (166, 50), (276, 46), (345, 26), 72, 64, 26, 50, False, 9)

Point = tuple[float, float]


def draw(picture: Picture, size: Size) -> str:
    """The drawing, as the text of an svg element."""
    return ET.tostring(_Drawing(picture, size).svg, encoding="unicode")


def still(picture: Picture, size: Size, words: Mapping[str, str], flows: Mapping[str, float]) -> ET.Element:
    """The drawing as a figure of a page: nothing in it can be pressed.

    `words`: what is written at a hop, or where a node has its CPU, by id. `flows`: of hops at which frames are seen, the share
    of the most that go anywhere, 0 to 1.
    """
    svg = _Drawing(picture, size).svg
    svg.set("role", "img")
    for part in svg.iter():
        hop = part.attrib.get("data-hop")
        if hop is not None:
            for attribute in ("role", "tabindex", "aria-pressed"):
                part.attrib.pop(attribute)
            if hop in flows:
                share = math.sqrt(flows[hop])
                least, more = (3, 13) if size.in_words else (2, 7)
                part.set("class", part.attrib["class"] + " moves")
                part.set("style", f"--w: {least + more * share:.1f}px; --t: {4 - 3 * share:.1f}s")
        name = part.attrib.get("data-rate") or part.attrib.get("data-cpu")
        if name is not None and name in words:
            part.text = part.attrib.get("data-prefix", "") + words[name]
    return svg


def _of(guest: Mapping[str, Any]) -> Attachment | None:
    attachment = PATHS[guest["path"]].attachment
    return attachment if attachment in (Attachment.VIF, Attachment.EMULATION) else None


class _Drawing:
    def __init__(self, picture: Picture, size: Size) -> None:
        self._size, self._picture = size, picture
        self._hops: dict[str, Hop] = {hop["id"]: hop for hop in picture["hops"]}
        guests = [node for node in picture["nodes"] if node["kind"] == "guest"]
        guests.sort(key=lambda guest: _ORDER.index(_of(guest)))  # stable: within a kind, as in the topology
        self._more = len(guests) - MOST_GUESTS
        self._guests = guests[:MOST_GUESTS]
        self._middle: dict[str, float] = {}
        self._lay_out()
        self.svg = ET.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "class": f"drawing {size.name}", "role": "group",
                    "viewBox": f"0 0 {size.width} {self._height:g}", "aria-label": f"topology {picture['name']}"},
        )  # fmt: skip
        self._draw_nodes()
        self._draw_hops()

    # -- places --

    def _lay_out(self) -> None:
        size, top = self._size, 8.0
        split = [guest for guest in self._guests if _of(guest) is Attachment.VIF]
        dom0_height = max(len(split) * size.row - (size.row - size.box), size.box)
        self._dom0 = (top, dom0_height)
        y = top + (0 if split else dom0_height + size.row - size.box)
        for guest in self._guests:
            self._middle[guest["id"]] = y + size.box / 2
            y += size.row
        self._bottom = max(y, top + dom0_height + 12)
        if self._more > 0:
            self._bottom += 24
        self._slab = self._bottom + (6 if size.in_words else 4)
        self._height = self._slab + size.slab + 8
        self._nic = (top, self._bottom - top - (size.row - size.box))

    def _lane(self, guest: str, way: str) -> float:
        return self._middle[guest] + (-1 if way == "tx" else 1) * self._size.lanes / 2 + (6 if self._size.in_words else 0)

    def _shared(self, way: str) -> float:
        """Of what all share, between Dom0 and NIC: at Dom0's height."""
        top, height = self._dom0
        return top + height / 2 + (-1 if way == "tx" else 1) * self._size.lanes / 2 + (6 if self._size.in_words else 0)

    # -- nodes --

    def _draw_nodes(self) -> None:
        size = self._size
        self._draw_slab()
        self._box(DOM0, "Dom0", (size.dom0[0], self._dom0[0], size.dom0[1], self._dom0[1]), "Dom0")
        self._box(NIC, "NIC", (size.nic[0], self._nic[0], size.nic[1], self._nic[1]), "NIC")
        self._box(WIRE, "wire", (size.wire[0], self._nic[0], size.wire[1], self._nic[1]), "wire")
        for guest in self._guests:
            middle = self._middle[guest["id"]]
            box = (size.guest[0], middle - size.box / 2, size.guest[1], size.box)
            self._guest(guest, box)
        if self._more > 0:
            text = f"and {self._more} more guests, which the tables below have"
            self._text(self.svg, size.guest[0], self._bottom - 12, text, "small")

    def _box(self, name: str, label: str, place: tuple[float, float, float, float], kind: str) -> ET.Element:
        x, y, width, height = place
        group = ET.SubElement(self.svg, "g", {"class": f"node kind-{kind.lower()}", "data-node": name})
        ET.SubElement(group, "rect", _numbers(x=x, y=y, width=width, height=height, rx=6))
        if name == WIRE:
            self._text(group, x + width / 2, y + 20, label, "name middle")
            return group
        inset = 10 if self._size.in_words else 6
        self._text(group, x + inset, y + (22 if self._size.in_words else 17), label, "name")
        self._text(group, x + inset, y + (40 if self._size.in_words else 31), "", "small", **{"data-cpu": name})
        self._text(group, x + inset, y + height - 9, "", "state", **{"data-state": name})
        return group

    def _guest(self, guest: Mapping[str, Any], place: tuple[float, float, float, float]) -> None:
        x, y, width, height = place
        name, path = guest["id"], guest["path"]
        group = ET.SubElement(self.svg, "g", {"class": f"node kind-guest path-{path}", "data-node": name})
        ET.SubElement(group, "title").text = name
        ET.SubElement(group, "rect", _numbers(x=x, y=y, width=width, height=height, rx=6))
        ET.SubElement(group, "rect", {"class": "edge", **_numbers(x=x, y=y, width=5, height=height, rx=2)})
        most = 10 if self._size.in_words else 9
        if self._size.in_words:
            self._text(group, x + 14, y + 22, _cut(guest["label"], most), "name")
            self._text(group, x + 14, y + 41, path, "path")
            self._text(group, x + 14, y + 60, "", "small", **{"data-cpu": name})
            self._text(group, x + width - 8, y + 22, "", "state end", **{"data-state": name})
        else:
            self._text(group, x + 11, y + 16, _cut(guest["label"], most), "name")
            self._text(group, x + 11, y + 31, path, "path")
            self._text(group, x + width - 5, y + 31, "", "state end", **{"data-state": name})
            first, last = self._first_and_last(name)
            self._text(group, x + 11, y + 45, "", "small", **{"data-rate": first, "data-prefix": "→ "})
            self._text(group, x + 11, y + 58, "", "small", **{"data-rate": last, "data-prefix": "← "})

    def _first_and_last(self, guest: str) -> tuple[str, str]:
        path = next(path for path in self._picture["paths"] if path["guest"] == guest)
        carrying = {way: [hop for hop in path[way] if self._hops[hop]["carries"] == "frames"] for way in ("tx", "rx")}
        return carrying["tx"][0], carrying["rx"][-1]

    def _draw_slab(self) -> None:
        size = self._size
        left, right = size.guest[0], size.nic[0] + size.nic[1]
        group = self._box(HYP, "hypervisor", (left, self._slab, right - left, size.slab), "hyp")
        if size.in_words:
            about = "memory, grants, event channels, IOMMU tables; hypercalls run on their caller's thread"
            self._text(group, left + 112, self._slab + 22, about, "small")
        else:
            self._text(group, left + 92, self._slab + 17, "memory, grants, events", "small")

    # -- hops --

    def _draw_hops(self) -> None:
        drawn = {guest["id"] for guest in self._guests}
        turns = {guest["id"]: k for k, guest in enumerate(self._guests) if _of(guest) is Attachment.EMULATION}
        first = min(turns.values(), default=0)
        self._turns = {name: (len(turns) - 1 - (k - first), k - first) for name, k in turns.items()}
        paths = {path["guest"]: path["path"] for path in self._picture["paths"]}
        for hop in sorted(self._hops.values(), key=lambda hop: hop["carries"] != "frames"):  # detours above, with their marks
            if hop["guest"] is None:
                used = {paths[path["guest"]] for path in self._picture["paths"] if hop["id"] in (*path["tx"], *path["rx"])}
                self._hop(hop, next(iter(used)) if len(used) == 1 and WIRE not in (hop["source"], hop["target"]) else "shared")
            elif hop["guest"] in drawn:
                self._hop(hop, paths[hop["guest"]])

    def _hop(self, hop: Hop, path: str) -> None:
        points, at = self._way(hop)
        marks = [Mark(mark) for mark in hop["marks"]]
        words = ", ".join(mark.value for mark in marks)
        group = ET.SubElement(
            self.svg, "g", {"class": f"hop path-{path} carries-{hop['carries']}", "data-hop": hop["id"], "role": "button",
                            "tabindex": "0", "aria-pressed": "false",
                            "aria-label": f"{hop['source']} to {hop['target']}" + (f": {words}" if words else "")},
        )  # fmt: skip
        line = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        ET.SubElement(group, "title").text = f"{hop['source']} → {hop['target']}: {hop['what']}"
        for kind in ("reach", "track", "flow"):
            ET.SubElement(group, "path", {"class": kind, "d": line})
        ET.SubElement(group, "path", {"class": "head", "d": _head(points[-2], points[-1], 10 if self._size.in_words else 7)})
        if self._size.in_words and hop["carries"] == "frames":
            (x, y), _ = at
            self._text(group, x, y, "", "rate", **{"data-rate": hop["id"]})
        self._marks(group, marks, at[1])

    def _way(self, hop: Hop) -> tuple[list[Point], tuple[Point, Point]]:
        """The line of a hop; and where its rate begins, and its marks do."""
        size, way = self._size, hop["way"]
        columns = {DOM0: size.dom0, NIC: size.nic, WIRE: size.wire}
        source, target, guest = hop["source"], hop["target"], hop["guest"]
        if hop["carries"] != "frames":
            return self._margin(hop)
        if HYP in (source, target):
            return self._by_slab(hop)
        right_of = (size.guest if source == guest else columns[source]) if way == "tx" else None
        if way == "tx":
            assert right_of is not None
            x0, x1 = sum(right_of), columns[target][0]
        else:
            left_of = size.guest if target == guest else columns[target]
            x0, x1 = columns[source][0], sum(left_of)
        if guest is not None:
            y = self._lane(guest, way)
        elif WIRE in (source, target):
            top, height = self._nic
            y = top + height / 2 + (-1 if way == "tx" else 1) * size.lanes / 2
        else:
            y = self._shared(way)
        left, right = min(x0, x1), max(x0, x1)
        wide_marks = self._marks_width([Mark(mark) for mark in hop["marks"]])
        if size.in_words:
            # a way past Dom0 has its marks where the NIC's are, between Dom0 and NIC
            begin = size.dom0[0] + size.dom0[1] if guest is not None and right == size.nic[0] else left
            marks_x = begin + (right - begin - wide_marks) / 2
            return [(x0, y), (x1, y)], ((left + 10, y - 13), (marks_x, y))
        return [(x0, y), (x1, y)], ((left, y), (right - wide_marks - 8 if way == "tx" else right - wide_marks - 4, y))

    def _by_slab(self, hop: Hop) -> tuple[list[Point], tuple[Point, Point]]:
        """A trapped guest's: down to the hypervisor, or up from it to the NIC."""
        size, way, guest = self._size, hop["way"], hop["guest"]
        to_left, to_right = self._turns[guest]
        y = self._lane(guest, way)
        side = -1 if way == "tx" else 1
        step = 2 * size.turn
        marks = self._marks_width([Mark(mark) for mark in hop["marks"]])
        if NIC in (hop["source"], hop["target"]):
            outer = size.dom0[0] + size.dom0[1] + 8 if size.in_words else size.dom0[0] + 12
            x = outer + to_right * step + (size.turn / 2) * (1 + side)
            line = [(x, self._slab), (x, y), (size.nic[0], y)]
            place = ((x + 8, y - 13), (size.nic[0] - marks - 16 if size.in_words else size.nic[0] - marks - 6, y))
        else:
            reach = sum(size.guest) + (178 if size.in_words else 34)
            x = reach + to_left * step + (size.turn / 2) * (1 - side)
            line = [(sum(size.guest), y), (x, y), (x, self._slab)]
            place = ((sum(size.guest) + 10, y - 13), (sum(size.guest) + (12 if size.in_words else 2), y))
        towards = hop["target"] == NIC or hop["target"] == HYP
        return (line if towards else line[::-1]), place

    def _margin(self, hop: Hop) -> tuple[list[Point], tuple[Point, Point]]:
        """A detour of descriptors: down the left margin to the hypervisor. Its mark is where the guest calls."""
        size, guest = self._size, hop["guest"]
        x = size.guest[0] - (8 if hop["way"] == "tx" else 16) * (1 if size.in_words else 0.45)
        y = self._lane(guest, hop["way"])
        line = [(size.guest[0], y), (x, y), (x, self._slab + 14), (size.guest[0], self._slab + 14)]
        if hop["way"] == "rx":
            line = [(size.guest[0], y), (x, y), (x, self._slab + 26), (size.guest[0], self._slab + 26)][::-1]
        return line, ((x, y), (sum(size.guest) + (14 if size.in_words else 5), y))

    def _marks_width(self, marks: list[Mark]) -> float:
        return sum(self._pill(mark) for mark in marks) + max(len(marks) - 1, 0) * self._gap

    @property
    def _gap(self) -> float:
        return 5 if self._size.in_words else 2

    def _pill(self, mark: Mark) -> float:
        return 16 + 6.2 * len(mark.value) if self._size.in_words else 14

    def _marks(self, group: ET.Element, marks: list[Mark], at: Point) -> None:
        x, y = at
        for mark in marks:
            width = self._pill(mark)
            pill = ET.SubElement(group, "g", {"class": f"mark mark-{mark.value.lower()}"})
            ET.SubElement(pill, "title").text = f"{mark.value}: {ABOUT[mark]}"
            half = 9 if self._size.in_words else 7
            round_by = half if self._size.in_words else 3
            ET.SubElement(pill, "rect", _numbers(x=x, y=y - half, width=width, height=2 * half, rx=round_by))
            label = mark.value if self._size.in_words else LETTERS[mark]
            self._text(pill, x + width / 2, y + 4, label, "middle")
            x += width + self._gap

    def _text(self, parent: ET.Element, x: float, y: float, text: str, kind: str, **more: str) -> None:
        ET.SubElement(parent, "text", {"class": kind, **_numbers(x=x, y=y), **more}).text = text


def _numbers(**values: float) -> dict[str, str]:
    return {name: f"{value:g}" for name, value in values.items()}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _head(before: Point, end: Point, size: float) -> str:
    """An arrow's head at the end of a line whose last part is horizontal or vertical."""
    (x0, y0), (x, y) = before, end
    if abs(x - x0) >= abs(y - y0):
        back = -size * 1.4 if x > x0 else size * 1.4
        corners = [(x + back, y - size), (x, y), (x + back, y + size)]
    else:
        back = -size * 1.4 if y > y0 else size * 1.4
        corners = [(x - size, y + back), (x, y), (x + size, y + back)]
    return "M" + " L".join(f"{a:g} {b:g}" for a, b in corners) + "z"
