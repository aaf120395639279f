"""The trends that published systems found, beside what this run found. Ratios only: an emulation matches no absolute figure.

A trend is one or more statements, each a ratio against a target, and is judged as claims are (bench/method/verdicts.py): it
*agrees* if every statement is met, *differs* if one is missed, and is *undecided* otherwise. The targets are 1, which is a
direction, or what `WORDS` says that a word means; no figure of a paper is a target. `basis` says how the paper is known: `READ`, or
`RECALLED`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.method.samples import Figure, Ratio, quotient
from bench.method.verdicts import MET, MISSED, UNDECIDED, WORDS, Decision, Relation, counted, decide
from bench.report.results import Row, measured_figure, measured_ratio
from lab.figures import short

AGREES, DIFFERS, ABSENT = "agrees", "differs", "not measured in this run"
READ = "read in the source's abstract or text"
RECALLED = "from memory of the paper, whose text was not at hand: the direction only"


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that a trend says of this run, in words, and its verdict."""

    text: str
    decision: Decision

    @classmethod
    def of(cls, what: str, measured: Ratio | Figure, target: float, at_least: bool = True) -> "Statement":
        """`what` is at least (or at most) `target`."""
        relation = "≥" if at_least else "≤"
        interval = "" if measured.low is None or measured.high is None else f" ({short(measured.low)} to {short(measured.high)})"
        value = "–" if measured.median is None else f"{short(measured.median)}{interval}"
        return cls(f"{what}: {value}, {relation} {target:g}", decide(measured, target, at_least))

    @classmethod
    def counted(cls, what: str, value: float, relation: Relation, target: float) -> "Statement":
        """`what`, a count, is so."""
        return cls(f"{what}: {short(value)}, {relation} {short(target)}", counted(value, relation, target))


@dataclass(frozen=True, slots=True)
class Trend:
    """A trend, where it was published, how that is known, and how to read it off results: nothing if they haven't what it takes."""

    text: str
    source: str
    basis: str
    read: Callable[[Row], list[Statement]]
    if_not: str


def verdict(statements: list[Statement]) -> str:
    """Of a trend, from its statements'."""
    found = {statement.decision.verdict for statement in statements}
    if not found:
        return ABSENT
    return DIFFERS if MISSED in found else AGREES if found == {MET} else UNDECIDED


def trends(results: Row) -> list[Row]:
    """``{"text", "source", "basis", "here": [text], "verdict", "if_not"}`` for each trend."""
    rows = []
    for trend in TRENDS:
        statements = trend.read(results["benchmarks"])
        here = [_with_reason(statement) for statement in statements]
        row = {"text": trend.text, "source": trend.source, "basis": trend.basis, "if_not": trend.if_not}
        rows.append({**row, "here": here, "verdict": verdict(statements)})
    return rows


def _with_reason(statement: Statement) -> str:
    decision = statement.decision
    return f"{statement.text}: {decision.verdict}" + (f" ({decision.reason})" if decision.verdict == UNDECIDED else "")


# --- reading results --------------------------------------------------------------------------------------------------


def _rows(benchmarks: Row, name: str, kind: str, wanted: dict[str, Any]) -> Iterable[Row]:
    rows: Iterable[Row] = benchmarks.get(name, {}).get(kind, [])
    return (row for row in rows if row.get("regime") and all(row.get(key) == value for key, value in wanted.items()))


def _where(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("of", "to", "path", "direction", "frame", "cores", "guests", "payload", "mode"))


def _ratios(benchmarks: Row, name: str, **wanted: Any) -> list[Row]:
    """The ratios of a benchmark that are so, each of all regimes: the first row of its place."""
    first = {_where(row): row for row in reversed(list(_rows(benchmarks, name, "ratios", wanted))) if row["median"] is not None}
    return list(first.values())[::-1]


def _records(benchmarks: Row, name: str, **wanted: Any) -> list[Row]:
    """The records of a benchmark that are so, each of its headline."""
    first = {_where(row): row for row in reversed(list(_rows(benchmarks, name, "records", wanted)))}
    return list(first.values())[::-1]


# --- the trends -------------------------------------------------------------------------------------------------------


def _near_native(benchmarks: Row) -> list[Statement]:
    rows = _ratios(benchmarks, "throughput", of="bypass", to="native", metric="mpps", cores="all")
    return [
        Statement.of(f"bypass ÷ native, {row['direction']}, {row['frame']} B", measured_ratio(row), WORDS["near"]) for row in rows
    ]


def _per_frame_size(benchmarks: Row) -> list[Statement]:
    for cores, metric in (("1", "mframes_per_cpu_s"), ("all", "mpps")):
        rows = _ratios(benchmarks, "throughput", of="bypass", to="split", metric=metric, cores=cores, direction="guest→wire")
        by_frame = {row["frame"]: measured_ratio(row) for row in rows}
        if len(by_frame) > 1:
            small, large = min(by_frame), max(by_frame)
            where = f"bypass ÷ split (cores {cores})"
            return [
                Statement.of(f"{where}, at {small} B as against {large} B", quotient(by_frame[small], by_frame[large]), 1.0),
                Statement.of(f"{where}, {large} B", by_frame[large], 1.0),
            ]
    return []


SHARE = 0.01
"""Of all CPU time: what "vanishes" means."""


def _dom0_share(benchmarks: Row) -> list[Statement]:
    for name in ("cost", "throughput"):
        shares = {}
        for path in ("bypass", "split"):
            for row in _records(benchmarks, name, path=path, payload=None)[:1]:
                used = row.get("processes") or {}
                if sum(used.values()) > 0:
                    shares[path] = used.get("dom0", 0.0) / sum(used.values())
        if len(shares) == 2:
            text = "Dom0's share of the CPU time, by the kernel's count, on"
            return [
                Statement.counted(f"{text} bypass", shares["bypass"], "≤", SHARE),
                Statement.counted(f"{text} split", shares["split"], "≥", SHARE),
            ]
    return []


def _guests(benchmarks: Row) -> list[Statement]:
    rows = {
        row["of"].partition(" ")[0]: row for row in _ratios(benchmarks, "scale", metric="mpps") if row.get("to", "").endswith(" 1")
    }
    if not {"bypass", "split"} <= rows.keys():
        return []
    many = rows["bypass"]["of"].rpartition(" ")[2]
    bypass, split = (measured_ratio(rows[path]) for path in ("bypass", "split"))
    return [Statement.of(f"what {many} guests keep of one's rate, bypass as against split", quotient(bypass, split), 1.0)]


def _latency(benchmarks: Row) -> list[Statement]:
    for cores in ("1", "all"):
        rows = _ratios(benchmarks, "latency", of="split", to="bypass", metric="p50_us", cores=cores, mode="blocking")
        if rows:
            text = f"round trip, split ÷ bypass, blocking (cores {cores})"
            return [
                Statement.of(f"{text}, {row['direction']}, {row['frame']} B", measured_ratio(row), WORDS["several times"])
                for row in rows
            ]
    return []


def _polling(benchmarks: Row) -> list[Statement]:
    p50 = {}
    for mode in ("polling", "blocking"):
        rows = _records(benchmarks, "latency", path="bypass", mode=mode, direction="guest→wire", cores="all")
        if rows and "p50_us" in rows[0]:
            p50[mode] = measured_figure(rows[0], "p50_us")
    if len(p50) < 2:
        return []
    return [Statement.of("bypass round trip, p50, blocking ÷ polling", quotient(p50["blocking"], p50["polling"]), 1.0)]


def _hold_off(benchmarks: Row) -> list[Statement]:
    rows = _ratios(benchmarks, "cost", of="split, no hold-off", to="split", metric="notifications_per_frame")
    removes = 1 / (1 - WORDS["most"])
    return [
        Statement.of(f"notifications per frame, split, without ÷ with hold-off, {row['frame']} B", measured_ratio(row), removes)
        for row in rows
    ]


TRENDS = (
    Trend(
        "A guest that drives its device itself is nearly as fast as a native program: only set-up is privileged",
        "VMM-bypass I/O, USENIX ATC 2006: nearly the same raw performance; ELI, ASPLOS 2012: 97 to 100 % of bare metal",
        READ, _near_native, "the IOMMU check is a table look-up here, with no TLB of its own",
    ),
    Trend(
        "The driver domain costs most where frames are small",
        "Xen's staging grants: 64 B transmit 0.684 → 2.49 Mpps (3.6×) without per-packet grant operations",
        READ, _per_frame_size, "large frames are bound by copies and checksums, which both paths make",
    ),
    Trend(
        "The driver domain's CPU share vanishes", "CDNA, HPCA 2007", RECALLED, _dom0_share, "Dom0 has other work while this runs",
    ),
    Trend(
        "The split path falls behind as guests are added, bypass holds", "CDNA, HPCA 2007", RECALLED, _guests,
        "with one guest split's three loops share the cores badly, so that more guests at first help it; bypass is bound by the "
        "switches between guests on few cores",
    ),
    Trend(
        "Round trips are several times shorter past Dom0", "XenLoop, HPDC 2008: up to 5× lower", READ, _latency,
        "no VM exits, no TLB and cache effects of domain switches: a hop is a wake-up of a process here",
    ),
    Trend(
        "Polling completions bypasses all; waiting for events costs part of the gain", "VMM-bypass I/O, USENIX ATC 2006",
        RECALLED, _polling, "polling loops had no core each",
    ),
    Trend(
        "Hold-off removes most notifications under load", "Xen's io/ring.h; Menon et al., USENIX ATC 2006", RECALLED, _hold_off,
        "batches of 64 frames already share a notification, so that little is left for hold-off to remove",
    ),
)  # fmt: skip
