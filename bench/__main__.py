"""The bench: all benchmarks, or one, and a report.

\b
    python -m bench [NAME] [options]     run all benchmarks (or one) and write a folder with results.json, plots and report.html
    python -m bench ask --vary guests=1,4,16 --fixed frame=512 --paths split,bypass
                                         a question of one's own (ask --help)
    python -m bench why A B              two paths taken apart: CPU by process and ledger, side by side
    python -m bench calibrate --target staging-grants
                                         published ratios at published costs of operations (calibrate --help)
    python -m bench compare A B          what got faster, slower or can't be told between two runs (results.json or their folders)

Exit status: 0 all was measured; 1 a benchmark failed, or has slices that lost, duplicated or corrupted frames; 2 the command line
is wrong, and nothing was started; 128 + n for signal n (130: Ctrl-C), with a report of what was measured.
"""

import sys

from lab.environment import interpreter
from lab.execute import inherited

if __name__ == "__main__":
    inherited.note()  # first of all: it opens standard streams that are closed
    interpreter.settle(["-m", "bench", *sys.argv[1:]])

import asyncio
import importlib
import importlib.util
import os
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol, cast

import typer

from bench.method.options import (
    BENCHMARKS,
    BUDGET_S,
    FRAMES,
    PEERS,
    QUICK_BUDGET_S,
    QUICK_FRAMES,
    QUICK_SECONDS,
    QUICK_SLICE_S,
    SECONDS,
    SLICE_S,
    Cores,
    Options,
    OptionsError,
)
from bench.method.progress import Steps, parts, watched
from bench.report.results import VERSION, BenchmarkResult, ResultsError, Row, dump, read
from hyp.abi.sizes import DEFAULT_MTU
from hyp.capture.format import CaptureError
from hyp.load.mix import IMIX, sizes_of
from hyp.offload.frame import ETHERNET_HEADER
from hyp.paths import PATHS
from lab.command.encoding import speak_any_encoding
from lab.command.ending import run_in_order, unwritable
from lab.command.screen import Screen
from lab.fingerprint import fingerprint

FAILED, USAGE = 1, 2

settings: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(**settings)
compare_app = typer.Typer(**settings)


class Benchmark(Protocol):
    """What a module `bench.<name>` has."""

    TITLE: str
    ABOUT: str

    async def run(self, result: BenchmarkResult, options: Options, progress: Steps) -> None:
        """Measure; what was found so far is in `result`, whatever ends it."""


def benchmark(name: str) -> Benchmark:
    """The module of a benchmark, loaded now."""
    return cast(Benchmark, importlib.import_module(BENCHMARKS[name]))


def available() -> list[str]:
    """The benchmarks that this version has."""
    return [name for name, module in BENCHMARKS.items() if importlib.util.find_spec(module) is not None]


def fail(message: str, status: int = USAGE) -> NoReturn:
    """Say why on standard error and exit."""
    print(message, file=sys.stderr)
    raise typer.Exit(status)


def _listed(text: str) -> tuple[str, ...]:
    """ "a,b" as a tuple; "" and "none" are empty."""
    return () if text.strip() in ("", "none") else tuple(part.strip() for part in text.split(","))


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _listed(text))
    except ValueError:
        raise OptionsError(f"--frames {text}: sizes in bytes, such as 64,1500") from None


def _mix(name: str | None, frames: str | None, traffic: str) -> tuple[str, tuple[int, ...]]:
    """A mix of sizes, by its absolute name, and its mean."""
    if name != "throughput" or frames is not None:
        raise OptionsError("--traffic is for `throughput`, and takes the place of --frames")
    path = traffic if traffic == IMIX else os.path.abspath(traffic)
    try:
        return path, (round(float(sizes_of(path, DEFAULT_MTU + ETHERNET_HEADER).mean())),)
    except CaptureError as error:
        raise OptionsError(f"--traffic {error}") from None


def _writable(json_out: Path | None, folder: Path) -> None:
    """OptionsError unless the results can be written; hours may pass until then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OptionsError(f"--out {folder}: {error.strerror}") from None
    if json_out is not None and (reason := unwritable(json_out)):
        raise OptionsError(f"--json {json_out}: {reason}")


@app.command(help=__doc__)
def run(
    name: Annotated[str | None, typer.Argument(help=f"One benchmark: {', '.join(BENCHMARKS)}. Without: all.")] = None,
    paths: Annotated[str, typer.Option(help=f"Which of {', '.join(PATHS)}.")] = ",".join(PATHS),
    frames: Annotated[str | None, typer.Option(help="Frame sizes in bytes, comma-separated.")] = None,
    traffic: Annotated[
        str, typer.Option(help='throughput: the sizes of "imix" or of a capture file, in its order, instead of one size.')
    ] = "",
    peers: Annotated[str, typer.Option(help=f"Which of {', '.join(PEERS)} to measure beside the paths.")] = "",
    cores: Annotated[str, typer.Option(help="all, 1 or both: which cores everything may use.")] = "all",
    seconds: Annotated[float | None, typer.Option(help="Time per contender and point, in slices of at most 0.5 s.")] = None,
    budget: Annotated[
        float | None, typer.Option(help=f"Seconds to go on with what is undecided, at most; {BUDGET_S:g} unless told otherwise.")
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", "--rounds", help="Rounds of slices; takes the place of --seconds.")] = 0,
    quick: Annotated[bool, typer.Option(help="Few points and short slices: to try things, not to cite.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 1,
    attacks: Annotated[str, typer.Option(help="isolation: which attacks, comma-separated; all unless told otherwise.")] = "",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write results.json to this file, too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; default: bench-results/<time>.")] = None,
) -> None:
    """Measure and report."""
    started = datetime.now(UTC)
    folder = out or Path("bench-results") / started.strftime("%Y-%m-%d-%H%M%S")
    try:
        if name is not None and name not in available():
            raise OptionsError(f"no benchmark {name!r} (known: {', '.join(available())}; or: compare A B)")
        if importlib.util.find_spec("matplotlib") is None:
            raise OptionsError("the report needs matplotlib: `make bench` installs it, and `make setup`")
        sizes = (QUICK_FRAMES if quick else FRAMES) if frames is None else _sizes(frames)
        if attacks and name not in (None, "isolation"):
            raise OptionsError("--attacks is for `isolation`")
        if traffic:
            traffic, sizes = _mix(name, frames, traffic)
        time_each = seconds if seconds is not None else (QUICK_SECONDS if quick else SECONDS)
        options = Options(
            paths=_listed(paths), frames=sizes, cores=cast(Cores, cores), seconds=time_each, repeat=repeat, quick=quick,
            peers=_listed(peers), slice_s=QUICK_SLICE_S if quick else SLICE_S, seed=seed, attacks=_listed(attacks), traffic=traffic,
            budget_s=budget if budget is not None else QUICK_BUDGET_S if quick or repeat else BUDGET_S,
        )  # fmt: skip
        _writable(json_out, folder)
    except OptionsError as error:
        fail(str(error))
    screen = Screen()
    names = [name] if name is not None else available()
    results: Row = {"version": VERSION, "started": started.isoformat(timespec="seconds"), "seconds": 0.0}
    results |= {"machine": fingerprint(), "options": options.plain(), "benchmarks": {}}
    status = _drive(names, options, results, screen)
    if results["benchmarks"]:
        _finish(results, folder, json_out, screen)
    raise typer.Exit(status)


def _drive(names: list[str], options: Options, results: Row, screen: Screen) -> int:
    """Run the benchmarks; returns the exit status. What was done stays in `results`, whatever ends it."""
    begin = time.monotonic()
    try:
        with watched(screen) as progress:
            return run_in_order(lambda: _measure(names, options, progress, results["benchmarks"]))
    finally:
        results["seconds"] = round(time.monotonic() - begin, 1)


async def _measure(names: list[str], options: Options, progress: Steps, done: dict[str, Row]) -> int:
    """One benchmark after the other. One that fails does not take the others' results along, nor what it had found itself."""
    status = 0
    for name, part in zip(names, parts(progress, names), strict=True):
        part.step("starting", 0.0)
        module = benchmark(name)
        result = BenchmarkResult(module.TITLE, module.ABOUT)
        try:
            await module.run(result, options, part)
        except Exception as error:
            traceback.print_exc()
            result.notes.append(f"FAILED: {type(error).__name__}: {error}")
            status = FAILED
        except asyncio.CancelledError:
            result.notes.append("INTERRUPTED: what follows from all of it is missing")
            raise
        finally:
            done[name] = result.plain()
        if any(record.get("errors") for record in done[name]["records"]):
            status = FAILED
    return status


def _finish(results: Row, folder: Path, json_out: Path | None, screen: Screen) -> None:
    """The JSON file if one was asked for, the folder, and tables on the screen: it may be hours' work, and nobody may look."""
    from bench.report.page import write
    from bench.report.summary import tables

    if json_out is not None:
        dump(json_out, results)
    written = write(folder, results)
    screen.print(tables(results))
    screen.print(f"report: {os.path.relpath(written)}")


@compare_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="results.json, or a report's folder: before.")],
    b: Annotated[Path, typer.Argument(help="The same: after.")],
) -> None:
    """What got faster, slower or can't be told between two runs."""
    from bench.report.compare import report

    try:
        before, after = read(a), read(b)
    except ResultsError as error:
        fail(str(error))
    Screen().print(report(before, after))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    speak_any_encoding()
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] in (["ask"], ["why"], ["calibrate"]):
        from bench.questions.command import apps

        apps[arguments[0]](arguments[1:], prog_name=f"python -m bench {arguments[0]}")
    if arguments[:1] == ["compare"]:
        compare_app(arguments[1:], prog_name="python -m bench compare")
    app(arguments, prog_name="python -m bench")


if __name__ == "__main__":
    main()
