"""`launch.py top`: on a terminal of any size, in a pipe, as records; keys, Ctrl-C, Ctrl-Z, a topology that ends, hostile words."""

import json
import os
import re
import shlex
import signal
import subprocess
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from lab.api.tables import topology_of
from lab.command.top.keys import keys_of
from lab.command.top.table import SORTS, Look, counted, detail, drawn, groups, table, window
from lab.view.picture import picture
from lab.view.samples import Sampler, Use
from tests.support.labs import LAUNCH, launch, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient
from tests.support.screens import PROMPT, Screen, screen, shell, state

TEXT = """
[[guest]]
name = "anna"
path = "split"
[[guest]]
name = "carl"
path = "bypass"
[nic.wire]
mode = "generate"
to = "anna"
frame = 1000
pps = 20000
"""
OWN, BACK = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, warm: None) -> Iterator[str]:
    """anna on split gets frames from the wire; the topology's name."""
    with staying_up(topology_file(tmp_path_factory.mktemp("top"), "top", TEXT)) as (process, _):
        yield unique("top")
        process.send_signal(signal.SIGTERM)
        process.wait(patient(30))


# --- printed ---------------------------------------------------------------------------------------------------------


def test_one_table_where_there_is_no_terminal(lab: str) -> None:
    done = launch("top", lab, "--interval", "0.3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.match(rf"{lab}: up \d+ s; figures of 0\.\d\d s", lines[0]) or "min" in lines[0]
    assert lines[1].split()[:2] == ["hop", "frames/s"]
    assert "\x1b" not in done.stdout
    flowing = {line.split("  ")[0].strip() for line in lines if re.search(r"(→|>) \w+ +[1-9]", line)}
    assert flowing >= {"dom0 → anna", "nic → dom0", "wire → nic"}
    assert all(word in done.stdout for word in ("anna split", "carl bypass", "xenstored"))


def test_records_a_line(lab: str) -> None:
    done = launch("top", lab, "--once", "--json", "--interval", "0.3")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["topology"], record["state"]) == (lab, "up")
    assert record["seconds"] > 0.1
    assert record["guests"]["anna"]["rx"]["fps"] > 0
    assert record["guests"]["carl"]["rx"]["fps"] == 0
    assert record["events"][0]["kind"] == "up"


def test_a_reader_that_goes_ends_it(lab: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [*LAUNCH, "top", lab, "--json", "--interval", "0.1"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=patient(60))
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["nosuch"], 1, "no topology named 'nosuch' is running"),
        (["--interval", "0"], 2, "--interval 0: 0.1 at least"),
        (["--interval", "nan"], 2, "--interval nan"),
    ],
)
def test_mistakes(arguments: list[str], status: int, reason: str) -> None:
    done = launch("top", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr


# --- on a terminal ---------------------------------------------------------------------------------------------------


def frames_of(shown: Screen) -> list[list[str]]:
    """What was drawn, draw by draw, without colours."""
    drawn = shown.shown.split("\x1b[H")[1:]
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", one).replace("\r", "").split("\n") for one in drawn]


@pytest.mark.parametrize(("rows", "columns"), [(24, 60), (50, 160), (5, 40)])
def test_it_fits_the_terminal_and_gives_it_back(lab: str, rows: int, columns: int) -> None:
    with screen(*LAUNCH, "top", lab, "--interval", "0.1", TERM="xterm-256color") as shown:
        shown.resize(rows, columns)
        before = shown.modes()
        shown.expect(re.escape(OWN))
        for _ in range(4):
            shown.expect(re.escape("\x1b[H"))
        assert not shown.modes() & termios.ICANON
        shown.type("q")
        assert shown.wait() == 0
        assert shown.modes() == before
    drawn = frames_of(shown)[:-1]  # all but what may have been cut off
    assert len(drawn) >= 2
    assert {len(one) for one in drawn} == {rows}
    assert all(len(line) <= columns for one in drawn for line in one)


def test_keys(lab: str) -> None:
    with screen(*LAUNCH, "top", lab, "--interval", "0.1", TERM="xterm") as shown:
        shown.resize(40, 130)
        shown.expect("by topology")
        shown.type("s")
        shown.expect("by frames")
        shown.type(" ")
        shown.expect("PAUSED")
        shown.type("p\x1b[B\r")
        shown.expect("anna, split")
        shown.expect("dom0/netback_rx.py")
        shown.type("\x1b[Bj\x7f")
        shown.expect("carl")
        shown.type("zzzz\x1b[999~\xff")  # nothing
        shown.expect("wake-ups/s")
        shown.type("q")
        assert shown.wait() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_the_terminal_back(lab: str, number: int, status: int) -> None:
    with screen(*LAUNCH, "top", lab, "--interval", "0.1", TERM="xterm") as shown:
        before = shown.modes()
        shown.expect("by topology")
        if number == signal.SIGINT:
            shown.type("\x03")
        else:
            os.kill(shown.pid, number)
        shown.expect(re.escape(BACK))
        assert shown.wait() == status
        assert shown.modes() == before
    assert "Traceback" not in shown.shown


def test_ctrl_z_gives_it_back_while_it_lasts(lab: str) -> None:
    with shell() as shown:
        before = shown.modes()
        shown.enter("export TERM=xterm; " + shlex.join([*LAUNCH, "top", lab, "--interval", "0.1"]))
        shown.expect("by topology")
        shown.type("\x1a")
        shown.expect(re.escape(BACK))
        shown.expect(PROMPT)
        wait_until(lambda: shown.modes() == before, "the terminal's modes to be as before")
        shown.enter("fg")
        shown.expect(re.escape(OWN))
        shown.expect("by topology")
        shown.type("q")
        shown.expect(PROMPT)
        assert shown.modes() == before


def test_a_terminal_that_can_do_nothing_has_the_table(lab: str) -> None:
    with screen(*LAUNCH, "top", lab, "--interval", "0.1", TERM="dumb") as shown:
        shown.expect("xenstored")
        assert shown.wait() == 0
    assert "\x1b" not in shown.shown


@pytest.mark.long
def test_the_topologys_end_is_said(tmp_path_factory: pytest.TempPathFactory, warm: None) -> None:
    name = unique("top-end")
    with staying_up(topology_file(tmp_path_factory.mktemp("end"), "top-end", TEXT)) as (process, _):
        with screen(*LAUNCH, "top", name, "--interval", "3600", TERM="xterm") as shown:
            shown.expect(name)
            process.send_signal(signal.SIGTERM)
            shown.expect(re.escape(BACK))
            shown.expect(f"topology {name} has ended")
            assert shown.wait() == 1
        process.wait(patient(30))
    assert state(shown.pid) == ""


# --- what is shown, without a terminal -------------------------------------------------------------------------------


def sampled(**use: str) -> tuple[dict[str, Any], dict[str, Any]]:
    guests = {"anna": "split", "b" * 31: "bypass", "emil": "trapped"}
    topology = topology_of(None, "shown", guests, {}).plain()
    looking = Sampler(picture("shown", topology["guest"], topology["nic"]))
    processes = {name: Use(1, 0, state) for name, state in use.items()}
    nothing = {"tx_frames": 0, "drop_spoofed": 0, "faults_grant": 0}
    for k in range(2):
        vif, model = {**nothing, "tx_frames": 1 << 50, "drop_spoofed": 5 * k}, {**nothing, "tx_frames": 7 * k}
        counts = {"dom0/vif1:anna": vif, "hyp/vmm3:emil": model}
        sample = looking.take(float(k), 1e9 + k, counts, processes)
    return looking.picture, sample


def test_sixty_columns_hold_a_guest_of_the_longest_name() -> None:
    shown, sample = sampled(anna="T", nic="S")
    made = table(groups(shown, sample), 60, "anna")
    lines = [text for text, _ in made]
    assert {len(text) for text in lines} == {60}
    assert any(line.startswith("anna split stopp") for line in lines)
    drops = next(line for line in lines if line.startswith(" anna → d"))
    assert "5!" in drops
    looks = {text.split()[0]: look for text, look in reversed(made)}
    assert (looks["anna"], looks["emil"], looks["nic"]) == (Look.PICKED, Look.BAD, Look.QUIET)
    assert detail(shown, sample, "nobody", 60) == []
    found = detail(shown, sample, "anna", 60)
    assert all(len(text) <= 60 for text, _ in found)
    assert ("  drops: 5 spoofed", Look.WARNING) in found


def test_a_line_is_cut_to_the_terminal_whatever_is_in_it() -> None:
    wide = "说" * 40
    assert drawn((wide, Look.USUAL), 21) == "说" * 10 + "…"
    assert drawn(("short", Look.BAD), 21) == "\x1b[1;31mshort\x1b[0m"
    assert drawn(("short", Look.BAD), 21, colours=False) == "\x1b[1mshort\x1b[0m"


def test_every_sort_has_every_guest() -> None:
    shown, sample = sampled()
    for sort in SORTS:
        names = [group.name for group in groups(shown, sample, sort)]
        assert sorted(names[:3]) == ["anna", "b" * 31, "emil"]
        assert names[3:] == ["shared", "hyp", "xenstored", "dom0", "nic"]
    assert groups(shown, sample, "frames")[0].name == "emil"
    assert groups(shown, sample, "drops")[0].name == "anna"
    assert counted({}) == ""


def test_a_window_keeps_the_heading_and_what_is_picked() -> None:
    lines = ["head", *map(str, range(1, 100))]
    for room in (2, 3, 10, 200):
        for around in (1, 50, 99):
            found = window(lines, around, room)
            assert found[0] == "head"
            assert str(around) in found
            assert len(found) == min(room, 100)
    assert [window(lines, 5, room) for room in (-1, 0, 1)] == [[], [], ["head"]]


def test_keys_are_told_apart() -> None:
    assert keys_of("q\x1b[A\x1bOB\rs \x1b\x7f\x1b[5~") == ["q", "up", "down", "enter", "s", "space", "escape", "escape", "page up"]
    assert keys_of("\x1b[31;1mx") == ["\x1b[31;1m", "x"]
