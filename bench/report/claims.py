"""The report's claims, grouped by the question that they answer: a table for each benchmark, its verdicts counted above it."""

from collections.abc import Iterable

from bench.report.cells import median, spaced
from bench.report.results import MARKS, Row, span
from lab.page.html import Element, el, section, table

HEAD: list[str | tuple[str, str]] = [
    "Verdict", "Claim", ("Target", ""), ("Figure", "median, 95 % interval"), ("A/A interval", "to be cleared"), "Why",
]  # fmt: skip


def claims(benchmarks: dict[str, Row]) -> Element | None:
    """The section; None if the run makes none."""
    asked = {name: benchmark for name, benchmark in benchmarks.items() if benchmark.get("claims")}
    if not asked:
        return None
    everything = [claim for benchmark in asked.values() for claim in benchmark["claims"]]
    parts: list[Element | str | None] = [_tally(everything)] if len(asked) > 1 else []
    for name, benchmark in asked.items():
        parts += [el("h3", el("a", str(benchmark["title"]), href=f"#b-{name}")), _tally(benchmark["claims"])]
        parts.append(table(HEAD, [_row(claim) for claim in benchmark["claims"]], numbers=(2, 3, 4)))
    return section("claims", "Claims", *parts)


def _tally(found: Iterable[Row]) -> Element:
    rows = list(found)
    counts = {verdict: sum(claim["verdict"] == verdict for claim in rows) for verdict in MARKS}
    return el(
        "div",
        *spaced([el("span", f"{MARKS[v]} {n} {v}", class_=f"verdict {_class(v)}") for v, n in counts.items() if n]),
        class_="tally",
    )


def _row(claim: Row) -> list[Element]:
    return [
        el("td", f"{MARKS.get(claim['verdict'], '')} {claim['verdict']}", class_=f"verdict {_class(claim['verdict'])}"),
        el("td", claim["text"]),
        el("td", claim["target"], class_="number"),
        median(claim["value"], claim["low"], claim["high"]),
        el("td", span(*claim["aa"]) if claim["aa"] else "–", class_="number"),
        el("td", claim["reason"], class_="soft"),
    ]


def _class(verdict: str) -> str:
    return verdict.split("(")[0].strip().replace(" ", "-")
