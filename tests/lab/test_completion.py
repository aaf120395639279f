"""Completion: the words for each place of a command line, the scripts in their shells, and examples in every help."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lab.command.completing import scripts
from lab.command.completing.examples import EXAMPLES
from lab.command.completing.scripts import SCRIPTS, candidates
from tests.support.labs import LAUNCH, ROOT, launch, staying_up, topology_file, unique
from tests.support.patience import patient

GUESTS = """
[[guest]]
name = "alice"
path = "bypass"
program = "tap"
address = "10.0.0.1/24"
[[guest]]
name = "anna"
path = "split"
"""
RUNNING = [
    ("lab-1", {"name": "alice", "path": "bypass", "program": "tap"}),
    ("lab-2", {"name": "anna", "path": "split", "program": "traffic"}),
]


@pytest.fixture(scope="module")
def command() -> Any:
    """The application's, from a launch.py of its own: nobody imports launch."""
    scope: dict[str, Any] = {"__name__": "launched", "__file__": str(ROOT / "launch.py")}
    source = (ROOT / "launch.py").read_text()
    kept = source[source.index("import math") :]
    exec(compile("import os\nfrom pathlib import Path\nimport sys\n" + kept, "launch.py", "exec"), scope)
    return typer.main.get_command(scope["app"])


@pytest.fixture(autouse=True)
def _running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "guests", lambda: RUNNING)
    monkeypatch.setattr(scripts, "topologies", lambda: ["lab-1", "lab-2"])


def found(command: Any, line: str) -> list[str]:
    """What the last word of a line is completed to; one that ends in a space has begun a new one."""
    return [word for word, _ in candidates(command, shlex.split(line) + [""] * (line == "" or line.endswith(" ")))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("st", ["status", "stop", "store"]),
        ("store ", ["ls", "read", "write", "rm", "watch"]),
        ("stop ", ["lab-1", "lab-2"]),
        ("stop --", ["--help", "--all", "--yes", "--json"]),
        ("top lab-2", ["lab-2"]),
        ("exec ", ["alice"]),
        ("exec --topology ", ["lab-1", "lab-2"]),
        ("exec --topology lab-1 ", ["alice"]),
        ("exec alice -- ", []),
        ("forward ", ["alice:"]),
        ("move a", ["alice", "anna"]),
        ("move anna --path ", ["split", "bypass"]),
        ("trace anna a", ["alice", "anna"]),
        ("web lab-", ["lab-1", "lab-2"]),
        ("move anna --path split ", []),
        ("check topologies/d", ["topologies/demo.toml"]),
        ("run topol", ["topologies/"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("nosuch ", []),
    ],
)
def test_words(command: Any, line: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if line == "nosuch ":  # an argument that nothing takes: commands are what could stand there
        assert "run" in found(command, line)
    else:
        assert found(command, line) == words


def test_the_hidden_one_is_not_offered(command: Any) -> None:
    assert "complete" not in found(command, "")


def leaves(command: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in command.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, f"{before}{name} ")
        elif not one.hidden:
            yield before + name, one


def test_every_command_has_examples_that_it_understands(command: Any) -> None:
    assert {name for name, _ in leaves(command)} == EXAMPLES.keys()
    for name, one in leaves(command):
        for line in EXAMPLES[name]:
            words = shlex.split(line.partition(" | ")[0].replace('eval "$(', "").replace(')"', ""))
            assert words[: 1 + len(name.split())] == ["launch.py", *name.split()]
            with one.make_context(name, words[1 + len(name.split()) :]) as context:
                assert context.params is not None


def test_examples_stand_in_the_help() -> None:
    lines = launch("move", "--help").stdout.splitlines()
    assert lines[-2:] == ["  Examples:", "    launch.py move alice --path bypass"]


# --- in shells -------------------------------------------------------------------------------------------------------

ASK = {
    "bash": "{script}\nCOMP_WORDS=({launch} {words}); COMP_CWORD={last}; _xen_bypass_lab {launch}\n"
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": "{script}\n_describe() {{ print -l -- ${{(P)3}}; }}\nwords=({launch} {words}); CURRENT={current}; _xen_bypass_lab",
    "fish": '{script}\ncomplete --do-complete "{launch} {plain}"',
}
"""How each shell is asked for what a key press would show."""


@pytest.mark.parametrize("shell", [pytest.param(name, marks=pytest.mark.needs(name)) for name in SCRIPTS])
def test_the_script_in_its_shell(shell: str, tmp_path: Path) -> None:
    here = tmp_path / "launch.py"
    here.write_text(f'#!/bin/sh\nexec {shlex.join(LAUNCH)} "$@"\n')
    here.chmod(0o755)
    script = launch("completion", shell).stdout
    for words, shown in ((["explain-"], {"explain-topology"}), (["check", "topologies/mod"], {"topologies/models.toml"})):
        line = ASK[shell].format(
            script=script, launch=here, words=shlex.join(words), plain=" ".join(words), last=len(words), current=1 + len(words)
        )
        argv = [shell, "-f", "-c", line] if shell == "zsh" else [shell, "-c", line]
        environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=patient(60), cwd=ROOT, env=environment)
        assert {one.split("\t")[0].partition(":")[0] for one in done.stdout.splitlines() if one} == shown, done.stderr


@pytest.mark.usefixtures("warm")
@pytest.mark.needs("taps")
def test_guests_of_what_is_running(tmp_path: Path) -> None:
    with staying_up(topology_file(tmp_path, "complete", GUESTS)):
        name = unique("complete")
        assert f"alice\tbypass guest of {name}" in launch("complete", "--", "exec", "").stdout.splitlines()
        assert f"{name}\ttopology that is running" in launch("complete", "--", "top", "").stdout.splitlines()
        others = [line.split("\t") for line in launch("complete", "--", "move", "an").stdout.splitlines()]
        assert ["anna", f"split guest of {name}"] in others


def test_an_unknown_shell() -> None:
    done = launch("completion", "tcsh")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "completion: 'tcsh' is none of bash, zsh, fish\n")
