"""What the report begins with: the paths as a picture, and three sentences: what was run, what came out, what is not known."""

import math
from collections.abc import Iterable, Sequence

from bench.method.verdicts import ABOVE, BELOW, MET, MISSED, UNDECIDED
from bench.report.plots import base
from bench.report.results import Row, figures, measured, metric, span, who
from hyp.paths import PATHS
from lab.api.tables import topology_of
from lab.figures import plural, short
from lab.page.drawing import NARROW, WIDE, still
from lab.page.html import Element, el
from lab.view.picture import picture


def first_screen(results: Row) -> list[Element]:
    """The sentences, and the picture if paths were measured."""
    benchmarks: dict[str, Row] = results["benchmarks"]
    lines = sentences(benchmarks)
    drawn = _drawing([record for benchmark in benchmarks.values() for record in benchmark.get("records", [])])
    return [el("ul", *(el("li", line) for line in lines), class_="lead"), *([drawn] if drawn is not None else [])]


def sentences(benchmarks: dict[str, Row]) -> list[str]:
    """Three, at most: a run without ratios says less."""
    records = [record for benchmark in benchmarks.values() for record in measured(benchmark.get("records", []))]
    names = list(dict.fromkeys(who(record)[1] for record in records))
    titles = _listed([str(benchmark["title"]) for benchmark in benchmarks.values()])
    slices = sum(record.get("slices") or 0 for record in records)
    of = f": {_listed(names)}, in {plural(slices, 'slice')}" if names else ""
    if not names and len(benchmarks) == 1:
        about = str(next(iter(benchmarks.values())).get("about") or "").partition(". ")[0].rstrip(".")
        of = f": {about}" if about else ""
    return [f"{titles}{of}.", *_farthest(benchmarks), *_known(benchmarks)]


def _listed(words: Sequence[str]) -> str:
    between = "; " if any("," in word for word in words) else ", "
    return words[0] if len(words) == 1 else f"{between.join(words[:-1])} and {words[-1]}" if words else "Nothing"


def _farthest(benchmarks: dict[str, Row]) -> list[str]:
    """The decided ratio that is farthest from 1; of split and bypass, if they were both measured."""
    ratios = [
        ratio
        for benchmark in benchmarks.values()
        for ratio in benchmark.get("ratios", [])
        if ratio["verdict"] in (ABOVE, BELOW) and ratio["median"]
    ]
    asked = [ratio for ratio in ratios if {base(ratio["of"]), base(ratio["to"])} == {"split", "bypass"}] or ratios
    if not asked:
        return []
    most = max(asked, key=lambda ratio: abs(math.log(ratio["median"])))
    point = ", ".join(f"{most[part]}{' B' if part == 'frame' else ''}" for part in ("direction", "frame") if most.get(part))
    at = f" ({point})" if point else ""
    what = metric(most["metric"]).label
    interval = f", 95 % interval {span(most['low'], most['high'])}" if most["low"] is not None else ""
    return [f"Farthest apart: {most['of']} ÷ {most['to']}, {what}{at}: {short(most['median'])}{interval}."]


def _known(benchmarks: dict[str, Row]) -> list[str]:
    """What of what is claimed is known."""
    claims = [claim for benchmark in benchmarks.values() for claim in benchmark.get("claims", [])]
    if not claims:
        return []
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in (MET, MISSED, UNDECIDED)}
    counts["without a figure"] = len(claims) - sum(counts.values())
    return [f"Of {plural(len(claims), 'claim')} " + _listed([f"{n} {verdict}" for verdict, n in counts.items() if n]) + "."]


def _drawing(records: Iterable[Row]) -> Element | None:
    """One guest of each path that was measured, with what the ledger says that a frame cost it."""
    costs: dict[str, Row] = {}
    rates: dict[str, float] = {}
    for record in records:
        name = str(record.get("path"))
        if name not in PATHS:
            continue
        costs.setdefault(name, record.get("per_frame") or {})
        rate = figures(record).get("mpps", {}).get("median") if measured([record]) else None
        if rate and name not in rates:
            rates[name] = rate
    if not costs:
        return None
    plain = topology_of(None, "paths", {name: name for name in PATHS if name in costs}, {}).plain()
    shown = picture(plain["name"], plain["guest"], plain["nic"])
    most = max(rates.values(), default=1.0)
    flows: dict[str, float] = {}
    for path in shown["paths"]:
        for hop in (*path["tx"], *path["rx"]):
            flows[hop] = max(flows.get(hop, 0.0), rates.get(path["guest"], most) / most)
    words = {name: _cost(cost) for name, cost in costs.items() if cost}
    caption = "The paths, each by a guest of its name."
    if rates:
        caption += " Copies: what a frame cost in all, in the first figures below. Widths by rate."
    return el(
        "figure",
        el("div", *(still(shown, size, words, flows) for size in (WIDE, NARROW)), class_="still"),
        el("figcaption", caption),
    )


def _cost(per_frame: Row) -> str:
    copies = per_frame.get("copies")
    return "" if copies is None else f"copies: {short(float(copies))}"
