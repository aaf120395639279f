"""`launch.py new`: whatever is chosen, the file is sound, in its comments too; and nothing that is there is overwritten."""

import json
import re
import tomllib
from itertools import product
from pathlib import Path

import pytest

from domu.programs.table import NAMED
from hyp.paths import PATHS
from lab.command.new import NAMES, WORKLOADS, Choice, name_of, text_of
from lab.topology import Topology, parse
from tests.support.labs import launch

SETS = [[path] for path in PATHS] + [list(PATHS), ["split", "bypass"]]
KINDS = [["none"], ["stream"], ["stream", "rr"]]


def read(text: str) -> Topology:
    return parse(tomllib.loads(text))


@pytest.mark.parametrize(("paths", "guests", "kinds", "program"), list(product(SETS, [1, 2, 3], KINDS, NAMED)))
def test_every_choice_is_sound(paths: list[str], guests: int, kinds: list[str], program: str) -> None:
    choice = Choice(paths, guests, kinds, program)
    choice.check()
    found = read(text_of("begun", choice))
    assert [guest.path for guest in found.guests] == [path for path in paths for _ in range(guests)]
    each = len(choice.kinds) * (1 if guests == 1 else 2)
    assert len(found.workloads) == each * len(paths)


@pytest.mark.parametrize("program", NAMED)
def test_what_is_commented_out_is_as_it_is_anyway(program: str) -> None:
    text = text_of("begun", Choice(list(PATHS), 2, ["stream"], program))
    commented = re.sub(r"^# (?=[a-z_0-9]+ = |\[)", "", text, flags=re.MULTILINE)
    if program == "tap":
        commented = re.sub(r"^memory = .*\n", "", commented, flags=re.MULTILINE)
    assert commented != text
    assert read(commented).plain() == read(text).plain()


def test_names_of_guests_and_files() -> None:
    assert NAMES.keys() == PATHS.keys()
    assert [name_of(Path(file)) for file in ("my.toml", "/x/My Lab 2.toml", "-.toml", "a" * 40)] == [
        "my",
        "my-lab-2",
        "lab",
        "a" * 31,
    ]


def test_it_is_written_once_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    done = launch("new", file, "--paths", "split,bypass,trapped", "--guests", "1", "--workloads", "stream", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"file": str(file), "name": "mine", "guests": ["anna", "carl", "emil"], "workloads": 3}
    written = file.read_text()
    again = launch("new", file)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already, and is not overwritten" in again.stderr
    assert file.read_text() == written
    checked = launch("check", file, "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["workloads"] == 3


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--paths", "splitt"], 2, "'splitt' is not a path; there are native"),
        (["--paths", ""], 2, "name each path once"),
        (["--paths", "split,split"], 2, "name each path once"),
        (["--workloads", "none,rr"], 2, "none, or some"),
        (["--workloads", "storm"], 2, "'storm' is no workload; there are stream, rr, none"),
        (["--program", "own"], 2, "'own' is not a program; there are traffic, tap"),
        (["--guests", "0"], 2, "Invalid value for '--guests'"),
    ],
)
def test_what_is_chosen_wrongly_is_said(tmp_path: Path, arguments: list[str], status: int, reason: str) -> None:
    done = launch("new", tmp_path / "x.toml", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said() -> None:
    done = launch("new", "/nosuch/x.toml")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "/nosuch/x.toml cannot be written: No such file or directory\n")
    assert WORKLOADS[-1] == "none"
