"""Fuzzing with hypothesis against slow models: the same inputs each time, few in `make test` and many in `make test-all`."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

SEED = 20_261_126

TIERS = pytest.mark.parametrize("examples", [pytest.param(1, id="short"), pytest.param(10, id="long", marks=pytest.mark.long)])
"""How many times a test's own number of inputs it is run with, in each of the two tiers."""


def fuzz(body: Callable[[Any], None], inputs: SearchStrategy[Any], examples: int) -> None:
    """Call `body` with so many inputs, which depend on SEED alone; what fails is shown.

    It is made small before, but not with CI set: each try may wait for something in vain, as long as a test is patient.
    """
    print(f"seed {SEED}, {examples} inputs")
    shrink = [] if os.environ.get("CI") else [Phase.shrink]
    quietly = settings(
        max_examples=examples,
        deadline=None,  # no absolute times
        database=None,  # what failed once here is not what fails elsewhere
        phases=[Phase.explicit, Phase.generate, *shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    seed(SEED)(quietly(given(inputs)(body)))()
