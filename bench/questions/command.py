"""The command line of `python -m bench ask`, `python -m bench why` and `python -m bench calibrate`."""

import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench.calibrate import calibrate
from bench.calibrate.targets import TARGETS
from bench.method.estimate import FEWEST
from bench.method.options import MOST_BUDGET_S, OptionsError
from bench.method.progress import Steps, watched
from bench.questions import ask, why
from bench.questions.answer import Answer
from bench.report.results import VERSION, BenchmarkResult, Row
from bench.report.summary import claim_line, words
from hyp.model.profile import ProfileError, names, profile
from hyp.paths import PATHS
from lab.command.ending import run_in_order
from lab.command.screen import Screen
from lab.fingerprint import fingerprint

FAILED, USAGE = 1, 2
EVERY_S = 10.0
"""Between answers that are shown while one waits."""

settings: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
ask_app, why_app, calibrate_app = (typer.Typer(**settings) for _ in range(3))
apps = {"ask": ask_app, "why": why_app, "calibrate": calibrate_app}


def _fail(error: OptionsError) -> NoReturn:
    typer.echo(str(error), err=True)
    raise typer.Exit(USAGE)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _folder(out: Path | None, purpose: str) -> Path:
    """Where the files go; made now, so that what can't be written is refused before anything is measured."""
    folder = out or Path("bench-results") / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-{purpose}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise OptionsError(f"--out {folder}: {error.strerror}") from None
    return folder


def _budget(seconds: float) -> float:
    if not 0 <= seconds <= MOST_BUDGET_S:
        raise OptionsError(f"--budget {seconds:g}: 0 to {MOST_BUDGET_S:g} s")
    return seconds


def _measure(name: str, result: BenchmarkResult, work: Callable[[Steps], Awaitable[None]], screen: Screen, options: Row) -> Row:
    """Run it; returns what was found as results.json has it, with the exit status under "status", whatever ended it."""
    started, begin = datetime.now(UTC), time.monotonic()

    async def run() -> int:
        await work(progress)
        return FAILED if any(record.get("errors") for record in result.records) else 0

    with watched(screen) as progress:
        status = run_in_order(run)
    results: Row = {
        "version": VERSION,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
    }
    return results | {"machine": fingerprint(), "options": options, "benchmarks": {name: result.plain()}, "status": status}


def _finish(results: Row, folder: Path, screen: Screen) -> NoReturn:
    from bench.report.page import write

    status = results.pop("status")
    screen.print(f"report: {os.path.relpath(write(folder, results))}")
    raise typer.Exit(status)


@ask_app.command(help=ask.__doc__)
def ask_(
    vary: Annotated[list[str] | None, typer.Option(help="NAME=VALUE,VALUE,…: what varies. May be given several times.")] = None,
    fixed: Annotated[list[str] | None, typer.Option(help="NAME=VALUE: what has another value than usual.")] = None,
    paths: Annotated[str, typer.Option(help=f"Two or more of {', '.join(PATHS)}.")] = "split,bypass",
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(ask.METRICS)}.")] = "cpu",
    split_into: Annotated[str, typer.Option(help="Parts of what split takes more than bypass: hop, copy, grant, notify.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds, all in all; every point gets its first rounds.")] = ask.BUDGET_S,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: bench-results/<time>-ask.")] = None,
) -> None:
    """Measure and answer."""
    try:
        asking = ask.Asking.of(vary or [], fixed or [], _listed(paths), metric, _listed(split_into))
        seconds, folder = _budget(budget), _folder(out, "ask")
    except OptionsError as error:
        _fail(error)
    screen, result = Screen(), BenchmarkResult(ask.TITLE, "")
    last, answers = [-EVERY_S], list[Answer]()

    def show(answer: Answer) -> None:
        answers[:] = [answer]
        if time.monotonic() - last[0] >= EVERY_S:
            last[0] = time.monotonic()
            screen.print(answer.table())

    async def work(progress: Steps) -> None:
        await ask.ask(asking, result, seconds, progress, show)

    options = {
        "vary": list(vary or []),
        "fixed": list(fixed or []),
        "paths": list(asking.paths),
        "metric": metric,
        "budget_s": seconds,
    }
    results = _measure("ask", result, work, screen, options)
    for answer in answers:
        screen.print(answer.table())
        for sentence in answer.sentences():
            screen.print(f"  {sentence}")
        screen.print(f"  Equal throughout: {ask.kept(asking)}.")
        ask.write_files(folder, answer, asking)
    _finish(results, folder, screen)


@why_app.command(help=why.__doc__)
def why_(
    one: Annotated[str, typer.Argument(help="A path.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    fixed: Annotated[list[str] | None, typer.Option(help="NAME=VALUE: what has another value than usual.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds, all in all; every point gets its first rounds.")] = why.BUDGET_S,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: bench-results/<time>-why.")] = None,
) -> None:
    """Measure and take apart."""
    try:
        asking = why.Why.of(one, other, fixed or [])
        seconds, folder = _budget(budget), _folder(out, "why")
    except OptionsError as error:
        _fail(error)
    screen, result = Screen(), BenchmarkResult(why.TITLE, "")
    found: list[why.Explanation] = []

    async def work(progress: Steps) -> None:
        found[:] = [await why.explain(asking, result, seconds, progress)]

    results = _measure("why", result, work, screen, {"one": one, "other": other, "fixed": list(fixed or []), "budget_s": seconds})
    for explanation in found:
        screen.print(explanation.table())
        for sentence in explanation.sentences():
            screen.print(f"  {sentence}")
    _finish(results, folder, screen)


@calibrate_app.command(help=calibrate.__doc__)
def calibrate_(
    target: Annotated[str, typer.Option(help=f"One of {', '.join(TARGETS)}.")],
    profile_: Annotated[
        str | None, typer.Option("--profile", help=f"{', '.join(names())} or a file; the target's own unless given.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of slices, at price 0 and at the prices.")] = calibrate.ROUNDS,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: bench-results/<time>-calibrate.")] = None,
) -> None:
    """Measure, fit, measure again."""
    try:
        if target not in TARGETS:
            raise OptionsError(f"unknown target: {target!r} (known: {', '.join(TARGETS)})")
        if not FEWEST <= rounds <= 1000:
            raise OptionsError(f"--rounds {rounds}: {FEWEST} to 1000")
        costs, folder = profile(profile_ or TARGETS[target].profile), _folder(out, f"calibrate-{target}")
    except (OptionsError, ProfileError) as error:
        _fail(OptionsError(str(error)))
    screen, result = Screen(), BenchmarkResult(f"{calibrate.TITLE}: {target}", "Figures at prices are modelled.")

    async def work(progress: Steps) -> None:
        await calibrate.calibrate(TARGETS[target], costs, rounds, result, progress)

    results = _measure("calibrate", result, work, screen, {"target": target, "profile": costs.name, "rounds": rounds})
    for table in result.tables:
        screen.print(words(table))
    for claim in result.claims:
        screen.print(f"  {claim_line(claim.plain())}")
    for note in result.notes:
        screen.print(f"  {note}")
    _finish(results, folder, screen)
