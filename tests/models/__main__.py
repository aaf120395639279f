"""``python -m tests.models``: every model, every seeded bug; a table. ``--short``: without what takes long.

Exit status 0 if all models hold and all bugs are caught, 1 if not, 2 if a tool is missing.
"""

import sys

from tests.models.check import ModelError, check, missing
from tests.models.manifest import MODELS, Model, Seed, Variant


def shown(violation: str) -> str:
    """A violation in a table."""
    return violation if len(violation) <= 40 else violation[:37] + "…"


def holds(model: Model, variant: Variant) -> bool:
    """Check one variant and print its line."""
    found = check(model.name, variant.defines, ltl=variant.ltl)
    what = " ".join([*variant.defines, *(["by its formula"] if variant.ltl else [])]) or "x86-TSO"
    verdict = f"VIOLATED: {shown(found.violation)}" if found.violation else "holds"
    print(f"{model.name:15} {what:40} {found.states:>10,} {found.depth:>6} {found.seconds:>6.1f} s  {verdict}", flush=True)
    return not found.violation


def caught(model: Model, seed: Seed) -> bool:
    """Try one seeded bug and print its line."""
    found = check(model.name, (*model.base, *seed.defines, seed.macro), shortest=not seed.superfluous)
    right = bool(found.violation) != bool(seed.superfluous)
    what = f"caught, {found.depth} steps: {shown(found.violation)}" if found.violation else "not caught"
    verdict = what if right and not seed.superfluous else "not caught, as it should" if right else f"{what.upper()}"
    print(f"  {' '.join((seed.macro, *seed.defines)):50} {verdict}", flush=True)
    if seed.superfluous and right:
        print(f"      {seed.superfluous}")
    return right


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments not in ([], ["--short"]):
        print(__doc__, file=sys.stderr)
        return 2
    if lacking := missing():
        print(f"Models are checked with {' and '.join(lacking)}, which is not here: `make tools` brings it (as root).", file=sys.stderr)
        return 2
    wrong = 0
    try:
        for model in MODELS:
            print(f"{model.name}: {model.about}")
            wrong += sum(not holds(model, variant) for variant in model.variants if not (variant.long and arguments))
            wrong += sum(not caught(model, seed) for seed in model.seeds)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{wrong} WRONG" if wrong else "all models hold, all seeded bugs are caught")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
