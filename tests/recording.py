"""A terminal as docs show it: ``python -m tests.recording`` runs the demo on one, and makes docs/demo.svg of what it shows. The
demo leaves its page, demo.html.

An SVG that moves by CSS: each line of the screen is drawn once, and each picture of the screen shows lines for as long as they
stood there. Pauses are cut to `LONGEST_S`; without motion (prefers-reduced-motion) the last picture stands.
"""

import os
import sys
import time
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import pyte

from tests.support.labs import LAUNCH, ROOT
from tests.support.screens import is_readable, screen

COLUMNS, ROWS = 130, 34
LONGEST_S, LEAST_S, AT_END_S = 0.7, 0.12, 6.0
FONT_PX, LINE_PX, CHAR_PX, MARGIN = 12, 16, 7.23, 12
INK, PAGE = "#e6e9ed", "#14171b"
COLOURS = {
    "default": INK, "red": "#ff8a80", "green": "#4cc38a", "brown": "#e0b050", "blue": "#8cc8f0", "magenta": "#b3a3ee",
    "cyan": "#7fd6b0", "white": INK, "black": "#59636e",
}  # fmt: skip
Line = tuple[tuple[str, str, bool], ...]
"""Runs of a line: text, colour, whether it is bold."""


@dataclass(slots=True)
class Picture:
    """What the screen shows, and for how long."""

    lines: list[Line]
    seconds: float


def record(command: list[str]) -> list[Picture]:
    """Run a command on a terminal; its pictures, the last one for AT_END_S. RuntimeError if it fails."""
    emulated = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(emulated)
    pictures, shown, since = [Picture(_lines(emulated), 0.0)], _lines(emulated), time.monotonic()
    with screen(*command, TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES=str(ROWS)) as terminal:
        terminal.resize(ROWS, COLUMNS)
        while True:
            if is_readable(terminal.master, LEAST_S):
                try:
                    data = os.read(terminal.master, 65536)
                except OSError:  # its end
                    break
                stream.feed(data)
            now = time.monotonic()
            if now - since >= LEAST_S and (lines := _lines(emulated)) != shown:
                pictures[-1].seconds += min(now - since, LONGEST_S)
                pictures.append(Picture(lines, 0.0))
                shown, since = lines, now
        status = terminal.wait()
    if status:
        raise RuntimeError(f"{' '.join(command)}: exit status {status}")
    pictures.append(Picture(_lines(emulated), AT_END_S))
    return pictures


def _lines(emulated: pyte.Screen) -> list[Line]:
    return [_line(emulated, row) for row in range(ROWS)]


def _line(emulated: pyte.Screen, row: int) -> Line:
    runs: list[tuple[str, str, bool]] = []
    for column in range(COLUMNS):
        cell = emulated.buffer[row][column]
        colour = COLOURS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else INK)
        if runs and runs[-1][1:] == (colour, cell.bold):
            runs[-1] = (runs[-1][0] + cell.data, colour, cell.bold)
        else:
            runs.append((cell.data, colour, cell.bold))
    while runs and not runs[-1][0].strip():
        runs.pop()
    if runs:
        runs[-1] = (runs[-1][0].rstrip(), *runs[-1][1:])
    return tuple(runs)


def draw(pictures: list[Picture], title: str) -> str:
    """The SVG's text."""
    width, height = COLUMNS * CHAR_PX + 2 * MARGIN, ROWS * LINE_PX + 2 * MARGIN
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "role": "img"})
    ET.SubElement(svg, "title").text = title
    total = sum(picture.seconds for picture in pictures)
    style = [f"text {{ font: {FONT_PX}px ui-monospace, 'DejaVu Sans Mono', Menlo, monospace; white-space: pre; }}"]
    style.append(f".p {{ visibility: hidden; animation: {total:.2f}s infinite step-end; }}")
    ET.SubElement(svg, "rect", {"width": f"{width:g}", "height": f"{height:g}", "rx": "8", "fill": PAGE})
    definitions, known = ET.SubElement(svg, "defs"), dict[Line, str]()
    begin = 0.0
    for number, picture in enumerate(pictures):
        end = begin + picture.seconds
        last = number == len(pictures) - 1
        parts = [
            f"0% {{ visibility: {'visible' if number == 0 else 'hidden'}; }}",
            f"{100 * begin / total:.3f}% {{ visibility: visible; }}",
        ]
        if not last:
            parts.append(f"{100 * end / total:.3f}% {{ visibility: hidden; }}")
        style.append(f"@keyframes k{number} {{ {' '.join(parts)} }} #f{number} {{ animation-name: k{number}; }}")
        group = ET.SubElement(svg, "g", {"class": "p", "id": f"f{number}"})
        for row, line in enumerate(picture.lines):
            if line:
                if line not in known:
                    known[line] = f"l{len(known)}"
                    _draw_line(definitions, known[line], line)
                ET.SubElement(group, "use", {"href": f"#{known[line]}", "y": f"{MARGIN + (row + 1) * LINE_PX - 4}"})
        begin = end
    style.append(
        f"@media (prefers-reduced-motion: reduce) {{ .p {{ animation: none; }} #f{len(pictures) - 1} {{ visibility: visible; }} }}"
    )
    ET.SubElement(svg, "style").text = "\n".join(style)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _draw_line(parent: ET.Element, name: str, line: Line) -> None:
    text = ET.SubElement(parent, "text", {"id": name})
    column = 0
    for content, colour, bold in line:
        if content.strip():
            at = {"x": f"{MARGIN + column * CHAR_PX:.1f}", "fill": colour, "textLength": f"{len(content) * CHAR_PX:.1f}"}
            ET.SubElement(text, "tspan", {**at, **({"font-weight": "700"} if bold else {})}).text = content
        column += len(content)


def main() -> int:
    """See the module."""
    pictures = record([*LAUNCH, "demo", "--seconds", "0.2"])
    text = draw(pictures, "make demo, on a terminal: both paths side by side, the proof, real programs")
    (ROOT / "docs" / "demo.svg").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
