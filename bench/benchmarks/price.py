"""What each path costs as the operations that it rests on get dearer, and where one path overtakes another.

``python -m bench price [--paths bypass,split,trapped] [--frames 64,1500]``

A hypercall, an event and a trap here are what Linux makes of them. On Xen they cost more: the sweep spins a price in addition to
each entry into the hypervisor (`SWEPT`), the same for all kinds. Every figure but those at 0 is modelled, and says so.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

from bench.method.contenders import TO_WIRE, LabBench, guest_names, probe_of, stream_slice
from bench.method.options import Options
from bench.method.progress import Steps
from bench.method.samples import Figure, Samples, Slice
from bench.method.slices import Contender, Probe
from bench.method.study import Point, Question, study
from bench.report.results import BenchmarkResult, Row, Series
from lab.figures import short
from lab.workloads import WIRE

SWEEP = (0, 500, 1000, 2000, 4000, 6000, 8000)
QUICK_SWEEP = (0, 1000, 8000)
METRICS = ("cpu_ns_per_frame", "mframes_per_cpu_s", "mpps")
SWEPT = ("hypercall_ns", "vm_exit_ns", "event_send_ns", "interrupt_ns", "domain_switch_ns")
TITLE = "The price of an operation"
ABOUT = (
    "CPU per frame on one core, guest to the wire, against a price that is spun in addition to every hypercall, trap, event sent, "
    "interrupt and switch between domains. The slope is how often a path needs one per frame. Modelled, except at 0: read it at "
    "what such operations cost on the machine in question."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Sweep the price, all paths in the same rounds."""
    prices = QUICK_SWEEP if options.quick else SWEEP
    frames = list(dict.fromkeys((options.frames[0], options.frames[-1])))
    async with LabBench("price", options.paths) as lab:
        lab.use("1")
        with probe_of("1") as probe:
            points = [_point(lab, options.paths, frame, prices, probe) for frame in frames]
            await study(
                points, rounds=options.rounds, seconds=options.slice_s, budget_s=options.budget_s, progress=progress
            )  # fmt: skip
    for frame, point in zip(frames, points, strict=True):
        _report(result, point.samples, options.paths, frame, prices)


def _point(lab: LabBench, paths: Sequence[str], frame: int, prices: Sequence[int], probe: Probe) -> Point:
    """All paths at all prices. It is known when at each price each two of them are told apart."""
    contenders = [_priced(lab, path, frame, price) for path in paths for price in prices]
    asked = [
        Question(_name(one, price), _name(other, price), "cpu_ns_per_frame")
        for one, other in combinations(paths, 2)
        for price in prices
    ]
    return Point(f"{frame} B", {"frame": frame}, contenders, contenders[0].name, probe, asked)


def _name(path: str, price: int) -> str:
    return f"{path} at {price} ns"


def _priced(lab: LabBench, path: str, frame: int, price: int) -> Contender:
    load = {"kind": "stream", "from": guest_names(path, 1)[0], "to": WIRE, "frame": frame, "frames": None}

    async def run(seconds: float) -> Slice:
        await lab.lab.call("hyp", "price", **dict.fromkeys(SWEPT, price))
        return stream_slice(await lab.runner.run({**load, "seconds": seconds}))

    return Contender(_name(path, price), run)


def _report(result: BenchmarkResult, samples: Samples, paths: Sequence[str], frame: int, prices: Sequence[int]) -> None:
    title = f"CPU per frame against the price of an operation, {frame} B to the wire, one core"
    series = Series(f"price-{frame}", title, "ns in addition to each operation (modelled)", list(prices), "ns per frame")
    found: dict[str, list[Figure]] = {}
    for path in paths:
        for price in prices:
            point: Row = {"direction": TO_WIRE, "frame": frame, "cores": "1", "price": price}
            details = samples.details(_name(path, price))
            more = {key: details[-1][key] for key in ("per_frame", "modelled") if details and key in details[-1]}
            result.take(samples, _name(path, price), {"path": path}, point, METRICS, **more)
        found[path] = [samples.figure(_name(path, price), "cpu_ns_per_frame") for price in prices]
        medians, lows, highs = zip(*((one.median, one.low, one.high) for one in found[path]), strict=True)
        series.add(path, medians, lows, highs)
    result.series.append(series)
    for one, other in combinations(paths, 2):
        result.notes.append(f"{frame} B: {crossover(one, other, prices, found[one], found[other])}")


def crossover(one: str, other: str, prices: Sequence[int], costs: Sequence[Figure], others: Sequence[Figure]) -> str:
    """In words: the price at which the dearer of two paths becomes the cheaper one, between two where their intervals are apart."""
    known = [(price, gap) for price, a, b in zip(prices, costs, others, strict=True) if (gap := _gap(a, b))]
    if not known:
        return f"{one} and {other} cannot be told apart at any price"
    for (price, before), (next_price, after) in pairwise(known):
        if before * after < 0:
            at = price + (next_price - price) * before / (before - after)
            first, then = (one, other) if before < 0 else (other, one)
            return f"{first} is cheaper than {then} up to a price of about {short(at)} ns, {then} beyond it (modelled)"
    cheaper, dearer = (one, other) if known[0][1] < 0 else (other, one)
    span = f"from {known[0][0]} to {known[-1][0]} ns" if len(known) > 1 else f"at {known[0][0]} ns"
    return f"{cheaper} is cheaper than {dearer} {span} (modelled)"


def _gap(one: Figure, other: Figure) -> float:
    """How much dearer `one` is; 0 if the intervals overlap, or there are none."""
    if one.median is None or other.median is None or one.low is None or one.high is None or other.low is None or other.high is None:
        return 0.0
    return one.median - other.median if one.low > other.high or one.high < other.low else 0.0
