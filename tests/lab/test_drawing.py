"""The drawing of a topology: every hop of every path is in it, nothing beyond its edge, and names are text."""

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from hyp.paths import PATHS
from lab.api.tables import topology_of
from lab.page.drawing import MOST_GUESTS, NARROW, WIDE, Size, draw
from lab.view.picture import Picture, picture
from tests.support.labs import ROOT

SVG = "{http://www.w3.org/2000/svg}"
EVERY_PATH = {f"{path[:2]}{k}": path for path in PATHS for k in range(2)}
SIZES = pytest.mark.parametrize("size", [WIDE, NARROW], ids=lambda size: size.name)


def picture_of(guests: Any) -> Picture:
    plain = topology_of(None, "drawn", guests, {}).plain()
    return picture(plain["name"], plain["guest"], plain["nic"])


@SIZES
@pytest.mark.parametrize("guests", [EVERY_PATH, *({"g": path} for path in PATHS)], ids=lambda guests: "+".join(guests.values()))
def test_every_hop_is_drawn_once_within_the_edge(guests: dict[str, str], size: Size) -> None:
    shown = picture_of(guests)
    svg = ET.fromstring(draw(shown, size))
    hops = [hop for hop in svg.iter(f"{SVG}g") if "data-hop" in hop.attrib]
    assert sorted(hop.attrib["data-hop"] for hop in hops) == sorted(hop["id"] for hop in shown["hops"])
    assert all(hop.attrib["tabindex"] == "0" and hop.attrib["role"] == "button" for hop in hops)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for path in svg.iter(f"{SVG}path"):
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path.attrib["d"])]
        assert all(0 <= x <= width for x in numbers[::2]), path.attrib["d"]
        assert all(0 <= y <= height for y in numbers[1::2]), path.attrib["d"]
    nodes = {node.attrib["data-node"] for node in svg.iter(f"{SVG}g") if "data-node" in node.attrib}
    assert nodes == {"hyp", "dom0", "nic", "wire", *guests}


@SIZES
def test_marks_are_where_things_happen_and_do_not_overlap(size: Size) -> None:
    svg = ET.fromstring(draw(picture_of(EVERY_PATH), size))
    placed: list[tuple[float, float, float, float]] = []
    for mark in svg.iter(f"{SVG}g"):
        if "mark" in mark.attrib.get("class", "").split():
            rect = mark.find(f"{SVG}rect")
            assert rect is not None
            x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
            clear = all(x >= a + w or a >= x + width or y >= b + h or b >= y + height for a, b, w, h in placed)
            assert clear, mark.attrib
            placed.append((x, y, width, height))
    assert len(placed) > 20


def test_every_path_has_dashes_of_its_own() -> None:
    css = (ROOT / "lab" / "page" / "drawing.css").read_text()
    dashes = {path: re.findall(rf"\.path-{path} {{ --dash: ([\d ]+);", css) for path in PATHS}
    assert all(len(found) == 1 for found in dashes.values()), dashes
    assert len({found[0] for found in dashes.values()}) == len(PATHS)


@SIZES
def test_names_are_text(size: Size) -> None:
    shown = picture_of({"anna": "split"})
    hostile = '<script>"&\x01'
    text = draw(rename(shown, "anna", hostile.replace("\x01", "")), size)
    svg = ET.fromstring(text)
    assert "<script" not in text
    assert any((element.text or "").startswith("<script>") for element in svg.iter(f"{SVG}text"))


def rename(shown: Any, before: str, after: str) -> Any:
    if isinstance(shown, dict):
        return {key: rename(value, before, after) for key, value in shown.items()}
    if isinstance(shown, list):
        return [rename(value, before, after) for value in shown]
    return shown.replace(before, after) if isinstance(shown, str) else shown


@SIZES
def test_of_many_guests_some_are_drawn_and_the_rest_are_said(size: Size) -> None:
    guests = {f"g{k}": "bypass" if k % 2 else "split" for k in range(MOST_GUESTS + 5)}
    svg = ET.fromstring(draw(picture_of(guests), size))
    drawn = [node for node in svg.iter(f"{SVG}g") if "kind-guest" in node.attrib.get("class", "")]
    assert len(drawn) == MOST_GUESTS
    assert "and 5 more guests" in "".join(svg.itertext())
