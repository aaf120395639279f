"""The two tiers: a test of many cases is in the short one with a few of them, and in the long one whole."""

from collections.abc import Iterable
from typing import Any

import pytest


def tiered(cases: Iterable[Any], short: Iterable[Any], **marks: Any) -> list[Any]:
    """Parameters of a test: those in `short` are in both tiers, the others are marked `long`. `marks`: more marks, by case."""
    few = list(short)
    found = []
    for case in cases:
        more = [mark for name, mark in marks.items() if name == case]
        found.append(pytest.param(case, marks=more if case in few else [*more, pytest.mark.long]))
    return found
