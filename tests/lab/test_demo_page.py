"""The demo's page, of figures that are made up: what it says, and in a real browser that nothing of it overlaps."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from lab.api.tables import topology_of
from lab.command.demo.page import demo_page, sentences
from lab.page.html import page
from lab.view.picture import picture
from tests.support.pages import chromium, words_apart


def workload(path: str, rate: float, to: str = "wire") -> dict[str, Any]:
    run = {"path": path, "workload": "stream", "from": "a", "to": to, "frame": 64, "mpps": rate, "cpu_us_per_frame": 1 / rate}
    return {**run, "rtt_us": None, "runs": [run, run], "errors": []}


def made_up() -> dict[str, Any]:
    plain = topology_of(None, "demo", {"anna": "split", "carl": "bypass"}, {}).plain()
    shown = picture(plain["name"], plain["guest"], plain["nic"])
    ways = []
    for path in shown["paths"]:
        for way in ("tx", "rx"):
            hops = [{"id": hop, "copies": 0, "calls": 0.01, "notifications": 0.02, "wakeups": 0.03} for hop in path[way]]
            hops[0 if way == "tx" else -1]["copies"] = 1
            ways.append(
                {**{key: path[key] for key in ("guest", "path")}, "way": way, "mpps": 1.25, "hops": hops, "cpu_ns": {"nic": 7.0}}
            )
    program = {"ping": {"text": "ping fine"}, "download": {"text": "<b>whole</b>"}}
    use = {"process": "dom0", "cpu_ms": 1.0, "switches": 3}
    return {
        "workloads": [workload("split", 2.0), workload("bypass", 10.0)],
        "hops": {"picture": shown, "records": [], "ways": ways},
        "stopped": {"rates": {"undisturbed": [4.0, 5.0], "stopped": [4.0, 4.0]}},
        "kernel": [{"path": path, **use} for path in ("split", "bypass")],
        "programs": {"split": program, "bypass": program},
        "not_better": [], "noise": None, "failed": False,
        "machine": {"cpu": "a & b", "cores": 2, "kernel": "6"}, "time": 0.0,
    }  # fmt: skip


def test_three_sentences_say_what_was_shown() -> None:
    path, rate, proof = sentences(made_up())
    assert path.startswith("A frame that a split guest sends to the wire goes through Dom0")
    assert "split carried 2.00 (2.00–2.00) million a second to the wire here, bypass 10.0 (10.0–10.0): 5.00" in rate
    assert "0.900 (0.800–1.00) of its rate" in proof


def test_words_are_text_and_what_is_amiss_comes_first() -> None:
    record = made_up()
    text = page(demo_page(record))
    assert "&lt;b&gt;whole&lt;/b&gt;" in text
    assert "a &amp; b" in text
    assert 'class="alarm"' not in text
    assert "Nowhere among the figures above." in text
    worse = copy.deepcopy(record)
    worse["workloads"] = [workload("split", 10.0), workload("bypass", 2.0)]
    worse |= {
        "noise": "it was loud.",
        "failed": True,
        "not_better": ["all of it"],
        "programs": {"left_out": "no TAPs", "failed": False},
    }
    text = page(demo_page(worse))
    assert text.index("Something failed.") < text.index("it was loud.") < text.index("<figure>")
    assert "(worse)" in text
    assert "Left out: no TAPs." in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_nothing_of_the_drawing_overlaps(browser: Browser, tmp_path: Path, width: int) -> None:
    file = tmp_path / "demo.html"
    file.write_text(page(demo_page(made_up())))
    context = browser.new_context(viewport={"width": width, "height": 800}, java_script_enabled=True)
    shown = context.new_page()
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(file.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert shown.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert words_apart(shown) > 15
    assert shown.locator("svg.drawing:visible .hop.moves").count() == 8
    assert shown.locator("svg.drawing [tabindex]").count() == 0
    context.close()
