"""The bench's command, from its options to the report's page, with a benchmark that measures a simulated machine."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from bench.__main__ import app
from bench.method.options import BENCHMARKS, Options, OptionsError
from bench.method.progress import Lines, Part, Silent, parts, time_left
from bench.report import plots
from bench.report.first import sentences
from bench.report.page import write
from bench.report.results import VERSION, BenchmarkResult, ResultsError, read
from lab.command.ending import SIGNALS
from lab.figures import short
from lab.page.html import el, page
from tests.support import bench_stub


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "stub", "tests.support.bench_stub")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command, which a test runs in this process, ends by ignoring signals."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    options = Options(repeat=8, frames=(64, 1500))
    found = BenchmarkResult(bench_stub.TITLE, bench_stub.ABOUT)
    asyncio.run(bench_stub.run(found, options, Silent()))
    machine = {"cpu": "A & B <CPU>", "cores": 2, "kernel": "6.1", "steal": 0.01, "caches": ["32 KiB", "1 MiB"], "smt": None}
    return {
        "version": VERSION, "started": "2026-11-22T10:00:00+00:00", "seconds": 61.0, "machine": machine, "options": options.plain(),
        "benchmarks": {"stub": found.plain()},
    }  # fmt: skip


# -- the folder --


def test_a_run_writes_results_plots_and_a_page(tmp_path: Path) -> None:
    out, extra = tmp_path / "deep" / "report", tmp_path / "extra.json"
    done = command("stub", "--repeat", "6", "--frames", "64,1500", "--out", out, "--json", extra)
    assert done.exit_code == 0, done.output
    results = read(out)
    assert results == json.loads(extra.read_text())
    assert results["options"]["repeat"] == results["options"]["rounds"] == 6
    assert results["benchmarks"]["stub"]["claims"][0]["verdict"] == "met"
    record = results["benchmarks"]["stub"]["records"][0]
    assert record["checksummed"] == 1
    assert record["mpps"]["low"] <= record["mpps"]["median"] <= record["mpps"]["high"]
    suffixes = sorted(path.suffix for path in (out / "plots").iterdir())
    assert suffixes == [".png", ".svg"]
    assert next((out / "plots").glob("*.png")).read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(next((out / "plots").glob("*.svg")))
    assert sorted(path.name for path in out.iterdir()) == ["plots", "report.html", "results.json"]
    assert "met: bypass beats split, 64 B" in done.output


def test_the_page_needs_nothing_but_itself_and_escapes_everything(tmp_path: Path, results: dict[str, Any]) -> None:
    text = write(tmp_path, results).read_text()
    seen = Page(text)
    assert not {"script", "link", "iframe", "object", "img"} & set(seen.tags)
    assert "svg" in seen.tags
    assert all(link.startswith("#") for link in [*seen.values("href"), *seen.values("src")])
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "url(http" not in text
    assert "@import" not in text
    assert not any(char in text for char in "\x00\x1b")
    assert seen.text.count("<script>alert('&')</script>") >= 4  # about, note, title, claims: as words
    assert "A & B <CPU>" in seen.text


def test_every_reference_of_the_drawings_is_defined_once(tmp_path: Path, results: dict[str, Any]) -> None:
    stub = results["benchmarks"]["stub"]
    second = {**stub, "series": [{**series, "kind": "line", "id": "second"} for series in stub["series"]]}
    seen = Page(write(tmp_path, {**results, "benchmarks": {"stub": stub, "again": second}}).read_text())
    names = seen.values("id")
    assert len(names) == len(set(names))
    used = {value[1:] for value in seen.values("href")}
    used |= {value.removeprefix("url(#").removesuffix(")") for value in seen.values("clip-path")}
    assert used <= set(names)
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 2


def test_the_drawings_take_the_pages_colours(tmp_path: Path, results: dict[str, Any]) -> None:
    text = write(tmp_path, results).read_text()
    drawn = text[text.index("<svg") : text.rindex("</svg>")]
    assert "var(--bypass)" in drawn
    assert "var(--ink)" in drawn
    assert plots.PALETTE["bypass"] not in drawn
    css = text[text.index("<style>") : text.index("</style>")]
    for name in ("ink", *plots.PALETTE):
        assert css.count(f"--{name}:") == 2, f"{name} needs a colour on light and on dark"


def test_every_claim_shows_its_figure_and_what_it_had_to_clear(tmp_path: Path, results: dict[str, Any]) -> None:
    seen = Page(write(tmp_path, results).read_text())
    for claim in results["benchmarks"]["stub"]["claims"]:
        assert short(claim["value"]) in seen.text
        assert f"{short(claim['low'])} – {short(claim['high'])}" in seen.text
        assert f"{short(claim['aa'][0])} – {short(claim['aa'][1])}" in seen.text


def test_nothing_infinite_reaches_the_file(tmp_path: Path, results: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, {**results, "seconds": float("inf")})


# -- what goes wrong --


def test_lost_frames_give_no_figure_and_say_why(tmp_path: Path) -> None:
    done = command("stub", "--repeat", "6", "--frames", "64", "--seed", "13", "--out", tmp_path)
    assert done.exit_code == 1
    assert "7 frames lost" in done.output
    stub = read(tmp_path)["benchmarks"]["stub"]
    split = next(record for record in stub["records"] if record["path"] == "split")
    assert "mpps" not in split
    assert split["errors"]
    assert stub["claims"][0]["verdict"] == "no figure"
    assert "7 frames lost" in Page((tmp_path / "report.html").read_text()).text


def test_a_benchmark_that_fails_does_not_take_the_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in BENCHMARKS if name != "stub"]:
        monkeypatch.delitem(BENCHMARKS, name)
    monkeypatch.setitem(BENCHMARKS, "second", "tests.support.bench_stub_sound")
    done = command("--seed", "14", "--repeat", "6", "--frames", "64", "--out", tmp_path)
    assert done.exit_code == 1
    results = read(tmp_path)["benchmarks"]
    assert results["stub"]["notes"][-1] == "FAILED: RuntimeError: the benchmark is at fault"
    assert results["stub"]["records"], "what it had found is kept"
    assert results["second"]["records"]
    assert "the benchmark is at fault" in Page((tmp_path / "report.html").read_text()).text


def test_a_run_that_is_ended_reports_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in BENCHMARKS if name != "stub"]:
        monkeypatch.delitem(BENCHMARKS, name)
    monkeypatch.setitem(BENCHMARKS, "second", "tests.support.bench_stub_sound")
    done = command("--seed", "15", "--repeat", "6", "--frames", "64", "--out", tmp_path, "--json", tmp_path / "out.json")
    assert done.exit_code == 128 + signal.SIGTERM
    results = read(tmp_path)["benchmarks"]
    assert list(results) == ["stub"]
    assert results["stub"]["notes"][-1].startswith("INTERRUPTED")
    assert results["stub"]["records"]
    assert (tmp_path / "out.json").read_text() == (tmp_path / "results.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nosuch"], "no benchmark 'nosuch'"),
        (["stub", "--paths", "bypass,warp"], "unknown path: 'warp'"),
        (["stub", "--peers", "vhosts"], "unknown peer: 'vhosts'"),
        (["stub", "--attacks", "garbage"], "--attacks is for `isolation`"),
        (["isolation", "--attacks", "index-ahead"], "unknown attack: 'index-ahead' (known: index ahead, "),
        (["stub", "--cores", "3"], "unknown value for cores"),
        (["stub", "--frames", "64,big"], "--frames 64,big"),
        (["stub", "--frames", "65537"], "65537 bytes"),
        (["stub", "--frames", ""], "no frame size"),
        (["stub", "--seconds", "nan"], "--seconds nan"),
        (["stub", "--seconds", "-1"], "--seconds -1"),
        (["stub", "--repeat", "-1"], "--repeat -1"),
        (["stub", "--paths", "bypass,bypass"], "named twice"),
        (["stub", "--json", "/nonexistent/x.json"], "--json /nonexistent/x.json"),
        (["stub", "--json", "/"], "--json /"),
        (["stub", "--out", "/dev/null/x"], "--out /dev/null/x"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(result: BenchmarkResult, options: Options, progress: Any) -> None:
        raise AssertionError("it was started")

    monkeypatch.setattr(bench_stub, "run", never)
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert "Traceback" not in done.output


def test_checking_the_json_path_leaves_no_file(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    assert command("stub", "--seed", "14", "--out", tmp_path / "a", "--json", "/nonexistent/x").exit_code == 2
    assert command("stub", "--frames", "9", "--out", tmp_path / "b", "--json", kept).exit_code == 2
    assert kept.read_text() == "before"
    assert os.listdir(tmp_path / "a") == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99, "benchmarks": {}}'])
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=r"results\.json"):
        read(tmp_path)


# -- options, progress, small things --


def test_rounds_follow_from_the_time() -> None:
    assert Options(seconds=4.8, slice_s=0.4).rounds == 12
    assert Options(seconds=0.9, slice_s=0.4).rounds == 4  # 3 would run one order more often than the other
    assert Options(repeat=7).rounds == 7
    assert Options(cores="both").core_sets == ("all", "1")
    with pytest.raises(OptionsError):
        Options(slice_s=0.6)


def test_progress_says_what_is_left() -> None:
    now, lines = [0.0], list[str]()
    whole = Lines(lines.append, lambda: now[0])
    first, second = parts(whole, ["one", "two"])
    first.step("starting", 0.0)
    now[0] = 1.0
    first.step("not said: too soon", 0.1)
    now[0] = 30.0
    first.step("half", 0.5)
    now[0] = 90.0
    Part(second, 0.0, 0.5, "part").step("going on", 1.0)
    assert lines == ["[  0%] one: starting", "[ 25%] one: half (1:30 left)", "[ 75%] two: part: going on (0:30 left)"]
    assert time_left(10, 0.001) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.3014, "0.301"), (14.23, "14.2"), (1000.4, "1,000"), (99_900, "99,900"), (1.5e5, "150 k"),
                        (9_314_104, "9.31 M"), (999_600, "1.00 M"), (5e-5, "5e-05"), (-2.5, "-2.50")]
)  # fmt: skip
def test_figures_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("kind", ["line", "bar", "cdf"])
def test_series_with_gaps_are_drawn(kind: str, tmp_path: Path) -> None:
    lines = [
        {"name": "bypass", "y": [0.5, None, 0.7], "low": [0.4, None, None], "high": [0.6, None, None]},
        {"name": "split", "y": [None, 0.2, None]},
        {"name": "a path of tomorrow", "y": [0.1, 0.2, 0.3], "low": [0.1, 0.2, 0.3], "high": [0.1, 0.2, 0.3]},
        {"name": "no figure at all", "y": [None, None, None]},
    ]
    series = {"id": "s", "title": "t", "kind": kind, "x": {"label": "x", "values": [1, 2, 4], "log": True}, "y": {"label": "y"}}
    figure = plots.draw({**series, "lines": lines})
    assert figure is not None
    text = plots.save(figure, tmp_path / "s")
    assert all(name in text for name in ("bypass", "split", "a path of tomorrow"))
    assert plots.draw({**series, "lines": lines[-1:]}) is None


def test_one_colour_per_path_everywhere() -> None:
    assert plots.colours(["split, 1 core", "bypass"])["split, 1 core"] == plots.colours(["split"])["split"]
    assert plots.base("vhost-hugepages") == "vhost-hugepages"
    assert len(set(plots.PALETTE.values())) == len(plots.PALETTE)
    strange = plots.colours(["x", "y", "z"])
    assert len(set(strange.values())) == 3


def test_elements_escape() -> None:
    text = page(el("p", "1 < 2 & 3", el("b", "x"), "y", None, title='<"&', id=None))
    assert Page(text).attributes == [("title", '<"&')]
    assert text.endswith(">1 &lt; 2 &amp; 3<b>x</b>y</p>\n")


def test_it_begins_with_a_picture_of_the_paths_and_sentences(tmp_path: Path, results: dict[str, Any]) -> None:
    text = write(tmp_path, results).read_text()
    first = text[: text.index('id="claims"')]
    assert first.count("<svg") == 2  # wide and narrow
    assert "split, bypass" in first or "bypass and split" in first or "split and bypass" in first
    assert re.search(r"Of \d+ claims? ", first)
    assert "Farthest apart: bypass ÷ split" in first


def test_sentences_of_a_run_that_found_little() -> None:
    assert sentences({}) == ["Nothing."]
    empty = {"title": "Limit", "records": [], "claims": [], "ratios": []}
    assert sentences({"limit": empty}) == ["Limit."]
    about = {**empty, "about": "What dies. And how.", "records": [{"path": "split", "victim": "dom0"}]}
    assert sentences({"limit": about}) == ["Limit: What dies."]
    claim = {"verdict": "no figure"}
    assert sentences({"limit": {**empty, "claims": [claim, {"verdict": "met"}]}}) == [
        "Limit.",
        "Of 2 claims 1 met and 1 without a figure.",
    ]


def test_claims_are_grouped_by_benchmark(tmp_path: Path, results: dict[str, Any]) -> None:
    stub = results["benchmarks"]["stub"]
    other = {**stub, "title": "Second question", "series": []}
    silent = {**other, "title": "No claims", "claims": []}
    text = write(tmp_path, {**results, "benchmarks": {"stub": stub, "other": other, "silent": silent}}).read_text()
    part = text[text.index('id="claims"') : text.index('id="b-stub"')]
    assert part.index('href="#b-stub"') < part.index('href="#b-other"')
    assert "b-silent" not in part
    assert part.count("<table") == 2
    assert part.count('class="tally"') == 3  # of all, of each


def test_a_run_that_claims_nothing_shows_no_empty_tables(tmp_path: Path, results: dict[str, Any]) -> None:
    silent = {**results["benchmarks"]["stub"], "claims": []}
    text = write(tmp_path, {**results, "benchmarks": {"stub": silent}}).read_text()
    for name in ("claims", "trends"):
        assert f'id="{name}"' not in text
        assert f'href="#{name}"' not in text


def test_no_two_lines_have_one_colour() -> None:
    names = ["split", "split, 1 core", "split, 2 cores", "split x", "split y", "bypass", "spin", "spun", "vhost", "vhost-packed"]
    found = plots.colours(names)
    assert len({found[name] for name in names}) == len(names)
    assert found["split"] == plots.colours(["split"])["split"]
    assert plots.colours(["bypass, 1 core"]) == {"bypass, 1 core": plots.colours(["bypass"])["bypass"]}, (
        "the first is the path's own"
    )
