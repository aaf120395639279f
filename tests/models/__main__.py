"""``python -m tests.models``: every model, every seeded bug; a table. ``--long``: also the variants that take long.

Exit status 0 if all models hold and all bugs are caught, 1 if not, 2 if a tool is missing.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.models.check import ModelError, check, missing
from tests.models.manifest import MODELS, Model, Seed, Variant

WORKERS = min(len(os.sched_getaffinity(0)), 4)

Line = tuple[bool, str]
"""Whether all is as it should be, and what to print."""


def shown(violation: str) -> str:
    """A violation in a table."""
    return violation if len(violation) <= 40 else violation[:37] + "…"


def holds(model: Model, variant: Variant) -> Line:
    """Check one variant."""
    found = check(model.name, variant.defines, ltl=variant.ltl)
    what = " ".join([*variant.defines, *(["by its formula"] if variant.ltl else [])]) or "as it is"
    verdict = f"VIOLATED: {shown(found.violation)}" if found.violation else "holds"
    return not found.violation, f"  {what:42} {found.states:>11,} {found.depth:>6} {found.seconds:>6.1f}  {verdict}"


def caught(model: Model, seed: Seed) -> Line:
    """Try one seeded bug."""
    found = check(model.name, (*model.base, *seed.defines, seed.macro), shortest=not seed.superfluous)
    right = bool(found.violation) != bool(seed.superfluous)
    verdict = f"caught: {shown(found.violation)}" if found.violation else "not caught"
    if not right:
        verdict = verdict.upper()
    elif seed.superfluous:
        verdict += f": {seed.superfluous}"
    what = " ".join((seed.macro, *seed.defines))
    return right, f"    {what:40} {found.states:>11,} {found.depth:>6} {found.seconds:>6.1f}  {verdict}"


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments not in ([], ["--long"]):
        print(__doc__, file=sys.stderr)
        return 2
    if lacking := missing():
        print(
            f"Models are checked with {' and '.join(lacking)}, which is not here: `make tools` brings it (as root).",
            file=sys.stderr,
        )
        return 2
    jobs: list[Callable[[], Line]] = []
    for model in MODELS:
        jobs.append(partial(lambda title: (True, title), f"{model.name}: {model.about}"))
        jobs += [partial(holds, model, variant) for variant in model.variants if arguments or not variant.long]
        jobs += [partial(caught, model, seed) for seed in model.seeds]
    print(f"  {'model; bug that is seeded':42} {'states':>11} {'steps':>6} {'s':>6}")
    wrong = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for right, line in pool.map(lambda job: job(), jobs):
                wrong += not right
                print(line, flush=True)
        except ModelError as error:
            pool.shutdown(cancel_futures=True)
            print(error, file=sys.stderr)
            return 1
    print(f"{wrong} WRONG" if wrong else "All models hold, all seeded bugs are caught.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
