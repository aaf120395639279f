"""Cells of the report's tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.report import plots
from bench.report.results import POINT, Row, span
from lab.figures import short
from lab.page.html import Element, el


def spaced(elements: Iterable[Element]) -> list[Element | str]:
    """With a space behind each."""
    return [part for element in elements for part in (element, " ")]


def point_heads(rows: Sequence[Row]) -> list[str | tuple[str, str]]:
    """Direction, frame size and cores, where any row has them."""
    heads: dict[str, str | tuple[str, str]] = {part: part.capitalize() for part in POINT}
    heads["frame"] = ("Frame", "B")
    return [heads[part] for part in POINT if any(row.get(part) is not None for row in rows)]


def point_cells(row: Row, rows: Sequence[Row]) -> list[Element]:
    """Of one row, those for which there are heads."""
    present = [part for part in POINT if any(one.get(part) is not None for one in rows)]
    return [el("td", "–" if row.get(part) is None else str(row[part]), class_="word") for part in present]


def colour(name: str) -> str:
    """A contender's, as a CSS variable."""
    known = plots.base(name)
    return f"var(--{known})" if known in plots.PALETTE else "var(--soft)"


def contender(name: str) -> Element:
    """Its name, in its colour."""
    return el("td", el("span", name), class_="who", style=f"color: {colour(name)}")


def number(value: Any) -> Element:
    """A figure, or a dash."""
    return el("td", "–" if value is None else short(value) if isinstance(value, float) else f"{value:,}", class_="number")


def median(median: float | None, low: float | None, high: float | None, unit: str = "") -> Element:
    """A figure and its interval."""
    if median is None:
        return number(None)
    interval = el("span", span(low, high), class_="interval") if low is not None and high is not None else None
    return el("td", short(median) + unit, interval, class_="number")
