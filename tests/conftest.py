"""What all tests share: one thread for numpy, the lab's data path compiled once before any clock runs, and ends of a NIC."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest

if TYPE_CHECKING:
    from tests.peers import Bench, Guest


@pytest.fixture(scope="session")
def warm() -> None:
    """All compiled code is in the cache: the first topology of a run does not pay for it."""
    import subprocess
    import sys

    from bench.lab import MODULES, ROOT

    script = "import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)\n"
    script += "from hyp import kernels\nlist(kernels.load_all())"
    subprocess.run([sys.executable, "-c", script, *MODULES], check=True, cwd=ROOT, timeout=300)


@pytest.fixture(params=["from 0", "over the wrap"])
def start(request: pytest.FixtureRequest) -> int:
    """Where the indices of a guest's queues begin."""
    from tests.peers import JUST_BELOW_WRAP

    return 0 if request.param == "from 0" else JUST_BELOW_WRAP


@pytest.fixture
def pair(start: int) -> "Iterator[tuple[Bench, Guest, Guest]]":
    """A NIC and two guests."""
    from tests.peers import bench_of

    with bench_of(2, start=start) as everything:
        yield everything
