"""What happens to a topology, as records in the order in which it happened: ``{"time": Unix time, "kind", "who", "what"}``.

Kinds: *up*, *died*, *restarting*, *restarted*, *moved*, *notice* are the keeper's word (lab/keeper/news.py). *stopped* and
*continued* (a process stands still, by a signal), *connected* (a guest's port is there), *drops* and *faults* (the first of a
name at a hop, after a while without any) are seen by comparing samples. `who`: a node of the picture. `what`: a sentence,
printable, of bounded length.

Bounded, whatever happens: the oldest go.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from hyp.control.words import printable
from lab.view.picture import Picture
from lab.view.samples import STOPPED, Sample

Event = dict[str, Any]
KEPT = 256
QUIET_S = 5.0
"""How long a hop must have dropped nothing by a name before the next one is an event again."""
MOST_AT_ONCE = 16
"""Of one kind, of one sample: a guest that fails has a fault of every kind."""


def event(time: float, kind: str, who: str, what: str) -> Event:
    """A record, fit to be shown."""
    return {"time": time, "kind": printable(kind, 20), "who": printable(who, 64), "what": printable(what)}


class EventLog:
    """The last `KEPT` events. `number` counts all that there were, so that who reads now and then knows what is new."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self.number = 0
        self._seen: dict[tuple[str, str, str], float] = {}  # (kind, hop, name) → when it last counted
        self._states: dict[str, tuple[int, str]] = {}
        self._ports: set[str] | None = None

    def add(self, *events: Event) -> None:
        """Append."""
        for one in events:
            self._events.append(one)
            self.number += 1

    def since(self, number: int = 0) -> list[Event]:
        """Those that came after the first `number` of all, as far as they are kept."""
        new = self.number - number
        return list(self._events)[-new:] if new > 0 else []

    def compare(self, picture: Picture, sample: Sample) -> None:
        """Add what a sample shows that the one before did not."""
        self.add(*self._counted(picture, sample), *self._signalled(sample))

    def _counted(self, picture: Picture, sample: Sample) -> Iterable[Event]:
        time, found = sample["time"], list[Event]()
        for kind in ("drops", "faults"):
            begun = [
                (hop, name, figures)
                for hop in picture["hops"]
                for name, figures in sample["hops"][hop["id"]][kind].items()
                if figures["s"] != 0 and self._begins((kind, hop["id"], name), time)
            ]
            for hop, name, figures in begun[:MOST_AT_ONCE]:
                where = f"{hop['source']} → {hop['target']}"
                rate = f", {figures['s']:,.0f} a second" if figures["s"] is not None else ""
                what = f"frames are dropped as {name}" if kind == "drops" else f"protocol faults: {name}"
                found.append(event(time, kind, hop["guest"] or hop["source"], f"{what} ({where}{rate})"))
        return found

    def _begins(self, key: tuple[str, str, str], time: float) -> bool:
        last, self._seen[key] = self._seen.get(key), time
        return last is None or time - last > QUIET_S

    def _signalled(self, sample: Sample) -> Iterable[Event]:
        before, self._states = self._states, {name: (one["pid"], one["state"]) for name, one in sample["processes"].items()}
        for name, (pid, state) in self._states.items():
            was = before.get(name)
            if was is None or was[0] != pid or (was[1] in STOPPED) == (state in STOPPED):
                continue
            kind, what = ("stopped", "stands still, by a signal") if state in STOPPED else ("continued", "goes on")
            yield event(sample["time"], kind, name, what)

    def ports(self, time: float, guests: Mapping[str, str | None]) -> None:
        """Which guests have a port (its counter row), None: not yet. Tells those that got one since the last time."""
        there = {f"{guest} {row}" for guest, row in guests.items() if row}
        for one in sorted(there - self._ports) if self._ports is not None else ():
            guest, _, row = one.partition(" ")
            self.add(event(time, "connected", guest, f"its port is {row}"))
        self._ports = there
