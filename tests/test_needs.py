"""What a run does without a tool or a right that a test needs, here and in CI; how the tools are brought; how long a test waits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import patience, tools
from tests.support.labs import ROOT
from tests.support.patience import patient

TESTS = """
import pytest

@pytest.fixture
def never():
    raise AssertionError("set up without the tool")

@pytest.mark.needs("ping")
@pytest.mark.parametrize("n", [1, 2])
def test_pings(never, n): pass

@pytest.mark.needs("gcc", "curl")
def test_compiles(): pass

@pytest.mark.needs("root")
def test_arranges(): pass

@pytest.mark.needs("ipv6")
def test_is_there(): pass

def test_plain(): pass
"""
CONFTEST = """
from tests.support import needs, tools
needs.RIGHTS.update(root=lambda: "only root", ipv6=lambda: None)
for name in tools.TOOLS:
    tools.TOOLS[name] = tools.Tool(lambda name=name: name in {there}, (), (), ())
"""


def run_tests(
    folder: Path, *, there: tuple[str, ...], ci: str = "", text: str = TESTS, processes: int = 0
) -> "subprocess.CompletedProcess[str]":
    """A run of `text`'s tests on a machine with these tools."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "conftest.py").write_text(CONFTEST.format(there=there))
    (folder / "test_it.py").write_text(text)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(ROOT), "CI": ci}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "tests.support.needs", "-p", "no:cacheprovider"]
    command += [f"--numprocesses={processes}", str(folder)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=patient(60))


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_missing_is_left_out_and_the_last_line_says_what_brings_it(tmp_path: Path, processes: int) -> None:
    done = run_tests(tmp_path, there=("gcc",), processes=processes)
    assert done.returncode == 0, done.stdout
    assert "2 passed, 4 skipped" in done.stdout
    assert "only root" in done.stdout
    assert "needs ping: `make tools`" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 tests were left out for want of curl, ping; `make tools` brings them (as root)."


def test_with_all_tools_nothing_is_said(tmp_path: Path) -> None:
    done = run_tests(tmp_path, there=("gcc", "curl", "ping"), text=TESTS.replace("raise", "return"))
    assert done.returncode == 0, done.stdout
    assert "5 passed, 1 skipped" in done.stdout
    assert "left out" not in done.stdout


def test_in_ci_what_is_missing_is_a_failure_that_names_it(tmp_path: Path) -> None:
    done = run_tests(tmp_path, there=("gcc",), ci="true")
    assert done.returncode == 1
    assert "2 passed, 4 errors" in done.stdout
    for reason in ("needs ping", "needs curl", "only root"):
        assert reason in done.stdout
    assert "left out" not in done.stdout


def test_a_need_that_nobody_knows_is_an_error_even_where_all_is_there(tmp_path: Path) -> None:
    done = run_tests(tmp_path, there=tuple(tools.TOOLS), text=TESTS.replace('"gcc", "curl"', '"gcc", "crul"'))
    assert done.returncode == 4
    assert "test_compiles" in done.stderr
    assert "'crul'" in done.stderr


# --- make tools ------------------------------------------------------------------------------------------------------

MANAGER = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
[ "$1" = update ] && exit {status}
for tool in {brings}; do : > "{bin}/$tool"; chmod +x "{bin}/$tool"; done
exit {status}
"""


class Machine:
    """A PATH with package managers that are not real; what they were asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self._log = folder / "bin", folder / "log"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        found = {
            f"tool{n}": tools.Tool((self.bin / f"tool{n}").exists, (f"apt{n}",), (f"dnf{n}",), (f"pac{n}",)[n:]) for n in (0, 1)
        }
        monkeypatch.setattr(tools, "TOOLS", found)
        monkeypatch.setattr(tools, "missing", lambda: [name for name, tool in found.items() if not tool.is_there()])
        monkeypatch.setattr("shutil.which", lambda name: name if (self.bin / name).exists() else None)

    def manager(self, name: str, brings: str = "tool0 tool1", status: int = 0) -> None:
        """Install one."""
        program = self.bin / name
        program.write_text(MANAGER.format(log=self._log, bin=self.bin, brings=brings, status=status))
        program.chmod(0o755)

    def asked(self) -> list[str]:
        """The commands that were run."""
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return Machine(tmp_path, monkeypatch)


def test_tools_are_installed_by_the_manager_that_is_there_after_it_was_said(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.manager("apt-get")
    assert tools.main() == 0
    assert capfd.readouterr().out.splitlines()[-1] == "Will install: apt0 apt1"
    assert machine.asked() == ["apt-get update", "apt-get install --yes --no-install-recommends apt0 apt1"]
    assert tools.main() == 0
    assert "All tools" in capfd.readouterr().out
    assert len(machine.asked()) == 2


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    (machine.bin / "tool0").touch()
    machine.manager("dnf")
    assert tools.main() == 0
    assert machine.asked() == ["dnf install --assumeyes --setopt=install_weak_deps=False dnf1"]


def test_what_a_manager_does_not_have_is_said(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.manager("pacman", brings="tool0")
    assert tools.main() == 0
    assert "pacman has no package for tool1: the tests that need them stay left out." in capfd.readouterr().out
    assert [line.split()[-1] for line in machine.asked()] == ["pac0"]
    assert tools.main() == 0
    assert len(machine.asked()) == 1, "there is nothing left that it could bring"


def test_without_root_the_command_is_said_and_nothing_is_done(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    machine.manager("apt-get")
    assert tools.main() == 1
    told = capfd.readouterr().out
    assert "takes root" in told
    assert "apt-get install --yes --no-install-recommends apt0 apt1" in told
    assert machine.asked() == []


def test_a_machine_without_a_known_manager_is_told_what_is_missing(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    assert tools.main() == 1
    assert "Missing: tool0, tool1." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("brings", "status", "said"), [("", 100, "ended with status 100"), ("tool0", 0, "still not to be seen: tool1")]
)
def test_an_installation_that_fails_is_a_failure(
    machine: Machine, capfd: pytest.CaptureFixture[str], brings: str, status: int, said: str
) -> None:
    machine.manager("apt-get", brings, status)
    assert tools.main() == 1
    assert said in capfd.readouterr().out


def test_the_table_stands_by_itself() -> None:
    """``make tools`` comes before any package: the program starts in a Python that has the standard library alone."""
    script = (
        "import sys, runpy; runpy.run_path(sys.argv[1], run_name='table'); print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(ROOT / "tests/support/tools.py")]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=patient(60)).stdout.split()
    assert set(loaded) - {"__main__"} <= sys.stdlib_module_names | {"site"}
    assert all(tool.apt and tool.dnf for tool in tools.TOOLS.values())


# --- patience --------------------------------------------------------------------------------------------------------


def test_a_limit_grows_with_what_the_machine_does_not_give(request: pytest.FixtureRequest) -> None:
    reference = patience.REFERENCE_NS
    assert patience.scale_of(reference, 1.0, 2) == patience.scale_of(reference / 2, 1.0, 64) == 1.0
    assert patience.scale_of(3 * reference, 1.0, 2) == pytest.approx(3.0)
    assert patience.scale_of(reference, 0.25, 2) == pytest.approx(4.0)
    assert patience.scale_of(reference, 1.0, 1) == pytest.approx(2.0)
    assert patience.LEAST <= patience.scale() <= patience.MOST
    marker = request.node.get_closest_marker("timeout")
    assert marker.args[0] >= patience.TEST_S * patience.LEAST


def test_an_effort_lasts_until_all_was_seen_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    goes_on = patience.effort(2.0)
    assert goes_on(True)
    now[0] = 2.5
    assert not goes_on(True)
    assert goes_on(False)
    now[0] = patience.MOST * patience.EFFORT_S
    assert not goes_on(False)
