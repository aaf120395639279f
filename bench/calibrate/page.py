"""What a calibration says: tables and plots beside the paper's figures, the fit's residuals, sensitivity, and what that means."""

import math
from collections.abc import Mapping, Sequence

from bench.calibrate.fit import MACHINE, Fit, Measured, Parameter
from bench.calibrate.targets import METRICS, Row, Target
from bench.method.claims import Claim
from bench.method.samples import Ratio
from bench.method.verdicts import MET, MISSED, WORDS, near
from bench.report.results import BenchmarkResult, Series, span
from hyp.model.operations import OPERATIONS
from hyp.model.profile import Profile
from lab.figures import short

EXACT = 0.01
"""|ln(predicted ÷ published)| of a fitted row that is said to come out."""
MATTERS = 1.05
"""A parameter whose range moves no prediction by more than this factor is not worth a word."""

Moved = Mapping[str, Sequence[tuple[float, float]]]


def tell(
    result: BenchmarkResult,
    target: Target,
    profile: Profile,
    rows: Sequence[Measured],
    free: Sequence[Parameter],
    found: Fit,
    moved: Moved,
    ratios: Sequence[Sequence[Ratio]],
) -> None:
    """Put it into `result`. `ratios`: of each of the target's rows, measured at price 0 and at the prices."""
    _beside(result, target, found, ratios)
    _prices(result, profile, free, found, any(row.fitted for row in rows))
    _counts(result, target, rows)
    _moved(result, target, free, found, moved)
    left = [
        *target.left_out.items(),
        ("all that a network stack does", "the lab has none; `machine` stands for it as far as it can"),
    ]
    result.table("Left out", ("published, or so", "why"), left)
    result.series += [_ratio_series(target, found, ratios), _sensitivity_series(target, found, moved)]
    for row, measured in zip(target.rows, ratios, strict=True):
        if row.least is not None:
            result.claims += [
                Claim.about(f"{row.text}, at price 0", measured[0], row.least),
                Claim.about(f"{row.text}, at the prices (modelled)", measured[1], row.least),
            ]
        elif row.published is not None and not row.fitted:
            result.claims.append(claim(row, measured[1]))
    result.notes += sentences(target, rows, found, moved, ratios)


def claim(row: Row, measured: Ratio) -> Claim:
    """That a held-out ratio, measured at the prices, is near the published one."""
    assert row.published is not None
    return Claim.near(f"held out: {row.text} (modelled)", measured, row.published)


def _value(ratio: Ratio) -> str:
    if ratio.median is None:
        return "–"
    interval = "" if ratio.low is None or ratio.high is None else f" ({span(ratio.low, ratio.high)})"
    return short(ratio.median) + interval


def _use(row: Row) -> str:
    if row.least is not None:
        return f"a trend: at least {row.least:g}"
    return "no number was read" if row.published is None else "fitted: not counted as reproduced" if row.fitted else "held out"


def _beside(result: BenchmarkResult, target: Target, found: Fit, ratios: Sequence[Sequence[Ratio]]) -> None:
    head = ("ratio", "published", "here, price 0", "predicted", "measured at the prices (modelled)", "ln(predicted ÷ published)",
            "ln(measured ÷ predicted)", "use")  # fmt: skip
    table = []
    for row, predicted, residual, (free, priced) in zip(target.rows, found.ratios, found.residuals, ratios, strict=True):
        published = row.where if row.published is None else f"{short(row.published)}: {row.where}"
        table.append((row.text, published, _value(free), short(predicted), _value(priced), _log(residual),
                      _log(_ln(priced.median, predicted)), _use(row)))  # fmt: skip
    result.table(f"{target.title}, beside what comes out here", head, table)


def _ln(one: float | None, other: float) -> float | None:
    return math.log(one / other) if one else None


def _log(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _prices(result: BenchmarkResult, profile: Profile, free: Sequence[Parameter], found: Fit, fitted: bool) -> None:
    chosen = "fitted in" if fitted else "nothing is fitted: the middle of"
    ranges, spun = {one.name: one for one in free}, found.spun(profile)
    table = [(MACHINE, short(found.machine), f"{chosen} {ranges[MACHINE].low:g} to {ranges[MACHINE].high:g}", "–",
              "how many times longer the lab's own work takes there")]  # fmt: skip
    for name in OPERATIONS:
        if name in profile.costs:
            cost = profile.costs[name]
            table.append(
                (name, str(cost.value), f"fixed ({cost.basis})", str(spun[name]), f"{cost.source}, {cost.table}: {cost.how}")
            )
        elif name in ranges:
            one = ranges[name]
            table.append(
                (name, short(found.values[name]), f"{chosen} {one.low:g} to {one.high:g}", str(spun[name]), profile.free[name].why)
            )
    title = f"Prices: profile {profile.name} ({profile.title})"
    result.table(title, ("operation", "there", "how", "spun here (÷ machine)", "source, or why there is none"), table)


def _counts(result: BenchmarkResult, target: Target, rows: Sequence[Measured]) -> None:
    table = []
    for row, measured in zip(target.rows, rows, strict=True):
        for variant, side in ((row.to, measured.to), (row.of, measured.of)):
            for process, own in side.own.items():
                made = ", ".join(f"{name} {short(n)}" for name, n in side.operations.get(process, {}).items()) or "–"
                if own >= 1 or made != "–":
                    table.append((row.text, variant.name, process, short(own), made))
    result.table("What the predictor is made of, measured at price 0", ("ratio", "side", "process", "own ns", "operations"), table)


def _moved(result: BenchmarkResult, target: Target, free: Sequence[Parameter], found: Fit, moved: Moved) -> None:
    head = ["parameter", "range", "fitted", *(f"{row.text}: {_use(row)}" for row in target.rows)]
    table = []
    for one in free:
        cells = [span(low, high) for low, high in moved[one.name]]
        table.append([one.name, f"{one.low:g} to {one.high:g}", short(found.values[one.name]), *cells])
    result.table("Sensitivity: predicted ratios as one parameter goes over its range, the others fitted anew", head, table)


def _ratio_series(target: Target, found: Fit, ratios: Sequence[Sequence[Ratio]]) -> Series:
    title = f"{target.name}: published ratios, and what comes out here"
    series = Series("ratios", title, "ratio", _labels(target), "×", "bar")
    series.add("published", [row.published for row in target.rows])
    series.add("here, price 0", *_ends([free for free, _ in ratios]))
    series.add("predicted", list(found.ratios))
    series.add("measured at the prices (modelled)", *_ends([priced for _, priced in ratios]))
    return series


def _labels(target: Target) -> list[str]:
    return [f"{row.label}{' (fitted)' if row.fitted else ''}" for row in target.rows]


def _ends(ratios: Sequence[Ratio]) -> tuple[list[float | None], list[float | None], list[float | None]]:
    return [one.median for one in ratios], [one.low for one in ratios], [one.high for one in ratios]


def _sensitivity_series(target: Target, found: Fit, moved: Moved) -> Series:
    title = f"{target.name}: predictions as one parameter goes over its range, the others fitted anew"
    series = Series("sensitivity", title, "ratio", _labels(target), "×", "bar")
    series.add("published", [row.published for row in target.rows])
    for name, ends in moved.items():
        series.add(name, list(found.ratios), [low for low, _ in ends], [high for _, high in ends])
    return series


def sentences(target: Target, rows: Sequence[Measured], found: Fit, moved: Moved, ratios: Sequence[Sequence[Ratio]]) -> list[str]:
    """What came out, what did not, and what that means."""
    said = [f"Source: {target.source}. What stands for it: {target.stands_for}."]
    said += [f"Held against each other: {METRICS[metric]}." for metric in dict.fromkeys(row.metric for row in target.rows)]
    for number, (row, measured) in enumerate(zip(target.rows, rows, strict=True)):
        predicted, residual = found.ratios[number], found.residuals[number]
        lows, highs = zip(*(ends[number] for ends in moved.values()), strict=True)
        low, high = min(lows), max(highs)
        movers = [name for name, ends in moved.items() if ends[number][1] / ends[number][0] > MATTERS]
        by = f"; what moves it: {', '.join(movers)}" if movers else "; no parameter moves it"
        if row.least is not None:
            said.append(f"{row.text}: predicted {short(predicted)}, {span(low, high)} over the ranges{by}. The trend: {row.where}.")
        elif residual is None or measured.published is None:
            said.append(
                f"{row.text}: predicted {short(predicted)}, {span(low, high)} over the ranges{by}; nothing to hold it against."
            )
        elif row.fitted and abs(residual) <= EXACT:
            said.append(
                f"{row.text}: fitted to {short(measured.published)} within the ranges, which says that it can come out, no more."
            )
        elif row.fitted:
            said.append(
                f"{row.text}: {short(measured.published)} cannot be reached at the profile's costs within the plausible ranges, "
                f"{short(predicted)} is the nearest: something costs there that this model has no price for."
            )
        else:
            said.append(_held_out(row, measured.published, predicted, (low, high), by, ratios[number][1]))
    return said


def _held_out(row: Row, published: float, predicted: float, ends: tuple[float, float], by: str, measured: Ratio) -> str:
    verdict = near(measured, published).verdict
    words = {MET: "comes out", MISSED: "does not come out"}.get(verdict, f"is {verdict}")
    text = f"{row.text}: {short(published)} {words} ({_value(measured)} measured, {short(predicted)} predicted, modelled)"
    low, high = ends
    slack = 1 / WORDS["near"]
    if low / slack <= published <= high * slack:
        return f"{text}. Over the ranges it is {span(low, high)}{by}: what the profile leaves free decides it."
    side = "less" if high < published else "more"
    lacks = f"{side} than published whatever is chosen, so the model lacks something"
    return f"{text}. Over all ranges it is {span(low, high)}{by}: {lacks}."
