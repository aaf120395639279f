"""The report of a run: a folder with results.json, plots, and a page that needs nothing but itself."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.benchmarks.literature import ABSENT, AGREES, DIFFERS, trends
from bench.method.verdicts import ABOVE, BELOW, MET, MISSED, UNDECIDED
from bench.report import plots
from bench.report.cells import colour, contender, median, number, point_cells, point_heads, spaced
from bench.report.claims import claims
from bench.report.first import first_screen
from bench.report.results import Row, describe, dump, figures, grouped, measured, metric, span, who
from lab.page.html import Element, document, drawing, el, page, section, table

CSS = Path(__file__).with_name("contenders.css")
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
    file.write_text(page(report(results, pictures)))
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
"""Under which class of lab/page/paper.css a trend's verdict is shown."""


# -- the page --


def report(results: Row, pictures: dict[str, list[Element]]) -> Element:
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
    asked, known = claims(benchmarks), _trends(results)
    names = [("claims", "Claims")] * (asked is not None) + [("trends", "Published trends")] * (known is not None) + parts
    links = [el("a", text, href=f"#{name}") for name, text in [*names, ("machine", "Machine"), ("method", "Method")]]
    return document(
        title,
        el("header", el("h1", title), el("p", ", ".join(words), el("br"), when, class_="soft"), el("nav", *spaced(links))),
        _alarm(benchmarks),
        *first_screen(results),
        asked,
        known,
        *(_benchmark(name, benchmark, pictures.get(name, [])) for name, benchmark in benchmarks.items()),
        section("machine", "Machine", _pairs(machine), el("h3", "Options"), _pairs(results["options"])),
        section("method", "Method", el("ul", *(el("li", text) for text in METHOD))),
        el("footer", "All figures are in ", el("code", "results.json"), ", the plots in ", el("code", "plots/"),
           ". Compare two runs with ", el("code", "python -m bench compare A B"), "."),
        style=CSS.read_text(),
    )  # fmt: skip


def _trends(results: Row) -> Element | None:
    """What others published, beside what came out here; None if nothing of the kind was measured."""
    rows = trends(results)
    if all(row["verdict"] == ABSENT for row in rows):
        return None
    shown = table(
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
    return section("trends", "Published trends", shown)


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


def _benchmark(name: str, benchmark: Row, pictures: Sequence[Element]) -> Element:
    """About, plots, figures, ratios, the ledger, notes."""
    records, ratios, notes = (benchmark.get(part, []) for part in ("records", "ratios", "notes"))
    records = measured(records)
    return section(
        f"b-{name}",
        str(benchmark["title"]),
        el("p", benchmark["about"]) if benchmark["about"] else None,
        *pictures,
        *(part for one in benchmark.get("tables", []) for part in _words(one)),
        *([el("h3", "Figures"), *_figures(records)] if records else []),
        *([el("h3", "Ratios, pair by pair"), _ratios(ratios)] if ratios else []),
        *([el("h3", "What one frame cost"), _ledger(records)] if any(record.get("per_frame") for record in records) else []),
        *([el("h3", "Notes"), el("ul", *(el("li", note) for note in notes))] if notes else []),
    )


def _words(rows: Row) -> list[Element]:
    """A table of a benchmark's own."""
    return [el("h3", rows["title"]), table(rows["head"], [[el("td", cell) for cell in row] for row in rows["rows"]])]


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
    head: list[str | tuple[str, str]] = ["Contender", *point_heads(records), "Regime", ("n", "slices with a figure, of those run")]
    head += [(metric(name).label, metric(name).unit) for name in names]
    head.append(("checked", "of frames"))
    rows = []
    for record in records:
        have = figures(record)
        cells = [
            contender(who(record)[1]),
            *point_cells(record, records),
            el("td", record["regime"] or "–", class_="word"),
            el("td", f"{record['n']} of {record['slices']}", class_="number"),
        ]
        cells += [
            median(**{key: have[name][key] for key in ("median", "low", "high")}) if name in have else number(None)
            for name in names
        ]
        checked = record.get("checksummed")
        cells.append(
            el("td", "–" if checked is None else f"{checked:.4g}" if 0 < checked < 0.1 else f"{checked:.0%}", class_="number")
        )
        rows.append(cells)
    first = len(point_heads(records)) + 2
    return table(head, rows, numbers=range(first, len(head)))


def _ratios(ratios: Sequence[Row]) -> Element:
    head: list[str | tuple[str, str]] = ["Ratio", "Of", *point_heads(ratios), "Regime", ("n", "pairs")]
    head += [("Median", "95 % interval"), ("A/A interval", "equal things"), "Verdict"]
    rows = []
    for ratio in ratios:
        verdict = str(ratio["verdict"])
        shown = MET if verdict in (ABOVE, BELOW) else UNDECIDED
        name = el("td", f"{ratio['of']} ÷ {ratio['to']}", class_="who", style=f"color: {colour(ratio['of'])}")
        cells = [name, el("td", metric(ratio["metric"]).label, class_="word"), *point_cells(ratio, ratios)]
        cells += [el("td", ratio["regime"], class_="word"), number(ratio["pairs"])]
        cells += [median(ratio["median"], ratio["low"], ratio["high"], "×")]
        cells += [el("td", span(*ratio["aa"]) if ratio["aa"] else "–", class_="number")]
        cells += [el("td", {ABOVE: "more", BELOW: "less"}.get(verdict, verdict), class_="verdict" if shown == MET else "soft")]
        rows.append(cells)
    first = len(point_heads(ratios)) + 3
    return table(head, rows, numbers=range(first, first + 3))


def _ledger(records: Sequence[Row]) -> Element:
    """Counts per frame, of the first record of each contender and point: they do not hang on the regime."""
    kept = {describe(record): record for record in reversed(records) if record.get("per_frame")}
    rows = list(reversed(kept.values()))
    names = list(dict.fromkeys(name for record in rows for name in record["per_frame"]))
    head: list[str | tuple[str, str]] = ["Contender", *point_heads(records), *((name.replace("_", " "), "") for name in names)]
    cells = [
        [contender(who(row)[1]), *point_cells(row, records), *(number(row["per_frame"].get(name)) for name in names)]
        for row in rows
    ]
    return table(head, cells, numbers=range(len(head) - len(names), len(head)))


def _pairs(values: Row) -> Element:
    """A nested dictionary as two columns."""
    return table(["", ""], [[el("td", name, class_="word soft"), el("td", value)] for name, value in _flat(values)], headless=True)


def _flat(values: Row, prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{label}, ")
        elif isinstance(value, list | tuple):
            yield label, ", ".join(map(str, value)) or "none"
        else:
            yield label, ("yes" if value else "no") if isinstance(value, bool) else "–" if value is None else str(value)
