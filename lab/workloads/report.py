"""What the ends of a workload report, judged. Guests say what they like, and their word goes into tables, pages and files of JSON.

A report, as the runner has put it together of what sender and receiver say::

    sent, units             frames that were sent; parts of each that the receiver accounts for (1 if it isn't said)
    received                {frames, bytes, corrupt, duplicated, first_ns, last_ns}
    seconds, rtt_us         of round trips: how long they took, and a figure for each of RTT
    latency                 None, or {p50, p90, p99, p999, max, counts: [[ns, frames], …]}, as hyp.load.histogram.summary has it
    lag_ns, max_lag_ns      of an open loop; missing else
    replay                  of a replay: counts about its file, and a text, `cut`; missing else

What else is in it is nobody's to read. TypeError, ValueError, LookupError or AttributeError for what is no such report.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from hyp.control.words import printable

MOST: Final = 1 << 62
"""Of anything that is counted, ns included."""
LONGEST_S: Final = 1e9
RTT: Final = ("p50", "p90", "p99", "p999", "mean", "max")
RANKS: Final = ("p50", "p90", "p99", "p999", "max")
RECEIVED: Final = ("frames", "bytes", "corrupt", "duplicated", "first_ns", "last_ns")
MOST_BUCKETS: Final = 1 << 14
MOST_OF_A_FILE, MOST_TEXT = 16, 200


def judged(said: Mapping[str, Any]) -> dict[str, Any]:
    """The report, with what belongs to one and nothing else."""
    units = _count(said.get("units", 1))
    if units == 0:
        raise ValueError("a frame has no units")
    received = {name: _count(said["received"][name]) for name in RECEIVED}
    report: dict[str, Any] = {"sent": _count(said["sent"]), "units": units, "received": received}
    report["latency"] = None if said.get("latency") is None else _latency(said["latency"])
    if "seconds" in said:
        report["seconds"] = _number(said["seconds"], LONGEST_S)
    if said.get("rtt_us") is not None:
        report["rtt_us"] = {name: _number(said["rtt_us"][name], LONGEST_S * 1e6) for name in RTT}
    report |= {name: _count(said[name]) for name in ("lag_ns", "max_lag_ns") if name in said}
    if "replay" in said:
        report["replay"] = _about_a_file(said["replay"])
    return report


def _count(said: Any) -> int:
    if not isinstance(said, int) or isinstance(said, bool):
        raise TypeError(f"{type(said).__name__} for a count")
    if not 0 <= said < MOST:
        raise ValueError("a count that is out of all proportion")
    return said


def _number(said: Any, most: float) -> float:
    if not isinstance(said, int | float) or isinstance(said, bool):
        raise TypeError(f"{type(said).__name__} for a number")
    if not (math.isfinite(said) and 0 <= said <= most):
        raise ValueError("a number that is out of all proportion")
    return float(said)


def _latency(said: Mapping[str, Any]) -> dict[str, Any]:
    pairs = said["counts"]
    if len(pairs) > MOST_BUCKETS:
        raise ValueError(f"{len(pairs)} buckets of a histogram")
    counts = [[_count(ns), _count(frames)] for ns, frames in pairs]
    return {**{name: _count(said[name]) for name in RANKS}, "counts": counts}


def _about_a_file(said: Mapping[str, Any]) -> dict[str, Any]:
    if len(said) > MOST_OF_A_FILE:
        raise ValueError(f"{len(said)} counts about a file")
    counts = {printable(name, MOST_TEXT): _count(value) for name, value in said.items() if name != "cut"}
    return {**counts, "cut": None if said.get("cut") is None else printable(said["cut"], MOST_TEXT)}
