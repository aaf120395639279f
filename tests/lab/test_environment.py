"""Which Python runs the lab, how its packages are installed, and what a start says of the compile cache."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lab import owner
from lab.command.demo import echo
from lab.environment import install
from lab.environment.interpreter import NEEDED, ROOT
from lab.errors import LabError
from lab.owner import Lab
from lab.plan import MODULES
from tests.support.labs import launch, run, topology, topology_file
from tests.support.patience import patient

GUESTS = '[[guest]]\nname = "anna"\npath = "bypass"\n'
STREAM = '[[workload]]\nkind = "stream"\nfrom = "anna"\nto = "wire"\nframes = 100\n'
SETTLE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lab.environment import interpreter
interpreter.VENV = Path(sys.argv[2])
interpreter.settle(["launch.py", "status"])
print("stayed")
"""


def settle(venv: Path, *options: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """What a Python with `options` does when it is asked to run the lab."""
    command = [sys.executable, *options, "-c", SETTLE, str(ROOT), str(venv)]
    return subprocess.run(command, env={**os.environ, **env}, cwd="/", capture_output=True, text=True, timeout=patient(30))


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment whose Python says what it is told."""
    python = tmp_path / "a [b] c" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@, PYTHONPATH ${PYTHONPATH-unset}"\n')
    python.chmod(0o755)
    return python.parent.parent


# --- which Python -----------------------------------------------------------------------------------------------------


def test_what_is_looked_for_is_what_pyproject_brings() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(NEEDED) == sorted(line.partition(">=")[0] for line in wanted)


def test_a_python_with_all_packages_stays(venv: Path) -> None:
    assert settle(venv).stdout == "stayed\n"


def test_a_python_without_them_becomes_the_labs_own(venv: Path) -> None:
    assert settle(venv, "-S").stdout == "launch.py status, PYTHONPATH unset\n"


def test_a_python_with_some_of_them_becomes_the_labs_own(venv: Path, tmp_path: Path) -> None:
    for name in ("numba", "typer"):
        (tmp_path / f"{name}.py").touch()
    assert settle(venv, "-S", PYTHONPATH=str(tmp_path)).stdout == "launch.py status, PYTHONPATH unset\n"


def test_packages_of_another_python_are_left_aside(venv: Path, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('not of this Python')")
    assert settle(venv, PYTHONPATH=str(tmp_path)).stdout == "launch.py status, PYTHONPATH unset\n"
    assert settle(venv, PYTHONPATH=str(tmp_path / "own")).stdout == "stayed\n", "what is the user's own is nobody's business"


def test_where_there_is_no_other_it_says_what_to_do(tmp_path: Path) -> None:
    done = settle(tmp_path, "-S")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the lab's packages are not installed for this Python: run `make setup` first\n"


# --- packages ---------------------------------------------------------------------------------------------------------


def test_uv_is_told_what_pip_is_configured_with() -> None:
    listing = "\n".join([
        "global.index-url='https://one/simple'",
        "global.extra-index-url='file:///a/simple\\nfile:///b/simple'",
        "global.timeout='60'",
        ":env:.find-links='/w /x'",
        ":env:.index-url='https://two/simple'",
        ":env:.proxy=''",
    ])  # fmt: skip
    assert install.settings_of_pip(listing) == {
        "UV_DEFAULT_INDEX": "https://two/simple", "UV_INDEX": "file:///a/simple file:///b/simple", "UV_FIND_LINKS": "/w,/x"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fails", "called"), [(None, ["pip", "pip", "uv"]), ("uv", ["pip", "pip", "uv", "pip"]), ("pip", ["pip", "pip"])]
)
def test_where_uv_cannot_be_had_or_fails_pip_installs(
    monkeypatch: pytest.MonkeyPatch, fails: str | None, called: list[str]
) -> None:
    calls: list[list[str]] = []

    def instead(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        calls.append(command)
        wrong = command[2] == fails and (fails != "pip" or "uv" in command)
        return subprocess.CompletedProcess(command, int(wrong), stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", instead)
    assert install.main(["test", "bench"]) == 0
    assert [command[2] for command in calls] == called
    assert calls[-1][-2:] == ["-e", ".[test,bench]"]


def test_the_demos_target_installs_neither_test_tools_nor_plots() -> None:
    text = subprocess.run(["make", "-n", "-B", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in text if "install.py" in line] == [".venv/bin/python lab/environment/install.py"]
    text = subprocess.run(["make", "-n", "-B", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition("install.py")[2] for line in text if "install.py" in line] == ["", " bench"]


# --- the compile cache, as a start tells of it --------------------------------------------------------------------------


def test_what_keeps_the_fork_server_from_loading_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "MODULES", [*MODULES, "hyp.no_such_module"])

    async def main() -> None:
        with pytest.raises(LabError, match=r"could not be loaded: ModuleNotFoundError: No module named 'hyp\.no_such_module'"):
            await Lab(topology(tmp_path, "unloadable", GUESTS)).start()

    run(main())


@pytest.mark.usefixtures("warm")
def test_a_variable_that_switches_compiling_off_switches_nothing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "elsewhere"))

    async def main() -> None:
        async with Lab(topology(tmp_path, "jit", GUESTS)) as lab:
            assert lab.deaths == {}

    run(main())
    assert not (tmp_path / "elsewhere").exists()
    file = topology_file(tmp_path, "jit", GUESTS + STREAM)
    done = launch("run", str(file))  # its own process counts frames, too
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_without_a_cache_it_starts_all_the_same_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XBL_CACHE", str(file))
    events: list[tuple[str, dict[str, Any]]] = []

    async def main() -> None:
        async with Lab(topology(tmp_path, "uncached", GUESTS), lambda kind, details: events.append((kind, details))) as lab:
            assert lab.deaths == {}

    run(main())
    assert [details["kept"] for kind, details in events if kind == "compiling"] == [False]
    notices = [details["text"] for kind, details in events if kind == "notice"]
    assert len(notices) == 1, json.dumps(events)
    assert f"{file}/kernels: Not a directory" in notices[0]
    assert "XBL_CACHE" in notices[0]


# --- the round trip where there is no ping ------------------------------------------------------------------------------


def test_an_echo_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, echo.__file__, "serve", str(port)]) as server:
        try:
            assert echo.ask("127.0.0.1", port) == 0
        finally:
            server.kill()
    least, mean, most = (float(value) for value in capsys.readouterr().out.strip(" =ms\n").split("/"))
    assert 0 < least <= mean <= most


def test_where_nobody_echoes_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(echo, "START_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        assert echo.ask("127.0.0.1", silent.getsockname()[1]) == 1
    assert capsys.readouterr().out == "nobody answers\n"
