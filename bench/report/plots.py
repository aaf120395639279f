"""Plots of a series, by matplotlib. One colour per path, everywhere, that colour-blind readers can tell apart.

Colours are those of Okabe and Ito ("Color Universal Design", 2008). In the report they, and the ink, become CSS variables, so that
the same drawing suits a light and a dark page (lab/page/html.py).
"""

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.report.results import Row
from hyp.paths import PATHS
from lab.figures import short

INK, FAINT = "#1b1f24", "#d0d5db"
PALETTE = {
    **{path.name: path.colour for path in PATHS.values()}, "floor": "#7a7a7a",
    "vhost": "#8a6d00", "vhost-hugepages": "#b99300", "vhost-packed": "#a4661e", "memif": "#2e7d5b",
    "veth": "#7a8f3c", "unix": "#6f5bb5", "ucx": "#7d5a2e",
}  # fmt: skip
SPARE = ("#9c6b30", "#4f7a28", "#a83232", "#2f6f73")
MARKERS = {**{path.name: path.marker for path in PATHS.values()}, "floor": "v"}
DASHES: dict[str, Any] = {
    "floor": (0, (1, 1.5)), "vhost": (0, (5, 2)), "vhost-hugepages": (0, (5, 2, 1, 2)), "vhost-packed": (0, (5, 2, 1, 2, 1, 2)),
    "memif": (0, (1, 2)), "veth": (0, (3, 2)), "unix": (0, (2, 2)), "ucx": (0, (4, 1, 1, 1)),
}  # fmt: skip
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "svg.fonttype": "none", "svg.hashsalt": "bench", "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip


def base(name: str) -> str:
    """The contender that a line's name begins with: "bypass, 1 core" is bypass."""
    return max((known for known in PALETTE if name == known or name.startswith((f"{known} ", f"{known},"))), key=len, default=name)


def colours(names: list[str]) -> dict[str, str]:
    """By line: the palette's, shades of it for further lines of one contender, and spare ones for names that it does not have."""
    spare, seen = iter(SPARE * (1 + len(names) // len(SPARE))), Counter[str]()
    found = {}
    for name in names:
        known = PALETTE.get(base(name))
        found[name] = next(spare) if known is None else _shade(known, seen[base(name)])
        seen[base(name)] += 1
    return found


def _shade(colour: str, number: int) -> str:
    """A colour itself, then others that are its own on light and on dark: lighter, darker, in turns and by less and less."""
    if number == 0:
        return colour
    towards, share = (1.0, 0.0)[number % 2 == 0], 0.45 if number < 3 else 0.25
    red, green, blue = (part + (towards - part) * share for part in to_rgb(colour))
    return to_hex((red, green, blue))


def draw(series: Row) -> Figure | None:
    """A figure of the series; None if it has no point at all."""
    lines = [line for line in series["lines"] if any(value is not None for value in line["y"])]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        return _bars(series, lines) if series["kind"] == "bar" else _lines(series, lines)


def save(figure: Figure, stem: Path) -> str:
    """Write `stem`.png and .svg; returns the SVG's text."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".png"), dpi=144, facecolor="white")
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.savefig(stem.with_suffix(".svg"), facecolor="white", metadata={"Date": None})
    return text.getvalue()


# -- lines --


def _lines(series: Row, lines: list[Row]) -> Figure:
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    numeric = all(isinstance(value, int | float) for value in series["x"]["values"])
    places = [float(value) for value in series["x"]["values"]] if numeric else list(map(float, range(len(series["x"]["values"]))))
    _x_axis(axes, series, places, numeric)
    paint = colours([line["name"] for line in lines])
    for line in lines:
        _line(axes, line, places, paint[line["name"]], series["kind"] == "cdf")
    axes.set_ylabel(series["y"]["label"])
    axes.grid(axis="x", visible=False)
    if series["kind"] == "cdf":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    else:
        _y_axis(axes, lines)
    _labels(figure, axes, lines, places, paint, series["kind"] == "cdf")
    return figure


def _x_axis(axes: Axes, series: Row, places: list[float], numeric: bool) -> None:
    axes.set_xlabel(series["x"]["label"])
    if numeric and series["x"].get("log") and min(places) > 0:
        axes.set_xscale("log", base=10 if series["kind"] == "cdf" else 2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    if series["kind"] == "cdf":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(min(places), max(places))
    elif len(places) <= 12:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.set_xticks(places, [f"{value:,}" if isinstance(value, int) else str(value) for value in series["x"]["values"]])


def _y_axis(axes: Axes, lines: list[Row]) -> None:
    """From 0, unless the lines are more than a factor of 50 apart: then logarithmic."""
    ends = [end for line in lines for values in (line["y"], *_ends(line)) for end in values if end is not None]
    if min(ends) > 0 and max(ends) / min(ends) > 50:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif min(ends) >= 0:
        axes.set_ylim(0, max(ends) * 1.06 or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _line(axes: Axes, line: Row, places: list[float], colour: str, cdf: bool) -> None:
    points = [(x, y, low, high) for x, y, low, high in zip(places, line["y"], *_ends(line), strict=True) if y is not None]
    x, y = [point[0] for point in points], [point[1] for point in points]
    name = base(line["name"])
    dashes = DASHES.get(name, "solid")
    if cdf:
        axes.plot(x, y, color=colour, linewidth=1.6, linestyle=dashes, drawstyle="steps-post")
        return
    sure = [point for point in points if point[2] is not None and point[3] is not None]
    marker, size = MARKERS.get(name, "o"), 4.5
    if line.get("sampled") and len(sure) < len(points):
        # what too few slices have said is shown, and no line is drawn through it
        few = [point for point in points if point not in sure]
        axes.plot([p[0] for p in few], [p[1] for p in few], marker, color=colour, markersize=size, markerfacecolor="none")
        x, y = [point[0] for point in sure], [point[1] for point in sure]
    axes.plot(x, y, color=colour, linewidth=1.6, linestyle=dashes, marker=marker, markersize=size)
    if sure:
        down, up = [y - low for _, y, low, _ in sure], [high - y for _, y, _, high in sure]
        error = [[max(0.0, part) for part in side] for side in (down, up)]
        axes.errorbar([p[0] for p in sure], [p[1] for p in sure], error, fmt="none", ecolor=colour, elinewidth=1.1, capsize=3)


def _ends(line: Row) -> tuple[list[float | None], list[float | None]]:
    none: list[float | None] = [None] * len(line["y"])
    return line.get("low") or none, line.get("high") or none


def _labels(figure: Figure, axes: Axes, lines: list[Row], places: list[float], paint: dict[str, str], cdf: bool) -> None:
    """Each line's name beside its end, pushed apart where they would overlap; a CDF's at heights of their own."""
    if cdf:
        _cdf_labels(axes, lines, places, paint)
        return
    figure.canvas.draw()
    height = axes.bbox.height
    wanted = []
    for line in lines:
        x, y = [(x, y) for x, y in zip(places, line["y"], strict=True) if y is not None][-1]
        wanted.append((axes.transData.transform((x, y))[1] - axes.bbox.y0, line["name"]))
    gap = 14.0 * figure.dpi / 72 / 1.1
    for place, name in _apart(sorted(wanted), gap, height):
        axes.annotate(name, (1.015, place / height), xycoords="axes fraction", color=paint[name], va="center")


def _cdf_labels(axes: Axes, lines: list[Row], places: list[float], paint: dict[str, str]) -> None:
    """To the right, where a CDF has room, each at the end of a thin line of its own: who has half sooner stands higher."""

    def reached(line: Row, share: float) -> float:
        return next((x for x, y in zip(places, line["y"], strict=True) if y is not None and y >= share), places[-1])

    ordered = sorted(lines, key=lambda line: reached(line, 0.5))
    for number, line in enumerate(ordered):
        height = 0.85 - 0.7 * number / max(len(ordered) - 1, 1)
        colour = paint[line["name"]]
        axes.annotate(
            line["name"], (reached(line, height), height), xytext=(0.68, height), textcoords=axes.get_yaxis_transform(),
            color=colour, va="center", arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 0},
        )  # fmt: skip


def _apart(wanted: list[tuple[float, str]], gap: float, height: float) -> list[tuple[float, str]]:
    """Heights that are at least `gap` apart and move as little as a few sweeps need. `wanted` is sorted."""
    places = [place for place, _ in wanted]
    for _ in range(50):
        for lower in range(len(places) - 1):
            lack = gap - (places[lower + 1] - places[lower])
            if lack > 0:
                places[lower], places[lower + 1] = places[lower] - lack / 2, places[lower + 1] + lack / 2
        shift = max(0.0, -places[0]) - max(0.0, places[-1] - height)
        places = [place + shift for place in places] if gap * (len(places) - 1) < height else places
    return [(place, name) for place, (_, name) in zip(places, wanted, strict=True)]


# -- bars --


def _bars(series: Row, lines: list[Row]) -> Figure:
    """A panel per x value with a bar per contender: names on the left once, figures at the bars' ends."""
    values = series["x"]["values"]
    columns = min(len(values), 3)
    rows = math.ceil(len(values) / columns)
    size = (7.6, rows * (0.62 + 0.27 * len(lines)) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    paint = colours([line["name"] for line in lines])
    ends = [end for line in lines for side in (line["y"], _ends(line)[1]) for end in side if end is not None]
    for number, panel in enumerate(panels):
        if number >= len(values):
            panel.set_visible(False)
            continue
        unit = f"{series['x']['label']}: " if number == 0 else ""
        panel.set_title(f"{unit}{values[number]}", loc="left", fontsize=9.5, fontweight="bold")
        _panel(panel, lines, number, paint, max(ends) or 1.0, number % columns == 0)
    figure.supxlabel(series["y"]["label"], fontsize=9.5)
    return figure


def _panel(panel: Axes, lines: list[Row], number: int, paint: dict[str, str], longest: float, named: bool) -> None:
    for place, line in enumerate(lines):
        y, (lows, highs) = line["y"][number], _ends(line)
        low, high = lows[number], highs[number]
        if y is None:
            _say(panel, "no figure", 0, place)
            continue
        panel.barh(place, y, height=0.66, color=paint[line["name"]])
        if low is not None and high is not None:
            span = [[max(0.0, y - low)], [max(0.0, high - y)]]
            panel.errorbar(y, place, xerr=span, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        _say(panel, short(y), high if high is not None else y, place)
    panel.set_xlim(0, longest * 1.28)
    panel.set_ylim(len(lines) - 0.4, -0.6)
    panel.set_yticks(range(len(lines)))
    for label, line in zip(panel.set_yticklabels([line["name"] for line in lines] if named else []), lines, strict=False):
        label.set_color(paint[line["name"]])
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="y", visible=False)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _say(panel: Axes, text: str, x: float, place: int) -> None:
    """Words to the right of a bar's end."""
    panel.annotate(text, (x, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
