"""Where the time of frames went: for each route, the median frame's way and the 99th percentile's, step by step, as a waterfall."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from lab.figures import percentile
from lab.trace.story import Way

BAR: Final = 32
LEAST_FOR_P99: Final = 100


def by_route(ways: Iterable[Way]) -> dict[str, list[Way]]:
    """The whole ways, shortest first, by their route and number of steps."""
    found: dict[str, list[Way]] = {}
    for way in ways:
        if way.is_whole and len(way.steps) > 1:
            found.setdefault(way.route, []).append(way)
    return {route: sorted(of, key=lambda way: way.total_ns) for route, of in sorted(found.items())}


def summary(ways: Iterable[Way]) -> dict[str, Any]:
    """For JSON: ``{"routes": [{"route", "frames", "least_ns", "most_ns", "asleep": share, "median": way, "p99": way or None}]}``.

    A way is as `plain` has it.
    """
    routes = []
    for route, of in by_route(ways).items():
        total = sum(way.total_ns for way in of) or 1
        asleep = sum(step.asleep_ns for way in of for step in way.steps)
        found = {
            "route": route,
            "frames": len(of),
            "least_ns": of[0].total_ns,
            "most_ns": of[-1].total_ns,
            "asleep": asleep / total,
        }
        p99 = plain(percentile(of, 99)) if len(of) >= LEAST_FOR_P99 else None
        routes.append({**found, "median": plain(percentile(of, 50)), "p99": p99})
    return {"routes": routes}


def plain(way: Way) -> dict[str, Any]:
    """For JSON: ``{"route", "length", "total_ns", "steps": [{"at_ns", "asleep_ns", "work_ns", "process", "what", "file"}]}``."""
    first = way.steps[0].sighting
    steps = [
        {
            "at_ns": step.sighting.time_ns - first.time_ns, "asleep_ns": step.asleep_ns, "work_ns": step.work_ns,
            "process": step.sighting.process, "what": step.what, "file": step.file,
        }
        for step in way.steps
    ]  # fmt: skip
    return {"route": way.route, "length": first.length, "total_ns": way.total_ns, "steps": steps}


def explained(ways: Iterable[Way], *, ascii_only: bool = False) -> Iterator[str]:
    """Lines of text."""
    routes = by_route(ways)
    if not routes:
        yield "No frame was seen all the way."
    for route, of in routes.items():
        yield f"{route}: {len(of)} frames, {_us(of[0].total_ns)} to {_us(of[-1].total_ns)}"
        yield from _typical(of)
        yield from _waterfall("the median frame", percentile(of, 50), ascii_only=ascii_only)
        if len(of) >= LEAST_FOR_P99:
            yield from _waterfall("the 99th percentile's", percentile(of, 99), ascii_only=ascii_only)
        else:
            yield from _waterfall("the slowest", of[-1], ascii_only=ascii_only)
        yield ""


def _typical(of: list[Way]) -> Iterator[str]:
    """Where the time of all of them went."""
    total = sum(way.total_ns for way in of) or 1
    asleep = sum(step.asleep_ns for way in of for step in way.steps)
    yield f"  of all their time {asleep / total:.0%} until somebody was woken, {1 - asleep / total:.0%} work and queues"


def _waterfall(which: str, way: Way, *, ascii_only: bool) -> Iterator[str]:
    total = max(way.total_ns, 1)
    yield f"  {which}, {_us(way.total_ns)}:"
    at = 0
    for step in way.steps[1:]:
        one = step.sighting
        parts = ((step.asleep_ns, f"{one.loop} is woken", "."), (step.work_ns, step.what, "#" if ascii_only else "█"))
        for ns, what, sign in parts:
            if ns:
                begin, end = round(BAR * at / total), max(round(BAR * (at + ns) / total), round(BAR * at / total) + 1)
                bar = (" " * begin + sign * (end - begin))[:BAR].ljust(BAR)
                yield f"    |{bar}| {_us(ns):>9}  {what}  ({step.file})"
                at += ns


def _us(ns: int) -> str:
    return f"{ns / 1000:.1f} us" if ns < 10_000_000 else f"{ns / 1e6:.1f} ms"


def told(way: Way) -> Iterator[str]:
    """One frame's way, hop by hop: when, how long since the step before, what, who, and the file that does it."""
    first = way.steps[0].sighting
    yield f"{way.route}: {first.length} bytes, {_us(way.total_ns)}"
    for step in way.steps:
        one, waited = step.sighting, ""
        if step.asleep_ns:
            waited = f", {_us(step.asleep_ns)} of it until {one.loop} was woken"
        yield f"  {(one.time_ns - first.time_ns) / 1000:>9.1f} us  +{_us(step.asleep_ns + step.work_ns)}{waited}"
        yield f"                {one.process}: {step.what}  ({step.file})"
