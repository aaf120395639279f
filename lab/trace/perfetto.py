"""Writes ways of frames as a trace for Perfetto or chrome://tracing (Trace Event Format): a track for each loop, arrows between.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: events "M" (names), "X" (work, a slice), "b" and
"e" (a wait for a wake-up, which may lie across others), "s", "t" and "f" (flow arrows). Times are in µs, as fractions.

A loop does one thing after the other, so a slice of work begins no earlier than the one before ended; what a frame waited before
that is in the slice's arguments. `read` takes the ways back from such a file.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from hyp.abi.trace import Moment
from lab.trace.story import Step, Way, place_of
from lab.trace.viewer import Sighting

FORMAT = "xen-bypass-lab ways"


class TraceWriter:
    """Writes a file as the ways come. OSError where there is no room: what was written until then is a trace if it is `close`d."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._tracks, self._number, self._last = out, dict[tuple[str, str], tuple[int, int]](), 0, dict[int, int]()
        self._out.write(f'{{"displayTimeUnit": "ns", "otherData": {{"format": "{FORMAT}"}}, "traceEvents": [\n')
        self._comma = ""

    def _event(self, **event: Any) -> None:
        self._out.write(self._comma + json.dumps(event))
        self._comma = ",\n"

    def _track(self, process: str, loop: str) -> tuple[int, int]:
        found = self._tracks.get((process, loop))
        if found is None:
            pids = {name: pid for (name, _), (pid, _) in self._tracks.items()}
            pid = pids.get(process, len(pids) + 1)
            found = self._tracks[process, loop] = (pid, len(self._tracks) + 1)
            if process not in pids:
                self._event(ph="M", name="process_name", pid=pid, args={"name": process})
            self._event(ph="M", name="thread_name", pid=pid, tid=found[1], args={"name": loop})
        return found

    def add(self, way: Way) -> None:
        """One frame's way."""
        self._number += 1
        for k, step in enumerate(way.steps):
            self._step(way, k, step)

    def _step(self, way: Way, k: int, step: Step) -> None:
        one = step.sighting
        pid, tid = self._track(one.process, one.loop)
        begin = max(one.time_ns - step.work_ns, self._last.get(tid, 0))
        self._last[tid] = max(one.time_ns, begin)
        common = {"pid": pid, "tid": tid}
        key = f"{one.key & (1 << 64) - 1:#x}"
        if step.asleep_ns:
            waiting = {"cat": "asleep", "id": self._number, "name": f"{one.loop} is woken", **common}
            self._event(ph="b", ts=step.begin_ns / 1e3, **waiting)
            self._event(ph="e", ts=(step.begin_ns + step.asleep_ns) / 1e3, **waiting)
        told = {
            "way": self._number, "step": k, "route": way.route, "process": one.process, "loop": one.loop, "moment": int(one.moment),
            "time_ns": one.time_ns, "woken_ns": one.woken_ns, "key": key, "length": one.length, "port": one.port,
            "other": one.other, "drop": one.drop, "offload": one.offload, "asleep_ns": step.asleep_ns, "work_ns": step.work_ns,
            "file": step.file,
        }  # fmt: skip
        duration = max(one.time_ns - begin, 1) / 1e3
        self._event(ph="X", cat="frame", name=step.what, ts=begin / 1e3, dur=duration, args=told, **common)
        if len(way.steps) > 1:
            phase = "s" if k == 0 else "f" if k == len(way.steps) - 1 else "t"
            bound = {"bp": "e"} if phase != "s" else {}
            self._event(ph=phase, cat="frame", name="frame", id=self._number, ts=(begin + duration * 500) / 1e3, **bound, **common)

    def close(self) -> None:
        """End the file."""
        self._out.write("\n]}\n")


def read(path: Path) -> list[Way]:
    """The ways in a file that was written here. ValueError, with the reason, if it is none."""
    try:
        trace = json.loads(path.read_text())
        events = trace["traceEvents"]
        if trace["otherData"]["format"] != FORMAT:
            raise KeyError(FORMAT)
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no trace that this lab has written, or is cut off ({error})") from None
    return list(_ways(event["args"] for event in events if event.get("ph") == "X"))


def _ways(told: Iterable[dict[str, Any]]) -> Iterable[Way]:
    steps: dict[int, list[Step]] = {}
    for one in told:
        sighting = Sighting(
            one["time_ns"], one["process"], one["loop"], Moment(one["moment"]), int(one["key"], 16), one["length"], one["port"],
            one["other"], one["drop"], one["offload"], one["woken_ns"], b"",
        )  # fmt: skip
        what, file = place_of(sighting)
        steps.setdefault(one["way"], []).append(Step(what, file, one["asleep_ns"], one["work_ns"], sighting))
    for found in steps.values():
        yield Way(found)
