"""The models hold, every seeded bug is caught, and what the manifest says of the code is there."""

import ast
import re
from pathlib import Path

import pytest

from tests.models.check import HERE, ModelError, check
from tests.models.manifest import MODELS, Model, Seed, Variant
from tests.support.labs import ROOT

LONG = [pytest.mark.long]
LARGE = ("checkpoint", "reconnect", "move")
# In the short tier each model has its first seed, and, if it isn't large, its first variant that is not long
VARIANTS = [
    pytest.param(
        model,
        variant,
        id="-".join((model.name, *variant.defines, *(["ltl"] if variant.ltl else []))),
        marks=LONG if model.name in LARGE or variant is not next(one for one in model.variants if not one.long) else [],
    )
    for model in MODELS
    for variant in model.variants
]
SEEDS = [
    pytest.param(
        model,
        seed,
        id="-".join((model.name, seed.macro, *seed.defines, *(["superfluous"] if seed.superfluous else []))),
        marks=LONG if seed is not model.seeds[0] else [],
    )
    for model in MODELS
    for seed in model.seeds
]


@pytest.mark.needs("spin", "gcc")
@pytest.mark.parametrize(("model", "variant"), VARIANTS)
def test_a_model_holds(model: Model, variant: Variant) -> None:
    found = check(model.name, variant.defines, ltl=variant.ltl)
    assert found.violation == ""
    assert found.states > 1000


@pytest.mark.needs("spin", "gcc")
@pytest.mark.parametrize(("model", "seed"), SEEDS)
def test_a_seeded_bug_is_caught(model: Model, seed: Seed) -> None:
    found = check(model.name, (*model.base, *seed.defines, seed.macro), shortest=not seed.superfluous)
    assert bool(found.violation) != bool(seed.superfluous), found


@pytest.mark.needs("spin", "gcc")
def test_a_formula_is_violated_where_an_end_is_wrong() -> None:
    assert "acceptance cycle" in check("holdoff", ("NO_FENCE_PUBLISH",), ltl=True).violation


@pytest.mark.needs("spin", "gcc")
def test_a_model_that_is_none_is_an_error_of_its_own() -> None:
    with pytest.raises(ModelError, match="holdoff"):
        check("holdoff", ("front=1",))


def names_in(path: Path) -> set[str]:
    """Functions, methods and classes of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_what_a_seed_stands_for_is_there(model: Model) -> None:
    for seed in model.seeds:
        for place in seed.code.split():
            file, _, name = place.partition(":")
            assert (ROOT / file).is_file(), place
            assert name in names_in(ROOT / file), place


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_bug_that_can_be_seeded_is(model: Model) -> None:
    text = (HERE / f"{model.name}.pml").read_text()
    tested = set(re.findall(r"^#(?:ifdef|ifndef|if defined\() ?(\w+)", text, re.MULTILINE))
    given = {"PSO", "STRICT", "TO_SPLIT", "ENGINES", "BATCHES", "FRAMES", "KILLS", "DOM0_KILLS", "GUEST_KILLS"}
    assert tested - given == {seed.macro for seed in model.seeds}


def test_there_is_a_row_for_every_model() -> None:
    assert sorted(path.stem for path in HERE.glob("*.pml")) == sorted(model.name for model in MODELS)
