"""An answer: what was asked, as a table, as rows for pandas, and as sentences that need no statistics to be read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from bench.method.samples import Figure, Ratio, quotient
from bench.method.study import Point
from bench.method.verdicts import ABOVE, BELOW, direction, sign
from bench.questions import shares
from bench.questions.settings import NONE, SUITED, Setting
from lab.figures import short

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked at: the metric of the samples, its unit, what it is called, and how a ratio of it is said."""

    metric: str
    unit: str
    what: str
    says: str


METRICS = {
    "rate": Asked("mpps", "Mframes/s", "rate", "moves {} times as many frames a second as"),
    "cpu": Asked("domain_ns_per_frame", "ns", "CPU per frame (guests, Dom0, hypervisor)", "takes {} times the CPU of"),
    "p50": Asked("p50_us", "µs", "latency, median", "has {} times the median latency of"),
    "p99": Asked("p99_us", "µs", "latency, 99 %", "has {} times the latency (99 %) of"),
}


UNITS = {"frame": " B", "load": " Mframes/s offered by each guest", "queue": " descriptors in each queue"}


def words(setting: Setting, names: Iterable[str]) -> str:
    """The dimensions `names` of a setting, in words."""
    return ", ".join(_word(name, getattr(setting, name)) for name in names)


def _word(name: str, value: Any) -> str:
    if name == "guests":
        return f"{value} guest" + ("s" if value > 1 else "")
    if name == "engines":
        return f"{value} NIC engine" + ("s" if value > 1 else "")
    if name == "cores":
        return "one core" if value == "1" else "all cores"
    if name == "load" and not value:
        return "as fast as it goes"
    if name == "payload":
        return (
            "every byte written and checked"
            if value == "full"
            else "header-only streams (64 bytes of each frame written and checked)"
        )
    if name == "placement":
        return "each path in the placement that suits it" if value == SUITED else f"placement: {value}"
    if name == "grants":
        return f"split's grants: {value}"
    if name in ("price", "ablation"):
        return f"no {name}" if value == NONE else f"{name} {value}"
    return f"{value:g}{UNITS[name]}" if name in UNITS else str(value)


def equal_throughout(setting: Setting, varied: Sequence[str], paths: Sequence[str]) -> str:
    """What does not vary."""
    kept = [name for name in setting.row() if name not in varied]
    text = words(setting, kept)
    if "split" in paths:
        text += "; split's ring is Xen's, one page: 256 entries"
    return text


def spread(figure: Figure | Ratio, *, percent: bool = False) -> str:
    """ "3.21 (2.98 to 3.40)"."""
    if figure.median is None:
        return "not known"

    def show(value: float) -> str:
        return f"{value:.0%}" if percent else short(value)

    if figure.low is None or figure.high is None:
        return f"{show(figure.median)} (too few slices for an interval)"
    return f"{show(figure.median)} ({show(figure.low)} to {show(figure.high)})"


def _part(share: Figure) -> str:
    """A share in words: how much, or that it may be none."""
    if share.low is None or share.high is None or sign(share) != 0:
        return spread(share, percent=True)
    return f"can't be told from none ({share.low:.0%} to {share.high:.0%})"


class Answer:
    """What is known now. `points` and `settings` belong together; `reference` is what the other paths are held against."""

    def __init__(
        self, points: Sequence[Point], settings: Sequence[Setting], varied: Sequence[str], paths: Sequence[str], metric: str,
        parts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.places = list(zip(settings, points, strict=True))
        self.varied, self.paths, self.parts, self.asked = list(varied), list(paths), list(parts), METRICS[metric]
        self.reference = "bypass" if "bypass" in paths else paths[-1]

    @property
    def known(self) -> list[tuple[Setting, Point]]:
        """Where something was measured."""
        return [(setting, point) for setting, point in self.places if point.samples.taken]

    # -- rows --

    def figures(self) -> list[Row]:
        """A row for each setting, path and metric: what pandas.DataFrame takes."""
        found = []
        for setting, point in self.known:
            for path in [contender.name for contender in point.contenders]:
                for metric in point.samples.metrics(path):
                    figure = point.samples.figure(path, metric)
                    row = {"path": path, "metric": metric, "median": figure.median, "low": figure.low, "high": figure.high}
                    row |= {"n": figure.n, "slices": point.samples.slices(path), "regime": figure.regime}
                    found.append({**setting.row(), **row})
        return found

    def ratios(self) -> list[Row]:
        """A row for each setting and path but the reference."""
        found = []
        for setting, point in self.known:
            for path in self.paths:
                if path != self.reference:
                    ratio = point.samples.ratio(path, self.reference, self.asked.metric)
                    row = ratio.plain()
                    row.pop("strata")
                    found.append({**setting.row(), "of": path, "to": self.reference, "metric": self.asked.metric, **row})
        return found

    def shares(self) -> list[Row]:
        """A row for each setting and part of the difference."""
        found = []
        for setting, point in self.known if self.parts else []:
            for part in self.parts:
                figure = shares.share(point.samples, self.asked.metric, part)
                row = {"part": part, "share": figure.median, "low": figure.low, "high": figure.high, "n": figure.n}
                found.append({**setting.row(), **row, "regime": figure.regime})
        return found

    # -- words --

    def sentences(self) -> list[str]:
        """The answer in words: a sentence for each setting and path, what the difference is made of, and what varying did."""
        found = []
        for setting, point in self.known:
            where = f"At {words(setting, self.varied)}: " if self.varied else ""
            for path in self.paths:
                if path != self.reference:
                    found.append(where + self._compared(point, path) + self._errors(point, path))
            found += [where + text for text in self._split(point)]
        return found + self._varied()

    def _compared(self, point: Point, path: str) -> str:
        ratio = point.samples.ratio(path, self.reference, self.asked.metric)
        verdict, reason = direction(ratio)
        if verdict not in (ABOVE, BELOW):
            return f"{path} and {self.reference} can't be told apart by their {self.asked.what}: {spread(ratio)} to 1 ({reason})."
        said = self.asked.says.format(spread(ratio))
        return f"{path} {said} {self.reference}."

    @staticmethod
    def _errors(point: Point, path: str) -> str:
        errors = point.samples.errors(path)
        return f" {len(errors)} slices of {path} gave no figure: {errors[-1]}." if errors else ""

    def _split(self, point: Point) -> list[str]:
        if not self.parts:
            return []
        gain = shares.difference(point.samples, self.asked.metric)
        if sign(gain) == 0:
            return [f"what the difference is made of can't be said: it is {spread(gain)} {self.asked.unit}."]
        said = [f"{shares.TEXTS[part]} {_part(shares.share(point.samples, self.asked.metric, part))}" for part in self.parts]
        return [f"of the difference, {spread(gain)} {self.asked.unit}: {'; '.join(said)}."]

    def _varied(self) -> list[str]:
        """Whether the first and the last value of the one dimension that varies differ, for each path and for the ratios."""
        if len(self.varied) != 1 or len(self.known) < 2:
            return []
        (first, one), (last, other) = self.known[0], self.known[-1]
        between = f"from {words(first, self.varied)} to {words(last, self.varied)}"
        found = []
        for path in self.paths:
            if path != self.reference:
                ratios = [point.samples.ratio(path, self.reference, self.asked.metric) for point in (other, one)]
                change = quotient(ratios[0], ratios[1])
                verdict, reason = direction(change)
                told = {ABOVE: f"grows {spread(change)} times", BELOW: f"shrinks to {spread(change)} of itself"}.get(verdict)
                said = told or f"does not change as far as can be told: {spread(change)} times ({reason})"
                found.append(f"{path} ÷ {self.reference} {said} {between}.")
        return found

    def table(self) -> Table:
        """A row for each setting and path: the metric, the CPU of domains and device, and the ratio."""
        table = Table(header_style="bold", pad_edge=False, box=None)
        for name in (
            *self.varied,
            "path",
            f"{self.asked.what}, {self.asked.unit}",
            "domains' CPU, ns",
            "device's, ns",
            "÷ " + self.reference,
            "slices",
        ):
            table.add_column(name, justify="left" if name in ("path", *self.varied) else "right", overflow="fold")
        for setting, point in self.known:
            for path in self.paths:
                samples = point.samples
                cells = [words(setting, [name]) for name in self.varied]
                cells += [path, spread(samples.figure(path, self.asked.metric))]
                cells += [_middle(samples.figure(path, metric)) for metric in ("domain_ns_per_frame", "device_ns_per_frame")]
                same = path == self.reference
                cells.append("1" if same else spread(samples.ratio(path, self.reference, self.asked.metric)))
                cells.append(f"{samples.figure(path, self.asked.metric).n} of {samples.slices(path)}")
                table.add_row(*map(Text, cells))
        return table


def _middle(figure: Figure) -> str:
    return "–" if figure.median is None else short(figure.median)
