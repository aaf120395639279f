"""What a terminal shows of a bench run."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.report.results import MARKS, POINT, Row, describe, figures, grouped, measured, metric, span, who
from lab.figures import short


def tables(results: Row) -> Group:
    """Claims and figures, for a terminal."""
    parts: list[Table | Text] = []
    for benchmark in results["benchmarks"].values():
        parts.append(Text(f"\n{benchmark['title']}", style="bold"))
        parts += [words(table) for table in benchmark.get("tables", [])]
        if measured(benchmark["records"]):
            parts.append(_figures_table(measured(benchmark["records"])))
        parts += [Text(f"  {claim_line(claim)}") for claim in benchmark["claims"]]
        parts += [Text(f"  {note}", style="dim") for note in benchmark["notes"]]
        for record in benchmark["records"]:
            parts += [Text(f"  ERROR {describe(record)}: {error}", style="red") for error in grouped(record.get("errors") or [])]
    return Group(*parts)


def claim_line(claim: Row) -> str:
    """A claim in one line."""
    figure = "–" if claim["value"] is None else short(claim["value"])
    interval = f" ({span(claim['low'], claim['high'])})" if claim["low"] is not None else ""
    aa = f", A/A {span(*claim['aa'])}" if claim["aa"] else ""
    verdict = f"{MARKS.get(claim['verdict'], '')} {claim['verdict']}"
    return f"{verdict}: {claim['text']}: {figure}{interval}, {claim['target']}{aa}; {claim['reason']}"


def words(table: Row) -> Table:
    """A table of a benchmark's own (`BenchmarkResult.table`)."""
    shown = Table(title=table["title"], title_justify="left", header_style="bold", pad_edge=False, box=None)
    for title in table["head"]:
        shown.add_column(title, overflow="fold")
    for row in table["rows"]:
        shown.add_row(*map(Text, row))
    return shown


def _figures_table(records: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(name for record in records for name in figures(record)))
    table = Table(header_style="bold", pad_edge=False, box=None)
    titles = {"frame": "B"}
    present = [part for part in POINT if any(record.get(part) is not None for record in records)]
    for title in ("contender", *(titles.get(part, part) for part in present), "regime", "n"):
        table.add_column(title, justify="right" if title in ("B", "n", "ring") else "left", no_wrap=True)
    for name in names:
        table.add_column(Text(f"{metric(name).label}\n{metric(name).unit}"), justify="right")
    table.add_column("checked", justify="right")
    for record in records:
        have, checked = figures(record), record.get("checksummed")
        point = [str(record.get(part) if record.get(part) is not None else "–") for part in present]
        cells = [who(record)[1], *point, str(record["regime"] or "–"), f"{record['n']} of {record['slices']}"]
        cells += [_with_interval(have[name]) if name in have else "–" for name in names]
        table.add_row(*map(Text, cells), Text("–" if checked is None else f"{checked:.0%}"))
    return table


def _with_interval(figure: Row) -> str:
    interval = f" ({span(figure['low'], figure['high'])})" if figure["low"] is not None else ""
    return "–" if figure["median"] is None else short(figure["median"]) + interval
