"""What a workload came to, as a record: rate, round trips, CPU by process, ledger, losses explained."""

from collections.abc import Sequence
from typing import Any

from lab.accounting import Usage
from lab.figures import plural
from lab.ledger import Snapshot, drops, faults, operations, per_frame, total, trap_ns, unbalanced
from lab.workloads.load import Workload


def record_of(
    load: Workload, path: str, report: dict[str, Any], counted: Snapshot, at_rest: Snapshot, cpu: dict[str, Usage], elapsed: float
) -> dict[str, Any]:
    """The record of a workload, without what it ran in.

    `report`: its ends', `merged`; `counted`: what was counted meanwhile; `at_rest`: counters after it, of processes that live;
    `cpu`: by process; `elapsed`: seconds.
    """
    received, units = report["received"], report["units"]
    round_trips = load["kind"] == "rr"
    frames, sent = received["frames"] // units, report["sent"] // units
    seconds = report["seconds"] if round_trips else (received["last_ns"] - received["first_ns"]) / 1e9
    moved = 2 * frames if round_trips else frames  # a round trip is two frames
    cpu_us = sum(use.cpu_ns for use in cpu.values()) / 1000
    named = drops(counted)
    record: dict[str, Any] = {
        "path": path, "workload": load["kind"], "from": load["from"], "to": load["to"], "frame": load["frame"],
        "frames": frames, "sent": sent, "seconds": seconds,
        "mpps": moved / seconds / 1e6 if seconds > 0 else 0.0,
        "gbps": (2 if round_trips else 1) * received["bytes"] * 8 / seconds / 1e9 if seconds > 0 else 0.0,
        "rtt_us": report.get("rtt_us"), "latency": report.get("latency"),
        "cpu_us_per_frame": cpu_us / moved if moved else 0.0,
        "spin_us_per_frame": total(counted, "spin_ns") / 1000 / moved if moved else 0.0,
        "per_frame": per_frame(counted, moved), "operations": operations(counted, moved), "trap_ns": trap_ns(counted),
        "lost": sent - frames, "corrupt": received["corrupt"], "duplicated": received["duplicated"],
        "checksummed": counted_checks(counted, moved * units), "drops": named,
        "processes": {
            name: {
                "cpu_ms": use.cpu_ns / 1e6,
                "spun_ms": total(counted, "spin_ns", f"{name}/") / 1e6,
                "switches": use.switches,
            }
            for name, use in cpu.items()
        },
        "elapsed": elapsed,
    }  # fmt: skip
    record |= {name: report[name] for name in ("shares", "lag_ns", "max_lag_ns", "replay") if name in report}
    if load["kind"] == "replay":
        record |= {"file": load["file"], "frame": round(received["bytes"] / frames) if frames else 0}  # the mean length
    record["errors"] = errors(record, counted, at_rest)
    return record


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One for streams that ran at a time (report.py): sums, from the first frame of any to its last; `shares`: frames of each."""
    if len(reports) == 1:
        return reports[0]
    received = [report["received"] for report in reports]
    sums = {name: sum(one[name] for one in received) for name in ("frames", "bytes", "corrupt", "duplicated")}
    seen = [one for one in received if one["frames"]] or received
    ends = {"first_ns": min(one["first_ns"] for one in seen), "last_ns": max(one["last_ns"] for one in seen)}
    shares = [one["frames"] for one in received]
    units = reports[0]["units"]
    return {"sent": sum(report["sent"] for report in reports), "units": units, "received": {**sums, **ends}, "shares": shares}


def counted_checks(counted: Snapshot, frames: int) -> float:
    """Fraction of the frames whose whole payload was checksummed by a receiver."""
    checked = sum(counts["checked"] for counts in counted.values())
    return min(1.0, checked / frames) if frames else 0.0


def errors(record: dict[str, Any], counted: Snapshot, at_rest: Snapshot) -> list[str]:
    """What makes the record worthless: corruption, duplicates, losses without a name, protocol faults, hops that do not balance."""
    found = []
    if record["frames"] == 0:
        found.append("no frame arrived")
    for what in ("corrupt", "duplicated"):
        if record[what]:
            found.append(f"{plural(record[what], 'frame')} {what}")
    unexplained = record["lost"] - sum(record["drops"].values())
    if unexplained > 0 or record["lost"] < 0:
        found.append(f"{plural(record['lost'], 'frame')} lost, {sum(record['drops'].values())} of them under a name")
    found += [f"{row}: {name} {n}" for row, names in faults(counted).items() for name, n in names.items()]
    found += [f"does not balance: {equation}" for equation in unbalanced(at_rest)]
    return found
