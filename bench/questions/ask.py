"""``python -m bench ask``: a question of one's own.

\b
    python -m bench ask --vary guests=1,4,16 --fixed frame=512 --paths split,bypass --split-into hop,copy,grant,notify
    python -m bench ask --vary frame=64,256,1024,1500 --paths native,bypass,split --metric rate

Anything may vary, and everything else is equal and said: frame, guests, queue, engines, cores (all or 1), load (Mframes/s that
each guest offers in an open loop; 0: as fast as it goes), price, ablation, payload, placement, direction, grants (of split guests:
copy, map, persistent). Every ratio has its 95 % interval. First figures come within seconds; they are refined until every ratio is
decided and its interval narrow, or --budget is spent. Written to a folder: answer.csv, ratios.csv, answer.json (for pandas),
results.json, plots and report.html.
"""

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.method.estimate import FEWEST
from bench.method.options import OptionsError
from bench.method.progress import Steps
from bench.method.study import Point, Question, study
from bench.questions import shares
from bench.questions.answer import METRICS, Answer, Row, equal_throughout, words
from bench.questions.measure import Labs, Variant
from bench.questions.settings import Setting, kinds, settings
from bench.report.results import BenchmarkResult, Series
from hyp.paths import PATHS

SLICE_S, LONG_SLICE_S, MANY = 0.05, 0.1, 4
PRECISION = 0.05
"""How near the ends of a ratio's 95 % interval are to it, when one stops early."""
BUDGET_S = 55.0
"""From start to end; but every point gets its first rounds."""
TITLE = "A question"


@dataclass(frozen=True, slots=True)
class Asking:
    """A question, checked. OptionsError for what can't be asked."""

    settings: tuple[Setting, ...]
    varied: tuple[str, ...]
    paths: tuple[str, ...]
    metric: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, vary: Sequence[str], fixed: Sequence[str], paths: Sequence[str], metric: str, parts: Sequence[str]) -> "Asking":
        """From the command line's words. With parts, streams are header-only unless the user says what they are."""
        if unknown := [path for path in paths if path not in PATHS]:
            raise OptionsError(f"unknown path: {unknown[0]!r} (known: {', '.join(PATHS)})")
        if len(set(paths)) < len(paths) or len(paths) < 2:
            raise OptionsError("--paths: two or more, each once; their ratios are the answer")
        if metric not in METRICS:
            raise OptionsError(f"unknown metric: {metric!r} (known: {', '.join(METRICS)})")
        given = {text.partition("=")[0].strip() for text in (*vary, *fixed)}
        kept = [*fixed, "payload=header"] if parts and "payload" not in given else list(fixed)
        found, varied = settings(list(vary), kept)
        if "grants" in given and "split" not in paths:
            raise OptionsError("grants: these are split's, and --paths doesn't have it")
        if parts:
            shares.check(parts, paths, found)
            if metric != "cpu":
                raise OptionsError(f"--split-into takes CPU time apart: --metric cpu, not {metric}")
        if metric in ("p50", "p99") and any(one.guests > 1 and not one.load for one in found):
            raise OptionsError(
                "latency with several guests: give an offered load (--fixed load=0.1), or round trips have one guest"
            )
        return cls(tuple(found), tuple(varied), tuple(paths), metric, tuple(parts))


async def ask(asking: Asking, result: BenchmarkResult, budget_s: float, progress: Steps, show: Callable[[Answer], None]) -> Answer:
    """Measure; `show` gets the answer whenever it is better than before. What is known is in `result`, whatever ends it."""
    begin, asked = time.monotonic(), METRICS[asking.metric]
    variants = [Variant(path, path) for path in asking.paths]
    if asking.parts:
        variants += shares.variants(asking.parts)
    async with Labs(asking.paths, ["persistent"] if asking.parts else kinds(asking.settings)) as labs:
        points = [_point(labs, asking, setting, variants) for setting in asking.settings]
        answer = Answer(points, asking.settings, asking.varied, asking.paths, asking.metric, asking.parts)

        def found() -> None:
            report(result, answer, asking)
            show(answer)

        await study(points, rounds=FEWEST, seconds=SLICE_S, budget_s=budget_s, progress=progress, found=found, since=begin)
    result.notes.insert(0, f"Looked at: {asked.what}. Equal throughout: {kept(asking)}.")
    return answer


def kept(asking: Asking) -> str:
    """What does not vary, in words."""
    return equal_throughout(asking.settings[0], asking.varied, asking.paths)


def _point(labs: Labs, asking: Asking, setting: Setting, variants: Sequence[Variant]) -> Point:
    metric = METRICS[asking.metric].metric
    reference = "bypass" if "bypass" in asking.paths else asking.paths[-1]
    questions = [Question(path, reference, metric, precision=PRECISION) for path in asking.paths if path != reference]
    contenders = [labs.contender(setting, variant, asking.metric) for variant in variants]
    where = {name: getattr(setting, name) for name in ("direction", "frame", "cores", *asking.varied)}
    where = {("ring" if name == "queue" else name): value for name, value in where.items()}
    return Point(
        words(setting, asking.varied) or "measuring", where, contenders, reference, labs.probe(setting.cores), questions,
        slice_s=LONG_SLICE_S if setting.guests > MANY else None,
    )  # fmt: skip


def report(result: BenchmarkResult, answer: Answer, asking: Asking) -> None:
    """The answer as a benchmark's result: records, ratios, sentences, plots."""
    result.forget()
    for _, point in answer.known:
        for contender in point.contenders:
            metrics = [name for name in point.samples.metrics(contender.name) if not name.startswith("per_frame_")]
            result.take(point.samples, contender.name, {"path": contender.name}, point.where, metrics)
        for path in answer.paths:
            if path != answer.reference:
                result.compare(point.samples, path, answer.reference, answer.asked.metric, point.where)
    result.notes += answer.sentences()
    result.series += _plots(answer, asking)


def _plots(answer: Answer, asking: Asking) -> list[Series]:
    """The metric, the ratio, and the shares, against the first dimension that varies; one setting of the others at a time."""
    if not asking.varied:
        return []
    axis, others = asking.varied[0], asking.varied[1:]
    groups: dict[str, list[tuple[Setting, Point]]] = {}
    for setting, point in answer.known:
        groups.setdefault(words(setting, others), []).append((setting, point))
    found = []
    for number, (title, group) in enumerate(groups.items()):
        x = [getattr(setting, axis) for setting, _ in group]
        where = f", {title}" if title else ""
        numeric = all(isinstance(value, int | float) for value in x) and len(x) > 1
        kind: Any = "line" if numeric else "bar"
        log = numeric and min(x) > 0 and max(x) / min(x) >= 8
        metric = Series(f"metric-{number}", f"{answer.asked.what}{where}", axis, x, answer.asked.unit, kind, log=log)
        ratio = Series(
            f"ratio-{number}", f"Ratio to {answer.reference}: {answer.asked.what}{where}", axis, x, "times", kind, log=log
        )
        for path in answer.paths:
            figures = [point.samples.figure(path, answer.asked.metric) for _, point in group]
            metric.add(path, *zip(*((one.median, one.low, one.high) for one in figures), strict=True))
            if path != answer.reference:
                ratios = [point.samples.ratio(path, answer.reference, answer.asked.metric) for _, point in group]
                ratio.add(path, *zip(*((one.median, one.low, one.high) for one in ratios), strict=True))
        found += [metric, ratio]
        if asking.parts:
            found.append(_share_plot(answer, asking, group, axis, x, f"shares-{number}", where))
    return found


def _share_plot(
    answer: Answer, asking: Asking, group: Sequence[tuple[Setting, Point]], axis: str, x: Sequence[Any], name: str, where: str
) -> Series:
    title = f"What split's extra CPU is made of{where}"
    series = Series(name, title, axis, list(x), "per cent of the difference to bypass", "bar")
    for part in asking.parts:
        figures = [shares.share(point.samples, answer.asked.metric, part) for _, point in group]
        percent = [[None if end is None else 100 * end for end in (one.median, one.low, one.high)] for one in figures]
        series.add("notify (in hop)" if part == "notify" else part, *zip(*percent, strict=True))
    return series


def write_files(folder: Path, answer: Answer, asking: Asking) -> None:
    """answer.csv, ratios.csv, shares.csv and answer.json: rows for pandas, and the sentences."""
    tables: dict[str, list[Row]] = {"answer": answer.figures(), "ratios": answer.ratios(), "shares": answer.shares()}
    for name, rows in tables.items():
        if rows:
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    said = {"paths": asking.paths, "metric": asking.metric, "varied": asking.varied, "sentences": answer.sentences()}
    everything = {"question": said, "figures": tables["answer"], "ratios": tables["ratios"], "shares": tables["shares"]}
    text = json.dumps(everything, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "answer.json").write_text(text + "\n")
