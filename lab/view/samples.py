"""From two readings of the counters to figures: rates of each hop, what is under way on it, what it dropped, CPU of each
process.

A *sample* is a plain dict, as JSON has it::

    {"time": Unix time, "seconds": since the reading before (0: this is the first, and has no rates),
     "hops": {hop id: {"frames", "fps", "gbps", "in_flight", "notifications_s", "per_frame", "suppressed", "wakeups_s", "calls_s",
                       "drops": {name: {"s", "total"}}, "faults": …}},
     "guests": {name: {"path", "tx": {"frames", "fps", "gbps"}, "rx": …, "drops": {name: n}, "faults": {name: n}}},
     "processes": {name: {"pid", "state", "cpu"}}}

`frames`: in all. `fps`, `notifications_s`…: a second. `per_frame`: notifications a frame, None if there was no frame.
`suppressed`: the share of batches whose reader had not asked to be notified, None if there was none. `in_flight`: below. `cpu`:
CPUs' worth of time (1.0: one CPU, all of the time). `state`: as ps shows it ("S", "R", "T" for one that is stopped, "" for one
that is gone).

**In flight** is what stands in for a ring's fill: frames that one side has handed over and the other has not taken, by their
counters. The rings themselves lie in guests' RAM, which nobody who looks may map. Both sides publish counts once a batch, so
that it is right to within a batch; and None where it can't be known: where there is nothing to subtract, after a restart (counts
of before are lost, or frames were sent twice) until hop and processes have once been at rest, and if a guest's own counts make
no sense.

A process that ends, a page that is cut off, a row that goes: nothing was counted. Counts that are lower than before began again
at 0. What a guest counts itself may be anything: rates that no machine reaches are None.

Pure: `Sampler` is told what was read, and when.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.ledger import Snapshot
from lab.view.picture import Feed, Hop, Picture, rows_of

Sample = dict[str, Any]
MOST_ROWS = 1024
"""Of one process that are told apart, ever. A guest names its rows as it likes, and as often as it likes."""
MOST_A_SECOND = 1e12
"""Of whatever is counted, bytes too. More is a lie."""
STOPPED = ("T", "t")
Pairs = Mapping[str, tuple[int, int]]
"""By hop: frames handed over and frames taken, in all, read at the same moment."""


@dataclass(frozen=True, slots=True)
class Use:
    """What the kernel says of a process: CPU time so far, and its state."""

    pid: int
    cpu_ns: int
    state: str


@dataclass(slots=True)
class _Balance:
    """Where handed − taken stands when nothing is under way. None: not known, until the hop has been at rest."""

    base: int | None = 0


@dataclass(slots=True)
class _Reading:
    at: float = 0.0
    counts: Snapshot = field(default_factory=dict)
    use: dict[str, Use] = field(default_factory=dict)


class Sampler:
    """Takes readings of one topology, in order, and makes a sample of each."""

    def __init__(self, picture: Picture) -> None:
        self._last: _Reading | None = None
        self._grown: Snapshot = {}  # what was counted in all, however often a process began anew
        self._named: dict[str, int] = {}  # rows of each process that there have been
        self._delta: Snapshot = {}
        self._balances: dict[str, _Balance] = {}
        self._pairs: Pairs = {}
        self._rows: dict[tuple[str, str], list[str]] = {}
        self.picture = picture

    @property
    def picture(self) -> Picture:
        """Of what samples are made; a guest that moves changes it."""
        return self._picture

    @picture.setter
    def picture(self, picture: Picture) -> None:
        self._picture = picture
        self._rows.clear()

    def begun_again(self, processes: Iterable[str]) -> None:
        """These have been restarted: what was under way at their hops can't be subtracted any more."""
        again = set(processes)
        for hop in self._picture["hops"]:
            if again & {hop["source"], hop["target"]}:
                self._balances[hop["id"]] = _Balance(None)

    def take(self, at: float, time: float, counts: Snapshot, use: Mapping[str, Use], pairs: Pairs | None = None) -> Sample:
        """The sample of a reading: `at` by a monotonic clock, `time` by the wall's. `pairs`: where both ends were read together."""
        counts = self._known(counts)
        last, self._pairs = self._last, pairs or {}
        seconds = at - last.at if last is not None else 0.0
        if counts.keys() - self._grown.keys():
            self._rows.clear()
        before = last.counts if last is not None else {}
        self._delta = {row: _grown(now, before.get(row)) for row, now in counts.items()}
        for row, delta in self._delta.items():
            sums = self._grown.setdefault(row, dict.fromkeys(delta, 0))
            for column, n in delta.items():
                sums[column] += n
        if last is None:
            self._delta = {row: dict.fromkeys(delta, 0) for row, delta in self._delta.items()}
        self._last = _Reading(at, {**before, **counts}, dict(use))
        still = {name for name, one in use.items() if one.state in STOPPED}
        hops = {hop["id"]: self._hop(hop, seconds, still) for hop in self._picture["hops"]}
        return {
            "time": time,
            "seconds": seconds,
            "hops": hops,
            "guests": {path["guest"]: self._guest(path, hops) for path in self._picture["paths"]},
            "processes": _processes(use, last.use if last is not None else {}, seconds),
        }

    def _known(self, counts: Snapshot) -> Snapshot:
        """The rows of a reading without those that are too many of a process's, counted over all readings."""
        known = {}
        for row, columns in counts.items():
            if row not in self._grown:
                process = row.partition("/")[0]
                if self._named.get(process, 0) == MOST_ROWS:
                    continue
                self._named[process] = self._named.get(process, 0) + 1
            known[row] = columns
        return known

    # -- hops --

    def _hop(self, hop: Hop, seconds: float, still: set[str]) -> dict[str, Any]:
        frames, notified, spared = (self._sum(hop, figure) for figure in ("frames", "notifications", "suppressed"))
        return {
            "frames": self._sum(hop, "frames", self._grown),
            "fps": _rate(frames, seconds),
            "gbps": _scaled(_rate(self._sum(hop, "bytes"), seconds), 8e-9),
            "in_flight": self._in_flight(hop, still),
            "notifications_s": _rate(notified, seconds),
            "per_frame": notified / frames if frames > 0 else None,
            "suppressed": spared / (spared + notified) if spared + notified > 0 else None,
            "wakeups_s": _rate(self._sum(hop, "wakeups"), seconds),
            "calls_s": _rate(self._sum(hop, "calls"), seconds),
            "drops": self._names(hop, "drops", seconds),
            "faults": self._names(hop, "faults", seconds),
        }

    def _of(self, hop: Hop, figure: str) -> tuple[list[str], list[str]]:
        """Rows and columns of a figure, of the rows that are there."""
        feed: Feed | None = hop["feeds"].get(figure)
        if feed is None:
            return [], []
        key = hop["id"], figure
        if key not in self._rows:
            self._rows[key] = rows_of(feed, self._grown)
        return self._rows[key], feed["columns"]

    def _sum(self, hop: Hop, figure: str, of: Snapshot | None = None) -> int:
        rows, columns = self._of(hop, figure)
        counts = self._delta if of is None else of
        return sum(counts[row].get(column, 0) for row in rows if row in counts for column in columns)

    def _names(self, hop: Hop, figure: str, seconds: float) -> dict[str, dict[str, float | None]]:
        """Of columns that are told by name: those that ever counted."""
        rows, columns = self._of(hop, figure)
        found = {}
        for column in columns:
            if total := sum(self._grown[row].get(column, 0) for row in rows):
                now = sum(self._delta[row].get(column, 0) for row in rows if row in self._delta)
                found[column.partition("_")[2]] = {"s": _rate(now, seconds), "total": total}
        return found

    def _in_flight(self, hop: Hop, still: set[str]) -> int | None:
        if "handed" not in hop["feeds"] or hop["carries"] != "frames":
            return None
        balance = self._balances.setdefault(hop["id"], _Balance())
        counts = self._last.counts if self._last is not None else {}
        handed, taken = self._pairs.get(hop["id"]) or (self._sum(hop, "handed", counts), self._sum(hop, "taken", counts))
        under_way = handed - taken
        moved = self._sum(hop, "handed") or self._sum(hop, "taken")
        if balance.base is None:
            if moved or still & {hop["source"], hop["target"]}:
                return None
            balance.base = under_way
        found = under_way - balance.base
        return min(max(found, 0), hop["room"]) if abs(found) <= 2 * hop["room"] else None

    # -- guests --

    def _guest(self, path: Mapping[str, Any], hops: Mapping[str, Any]) -> dict[str, Any]:
        """Of its first hop out and its last hop in by which frames go, and of what was dropped at hops of its own."""
        carrying = {hop["id"] for hop in self._picture["hops"] if hop["carries"] == "frames"}
        owners = {hop["id"]: hop["guest"] for hop in self._picture["hops"]}
        first = next(hop for hop in path["tx"] if hop in carrying)
        last = next(hop for hop in reversed(path["rx"]) if hop in carrying)
        own = [hops[hop] for hop in (*path["tx"], *path["rx"]) if owners[hop] == path["guest"]]
        found = {"path": path["path"], "tx": _moved(hops[first]), "rx": _moved(hops[last])}
        for what in ("drops", "faults"):
            sums: dict[str, int] = {}
            for hop in own:
                for name, n in hop[what].items():
                    sums[name] = sums.get(name, 0) + n["total"]
            found[what] = sums
        return found


def _moved(hop: Mapping[str, Any]) -> dict[str, Any]:
    return {key: hop[key] for key in ("frames", "fps", "gbps")}


def _grown(now: Mapping[str, int], before: Mapping[str, int] | None) -> dict[str, int]:
    """What a row has counted since `before`. What is lower than before has begun again; what is below 0 is no count."""
    if before is None:
        return {column: max(n, 0) for column, n in now.items()}
    return {column: max(n - before.get(column, 0) if n >= before.get(column, 0) else n, 0) for column, n in now.items()}


def _rate(n: float, seconds: float) -> float | None:
    """A second; None for what nothing can reach."""
    rate = n / seconds if seconds > 0 else 0.0
    return rate if rate <= MOST_A_SECOND else None


def _scaled(rate: float | None, factor: float) -> float | None:
    return None if rate is None else rate * factor


def _processes(use: Mapping[str, Use], before: Mapping[str, Use], seconds: float) -> dict[str, dict[str, Any]]:
    found = {}
    for name, now in use.items():
        then = before.get(name)
        spent = now.cpu_ns - then.cpu_ns if then is not None and then.pid == now.pid else 0
        found[name] = {"pid": now.pid, "state": now.state, "cpu": max(spent, 0) / 1e9 / seconds if seconds > 0 else 0.0}
    return found
