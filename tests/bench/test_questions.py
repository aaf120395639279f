"""Questions of one's own: what may vary, what is refused and why, what parts add up to, what is said and written."""

import csv
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.method.options import OptionsError
from bench.method.samples import Samples, Slice, Taken, again_name
from bench.method.study import Point, Question
from bench.questions import shares
from bench.questions.answer import Answer
from bench.questions.ask import Asking
from bench.questions.settings import DIMENSIONS, Setting, dimension, settings
from bench.questions.why import Explanation, Why
from hyp.model.operations import OPERATIONS
from tests.support.labs import ROOT
from tests.support.patience import patient

SEED = 7
Row = dict[str, Any]


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_everything_that_a_setting_has_can_be_given() -> None:
    assert list(DIMENSIONS) == list(Setting().row())


def test_settings_are_all_combinations_and_the_rest_is_usual() -> None:
    found, varied = settings(["guests=1,4", "frame=64,512,1500"], ["cores=1"])
    assert [(one.guests, one.frame) for one in found] == [(g, f) for g in (1, 4) for f in (64, 512, 1500)]
    assert {one.cores for one in found} == {"1"}
    assert varied == ["guests", "frame"]
    assert settings([], []) == ([Setting()], [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("direction=guest->guest", "guest→guest"), ("direction=guest-wire", "guest→wire"), ("load=0.5", 0.5),
        ("price=hypercall_ns:1000+event_send_ns:5", "hypercall_ns:1000+event_send_ns:5"), ("placement=NIC apart", "NIC apart"),
        ("ablation=keep_armed", "keep_armed"), ("queue=4096", 4096), ("cores=1", "1"),
        ("grants=map", "map"),
    ],
)  # fmt: skip
def test_values_are_read(text: str, value: Any) -> None:
    assert dimension(text) == (text.partition("=")[0], [value])


def test_prices_of_the_setting_before_do_not_stay() -> None:
    assert Setting().prices == dict.fromkeys(OPERATIONS, 0)
    assert Setting(price="vm_exit_ns:9").prices == {**dict.fromkeys(OPERATIONS, 0), "vm_exit_ns": 9}


@pytest.mark.parametrize(
    ("vary", "fixed", "said"),
    [
        (["speed=1,2"], [], "NAME=VALUE"), (["guests"], [], "NAME=VALUE"), (["guests=0,1"], [], "guests=0: 1 to 24"),
        (["frame=65537"], [], "frame=65537"), (["queue=100"], [], "a power of two"), (["cores=2"], [], "one of all, 1"),
        (["frame=64,64"], [], "twice"), (["frame=64,65"], ["frame=1500"], "frame: given twice"),
        ([], ["frame=64,65"], "--vary is for that"),
        (["load=nan"], [], "Mframes/s"), (["price=hypercall:5"], [], "NAME:PRICE"), (["price=vm_exit_ns:99999999"], [], "up to"),
        (["guests=1,2"], ["direction=guest->guest"], "measured with one"), ([], ["ablation=copy_limit"], "payload=header"),
        (["grants=copy,flip"], [], "one of copy, map, persistent"), (["guests=1.5"], [], "1 to 24"), (["guests=²"], [], "1 to 24"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_name(vary: list[str], fixed: list[str], said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        settings(vary, fixed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"paths": ["split"]}, "two or more"), ({"paths": ["split", "split"]}, "each once"),
        ({"paths": ["split", "fast"]}, "unknown path"), ({"metric": "p99", "vary": ["guests=1,4"]}, "load"),
        ({"metric": "speed"}, "unknown metric"), ({"parts": ["hop", "luck"]}, "luck"),
        ({"parts": ["hop"], "paths": ["split", "native"]}, "both"),
        ({"parts": ["hop"], "metric": "rate"}, "CPU time"), ({"parts": ["hop"], "fixed": ["frame=64"]}, "more than 64 B"),
        ({"parts": ["hop"], "fixed": ["frame=512", "payload=full"]}, "payload=header"),
        ({"parts": ["hop"], "fixed": ["frame=512", "ablation=bounce"]}, "ablation=none"),
        ({"parts": ["hop"], "fixed": ["frame=512", "grants=map"]}, "grants=copy"),
        ({"paths": ["bypass", "native"], "vary": ["grants=copy,map"]}, "these are split's"),
    ],
)  # fmt: skip
def test_a_question_without_an_answer_is_refused(words: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {"vary": [], "fixed": ["frame=512"], "paths": ["split", "bypass"], "metric": "cpu", "parts": []}
    with pytest.raises(OptionsError, match=said):
        Asking.of(**(usual | words))


def test_parts_of_a_difference_are_asked_of_header_only_streams() -> None:
    asking = Asking.of([], ["frame=512"], ["split", "bypass"], "cpu", ["hop"])
    assert {one.payload for one in asking.settings} == {"header"}
    assert {one.payload for one in Asking.of([], [], ["split", "bypass"], "cpu", []).settings} == {"full"}


@pytest.mark.parametrize(("one", "other", "said"), [("fast", "split", "unknown path"), ("split", "split", "differ in nothing")])
def test_why_takes_two_paths(one: str, other: str, said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        Why.of(one, other, [])


# --- what it comes to -------------------------------------------------------------------------------------------------

COST = {"bypass": 50.0, "split": 250.0, shares.NO_COPY: 220.0, "split, persistent grants": 190.0, shares.NO_COPY_NO_GRANT: 170.0}
"""CPU of the domains, ns a frame: hop 120, copy 25 (30 and 20), grants 55 (60 and 50), together 200."""
METRIC = "domain_ns_per_frame"


def samples(
    cost: dict[str, float], rounds: int = 20, noise: float = 0.01, more: Row | None = None, again: str = "bypass"
) -> Samples:
    draw, found = random.Random(SEED), Samples(again=again)
    for number in range(rounds):
        for name in (*cost, again_name(again)):
            plain = name.removesuffix(" again")
            figures = {
                METRIC: cost[plain] * draw.gauss(1, noise),
                **{metric: values[plain] for metric, values in (more or {}).items()},
            }
            found.add(Taken(number, name, "apart", Slice(figures)))
    return found


def point(found: Samples) -> Point:
    return Point("", {}, [], "bypass", None, [Question("split", "bypass", METRIC)], samples=found)  # type: ignore[arg-type]


def test_hop_copy_and_grants_are_all_of_the_difference() -> None:
    found = samples(COST)
    parts = {part: shares.share(found, METRIC, part) for part in ("hop", "copy", "grant")}
    gain = shares.difference(found, METRIC)
    assert gain.median == pytest.approx(200, rel=0.02)
    for part, worth in (("hop", 120), ("copy", 25), ("grant", 55)):
        share = parts[part]
        assert share.low is not None
        assert share.high is not None
        assert share.low < worth / 200 < share.high
    assert sum(share.median or 0 for share in parts.values()) == pytest.approx(1, abs=0.02)


def test_what_notifications_cost_is_read_off_those_that_were_made_in_addition() -> None:
    """Ten times as many took 45 ns more: the ones that are there always, 5 ns of the difference of 200."""
    found = samples(
        {**COST, shares.NO_HOLD_OFF: 295.0}, noise=0.001,
        more={"per_frame_notifications": {**dict.fromkeys(COST, 0.01), shares.NO_HOLD_OFF: 0.1}},
    )  # fmt: skip
    assert shares.share(found, METRIC, "notify").median == pytest.approx(5 / 200, rel=0.1)


def test_no_share_without_more_notifications() -> None:
    found = samples(
        {**COST, shares.NO_HOLD_OFF: 250.0}, more={"per_frame_notifications": dict.fromkeys([*COST, shares.NO_HOLD_OFF], 0.01)}
    )
    assert shares.share(found, METRIC, "notify").median is None


def answer(*found: Samples, parts: tuple[str, ...] = ()) -> Answer:
    places = [Setting(guests=guests, frame=512) for guests in (1, 4, 16)[: len(found)]]
    return Answer([point(one) for one in found], places, ["guests"], ["split", "bypass"], "cpu", parts)


def test_sentences_say_how_much_at_each_value_and_what_varying_did() -> None:
    said = answer(samples(COST), samples({**COST, "split": 500.0})).sentences()
    assert said[0].startswith("At 1 guest: split takes 5.0")
    assert said[1].startswith("At 4 guests: split takes 10.")
    assert all(" to " in sentence and "times the CPU of bypass." in sentence for sentence in said[:2])
    assert said[2].startswith("split ÷ bypass grows 2.0")
    assert len(said) == 3


def test_what_cannot_be_told_is_not_told() -> None:
    equal = answer(samples({"bypass": 50.0, "split": 50.0}), samples({"bypass": 50.0, "split": 50.0}), parts=("hop",)).sentences()
    assert all("can't be" in sentence or "as far as can be told" in sentence for sentence in equal)
    few = answer(samples(COST, rounds=3)).sentences()
    assert "n too small: 3 pairs" in few[0]


def test_parts_are_said_with_their_intervals() -> None:
    said = answer(samples(COST), parts=("hop", "copy", "grant")).sentences()
    assert said[1].startswith("At 1 guest: of the difference, 2")
    assert said[1].count("% to") == 3


def test_a_part_that_may_be_none_is_said_to_be_so() -> None:
    found = samples(
        {**COST, shares.NO_HOLD_OFF: 250.0}, noise=0.02,
        more={"per_frame_notifications": {**dict.fromkeys(COST, 0.01), shares.NO_HOLD_OFF: 0.015}},
    )  # fmt: skip
    text = answer(found, parts=("copy", "notify")).sentences()[1]
    assert re.search(r"notifications \(of the detour's part\) can't be told from none \(-\d+% to \d+%\)", text), text


def test_why_says_who_and_what_a_frame_met() -> None:
    cpu = {"bypass": 60.0, "split": 260.0}
    roles = {
        "guests": {"bypass": 30.0, "split": 80.0},
        "dom0": {"bypass": 0.0, "split": 150.0},
        "hyp": {"bypass": 0.0, "split": 0.0},
    }
    figures: dict[str, dict[str, float]] = {f"{role}_cpu_ns": values for role, values in roles.items()}
    figures |= {"device_cpu_ns": {"bypass": 30.0, "split": 30.0}, "cpu_ns_per_frame": cpu}
    ledger = {"copies": (1.0, 2.0), "hypercalls": (0.0, 0.0156), "notifications": (0.0, 0.0125), "traps": (0, 0), "wakeups": (0, 0),
              "dom0_frames": (0.0, 1.0), "vmm_frames": (0, 0)}  # fmt: skip
    figures |= {f"per_frame_{name}": {"bypass": one, "split": other} for name, (one, other) in ledger.items()}
    found = Explanation(Why.of("split", "bypass", []), point(samples(cpu, more=figures)))
    text = "\n".join(found.sentences())
    assert "split takes 200 (200 to 200) ns of CPU more per frame than bypass." in text
    assert "the guests 25% (25% to 25%), Dom0 75% (75% to 75%)" in text
    assert "hypervisor's own" not in text
    assert "1.00 payload copies more" in text
    assert "Hypercalls run on the thread of whoever makes them" in text
    assert found.table().row_count == 1 + 4 + 7


# --- for real ---------------------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> str:
    """What is printed. A process of its own: the command ends it, and so leaves signals ignored."""
    words = [sys.executable, "-m", "bench", *arguments, "--out", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=patient(120))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_question_is_answered_in_words_a_table_and_files(warm: None, tmp_path: Path) -> None:
    arguments = ("--vary", "frame=256,1500", "--paths", "split,bypass", "--split-into", "hop,copy,grant,notify", "--budget", "1")
    out = command(tmp_path, "ask", *arguments)
    assert "At 256 B: " in out
    assert "header-only streams" in out
    assert "split's ring is Xen's, one page: 256 entries" in out
    found = json.loads((tmp_path / "answer.json").read_text())
    assert {row["frame"] for row in found["ratios"]} == {256, 1500}
    assert {row["part"] for row in found["shares"]} == set(shares.PARTS)
    rows = list(csv.DictReader((tmp_path / "answer.csv").read_text().splitlines()))
    assert {row["path"] for row in rows} == {"split", "bypass", *(variant.name for variant in shares.variants(["notify"]))}
    assert {"domain_ns_per_frame", "device_ns_per_frame", "mpps"} <= {row["metric"] for row in rows}
    copies = {row["path"]: float(row["median"]) for row in rows if row["metric"] == "per_frame_copies" and row["median"]}
    assert copies == {"split": 2, "bypass": 1, shares.NO_COPY: 1, "split, persistent grants": 2, shares.NO_COPY_NO_GRANT: 1,
                      shares.NO_HOLD_OFF: 2}, "what is left out is not in the ledger"  # fmt: skip
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "plots" / "ask-ratio-0.png").is_file()


@pytest.mark.long
@pytest.mark.parametrize("metric", ["p50", "p99", "rate"])
def test_other_metrics(warm: None, tmp_path: Path, metric: str) -> None:
    varied = "load=0.05,0.1" if metric == "p99" else "cores=all,1"
    assert "bypass" in command(tmp_path, "ask", "--metric", metric, "--vary", varied, "--paths", "bypass,native", "--budget", "1")
    ratios = json.loads((tmp_path / "answer.json").read_text())["ratios"]
    assert len(ratios) == 2
    assert {row["to"] for row in ratios} == {"bypass"}


@pytest.mark.long
def test_grants_vary(warm: None, tmp_path: Path) -> None:
    arguments = ("--vary", "grants=copy,map,persistent", "--fixed", "frame=1500", "--paths", "split,bypass", "--budget", "1")
    assert "At split's grants: map: " in command(tmp_path, "ask", *arguments)
    rows = [row for row in csv.DictReader((tmp_path / "answer.csv").read_text().splitlines()) if row["path"] == "split"]
    hypercalls = {row["grants"]: float(row["median"]) for row in rows if row["metric"] == "per_frame_hypercalls"}
    assert hypercalls["persistent"] < min(hypercalls["copy"], hypercalls["map"])


@pytest.mark.long
def test_why_for_real(warm: None, tmp_path: Path) -> None:
    out = command(tmp_path, "why", "cdna", "bypass", "--budget", "3", "--fixed", "frame=1500")
    assert "frames handled by the hypervisor" in out
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "--vary", "guests=99"], "1 to 24"),
        (["ask", "--budget", "-1"], "--budget"),
        (["why", "split", "spilt"], "unknown path"),
    ],
)
def test_a_wrong_command_line_starts_nothing(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
