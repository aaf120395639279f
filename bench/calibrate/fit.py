"""The model behind a calibration: what a side costs at given prices, and the prices that make fitted rows come out.

A process's cost of a frame is linear in the prices::

    machine × own + Σ operations a frame × price

`own` is its CPU time at price 0 and `operations` are the ledger's, both measured here; `machine` is how many times longer the lab's
own work takes on the machine in question. A ratio of two sides depends on price ÷ machine only, which is what is spun to check it.

Parameters are what a profile leaves free, and `machine`. Each is z in [-1, 1] on a logarithmic scale over its range. The fit
minimizes Σ (ln predicted ÷ published)² over the fitted rows + PULL × Σ z²: with more parameters than rows it takes, of all exact
fits, nearly the one that is nearest to the middle of the ranges. Gauss and Newton's steps, halved while they do not help, within
the bounds; deterministic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.calibrate.targets import RATE
from hyp.model.operations import OPERATIONS
from hyp.model.profile import Profile

MACHINE: Final = "machine"
MACHINE_RANGE: Final = (1.0, 10.0)
"""From this machine to one ten times as slow, or with as much more to do for a frame; nobody has measured it."""
PULL: Final = 1e-4
STEPS: Final = 100

Prices = Mapping[str, float]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """What was measured of one side of a ratio at price 0: by process, its own cost and its operations, each a frame (or a trip).

    In ns. A figure at prices is the busiest process's rate, or the sum.
    """

    own: Mapping[str, float]
    operations: Mapping[str, Mapping[str, float]]

    def figure(self, metric: str, prices: Prices, machine: float) -> float:
        """In units of which only ratios mean anything."""
        costs: list[float] = []
        for process, own in self.own.items():
            made = self.operations.get(process, {})
            costs.append(machine * own + sum(OPERATIONS[name].cost_ns(prices[name], n) for name, n in made.items()))
        return 1 / max(costs) if metric == RATE else math.fsum(costs)


@dataclass(frozen=True, slots=True)
class Measured:
    """A row with both sides as they were measured."""

    of: Side
    to: Side
    metric: str
    published: float | None
    fitted: bool

    def ratio(self, prices: Prices, machine: float) -> float:
        """Predicted."""
        return self.of.figure(self.metric, prices, machine) / self.to.figure(self.metric, prices, machine)


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something free, and its plausible range."""

    name: str
    low: float
    high: float

    def value(self, z: float) -> float:
        """-1: `low`; 1: `high`; 0: their geometric mean."""
        return self.low * math.pow(self.high / self.low, (z + 1) / 2)


@dataclass(frozen=True, slots=True)
class Fit:
    """What was chosen. `at`: z of each parameter; `residuals`: ln(predicted ÷ published) of each row that has a published one."""

    values: Mapping[str, float]
    at: tuple[float, ...]
    ratios: tuple[float, ...]
    residuals: tuple[float | None, ...]

    @property
    def machine(self) -> float:
        """How many times longer the lab's own work takes there."""
        return self.values[MACHINE]

    def spun(self, profile: Profile) -> dict[str, int]:
        """The prices that stand for it on this machine, to the ns."""
        prices = profile.prices | {name: value for name, value in self.values.items() if name != MACHINE}
        return {name: round(price / self.machine) for name, price in prices.items()}


def parameters(rows: Sequence[Measured], profile: Profile) -> list[Parameter]:
    """`machine`, and what the profile leaves free of the operations that any side makes."""
    made = {name for row in rows for side in (row.of, row.to) for counts in side.operations.values() for name in counts}
    free = [Parameter(name, profile.free[name].low, profile.free[name].high) for name in profile.free if name in made]
    return [Parameter(MACHINE, *MACHINE_RANGE), *free]


def fit(rows: Sequence[Measured], profile: Profile, free: Sequence[Parameter], held: Mapping[str, float] | None = None) -> Fit:
    """Choose the parameters; those in `held` stay at that z."""
    held = held or {}
    moving = [k for k, parameter in enumerate(free) if parameter.name not in held]
    z = np.array([held.get(parameter.name, 0.0) for parameter in free])

    def residuals(at: Vector) -> Vector:
        ratios = _ratios(rows, profile, free, at)
        wrong = [math.log(ratio / row.published) for ratio, row in zip(ratios, rows, strict=True) if row.fitted and row.published]
        return np.array([*wrong, *(math.sqrt(PULL) * at[k] for k in moving)])

    for _ in range(STEPS if moving else 0):
        step = _step(residuals, z, moving)
        if float(np.abs(step).max()) < 1e-9:
            break
        z = np.clip(z + step, -1, 1)
    ratios = _ratios(rows, profile, free, z)
    left = [math.log(ratio / row.published) if row.published else None for ratio, row in zip(ratios, rows, strict=True)]
    values = {parameter.name: parameter.value(float(at)) for parameter, at in zip(free, z, strict=True)}
    return Fit(values, tuple(map(float, z)), tuple(ratios), tuple(left))


def _ratios(rows: Sequence[Measured], profile: Profile, free: Sequence[Parameter], z: Vector) -> list[float]:
    values = {parameter.name: parameter.value(float(at)) for parameter, at in zip(free, z, strict=True)}
    prices = profile.prices | values
    return [row.ratio(prices, values[MACHINE]) for row in rows]


def _step(residuals: Callable[[Vector], Vector], z: Vector, moving: Sequence[int]) -> Vector:
    """Gauss and Newton's, of those that can move: none at a bound goes beyond it. Halved until it helps; zeros if none does."""
    here, width = residuals(z), 1e-6
    slopes = np.zeros((len(here), len(z)))
    for k in moving:
        aside = z.copy()
        aside[k] += width if z[k] < 0 else -width
        slopes[:, k] = (residuals(aside) - here) / (aside[k] - z[k])
    downhill = -slopes.T @ here
    able = [k for k in moving if not (abs(z[k]) >= 1 and downhill[k] * z[k] > 0)]
    step = np.zeros_like(z)
    if able:
        step[able] = np.linalg.lstsq(slopes[:, able], -here, rcond=None)[0]
    for _ in range(30):
        there = residuals(np.clip(z + step, -1, 1))
        if there @ there < here @ here:
            moved: Vector = np.clip(z + step, -1, 1) - z
            return moved
        step /= 2
    return np.zeros_like(z)


def sensitivity(rows: Sequence[Measured], profile: Profile, free: Sequence[Parameter]) -> dict[str, list[tuple[float, float]]]:
    """By parameter: the lowest and highest prediction of each row as it goes over its range, the others fitted anew each time."""
    found = {}
    for parameter in free:
        fits = [fit(rows, profile, free, {parameter.name: z}) for z in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        found[parameter.name] = [(min(values), max(values)) for values in zip(*(one.ratios for one in fits), strict=True)]
    return found
