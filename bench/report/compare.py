"""Two runs of the bench: what got faster, what slower, and what can't be told.

The two runs were not interleaved, so no pairs can be made. For each figure that both runs have (same benchmark, contender,
direction, frame size, cores and regime), the ratio of the medians gets an interval from the two intervals by the method of variance
estimates recovery, on logarithms (Donner and Zou, "Closed-form confidence intervals for functions of the normal mean and standard
deviation", 2012), and that is widened by both runs' A/A intervals. A figure has changed if 1 is outside.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench.method.estimate import FEWEST
from bench.method.samples import Ratio
from bench.method.verdicts import ABOVE, BELOW, direction
from bench.report.results import LESS_COMMON, Row, figures, metric, span, who
from lab.figures import short

CANT_TELL = "can't be told"
SAME_MACHINE = (
    "cpu", "cpu_model", "model", "cores", "kernel", "python", "numpy", "numba", "llvmlite", "smt", "virtualised", "hypervisor",
    "clocksource", "thread_clocks", "transparent_hugepage", "shmem_enabled",
)  # fmt: skip
"""What of a machine's fingerprint has to be equal; load and steal differ from run to run."""

Key = tuple[str, str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both runs: b ÷ a with its interval; verdict "faster", "slower", "higher", "lower" or "can't be told"."""

    benchmark: str
    contender: str
    direction: str
    frame: str
    cores: str
    regime: str
    metric: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str
    reason: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(a: Row, b: Row) -> list[Change]:
    """A row for each figure that both runs have a median of. Regimes are never mixed."""
    ours, theirs = dict(_records(a)), dict(_records(b))
    rows = []
    for key, record in ours.items():
        if key in theirs:
            there = figures(theirs[key])
            for name, figure in figures(record).items():
                if name in there and _positive(figure["median"]) and _positive(there[name]["median"]):
                    rows.append(_change(key, name, figure, there[name]))
    return rows


def only_in_one(a: Row, b: Row) -> list[str]:
    """What one run has and the other has not, in words."""
    keys = [{key for key, record in _records(run) if figures(record)} for run in (a, b)]
    both = [("only in A", keys[0] - keys[1]), ("only in B", keys[1] - keys[0])]
    return [f"{where}: {' · '.join(part for part in key if part)}" for where, some in both for key in sorted(some)]


def other_machine(a: Row, b: Row) -> list[str]:
    """Differences of the fingerprints for which figures may differ though the code is the same."""
    one, other = a.get("machine", {}), b.get("machine", {})
    found = [f"{key}: {one.get(key)} / {other.get(key)}" for key in SAME_MACHINE if one.get(key) != other.get(key)]
    ours, theirs = a.get("options", {}), b.get("options", {})
    return found + [f"slices of {ours.get(key)} / {theirs.get(key)} s" for key in ("slice_s",) if ours.get(key) != theirs.get(key)]


def _records(run: Row) -> Iterator[tuple[Key, Row]]:
    for name, benchmark in run["benchmarks"].items():
        for record in benchmark.get("records", []):
            if record.get("regime") is not None:
                direction, frame, *rest = (str(record.get(part) or "") for part in ("direction", "frame", *LESS_COMMON))
                cores = " ".join(part for part in rest if part)
                yield (name, who(record)[1], direction, frame, cores, str(record["regime"])), record


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _change(key: Key, name: str, a: Row, b: Row) -> Change:
    ratio = b["median"] / a["median"]
    low, high, reason = _interval(a, b)
    verdict = CANT_TELL
    side = direction(Ratio(ratio, low, high, FEWEST, str(key[-1]), 1.0, 1.0)).verdict  # the A/A intervals are in low and high
    if side in (ABOVE, BELOW):
        better = metric(name).better * (1 if side == ABOVE else -1)
        verdict = {1: "faster", -1: "slower", 0: "higher" if side == ABOVE else "lower"}[better]
    elif low is not None:
        reason = "the interval contains 1"
    return Change(*key, name, a["median"], b["median"], ratio, low, high, verdict, reason)


def _interval(a: Row, b: Row) -> tuple[float | None, float | None, str]:
    """Of b ÷ a; (None, None, why) if one of the runs has no interval."""
    for run, figure in (("A", a), ("B", b)):
        if not (_positive(figure["low"]) and _positive(figure["high"])):
            return None, None, f"{run} has no 95 % interval"
        if not figure.get("aa"):
            return None, None, f"{run} has no A/A interval"
    ratio = math.log(b["median"] / a["median"])
    down = math.hypot(math.log(b["median"] / b["low"]), math.log(a["high"] / a["median"]))
    up = math.hypot(math.log(b["high"] / b["median"]), math.log(a["median"] / a["low"]))
    widened = sum(max(abs(math.log(end)) for end in figure["aa"]) for figure in (a, b))
    return math.exp(ratio - down - widened), math.exp(ratio + up + widened), ""


def report(a: Row, b: Row) -> Group:
    """Everything that is to be said about two runs, for a terminal."""
    rows = compare(a, b)
    table = Table(header_style="bold", pad_edge=False, box=None)
    for name in ("benchmark", "contender", "where", "regime", "figure", "A", "B", "B ÷ A", "95 % and A/A", "verdict"):
        table.add_column(name, justify="right" if name in ("A", "B", "B ÷ A") else "left", overflow="fold")
    styles = {"faster": "green", "slower": "red", CANT_TELL: "dim"}
    for row in rows:
        interval = span(row.low, row.high) if row.low is not None and row.high is not None else row.reason
        where = " ".join(part for part in (row.direction, f"{row.frame} B" if row.frame else "", row.cores) if part)
        shown = metric(row.metric)
        cells = (row.benchmark, row.contender, where, row.regime, f"{shown.label} {shown.unit}".strip())
        numbers = (short(row.a), short(row.b), f"{row.ratio:.3f}", interval)
        table.add_row(*map(Text, (*cells, *numbers)), Text(row.verdict, style=styles.get(row.verdict, "")))
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in dict.fromkeys(row.verdict for row in rows)}
    warnings = [f"not the same machine or method: {what}" for what in other_machine(a, b)]
    lines: list[Table | Text] = [Text(warning, style="bold yellow") for warning in warnings]
    lines.append(table if rows else Text("the two runs have no figure in common"))
    lines += [Text(what, style="dim") for what in only_in_one(a, b)]
    if rows:
        lines.append(Text(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), style="bold"))
    return Group(*lines)
