"""What a person sees of the results: rich tables."""

import os.path
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from domu.programs.table import program_of
from lab.figures import number, short

Record = dict[str, Any]


def _table(*columns: str) -> Table:
    """Text columns first (path, workload, …), then figures to the right."""
    table = Table(header_style="bold", pad_edge=False, box=None)
    for name in columns:
        left = name in ("path", "workload", "what", "stream", "process")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _name(record: Record) -> tuple[str, str, str]:
    path = f"{record['path']} modelled" if record.get("modelled") else record["path"]
    return path, f"{record['workload']} {record['from']}→{record['to']}", str(record["frame"])


def runs(record: Record) -> list[Record]:
    """The single measurements that a record sums up; itself, if it is one."""
    found: list[Record] = record.get("runs", [record])
    return found


def with_spread(values: Sequence[float]) -> str:
    """The median, and beside it the least and the most if there are several: "1.72 (1.46–1.79)"."""
    median = short(statistics.median(values))
    return f"{median} ({short(min(values))}–{short(max(values))})" if len(values) > 1 else median


def rates(records: Iterable[Record]) -> Table:
    """What each workload reached, one row each. It fits into 80 columns."""
    table = _table("path", "workload", "B", "Mfr/s", "Gbit/s", "p50 µs", "p99 µs", "CPU µs", "lost")
    for record in records:
        rtt = record["rtt_us"] or {}
        times = [number(rtt.get("p50"), 1), number(rtt.get("p99"), 1), number(record["cpu_us_per_frame"], 3)]
        lost = "0" if not record["lost"] else f"{record['lost']:,}"
        table.add_row(*_name(record), number(record["mpps"]), number(record["gbps"]), *times, lost)
    return table


PER_FRAME = ("dom0_frames", "vmm_frames", "copies", "notifications", "hypercalls", "traps", "wakeups")


def ledger(records: Iterable[Record]) -> Table:
    """What one frame of each workload cost, one row each."""
    table = _table("path", "workload", "B", "frames", "Dom0", "VMM", "copies", "notif.", "hyperc.", "traps", "wake-ups")
    for record in records:
        cost = record["per_frame"]
        per_frame = [number(cost[name], 3) for name in PER_FRAME]
        table.add_row(*_name(record), f"{record['frames']:,}", *per_frame)
    return table


def processes(records: Iterable[Record], names: Iterable[str]) -> Table:
    """CPU time and context switches of some processes during each workload, as the kernel counts them."""
    table = _table("stream", "B", "process", "CPU ms", "context switches", "CPU µs/1000 frames")
    for record in records:
        for name in names:
            use = record["processes"][name]
            per_1000 = use["cpu_ms"] * 1e6 / record["frames"] if record["frames"] else 0.0
            path, _, frame = _name(record)
            stream = f"{path} {record['from']}→{record['to']}"
            table.add_row(stream, frame, name, number(use["cpu_ms"]), f"{use['switches']:,}", number(per_1000))
    return table


def notes(records: Iterable[Record]) -> list[str]:
    """What the tables do not say: what one trap cost, and which prices results were modelled with."""
    records = list(records)
    lines = []
    for record in records:
        if record.get("trap_ns") is not None:
            path, workload, frame = _name(record)
            lines.append(f"{path} {workload}, {frame} B: a guest stood still for {record['trap_ns'] / 1000:.2f} µs a trap")
    priced = {(record.get("profile"), tuple(record["modelled"].items())) for record in records if record.get("modelled")}
    for profile, prices in sorted(priced, key=str):
        modelled = f"modelled as {profile}" if profile else "modelled"
        lines.append(f"{modelled}: each operation costs in addition " + ", ".join(f"{name} {n}" for name, n in prices if n))
    return lines


def kind_of(record: Record) -> tuple[str, str, int]:
    """What two records of different paths must have in common to be compared."""
    return (record["workload"], "wire" if "wire" in (record["from"], record["to"]) else "guest", record["frame"])


def comparison(records: Iterable[Record]) -> Table | None:
    """Bypass beside split, for the workloads that both ran; None if there is none.

    Of workloads that were run several times in turns it has medians (min–max), the ratio bypass ÷ split (the median of those of
    neighbouring runs) and what that is for a user: "better" or "worse" if all those ratios say so, else that they don't agree.
    Round trips of loops that poll are not held against those of loops that sleep: that is another question than which path it is.
    """
    rows = compared(records)
    if not rows:
        return None
    table = _table("workload", "B", "what", "split", "bypass", "bypass ÷ split", "for bypass")
    for row in rows:
        table.add_row(row["workload"], str(row["frame"]), row["what"], row["split"], row["bypass"], row["ratio"], row["verdict"])
    return table


def against(records: Iterable[Record]) -> list[str]:
    """What of the comparison does not speak for bypass, in words: the lines in which it is worse, or runs disagree."""
    found = []
    for row in compared(records):
        if row["verdict"] in (WORSE, OPEN):
            found.append(f"{row['workload']}, {row['frame']} B, {row['what']}: bypass ÷ split {row['ratio']} ({row['verdict']})")
    return found


def not_compared(records: Iterable[Record]) -> list[str]:
    """Why some figures of the comparison have no ratio."""
    polling = sorted(
        {row["verdict"].split()[0] for row in compared(records) if not row["ratios"] and row["verdict"].endswith("polls")}
    )
    return [
        f"({path} polls: its loops have a core each, the other path's share cores and sleep. That decides these round trips, "
        "whatever the path, so they have no ratio.)"
        for path in polling
    ]


def spread(records: Iterable[Record]) -> float:
    """By what factor neighbouring runs' ratios differ at most, of all that is compared: 1 on a machine that is always the same."""
    return max((max(row["ratios"]) / min(row["ratios"]) for row in compared(records) if row["ratios"]), default=1.0)


BETTER, WORSE, OPEN, SINGLE_RUN = "better", "worse", "unclear", "one run"
POLLS = "{} polls"


def compared(records: Iterable[Record]) -> list[Record]:
    """A row for each figure of each workload that both paths ran: ``{"workload", "frame", "what", "split", "bypass", "ratio"`` (in
    words)``, "ratios", "verdict"}``.
    """
    by_kind: dict[tuple[str, str, int], dict[str, Record]] = {}
    for record in records:
        by_kind.setdefault(kind_of(record), {})[record["path"]] = record
    found = []
    for (workload, far, frame), paths in by_kind.items():
        if not {"split", "bypass"} <= paths.keys():
            continue
        split, bypass = runs(paths["split"]), runs(paths["bypass"])
        rows = [("CPU µs/frame", [[r["cpu_us_per_frame"] for r in side] for side in (split, bypass)], False)]
        if workload == "stream":
            rows.insert(0, ("Mframes/s", [[r["mpps"] for r in side] for side in (split, bypass)], True))
        elif all(record["rtt_us"] for record in (*split, *bypass)):
            rows.insert(0, ("p50 µs", [[r["rtt_us"]["p50"] for r in side] for side in (split, bypass)], False))
        polls = [bool(side[0].get("polls")) for side in (split, bypass)]
        for what, (one, other), more in rows:
            ratios = [b / a for a, b in zip(one, other, strict=True) if a > 0 and b > 0]
            verdict = _verdict(ratios, more)
            if workload == "rr" and polls[0] != polls[1]:
                ratios, verdict = [], POLLS.format("split" if polls[0] else "bypass")
            row = {"workload": f"{workload} to {far}", "frame": frame, "what": what, "verdict": verdict, "ratios": ratios}
            row |= {"split": with_spread(one), "bypass": with_spread(other), "ratio": with_spread(ratios) if ratios else "–"}
            found.append(row)
    return found


def _verdict(ratios: Sequence[float], more: bool) -> str:
    """Of a few ratios, of which `more` is better or less is."""
    if len(ratios) < 2:
        return SINGLE_RUN
    if min(ratios) > 1 or max(ratios) < 1:
        return BETTER if (min(ratios) > 1) == more else WORSE
    return OPEN


def losses(records: Iterable[Record]) -> list[str]:
    """A line for each record with drops or errors."""
    lines = []
    for record in records:
        where = f"{record['workload']} {record['from']} → {record['to']}, {record['frame']} B"
        if record["drops"]:
            lines.append(f"{where}: dropped " + ", ".join(f"{n:,} {name}" for name, n in record["drops"].items()))
        lines += [f"ERROR {where}: {error}" for error in record["errors"]]
    return lines


def duration(seconds: float) -> str:
    """ "12 s", "3 min 12 s", "2 h 5 min", "1 d 3 h"."""
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((index for index, (_, size) in enumerate(units) if seconds >= size), len(units) - 1)
    parts, left = [], int(seconds)
    for name, size in units[first : first + 2]:
        parts.append(f"{left // size} {name}")
        left %= size
    return " ".join(parts)


def status_lines(topology: dict[str, Any]) -> list[str]:
    """What `launch.py status` says about one topology: state, processes and guests, and what guests move."""
    dead, state = "; ".join(topology["dead"]), topology["state"]
    up = f"up {duration(topology['up_s'])}" if topology.get("up_s") is not None else ""
    lines = [f"{topology['name']}: {up if state == 'up' else state}" + (f": {dead}" if dead else "")]
    lines += [f"  {up}"] * (state != "up" and bool(up)) + [f"  log: {topology['log']}", f"  store: {topology['store']}"]
    lines += [f"  guests print to: {os.path.dirname(topology['log'])}/<guest>.log"] * bool(topology["guests"])
    lines += [f"  {sentence}" for sentence in [*topology["notices"], *topology["cut_off"]]]
    if (cpu := topology.get("cpu")) and cpu["processes"]:
        lines.append(f"  placement: {cpu['placement']}")
    guests = {guest["name"]: guest for guest in topology["guests"]}
    wide = max([16, *map(len, guests)])
    for process in topology["processes"]:
        guest = guests.get(process["name"])
        what = f"{guest['path']}, {program_of(guest['program']).name}, {guest['mac']} {_addresses(guest)}" if guest else ""
        pid = process.get("pid") or "–"
        lines.append(f"  {process['name']:<{wide}} {process['role']:<10} {process['state']:<17} {pid:<8} {what}".rstrip())
    return lines + _moved([guest for guest in topology["guests"] if "counters" in guest], wide) + _rates(topology["guests"], wide)


def _addresses(guest: dict[str, Any]) -> str:
    return " ".join(guest[key] for key in ("address", "address6") if guest.get(key))


def brief(topology: dict[str, Any]) -> str:
    """A topology in a line: name, state, guests."""
    up = f" for {duration(topology['up_s'])}" if topology.get("up_s") is not None else ""
    guests = ", ".join(f"{guest['name']} ({guest['path']})" for guest in topology["guests"])
    return f"{topology['name']}: {topology['state']}{up}" + (f": {guests}" if guests else "")


def _moved(guests: list[dict[str, Any]], wide: int) -> list[str]:
    """What guests have sent and received since the start, and what was dropped of it."""
    lines = [f"  {'':<{wide}} {'sent':>15} {'bytes':>19} {'received':>15} {'bytes':>19}  dropped"] if guests else []
    for guest in guests:
        counts = guest["counters"]
        figures = f"{counts['tx_frames']:>15,} {counts['tx_bytes']:>19,} {counts['rx_frames']:>15,} {counts['rx_bytes']:>19,}"
        dropped = ", ".join(f"{n:,} {name}" for name, n in counts["drops"].items()) or "0"
        lines.append(f"  {guest['name']:<{wide}} {figures}  {dropped}")
    return lines


def _rates(guests: list[dict[str, Any]], wide: int) -> list[str]:
    """What they send and receive now."""
    measured = [guest for guest in guests if "rates" in guest]
    if not measured:
        return []
    over = f"over {measured[0]['rates']['interval_s']:.2f} s"
    lines = [f"  {over:<{wide}} {'sent/s':>15} {'Gbit/s':>19} {'received/s':>15} {'Gbit/s':>19}"]
    for guest in measured:
        rate = guest["rates"]
        figures = f"{rate['tx_fps']:>15,.0f} {rate['tx_gbps']:>19.3f} {rate['rx_fps']:>15,.0f} {rate['rx_gbps']:>19.3f}"
        lines.append(f"  {guest['name']:<{wide}} {figures}")
    return lines
