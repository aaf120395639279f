"""The report of a run: a folder with results.json, plots, and a page that needs nothing but itself."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.benchmarks.literature import ABSENT, AGREES, DIFFERS, trends
from bench.method.verdicts import ABOVE, BELOW, MET, MISSED, UNDECIDED
from bench.report import plots
from bench.report.html import Element, drawing, el, page
from bench.report.results import MARKS, POINT, Row, describe, dump, figures, grouped, measured, metric, span, who
from hyp.paths import PATHS
from lab.figures import short

CSS = Path(__file__).with_name("report.css")
COLOURS = {plots.INK: "var(--ink)", plots.FAINT: "var(--faint)", **{c: f"var(--{name})" for name, c in plots.PALETTE.items()}}
METHOD = (
    "Contenders take turns in slices of at most half a second inside one live topology: A B C A, then A C B A, and so on, so that "
    "a drift of the machine cancels.",
    "Between slices the machine is probed. Slices are compared only within one regime: “apart” (virtual cores on physical cores of "
    "their own) or “together” (sharing one). Slices in which the regime changed, or the host took time away, are compared with "
    "nothing.",
    "Ratios are medians of pairs: two contenders’ slices of the same round and regime. Intervals are 95 % intervals of the median "
    "by order statistics, which assume nothing about the distribution; below six values there is none.",
    "A/A: one contender runs twice in each round. The interval of the median of those pairs, made symmetric about 1, is what equal "
    "things differ by here. A claim that is narrower is undecided.",
    "Frames are counted at the receiver, and their checksums verified there; “checked” is the fraction whose whole payload was. A "
    "slice that lost, duplicated or corrupted frames without a drop’s name gives no figure, and the reason is shown. CPU time is "
    "the kernel’s, of all processes; busy and spin time are kept apart.",
)


def _path_colours() -> str:
    """The paths' colours, on a light page and on a dark one, as CSS variables."""
    light = " ".join(f"--{path.name}: {path.colour};" for path in PATHS.values())
    dark = " ".join(f"--{path.name}: {path.colour_dark};" for path in PATHS.values())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def write(folder: Path, results: Row) -> Path:
    """Write results.json, plots/*.png, plots/*.svg and report.html into a folder, which is made; returns the page's path."""
    drawings = folder / "plots"
    drawings.mkdir(parents=True, exist_ok=True)
    dump(folder / "results.json", results)
    pictures: dict[str, list[Element]] = {}
    for name, benchmark in results["benchmarks"].items():
        drawn = [_picture(drawings, name, series) for series in benchmark.get("series", [])]
        pictures[name] = [picture for picture in drawn if picture is not None]
    file = folder / "report.html"
    file.write_text(page(document(results, pictures)))
    return file


def _picture(folder: Path, benchmark: str, series: Row) -> Element | None:
    """Draw one series into the folder; the same for the page. None if there is nothing to draw."""
    figure = plots.draw(series)
    if figure is None:
        return None
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{benchmark}-{series['id']}").strip(".-")
    inline = drawing(plots.save(figure, folder / stem), f"{stem}-", series["title"], COLOURS)
    return el("figure", el("figcaption", series["title"]), inline)


TREND_CLASSES = {AGREES: MET, DIFFERS: MISSED, UNDECIDED: UNDECIDED, ABSENT: "no-figure"}
"""Under which class of report.css a trend's verdict is shown."""


# -- the page --


def document(results: Row, pictures: dict[str, list[Element]]) -> Element:
    """The page as a tree."""
    benchmarks: dict[str, Row] = results["benchmarks"]
    machine = results["machine"]
    title = "Xen-bypass I/O lab: benchmarks"
    words = [str(machine.get("cpu") or machine.get("cpu_model") or "?"), f"{machine.get('cores', '?')} cores"]
    words.append(f"Linux {machine.get('kernel', '?')}")
    quick = " A quick run: to try things, not to cite." if results["options"].get("quick") else ""
    started = str(results["started"]).replace("T", " ").replace("+00:00", " UTC")
    when = f"{started}, {duration(results['seconds'])}.{quick}"
    parts = [(f"b-{name}", str(benchmark["title"])) for name, benchmark in benchmarks.items()]
    names = [("claims", "Claims"), ("trends", "Published trends"), *parts]
    links = [el("a", text, href=f"#{name}") for name, text in [*names, ("machine", "Machine"), ("method", "Method")]]
    body = el(
        "body",
        el("header", el("h1", title), el("p", ", ".join(words), el("br"), when, class_="soft"), el("nav", *_spaced(links))),
        _alarm(benchmarks),
        *_claims(benchmarks),
        _trends(results),
        *(_benchmark(name, benchmark, pictures.get(name, [])) for name, benchmark in benchmarks.items()),
        _section("machine", "Machine", _pairs(machine), el("h3", "Options"), _pairs(results["options"])),
        _section("method", "Method", el("ul", *(el("li", text) for text in METHOD))),
        el("footer", "All figures are in ", el("code", "results.json"), ", the plots in ", el("code", "plots/"),
           ". Compare two runs with ", el("code", "python -m bench compare A B"), "."),
    )  # fmt: skip
    meta = el("meta", name="viewport", content="width=device-width, initial-scale=1")
    return el(
        "html",
        el("head", el("meta", charset="utf-8"), meta, el("title", title), el("style", CSS.read_text() + _path_colours())),
        body,
        lang="en",
    )


def _trends(results: Row) -> Element:
    """What others published, beside what came out here."""
    rows = trends(results)
    table = _table(
        ["Verdict", "Trend", "Published", "Here"],
        [
            [
                el("td", row["verdict"], class_=f"verdict {TREND_CLASSES[row['verdict']]}"),
                el("td", row["text"]),
                el("td", row["source"], el("div", row["basis"], class_="soft")),
                el(
                    "td",
                    *(el("div", line) for line in row["here"]),
                    el("div", f"Why it may differ here: {row['if_not']}", class_="soft") if row["verdict"] == DIFFERS else None,
                ),
            ]
            for row in rows
        ],
    )
    return _section("trends", "Published trends", table)


def _spaced(elements: Iterable[Element]) -> list[Element | str]:
    return [part for element in elements for part in (element, " ")]


def _section(name: str, title: str, *children: Element | str | None) -> Element:
    return el("section", el("h2", title), *children, id=name)


def duration(seconds: float) -> str:
    """ "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _alarm(benchmarks: dict[str, Row]) -> Element | None:
    """Every error of every record, at the top."""
    found: list[Element | str | None] = []
    for benchmark in benchmarks.values():
        for record in benchmark.get("records", []):
            for error in grouped(record.get("errors") or []):
                found.append(el("li", f"{benchmark['title']}: {describe(record)}: {error}"))
        found += [el("li", note) for note in benchmark.get("notes", []) if note.startswith("FAILED")]
    unique = list({"".join(item.itertext()): item for item in found if isinstance(item, Element)}.values())
    if not unique:
        return None
    return el("div", el("strong", "Not all of this run gave figures:"), el("ul", *unique), class_="alarm", role="alert")


def _claims(benchmarks: dict[str, Row]) -> list[Element]:
    rows = [(str(benchmark["title"]), claim) for benchmark in benchmarks.values() for claim in benchmark.get("claims", [])]
    if not rows:
        return [_section("claims", "Claims", el("p", "This run makes no claims.", class_="soft"))]
    counts = {verdict: sum(claim["verdict"] == verdict for _, claim in rows) for verdict in MARKS}
    tally = [el("span", f"{MARKS[v]} {n} {v}", class_=f"verdict {_class(v)}") for v, n in counts.items() if n]
    table = _table(
        ["Verdict", "Claim", ("Target", ""), ("Figure", "median, 95 % interval"), ("A/A interval", "to be cleared"), "Why"],
        [
            [
                el("td", f"{MARKS.get(claim['verdict'], '')} {claim['verdict']}", class_=f"verdict {_class(claim['verdict'])}"),
                el("td", claim["text"], el("div", title, class_="soft")),
                el("td", claim["target"], class_="number"),
                _median(claim["value"], claim["low"], claim["high"]),
                el("td", span(*claim["aa"]) if claim["aa"] else "–", class_="number"),
                el("td", claim["reason"], class_="soft"),
            ]
            for title, claim in rows
        ],
        numbers=(2, 3, 4),
    )
    return [_section("claims", "Claims", el("div", *_spaced(tally), class_="tally"), table)]


def _class(verdict: str) -> str:
    return verdict.split("(")[0].strip().replace(" ", "-")


def _benchmark(name: str, benchmark: Row, pictures: Sequence[Element]) -> Element:
    """About, plots, figures, ratios, the ledger, notes."""
    records, ratios, notes = (benchmark.get(part, []) for part in ("records", "ratios", "notes"))
    records = measured(records)
    return _section(
        f"b-{name}",
        str(benchmark["title"]),
        el("p", benchmark["about"]) if benchmark["about"] else None,
        *pictures,
        *(part for table in benchmark.get("tables", []) for part in _words(table)),
        *([el("h3", "Figures"), *_figures(records)] if records else []),
        *([el("h3", "Ratios, pair by pair"), _ratios(ratios)] if ratios else []),
        *([el("h3", "What one frame cost"), _ledger(records)] if any(record.get("per_frame") for record in records) else []),
        *([el("h3", "Notes"), el("ul", *(el("li", note) for note in notes))] if notes else []),
    )


def _words(table: Row) -> list[Element]:
    """A table of a benchmark's own."""
    rows = [[el("td", cell) for cell in row] for row in table["rows"]]
    return [el("h3", table["title"]), _table(table["head"], rows)]


def _figures(records: Sequence[Row]) -> list[Element]:
    """The headline's figures; those of other regimes folded away, with as many columns."""
    first = list({describe(record): record for record in reversed(records)}.values())[::-1]
    headline = [record for record in records if any(record is one for one in first)]
    others = [record for record in records if not any(record is one for one in first)]
    folded = [el("details", el("summary", f"The other regimes ({len(others)} rows)"), _records(others))] if others else []
    return [_records(headline), *folded]


def _records(records: Sequence[Row]) -> Element:
    """One row per record, one column per metric that any of them has."""
    names = list(dict.fromkeys(name for record in records for name in figures(record)))
    head: list[str | tuple[str, str]] = ["Contender", *_point_heads(records), "Regime", ("n", "slices with a figure, of those run")]
    head += [(metric(name).label, metric(name).unit) for name in names]
    head.append(("checked", "of frames"))
    rows = []
    for record in records:
        have = figures(record)
        cells = [
            _who(who(record)[1]),
            *_point_cells(record, records),
            el("td", record["regime"] or "–", class_="word"),
            el("td", f"{record['n']} of {record['slices']}", class_="number"),
        ]
        cells += [
            _median(**{key: have[name][key] for key in ("median", "low", "high")}) if name in have else _number(None)
            for name in names
        ]
        checked = record.get("checksummed")
        cells.append(
            el("td", "–" if checked is None else f"{checked:.4g}" if 0 < checked < 0.1 else f"{checked:.0%}", class_="number")
        )
        rows.append(cells)
    first = len(_point_heads(records)) + 2
    return _table(head, rows, numbers=range(first, len(head)))


def _ratios(ratios: Sequence[Row]) -> Element:
    head: list[str | tuple[str, str]] = ["Ratio", "Of", *_point_heads(ratios), "Regime", ("n", "pairs")]
    head += [("Median", "95 % interval"), ("A/A interval", "equal things"), "Verdict"]
    rows = []
    for ratio in ratios:
        verdict = str(ratio["verdict"])
        shown = MET if verdict in (ABOVE, BELOW) else UNDECIDED
        name = el("td", f"{ratio['of']} ÷ {ratio['to']}", class_="who", style=f"color: {_colour(ratio['of'])}")
        cells = [name, el("td", metric(ratio["metric"]).label, class_="word"), *_point_cells(ratio, ratios)]
        cells += [el("td", ratio["regime"], class_="word"), _number(ratio["pairs"])]
        cells += [_median(ratio["median"], ratio["low"], ratio["high"], "×")]
        cells += [el("td", span(*ratio["aa"]) if ratio["aa"] else "–", class_="number")]
        cells += [el("td", {ABOVE: "more", BELOW: "less"}.get(verdict, verdict), class_="verdict" if shown == MET else "soft")]
        rows.append(cells)
    first = len(_point_heads(ratios)) + 3
    return _table(head, rows, numbers=range(first, first + 3))


def _ledger(records: Sequence[Row]) -> Element:
    """Counts per frame, of the first record of each contender and point: they do not hang on the regime."""
    kept = {describe(record): record for record in reversed(records) if record.get("per_frame")}
    rows = list(reversed(kept.values()))
    names = list(dict.fromkeys(name for record in rows for name in record["per_frame"]))
    head: list[str | tuple[str, str]] = ["Contender", *_point_heads(records), *((name.replace("_", " "), "") for name in names)]
    cells = [
        [_who(who(row)[1]), *_point_cells(row, records), *(_number(row["per_frame"].get(name)) for name in names)] for row in rows
    ]
    return _table(head, cells, numbers=range(len(head) - len(names), len(head)))


def _pairs(values: Row) -> Element:
    """A nested dictionary as two columns."""
    return _table(["", ""], [[el("td", name, class_="word soft"), el("td", value)] for name, value in _flat(values)], headless=True)


def _flat(values: Row, prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{label}, ")
        elif isinstance(value, list | tuple):
            yield label, ", ".join(map(str, value)) or "none"
        else:
            yield label, ("yes" if value else "no") if isinstance(value, bool) else "–" if value is None else str(value)


# -- cells --


def _point_heads(rows: Sequence[Row]) -> list[str | tuple[str, str]]:
    """Direction, frame size and cores, where any row has them."""
    heads: dict[str, str | tuple[str, str]] = {part: part.capitalize() for part in POINT}
    heads["frame"] = ("Frame", "B")
    return [heads[part] for part in POINT if any(row.get(part) is not None for row in rows)]


def _point_cells(row: Row, rows: Sequence[Row]) -> list[Element]:
    present = [part for part in POINT if any(one.get(part) is not None for one in rows)]
    return [el("td", "–" if row.get(part) is None else str(row[part]), class_="word") for part in present]


def _colour(name: str) -> str:
    known = plots.base(name)
    return f"var(--{known})" if known in plots.PALETTE else "var(--soft)"


def _who(name: str) -> Element:
    return el("td", el("span", name), class_="who", style=f"color: {_colour(name)}")


def _number(value: Any) -> Element:
    return el("td", "–" if value is None else short(value) if isinstance(value, float) else f"{value:,}", class_="number")


def _median(median: float | None, low: float | None, high: float | None, unit: str = "") -> Element:
    if median is None:
        return _number(None)
    interval = el("span", span(low, high), class_="interval") if low is not None and high is not None else None
    return el("td", short(median) + unit, interval, class_="number")


def _table(
    head: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[Element]], numbers: Iterable[int] = (), headless: bool = False
) -> Element:
    right = set(numbers)
    cells = []
    for number, title in enumerate(head):
        text, unit = (title, "") if isinstance(title, str) else title
        kind = "number" if number in right else None
        cells.append(el("th", text, el("small", unit) if unit else None, class_=kind, scope="col"))
    top = None if headless else el("thead", el("tr", *cells))
    return el("div", el("table", top, el("tbody", *(el("tr", *row) for row in rows))), class_="scroll")
