"""Repeating workloads in turns, A B A B A B, and what came out of it: medians, with the least and the most beside them.

Two workloads that are to be compared are so compared under the same conditions, and a ratio is the median of the ratios of
neighbours. A few repetitions give no interval of confidence: `python -m bench` does.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lab.command.tables import Record, kind_of, runs


def in_turns(loads: Sequence[dict[str, Any]], repeats: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, workload) in the order of measuring: neighbours of one kind take turns, each `repeats` times."""
    for _, group in itertools.groupby(enumerate(loads), key=lambda item: kind_of({**item[1], "workload": item[1]["kind"]})):
        neighbours = list(group)
        for _ in range(repeats):
            yield from neighbours


def summary(records: Sequence[Record]) -> Record:
    """One record of several of one workload: medians of rates and times, sums of counts; its "runs" are the records."""
    first, frames = records[0], sum(record["frames"] for record in records)

    def median(name: str) -> float:
        return float(statistics.median(record[name] for record in records))

    def weighted(values: Sequence[float]) -> float:
        return sum(v * r["frames"] for v, r in zip(values, records, strict=True)) / frames if frames else 0.0

    record = {
        **first,
        "frames": frames,
        "mpps": median("mpps"),
        "gbps": median("gbps"),
        "cpu_us_per_frame": median("cpu_us_per_frame"),
    }
    if all(one["rtt_us"] for one in records):
        record["rtt_us"] = {name: statistics.median(one["rtt_us"][name] for one in records) for name in first["rtt_us"]}
    for name in ("sent", "seconds", "elapsed", "lost", "corrupt", "duplicated"):
        record[name] = sum(one[name] for one in records)
    record["per_frame"] = {name: weighted([one["per_frame"][name] for one in records]) for name in first["per_frame"]}
    record["checksummed"] = weighted([one["checksummed"] for one in records])
    record["drops"] = dict(sum((Counter(one["drops"]) for one in records), Counter()))
    record["errors"] = [error for one in records for error in one["errors"]]
    record["processes"] = {
        name: {what: sum(one["processes"][name][what] for one in records) for what in use}
        for name, use in first["processes"].items()
    }
    return {**record, "runs": [one for record in records for one in runs(record)]}
