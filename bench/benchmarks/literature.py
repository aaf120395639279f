"""The trends that published systems found, beside what this run found. Ratios only: an emulation matches no absolute figure.

"abstract": read in the source's abstract or text; "recalled": from memory of the paper.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bench.report.results import Row
from lab.figures import short

AGREES, DIFFERS, ABSENT = "agrees", "differs", "not measured in this run"


class Found(NamedTuple):
    """What this run says about a trend: in words, and whether that agrees."""

    here: str
    agrees: bool


@dataclass(frozen=True, slots=True)
class Trend:
    """A trend, where it was published, and how to read it off results. `if_not`: what may explain another outcome here."""

    text: str
    source: str
    basis: str
    read: Callable[[Row], Found | None]
    if_not: str


def trends(results: Row) -> list[Row]:
    """``{"text", "source", "basis", "here", "verdict", "if_not"}`` for each trend."""
    rows = []
    for trend in TRENDS:
        found = trend.read(results["benchmarks"])
        verdict = ABSENT if found is None else AGREES if found.agrees else DIFFERS
        row = {key: value for key, value in asdict(trend).items() if key != "read"}
        rows.append({**row, "here": found.here if found else "–", "verdict": verdict})
    return rows


def _ratios(benchmarks: Row, name: str, **wanted: Any) -> list[Row]:
    rows: Iterable[Row] = benchmarks.get(name, {}).get("ratios", [])
    return [row for row in rows if row["median"] is not None and all(row.get(key) == value for key, value in wanted.items())]


def _first(rows: list[Row]) -> float | None:
    return float(rows[0]["median"]) if rows else None


def _records(benchmarks: Row, name: str, **wanted: Any) -> list[Row]:
    rows: Iterable[Row] = benchmarks.get(name, {}).get("records", [])
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items()) and row.get("regime")]


def _near_native(benchmarks: Row) -> Found | None:
    rows = _ratios(benchmarks, "throughput", of="bypass", to="native", metric="mpps")
    if not rows:
        return None
    low, high = min(row["median"] for row in rows), max(row["median"] for row in rows)
    return Found(f"bypass ÷ native, frames per second: {low:.2f} to {high:.2f}", low > 0.9)


def _per_frame_size(benchmarks: Row) -> Found | None:
    for cores in ("1", "all"):
        metric = "mframes_per_cpu_s" if cores == "1" else "mpps"
        rows = _ratios(benchmarks, "throughput", of="bypass", to="split", metric=metric, cores=cores, direction="guest→wire")
        by_frame = {row["frame"]: row["median"] for row in reversed(rows)}
        if len(by_frame) > 1:
            small, large = min(by_frame), max(by_frame)
            text = f"bypass ÷ split (cores {cores}): {by_frame[small]:.2f} at {small} B, {by_frame[large]:.2f} at {large} B"
            return Found(text, by_frame[small] > by_frame[large] > 1)
    return None


def _dom0_share(benchmarks: Row) -> Found | None:
    for name in ("cost", "throughput"):
        shares = {}
        for path in ("bypass", "split"):
            for row in _records(benchmarks, name, path=path)[:1]:
                used = row.get("processes") or {}
                if sum(used.values()) > 0:
                    shares[path] = used.get("dom0", 0.0) / sum(used.values())
        if len(shares) == 2:
            text = f"Dom0's share of all CPU time: {shares['split']:.0%} on split, {shares['bypass']:.1%} on bypass"
            return Found(text, shares["bypass"] < 0.01 < shares["split"])
    return None


def _guests(benchmarks: Row) -> Found | None:
    rows = {row["of"].partition(" ")[0]: row for row in _ratios(benchmarks, "scale", metric="mpps")}
    if not {"bypass", "split"} <= rows.keys():
        return None
    many = rows["bypass"]["of"].rpartition(" ")[2]
    text = f"{many} guests ÷ 1: bypass {rows['bypass']['median']:.2f}, split {rows['split']['median']:.2f}"
    return Found(text, rows["bypass"]["median"] > rows["split"]["median"])


def _hold_off(benchmarks: Row) -> Found | None:
    found = {}
    for name in ("split", "split, no hold-off"):
        rows = _records(benchmarks, "cost", path=name, payload=None)
        if rows and rows[0].get("per_frame"):
            found[name] = rows[0]["per_frame"]["notifications"]
    if len(found) < 2:
        return None
    held, free = found.values()
    return Found(f"notifications per frame on split: {short(held)} with hold-off, {short(free)} without", held < free)


def _latency(benchmarks: Row) -> Found | None:
    for cores in ("1", "all"):
        rows = _ratios(benchmarks, "latency", of="split", to="bypass", metric="p50_us", cores=cores, mode="blocking")
        found = {row["direction"]: row["median"] for row in reversed(rows)}
        if found:
            text = ", ".join(f"{way} {ratio:.2f}" for way, ratio in found.items())
            return Found(f"round trip, split ÷ bypass, blocking (cores {cores}): {text}", min(found.values()) > 1)
    return None


def _polling(benchmarks: Row) -> Found | None:
    p50 = {}
    for mode in ("polling", "blocking"):
        rows = _records(benchmarks, "latency", path="bypass", mode=mode, direction="guest→wire", cores="all")
        if rows and "p50_us" in rows[0]:
            p50[mode] = rows[0]["p50_us"]["median"]
    if len(p50) < 2:
        return None
    text = f"bypass round trip, p50: {short(p50['polling'])} µs polling, {short(p50['blocking'])} µs blocking"
    return Found(text, p50["polling"] < p50["blocking"])


TRENDS = (
    Trend(
        "A guest that drives its device itself is as fast as a native program: only set-up is privileged",
        "VMM-bypass I/O, USENIX ATC 2006: nearly the same raw performance; ELI, ASPLOS 2012: 97 to 100 % of bare metal",
        "abstract", _near_native, "the IOMMU check is a table look-up here, with no TLB of its own",
    ),
    Trend(
        "The driver domain costs most where frames are small",
        "Xen's staging grants: 64 B transmit 0.684 → 2.49 Mpps (3.6×) without per-packet grant operations",
        "abstract", _per_frame_size, "large frames are bound by copies and checksums, which both paths make",
    ),
    Trend(
        "The driver domain's CPU share vanishes", "CDNA, HPCA 2007: 35.7 → 0.3 % of CPU", "recalled", _dom0_share,
        "Dom0 has other work while this runs",
    ),
    Trend(
        "The split path falls behind as guests are added, bypass holds",
        "CDNA, HPCA 2007: with 24 guests 2.1× (transmit) and 3.4× (receive) of Xen's", "recalled", _guests,
        "with one guest split's three loops share the cores badly, so that more guests at first help it; bypass is bound by the "
        "switches between guests on few cores",
    ),
    Trend(
        "Round trips are several times shorter past Dom0", "XenLoop, HPDC 2008: up to 5× lower", "abstract", _latency,
        "no VM exits, no TLB and cache effects of domain switches: a hop is a wake-up of a process here",
    ),
    Trend(
        "Polling completions bypasses all; waiting for events costs part of the gain", "VMM-bypass I/O, USENIX ATC 2006",
        "recalled", _polling, "polling loops had no core each",
    ),
    Trend(
        "Hold-off removes most notifications under load", "Xen's io/ring.h; Menon et al., USENIX ATC 2006", "recalled", _hold_off,
        "batches of 64 frames already share a notification",
    ),
)  # fmt: skip
