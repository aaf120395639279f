"""What all tests share: one thread for numpy, and the lab's data path compiled once, before any clock runs."""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(scope="session")
def warm() -> None:
    """All compiled code is in the cache: the first topology of a run does not pay for it."""
    import subprocess
    import sys

    from bench.lab import MODULES, ROOT

    script = "import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)\n"
    script += "from hyp import kernels\nlist(kernels.load_all())"
    subprocess.run([sys.executable, "-c", script, *MODULES], check=True, cwd=ROOT, timeout=300)
