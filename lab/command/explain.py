"""`launch.py explain-topology`: a topology drawn as text, however narrow the terminal. Pure: from a picture to lines.

One lane for each way that its guests' frames go, with whom they pass at the same place in each, so that a detour is seen as one
and a bypass, too. What an encoding has no character for, lab/command/encoding.py replaces one for one.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from lab.figures import plural
from lab.view.picture import Picture
from lab.view.ways import ABOUT, DOM0, HYP, NIC, WIRE, Mark

LEAST, MOST = 40, 120
WIDE = 90
"""From so many columns on what happens is spelt out in the drawing, else it is a letter."""
LETTERS = {Mark.TRAP: "T", Mark.HYPERCALL: "H", Mark.COPY: "C", Mark.DMA: "D", Mark.WAKEUP: "W"}
_NAMES = {DOM0: "Dom0", HYP: "hypervisor", NIC: "NIC", WIRE: "wire"}
_MIDDLE = 10
"""Columns for who may stand between guest and NIC."""
Hop = dict[str, Any]
Way = tuple[str, list[Hop], list[Hop], list[str]]
"""What it is called, hops out, hops in, guests."""


def explained(picture: Picture, columns: int) -> list[str]:
    """The drawing, its legend, and hop by hop what happens there."""
    width = min(max(columns, LEAST), MOST)
    ways = _ways(picture)
    lines = [*_who(picture, width), ""]
    for about, out, back, guests in ways:
        lines += _folded(f"{about}: {', '.join(guests)}", width)
        lines += [*_lane(out, width, out=True), *_lane(back, width, out=False), ""]
    lines += _legend(ways, width)
    for about, out, back, _ in ways:
        lines += ["", f"{about}, hop by hop"]
        for title, hops in (("out", out), ("in", back)):
            for index, hop in enumerate(hops, 1):
                lines += _told(f"{title} {index}", hop, width)
    return lines


def _ways(picture: Picture) -> list[Way]:
    """The different ways, and who goes by each."""
    hops = {hop["id"]: hop for hop in picture["hops"]}
    found: dict[tuple[str, ...], Way] = {}
    for path in picture["paths"]:
        out, back = ([hops[one] for one in path[way]] for way in ("tx", "rx"))
        key = (path["path"], *(hop["what"] for hop in (*out, *back)))
        n = path["copies"]["tx"]
        about = f"{path['path']} ({'1 copy' if n == 1 else plural(n, 'copie')} each way)"
        found.setdefault(key, (about, out, back, []))[3].append(path["guest"])
    return list(found.values())


def _who(picture: Picture, width: int) -> list[str]:
    nodes = {node["id"]: node for node in picture["nodes"]}
    nic, wire = nodes[NIC], nodes[WIRE]
    contexts = ", ".join(dict.fromkeys(_NAMES.get(one["owner"], one["owner"]) for one in nic["contexts"]))
    lines = [
        f"{picture['name']}: {plural(len(picture['paths']), 'guest')}",
        f"Dom0's bridge has ports for {', '.join(nodes[DOM0]['ports'])}",
        f"the NIC ({plural(nic['engines'], 'engine')}) has contexts for {contexts}",
        f"the wire: {wire['mode']}",
    ]
    return [line for text in lines for line in _folded(text, width)]


def _folded(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="    ", break_long_words=True, break_on_hyphens=False)


# --- the drawing -----------------------------------------------------------------------------------------------------


def _lane(hops: Sequence[Hop], width: int, *, out: bool) -> list[str]:
    """A line for the way of the frames, and one for each detour of their descriptors."""
    frames = [hop for hop in hops if hop["carries"] == "frames"]
    order = frames if out else frames[::-1]  # from the guest on, as it is drawn
    between = order[0]["target" if out else "source"]
    first = width * 2 // 5 if width >= WIDE else 12
    second = width * 3 // 10 if width >= WIDE else 10
    last = min(max(width - 2 - 5 - first - _MIDDLE - second - 3 - 4, 4), 20)
    if between == NIC:
        line = "guest" + _arrow(order[0], first + _MIDDLE + second, width, out=out) + "NIC"
    else:
        middle = _NAMES[between].center(_MIDDLE)
        line = "guest" + _arrow(order[0], first, width, out=out) + middle + _arrow(order[1], second, width, out=out) + "NIC"
    lines = ["  " + line + _arrow(order[-1], last, width, out=out) + "wire"]
    for hop in hops:
        if hop["carries"] != "frames":
            lines.append("  guest" + _arrow(hop, first, width, out=out) + _NAMES[HYP][:_MIDDLE] + " (descriptors alone)")
    return lines


def _arrow(hop: Hop, length: int, width: int, *, out: bool) -> str:
    """An arrow of that length with what happens on the way."""
    marks = [Mark(mark) for mark in hop["marks"]]
    said = " ".join(mark.value if width >= WIDE else LETTERS[mark] for mark in marks)
    said = f" {said} " if said else ""
    shaft = said.center(length - 3, "─")[: length - 3]
    return f" {shaft}▶ " if out else f" ◀{shaft} "


def _legend(ways: Iterable[Way], width: int) -> list[str]:
    used = {mark for _, out, back, _ in ways for hop in (*out, *back) for mark in hop["marks"]}
    lines = []
    for mark in Mark:
        if mark in used:
            letter = "" if width >= WIDE else f"{LETTERS[mark]} "
            lines += _folded(f"{letter}{mark.value}: {ABOUT[mark]}", width)
    return lines


def _told(title: str, hop: Hop, width: int) -> list[str]:
    source, target = (_NAMES.get(hop[end], "guest" if hop["guest"] == hop[end] else hop[end]) for end in ("source", "target"))
    marks = f" ({', '.join(hop['marks'])})" if hop["marks"] else ""
    lines = _folded(f"  {title}  {source} → {target}{marks}", width)
    wrapped = textwrap.wrap(f"{hop['what']}; {hop['file']} {hop['code']}", max(width - 9, 20), break_on_hyphens=False)
    return lines + [f"{'':9}{line}" for line in wrapped]
