"""For all tests: one thread for numpy, assertions that say what they saw; and the fixtures of several files."""

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest

ASSERTING = ("control_ends", "grant_world", "peers", "trapped_guests", "xenstored_process")  # not tests, but with assertions
pytest.register_assert_rewrite(*(f"tests.{name}" for name in ASSERTING))

if TYPE_CHECKING:
    from tests.support.grant_world import World
    from tests.support.guests import Guest
    from tests.support.peers import Bench


@pytest.fixture(scope="session")
def warm() -> None:
    """All compiled code is in the cache: the first topology of a run does not pay for it."""
    import subprocess
    import sys

    from lab.owner import MODULES, ROOT

    script = "import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)\n"
    script += "from hyp import kernels\nlist(kernels.load_all(together=True))"
    subprocess.run([sys.executable, "-c", script, *MODULES], check=True, cwd=ROOT, timeout=300)


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
def no_descriptor_is_left() -> Iterator[None]:
    """A test closes every descriptor that it opens."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def world() -> "World":
    """Three domains with grant tables."""
    from tests.support.grant_world import World

    return World()
