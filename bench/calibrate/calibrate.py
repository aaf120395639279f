"""``python -m bench calibrate``: hold the lab against a published system, at published costs of operations.

\b
    python -m bench calibrate --target staging-grants
    python -m bench calibrate --target xenloop --profile mine.toml

1. Both sides of every ratio are measured at price 0: what each process takes of the CPU, and which operations it makes.
2. The profile's costs are fixed. What it leaves free is fitted, within its plausible range, to the ratios that are marked so.
3. All sides are measured again with these prices spun. What the *other* ratios come to then is judged as all ratios are: the
   measured one, with its interval, near the published one or not.
4. Each parameter is moved over its range, the others fitted anew: what the held-out ratios may come to.

All figures at prices are modelled. One core: which process takes how much is what counts, not how they share cores.
"""

import statistics
from dataclasses import replace
from typing import Any

from bench.calibrate.fit import Fit, Measured, Side, fit, parameters, sensitivity
from bench.calibrate.page import tell
from bench.calibrate.targets import COST, RATE, TRIP, Row, Target
from bench.method.progress import Steps, parts
from bench.method.samples import Samples, Slice
from bench.method.slices import Contender, interleave
from bench.questions.measure import ROLES, Labs, Variant
from bench.questions.settings import NONE, Setting
from bench.report.results import BenchmarkResult
from hyp.model.operations import OPERATIONS
from hyp.model.profile import Profile

TITLE = "Calibration"
DEVICE = ROLES["device"]
SLICE_S, ROUNDS = 0.1, 24
TRIP_FRAMES = 2
"""A record counts operations a frame, and CPU a round trip."""


async def calibrate(target: Target, profile: Profile, rounds: int, result: BenchmarkResult, progress: Steps) -> Fit:
    """Steps 1 to 4; all that was found is in `result`."""
    first, second = parts(progress, ["at price 0", "at the prices"])
    async with Labs(target.paths, target.kinds) as labs:
        free = await _measure(labs, target, NONE, rounds, first)
        rows = [_measured(row, free[row.setting]) for row in target.rows]
        moving = parameters(rows, profile)
        found = fit(rows, profile, moving)
        spun = found.spun(profile)
        priced = await _measure(labs, target, _price(spun), rounds, second)
    moved = sensitivity(rows, profile, moving)
    _take(result, target, free, {"price": "0"}, {})
    _take(result, target, priced, {"price": "modelled"}, {"modelled": spun})
    ratios = [[which[row.setting].ratio(row.of.name, row.to.name, row.metric) for which in (free, priced)] for row in target.rows]
    tell(result, target, profile, rows, moving, found, moved, ratios)
    return found


def _price(spun: dict[str, int]) -> str:
    return "+".join(f"{name}:{price}" for name, price in spun.items() if price) or NONE


async def _measure(labs: Labs, target: Target, price: str, rounds: int, progress: Steps) -> dict[Setting, Samples]:
    """All sides at a price; by the row's setting."""
    settings = list(dict.fromkeys(row.setting for row in target.rows))
    found = {}
    for setting, part in zip(settings, parts(progress, [f"{one.direction}, {one.frame} B" for one in settings]), strict=True):
        rows = [row for row in target.rows if row.setting == setting]
        trips = any(row.metric == TRIP for row in rows)
        sides = list(dict.fromkeys(side for row in rows for side in (row.to, row.of)))
        contenders = [_contender(labs, replace(setting, price=price), side, trips) for side in sides]
        found[setting] = await interleave(
            contenders, rounds=rounds, seconds=SLICE_S, probe=labs.probe(setting.cores), again=sides[0].name, progress=part
        )
    return found


def _contender(labs: Labs, setting: Setting, side: Variant, trips: bool) -> Contender:
    plain = labs.contender(setting, side, "p50" if trips else "cpu")

    async def run(seconds: float) -> Slice:
        found = await plain.run(seconds)
        if not found.errors:
            costs = domains(found)
            whole = sum(costs.values())
            found.figures |= {TRIP: whole} if trips else {COST: whole, RATE: 1e3 / max(costs.values())}
        return found

    return Contender(side.name, run, prepare=plain.prepare)


def domains(found: Slice) -> dict[str, float]:
    """CPU time of each process but the device, ns a frame."""
    return {process: ns for process, ns in found.detail["processes"].items() if process != DEVICE}


def _measured(row: Row, samples: Samples) -> Measured:
    of, to = (_side(samples, variant.name, row.metric) for variant in (row.of, row.to))
    return Measured(of, to, row.metric, row.published, row.fitted)


def _side(samples: Samples, name: str, metric: str) -> Side:
    """The medians of what its slices say: CPU a frame or a trip, operations likewise. ValueError if none has a figure."""
    details = samples.details(name)
    if not details:
        raise ValueError(f"{name}: no slice has a figure: {'; '.join(samples.errors(name)[:3])}")
    frames = TRIP_FRAMES if metric == TRIP else 1
    own, made = dict[str, float](), dict[str, dict[str, float]]()
    for process in details[0]["processes"].keys() - {DEVICE}:
        own[process] = statistics.median(detail["processes"][process] for detail in details)
        counts = [detail["operations"].get(process, {}) for detail in details]
        names = sorted({name for count in counts for name in count}, key=list(OPERATIONS).index)
        made[process] = {name: frames * statistics.median(count.get(name, 0.0) for count in counts) for name in names}
    return Side(dict(sorted(own.items())), made)


def _take(
    result: BenchmarkResult, target: Target, measured: dict[Setting, Samples], point: dict[str, str], more: dict[str, Any]
) -> None:
    for setting, samples in measured.items():
        where = {"direction": setting.direction, "frame": setting.frame, "cores": setting.cores, **point}
        rows = [row for row in target.rows if row.setting == setting]
        metrics = list(dict.fromkeys(row.metric for row in rows))
        for name in samples.names:
            details = samples.details(name)
            ledger = {"per_frame": details[-1]["per_frame"]} if details else {}
            result.take(samples, name, {"path": name}, where, metrics, **ledger, **more)
        for row in rows:
            result.compare(samples, row.of.name, row.to.name, row.metric, where)
