"""The fuzzing targets (tests/fuzzing/): any inputs, those that are kept, guided for a moment, and a short flood of each path."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

from hyp.paths import PATHS
from tests.fuzzing import NAMES, cases
from tests.fuzzing.flood import flood
from tests.fuzzing.targets import TARGETS
from tests.support.fuzz import TIERS, fuzz
from tests.support.labs import run
from tests.support.patience import patient

ROOT = Path(__file__).resolve().parent.parent
INPUTS = {"control": 150, "store": 100, "wire": 300, "topology": 200, "arguments": 300}


def test_every_target_has_a_name() -> None:
    assert tuple(TARGETS) == NAMES


@TIERS
@pytest.mark.parametrize("name", NAMES)
def test_any_input(name: str, examples: int) -> None:
    fuzz(TARGETS[name], st.binary(max_size=400), INPUTS[name] * examples)


@pytest.mark.parametrize("name", NAMES)
def test_the_cases_that_are_kept(name: str) -> None:
    assert cases(name)
    for case in cases(name):
        TARGETS[name](case)


@pytest.mark.long
@pytest.mark.needs("atheris")
@pytest.mark.parametrize("name", NAMES)
def test_guided(name: str, tmp_path: Path) -> None:
    """Starts, is guided by what it covers, and finds nothing in so few runs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing", "guided", name, "300"], cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=patient(200),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Done 300 runs" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
def test_a_flood_of_hostile_descriptors(path: str) -> None:
    report = run(flood(path, 20_000, print, 0.1))
    assert report["descriptors"] >= 20_000
    assert report["got"], "nothing was refused"
