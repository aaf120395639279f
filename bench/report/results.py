"""results.json: what a run of the bench leaves (its schema is in docs/bench.md), and how benchmarks fill it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.method.claims import Claim
from bench.method.samples import Figure, Ratio, Samples
from lab.figures import short

VERSION = 2
WHO = ("path", "peer", "floor")  # a record has one of these: whose figures it holds
POINT = (
    "attack",
    "program",
    "direction",
    "mode",
    "frame",
    "traffic",
    "cores",
    "guests",
    "payload",
    "ring",
    "load",
    "price",
    "engines",
    "ablation",
    "placement",
    "offloads",
)  # where they were measured
LESS_COMMON = tuple(part for part in POINT if part not in ("direction", "frame"))

MARKS = {"met": "✓", "missed": "✗", "undecided": "?", "no figure": "–"}
"""Verdicts of claims, and a sign for each: colour alone would not do."""

Row = dict[str, Any]


class Metric(NamedTuple):
    """How a metric is shown, and which way is better (+1 more, -1 less)."""

    label: str
    unit: str
    better: int


METRICS = {
    "mpps": Metric("rate", "Mframes/s", 1),
    "gbps": Metric("bit rate", "Gbit/s", 1),
    "mframes_per_cpu_s": Metric("frames per CPU-second", "M/CPU-s", 1),
    "cpu_ns_per_frame": Metric("CPU per frame, all", "ns", -1),
    "domain_ns_per_frame": Metric("of that, domains", "ns", -1),
    "device_ns_per_frame": Metric("the device", "ns", -1),
    "busy_ns_per_frame": Metric("busy per frame", "ns", -1),
    "spin_ns_per_frame": Metric("spun per frame", "ns", -1),
    "notifications_per_frame": Metric("notifications per frame", "", -1),
    "instructions_per_frame": Metric("instructions per frame", "", -1),
    "transactions_per_s": Metric("round trips", "/s", 1),
    "requests_per_s": Metric("requests", "/s", 1),
    "received_per_s": Metric("received", "/s", 1),
    "cpu_us_per_request": Metric("CPU per request, all", "µs", -1),
    "cpu_ns_per_byte": Metric("CPU per byte, all", "ns", -1),
    "p50_us": Metric("round trip, p50", "µs", -1),
    "p99_us": Metric("round trip, p99", "µs", -1),
    "p999_us": Metric("round trip, p99.9", "µs", -1),
    "cores_used": Metric("CPU time", "cores", -1),
    "viewer_cores": Metric("CPU time of the viewer", "cores", -1),
    "ready_s": Metric("ready", "s", -1),
    "warm_s": Metric("fork server warm", "s", -1),
    "after_warm_s": Metric("then", "s", -1),
    "switches": Metric("context switches", "a slice", -1),
    "fairness": Metric("Jain's fairness", "", 1),
    "bystanders": Metric("bystanders, attacked ÷ undisturbed", "", 1),
    "calls": Metric("their set-up calls, the same", "", 1),
}


def metric(name: str) -> Metric:
    """How to show a metric; one that nobody described is shown by its name, and has no better side."""
    return METRICS.get(name, Metric(name, "", 0))


@dataclass(slots=True)
class Series:
    """A plot: lines (or groups of bars) over common x values; None where there is no figure."""

    id: str
    title: str
    x_label: str
    x: Sequence[float | str]
    y_label: str
    kind: Literal["line", "bar", "cdf"] = "line"
    log: bool = False
    lines: list[Row] = field(default_factory=list)

    def add(
        self,
        name: str,
        y: Sequence[float | None],
        low: Sequence[float | None] | None = None,
        high: Sequence[float | None] | None = None,
    ) -> None:
        """A line: medians, and the ends of their 95 % intervals; without `low`, figures that have no noise to speak of."""
        none = [None] * len(y)
        sampled = low is not None
        self.lines.append({"name": name, "y": list(y), "low": list(low or none), "high": list(high or none), "sampled": sampled})

    def plain(self) -> Row:
        """For results.json."""
        x = {"label": self.x_label, "values": list(self.x), "log": self.log}
        return {
            "id": self.id, "title": self.title, "kind": self.kind, "x": x, "y": {"label": self.y_label}, "lines": self.lines,
        }  # fmt: skip


@dataclass(slots=True)
class BenchmarkResult:
    """What a benchmark found. Rows are plain, as in results.json; `take` and `compare` make them out of samples."""

    title: str
    about: str
    records: list[Row] = field(default_factory=list)
    ratios: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    tables: list[Row] = field(default_factory=list)

    def table(self, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Words and figures that are neither records nor ratios: ``{"title", "head": [text], "rows": [[text]]}``."""
        self.tables.append({"title": title, "head": list(head), "rows": [list(row) for row in rows]})

    def forget(self) -> None:
        """Empty again: what was found is about to be said anew, with more slices."""
        for part in (self.records, self.ratios, self.claims, self.notes, self.series, self.tables):
            part.clear()

    def take(self, samples: Samples, name: str, who: dict[str, str], point: Row, metrics: Iterable[str] = (), **more: Any) -> None:
        """A record per steady regime of what one contender did, the headline first, which has the errors.

        `who`: {"path": …}, {"peer": …} or {"floor": …}; `point`: direction, frame, cores; `more`: checksummed, per_frame, …
        """
        names, slices = list(metrics) or samples.metrics(name), samples.slices(name)
        errors = samples.errors(name)
        regimes = [regime for regime in samples.regimes() if any(samples.figure(name, one, regime).n for one in names)]
        for regime in regimes:
            figures = {one: samples.figure(name, one, regime) for one in names}
            n = max(figure.n for figure in figures.values())
            shown = {one: _figure(figure.plain()) for one, figure in figures.items() if figure.n}
            self.records.append({**who, **point, "regime": regime, "n": n, "slices": slices, **shown, **more, "errors": []})
        if regimes:
            self.records[-len(regimes)]["errors"] = errors
        if not regimes:
            record = {**who, **point, "regime": None, "n": 0, "slices": slices, **more, "errors": errors}
            self.records.append(record)
            if not errors:
                self.notes.append(f"{describe(record)}: no figure, no slice was in a steady regime: {samples.regime_counts()}")

    def compare(self, samples: Samples, of: str, to: str, metric: str, point: Row) -> None:
        """A row for `of` ÷ `to`; if it is of several regimes, then one for each."""
        for ratio in samples.ratios(of, to, metric) or [samples.ratio(of, to, metric)]:
            row = ratio.plain()
            aa = [row.pop("aa_low"), row.pop("aa_high")]
            self.ratios.append({"of": of, "to": to, "metric": metric, **point, **row, "aa": None if aa[0] is None else aa})

    def plain(self) -> Row:
        """For results.json."""
        return {
            "title": self.title, "about": self.about, "records": self.records, "ratios": self.ratios,
            "claims": [claim.plain() for claim in self.claims], "notes": self.notes,
            "series": [series.plain() for series in self.series], "tables": self.tables,
        }  # fmt: skip


def _figure(plain: Row) -> Row:
    aa = None if plain["aa_low"] is None else [plain["aa_low"], plain["aa_high"]]
    return {"median": plain["median"], "low": plain["low"], "high": plain["high"], "aa": aa}


def measured(records: Iterable[Row]) -> list[Row]:
    """Those of contenders' slices; the others are what a benchmark has counted, of which it has a table."""
    return [record for record in records if "regime" in record]


def figures(record: Row) -> dict[str, Row]:
    """A record's metrics, by name."""
    return {name: value for name, value in record.items() if isinstance(value, dict) and value.keys() >= {"median", "low", "high"}}


def measured_ratio(row: Row) -> Ratio:
    """A row of a benchmark's ratios, as what was measured."""
    low, high = row["aa"] or (None, None)
    kept = {key: row[key] for key in ("median", "low", "high", "pairs", "regime", "strata")}
    return Ratio(**kept, aa_low=low, aa_high=high)


def measured_figure(record: Row, name: str) -> Figure:
    """A record's metric, as what was measured."""
    figure = record[name]
    low, high = figure["aa"] or (None, None)
    return Figure(figure["median"], figure["low"], figure["high"], record["n"], record["regime"], low, high)


def grouped(errors: Iterable[str]) -> list[str]:
    """Errors of slices ("round 3: …"), each said once with its rounds."""
    rounds: dict[str, list[str]] = {}
    for error in errors:
        where, colon, what = error.partition(": ")
        known = bool(colon) and where.startswith("round ")
        rounds.setdefault(what if known else error, []).extend([where.removeprefix("round ")] if known else [])
    return [f"{what} (round {', '.join(numbers)})" if numbers else what for what, numbers in rounds.items()]


def who(record: Row) -> tuple[str, str]:
    """("path" | "peer" | "floor", its name) of a record; ("path", "?") if it does not say."""
    return next(((kind, str(record[kind])) for kind in WHO if kind in record), ("path", "?"))


def span(low: float, high: float) -> str:
    """An interval."""
    return f"{short(low)} – {short(high)}"


def describe(record: Row) -> str:
    """Whose figures, and where they were measured."""
    point = [f"{record[part]} B" if part == "frame" else str(record[part]) for part in POINT if record.get(part) is not None]
    return ", ".join([who(record)[1], *point])


class ResultsError(Exception):
    """A file is not a results.json of this version; the message names it and says why."""


def read(path: Path) -> Row:
    """A results.json, or that of a report's folder. ResultsError if it is none."""
    file = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file}: {error}") from None
    if not isinstance(results, dict) or not isinstance(results.get("benchmarks"), dict):
        raise ResultsError(f"{file}: not the results of a bench run")
    if results.get("version") != VERSION:
        raise ResultsError(f"{file}: version {results.get('version')!r}, this is for version {VERSION}")
    return results


def dump(path: Path, results: Row) -> None:
    """Write a results.json. ValueError for a figure that is not finite: JSON has none."""
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
