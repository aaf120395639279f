"""``@pytest.mark.needs("ping", "root")``: what a test needs of the machine, and what becomes of it where that is missing.

A tool (tests/support/tools.py) that is missing can be installed: the test is left out, and the last line of the run says how many
were and the command that brings the tools. A right (`RIGHTS`) can't: the test is skipped with the reason. With ``CI=true`` both
fail, so that no run of CI is green with less than all tests. A plugin of pytest, which tests/conftest.py loads.
"""

import functools
import importlib.util
import os
import resource
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support import tools


def cpus() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def _events() -> str | None:
    from lab.instructions import TASK_CLOCK, Counting

    try:
        with Counting([os.getpid()], TASK_CLOCK):
            return None
    except PermissionError:
        return "perf_event_open is forbidden here"


def _descriptors() -> str | None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= 1000:
        return None
    return f"1000 descriptors are needed, and no more than {most} allowed"


def _taps() -> str | None:
    from domu import netns

    return netns.can_create()


def _confinement() -> str | None:
    from domu.confinement.confine import lacking

    return lacking()


def _mounts() -> str | None:
    if (reason := _reason("util-linux")) is not None:  # unshare, and mount
        return reason
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(["unshare", "--mount", *user, "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


RIGHTS: dict[str, Callable[[], str | None]] = {
    "root": lambda: None if os.geteuid() == 0 else "only root can arrange what this test is about",
    "two-cpus": lambda: None if len(cpus()) >= 2 else "two CPUs are needed",
    "perf-events": _events,
    "1000-descriptors": _descriptors,
    "ipv6": lambda: None if Path("/proc/sys/net/ipv6").exists() else "there is no IPv6 here",
    "taps": _taps,
    "mounts": _mounts,
    "confinement": _confinement,
    "pyxs": lambda: None if importlib.util.find_spec("pyxs") else "pyxs is not in this environment: `make setup`",
    "atheris": lambda: None if importlib.util.find_spec("atheris") else "atheris is not made for this Python or machine",
    "venv": lambda: None if (Path(__file__).parents[2] / ".venv/bin/python").exists() else "there is no .venv to go on in",
}
"""What a machine gives or doesn't: None, or the reason for a skip."""


@dataclass
class LeftOut:
    """What a run had to leave out for want of tools."""

    tests: int = 0
    tools: frozenset[str] = frozenset()

    def line(self) -> str:
        """The run's last line."""
        tests = "1 test was" if self.tests == 1 else f"{self.tests} tests were"
        return f"{tests} left out for want of {', '.join(sorted(self.tools))}; `make tools` brings them (as root)."


LEFT_OUT = pytest.StashKey[LeftOut]()


def in_ci() -> bool:
    """Nothing may be left out."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def lacking(reason: str) -> NoReturn:
    """End this test, since the machine lacks something: a skip, and a failure in CI."""
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def _reason(name: str) -> str | None:
    """Why a test that needs this can't run; None: it can."""
    if name in tools.TOOLS:
        return None if tools.TOOLS[name].is_there() else f"needs {name}: `make tools`"
    return RIGHTS[name]()


def _needed(item: pytest.Item) -> list[str]:
    return list(dict.fromkeys(name for marker in item.iter_markers("needs") for name in marker.args))


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"needs(*names): of the machine: {', '.join([*tools.TOOLS, *RIGHTS])}")
    config.stash[LEFT_OUT] = LeftOut()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A need that no table has is an error, whether it is there or not."""
    for item in items:
        for name in _needed(item):
            if name not in tools.TOOLS and name not in RIGHTS:
                raise pytest.UsageError(f"{item.nodeid}: nobody knows what needs({name!r}) means: tests/support/tools.py, needs.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: what is missing ends the test."""
    reasons = {name: reason for name in _needed(item) if (reason := _reason(name)) is not None}
    if not reasons:
        return
    if not in_ci() and reasons.keys() <= tools.TOOLS.keys():
        left_out = item.config.stash[LEFT_OUT]
        left_out.tests += 1
        left_out.tools |= reasons.keys()
    lacking("; ".join(reasons.values()))


@pytest.fixture(scope="session")
def taps() -> None:
    """`needs("taps")` for a fixture."""
    if (reason := _reason("taps")) is not None:
        lacking(reason)


WORKERS = "left_out"
"""Under which key a process of `pytest --numprocesses` gives the one that started it its counts."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In one of several processes: hand over what was left out here."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        left_out = session.config.stash[LEFT_OUT]
        output[WORKERS] = (left_out.tests, sorted(left_out.tools))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of several processes has ended (pytest-xdist)."""
    tests, names = getattr(node, "workeroutput", {}).get(WORKERS, (0, []))
    left_out = node.config.stash[LEFT_OUT]
    left_out.tests += tests
    left_out.tools |= frozenset(names)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line."""
    left_out = config.stash.get(LEFT_OUT, LeftOut())
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if left_out.tests and reporter is not None:
        reporter.write_line(left_out.line(), yellow=True)
