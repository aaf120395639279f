"""The catalogue of attacks (bench/isolation/) for tests: which there are, and what becomes of bystanders beside them.

async with trial("split", ["index ahead"]) as one:
    assert await harm(one, "index ahead") == []
"""

import itertools
import os
from collections.abc import Sequence

from bench.isolation.attack import Attack
from bench.isolation.catalogue import ATTACKS
from bench.isolation.trial import Trial

__all__ = ["ATTACKS", "Attack", "harm", "trial"]
SLICE_S = 0.05
_numbers = itertools.count()


def trial(path: str, names: Sequence[str], backing: str = "posix") -> Trial:
    """A topology with a hostile guest for each of these attacks that can be tried on the path."""
    chosen = [ATTACKS[name] for name in names if path in ATTACKS[name].paths]
    return Trial(path, chosen, f"attacks-{os.getpid()}-{next(_numbers)}", backing)


async def harm(one: Trial, name: str) -> list[str]:
    """What an attack does to the others: lost and corrupt frames, leaks, deaths; or that it was none. Their rate is the bench's."""
    found = await one.slice(ATTACKS[name], SLICE_S, attacked=True)
    tried = found.detail.get("attempts") or found.detail.get("got")
    return [*found.errors, *([] if tried else ["it was not tried"]), *filter(None, [found.detail.get("error")])]
