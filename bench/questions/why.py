"""``python -m bench why A B``: where the CPU of one path goes that another does not take.

\b
    python -m bench why split bypass
    python -m bench why trapped bypass --fixed frame=1500 --fixed direction=guest->guest

Both are measured in turns. The difference of their CPU per frame is shown process by process, each with its 95 % interval, beside
what a frame met on its way (the ledger: copies, hypercalls, notifications, traps, wake-ups, who handled it).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from bench.method.estimate import FEWEST
from bench.method.options import OptionsError
from bench.method.progress import Steps
from bench.method.samples import Figure
from bench.method.study import Point, Question, study
from bench.method.verdicts import sign
from bench.questions.answer import equal_throughout, spread
from bench.questions.measure import ROLES, Labs, Variant, role_metric
from bench.questions.settings import Setting, kinds, settings
from bench.report.results import BenchmarkResult
from hyp.paths import PATHS
from lab.figures import short

TITLE = "Why"
BUDGET_S, SLICE_S, PRECISION = 20.0, 0.1, 0.03
TOTAL = "cpu_ns_per_frame"
LEDGER = {
    "copies": "payload copies", "hypercalls": "hypercalls", "notifications": "notifications", "traps": "traps",
    "wakeups": "wake-ups", "dom0_frames": "frames handled by Dom0", "vmm_frames": "frames handled by the hypervisor",
}  # fmt: skip
ROLE_WORDS = {
    "guests": "the guests", "dom0": "Dom0", "hyp": "the hypervisor's own process", "device": "the device",
}  # fmt: skip
"""Hypercalls run on the thread of whoever makes them, and are in its part, as they are on a real machine's CPU."""
SMALL = 0.02
"""A part of the difference that is not worth a word."""


@dataclass(frozen=True, slots=True)
class Why:
    """Two paths at a setting, checked."""

    one: str
    other: str
    setting: Setting

    @classmethod
    def of(cls, one: str, other: str, fixed: Sequence[str]) -> "Why":
        """OptionsError for what can't be measured."""
        for path in (one, other):
            if path not in PATHS:
                raise OptionsError(f"unknown path: {path!r} (known: {', '.join(PATHS)})")
        if one == other:
            raise OptionsError(f"{one} and {one} differ in nothing")
        return cls(one, other, settings([], list(fixed))[0][0])


class Explanation:
    """What is known of the two."""

    def __init__(self, asked: Why, point: Point) -> None:
        self._asked, self._samples = asked, point.samples

    def difference(self, metric: str) -> Figure:
        """One − other, of a metric of a slice."""
        return self._samples.made((self._asked.one, self._asked.other), metric, lambda both: both[0] - both[1])

    def share(self, role: str) -> Figure:
        """A role's part of the difference of the CPU of all."""
        names = (self._asked.one, self._asked.other)
        return self._samples.made(
            names, (TOTAL, role_metric(role)), lambda total, part: (part[0] - part[1]) / (total[0] - total[1])
        )

    def table(self) -> Table:
        """CPU by role, then the ledger: one, other, their difference."""
        table = Table(header_style="bold", pad_edge=False, box=None)
        for name in ("of one frame", self._asked.one, self._asked.other, "difference", "part of it"):
            table.add_column(name, justify="left" if name == "of one frame" else "right", overflow="fold")
        self._row(table, "CPU, ns, all processes", TOTAL, None)
        for role in ROLES:
            self._row(table, f"  {ROLE_WORDS[role]}", role_metric(role), self.share(role))
        for name, text in LEDGER.items():
            self._row(table, text, f"per_frame_{name}", None)
        return table

    def _row(self, table: Table, title: str, metric: str, share: Figure | None) -> None:
        figures = [self._samples.figure(name, metric) for name in (self._asked.one, self._asked.other)]
        cells = [spread(figure) if metric == TOTAL or share is not None else _plain(figure) for figure in figures]
        change = self.difference(metric)
        cells.append(spread(change) if metric == TOTAL or share is not None else _plain(change))
        table.add_row(*map(Text, (title, *cells, "" if share is None else spread(share, percent=True))))

    def sentences(self) -> list[str]:
        """In words: how much, who, and what the ledger says of it."""
        one, other, gain = self._asked.one, self._asked.other, self.difference(TOTAL)
        said = [f"Equal: {equal_throughout(self._asked.setting, (), (one, other))}."]
        side = sign(gain)
        if side == 0:
            return [*said, f"{one} and {other} can't be told apart by their CPU: {spread(gain)} ns per frame."]
        more = f"{spread(gain)} ns of CPU more per frame" if side > 0 else f"less CPU per frame ({spread(gain)} ns)"
        said.append(f"{one} takes {more} than {other}.")
        parts = {role: self.share(role) for role in ROLES}
        told = {role: part for role, part in parts.items() if part.median is not None and abs(part.median) >= SMALL}
        said.append(
            "Of the difference: "
            + ", ".join(f"{ROLE_WORDS[role]} {spread(part, percent=True)}" for role, part in told.items())
            + "."
        )
        met = []
        for name, text in LEDGER.items():
            change = self.difference(f"per_frame_{name}").median
            if change is not None and abs(change) >= 0.0005:
                met.append(f"{short(abs(change))} {text} {'more' if change > 0 else 'fewer'}")
        said.append(f"A frame on {one} meets " + (", ".join(met) if met else "nothing else than") + f" than on {other}.")
        if self._samples.figure(one, "per_frame_hypercalls").median or self._samples.figure(other, "per_frame_hypercalls").median:
            said.append("Hypercalls run on the thread of whoever makes them: what they cost is in the guests' and Dom0's parts.")
        return said


def _plain(figure: Figure) -> str:
    """A count: its median."""
    return "–" if figure.median is None else f"{figure.median:.4f}".rstrip("0").rstrip(".")


async def explain(
    asked: Why, result: BenchmarkResult, budget_s: float, progress: Steps, show: Callable[[Explanation], None] = lambda found: None
) -> Explanation:
    """Measure both in turns, until the ratio of their CPU is known well or the budget is spent."""
    begin = time.monotonic()
    question = Question(asked.one, asked.other, TOTAL, precision=PRECISION)
    where = {"direction": asked.setting.direction, "frame": asked.setting.frame, "cores": asked.setting.cores}
    async with Labs((asked.one, asked.other), kinds([asked.setting])) as labs:
        contenders = [labs.contender(asked.setting, Variant(name, name), "cpu") for name in (asked.one, asked.other)]
        point = Point("measuring", where, contenders, asked.other, labs.probe(asked.setting.cores), [question])

        def found() -> None:
            result.forget()
            for contender in contenders:
                metrics = [name for name in point.samples.metrics(contender.name) if not name.startswith("per_frame_")]
                result.take(point.samples, contender.name, {"path": contender.name}, where, metrics)
            result.compare(point.samples, asked.one, asked.other, TOTAL, where)
            result.notes += Explanation(asked, point).sentences()
            show(Explanation(asked, point))

        await study([point], rounds=2 * FEWEST, seconds=SLICE_S, budget_s=budget_s, progress=progress, found=found, since=begin)
    return Explanation(asked, point)
