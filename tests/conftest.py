"""For all tests: one thread for numpy, assertions that say what they saw; and the fixtures of several files."""

import gc
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# not tests, but with assertions
ASSERTING = ("control_ends", "driven_labs", "grant_world", "guests", "labs", "peers", "trapped_guests", "xenstored_process")
pytest.register_assert_rewrite(*(f"tests.support.{name}" for name in ASSERTING))
pytest_plugins = ("tests.support.needs", "tests.support.patience")

WARM_S = 240.0
WARM = """import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from hyp import kernels
list(kernels.load_all(together=True))
"""

if TYPE_CHECKING:
    from tests.support.grant_world import World
    from tests.support.guests import Guest
    from tests.support.peers import Bench


settings.register_profile("lab", deadline=None)  # no test is about how long it takes
settings.load_profile("lab")


def pytest_configure() -> None:
    """Tests interrupt programs, and hang up on them. What is ignored is inherited, and a shell in the background, nohup or a
    supervisor of jobs may have had some of that ignored."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Compile before the first test, and not in its time: a cold cache takes a minute or more."""
    if session.config.option.collectonly or not any("warm" in getattr(item, "fixturenames", ()) for item in session.items):
        return
    import subprocess
    import sys

    from lab.owner import ROOT
    from lab.plan import MODULES
    from tests.support.patience import patient

    try:
        done = subprocess.run(
            [sys.executable, "-c", WARM, *MODULES], cwd=ROOT, timeout=patient(WARM_S), stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired as error:
        pytest.exit(f"the data path is not compiled after {error.timeout:.0f} s", 1)
    if done.returncode:
        pytest.exit(f"the data path cannot be compiled:\n{done.stderr}", 1)


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A test that runs a command in this process may leave signals ignored: later ones, which interrupt programs, would hang."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    if after != before:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        pytest.fail("this test has left other handlers of signals than it found")


@pytest.fixture(autouse=True)
def standard_streams_stay_open() -> Iterator[None]:
    """Descriptors 0 to 2, closed by mistake, are what the next loop gets; libuv ends the process when it closes one of them."""
    yield
    closed = [fd for fd in range(3) if not os.path.exists(f"/proc/self/fd/{fd}")]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)
    if closed:
        pytest.fail(f"this test has closed descriptors {closed}, which it did not open")


@pytest.fixture(scope="session")
def warm() -> None:
    """All compiled code is in the cache, as `pytest_runtestloop` has seen to: the first topology of a run does not pay for it."""


@pytest.fixture(params=["from 0", "over the wrap"])
def start(request: pytest.FixtureRequest) -> int:
    """Where the indices of a guest's queues begin."""
    from tests.support.guests import JUST_BELOW_WRAP

    return 0 if request.param == "from 0" else JUST_BELOW_WRAP


@pytest.fixture
def pair(start: int) -> "Iterator[tuple[Bench, Guest, Guest]]":
    """A NIC and two guests."""
    from tests.support.peers import bench_of

    with bench_of(2, start=start) as everything:
        yield everything


@pytest.fixture(scope="module")
def settled() -> Iterator[None]:
    """The first loop of a process opens descriptors that stay; and what exists already need not be looked at by each collection."""
    import uvloop

    uvloop.new_event_loop().close()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_descriptor_is_left(settled: None) -> Iterator[None]:
    """A test closes every descriptor that it opens; a thread may (hyp/control/descriptors.py), a little later."""
    from tests.support.labs import wait_until

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, f"what was opened to be closed: {before} were open before")


@pytest.fixture
def nobody_owes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is not about who pays: a guest's requests are served as they come, whatever they cost."""
    from hyp.control import debt

    monkeypatch.setattr(debt.Debt, "owe", lambda self, beyond_ns: None)


@pytest.fixture
def world() -> "World":
    """Three domains with grant tables."""
    from tests.support.grant_world import World

    return World()
