"""One place makes all verdicts: nothing else in the bench weighs an interval against a target, or says how that came out."""

import ast
from collections.abc import Iterator
from pathlib import Path

from bench.method import verdicts
from tests.support.labs import ROOT

MAKERS = {"Decision": "bench/method/verdicts.py", "Claim": "bench/method/claims.py", "Statement": "bench/benchmarks/literature.py"}
"""What carries a verdict, and the one module that may make it from parts: others by `Claim.about`, `Statement.of`."""
WORDS = {verdicts.MET, verdicts.MISSED, verdicts.UNDECIDED, verdicts.ABOVE, verdicts.BELOW, "agrees", "differs"}
SHOWN_IN = {"bench/method/verdicts.py", "bench/benchmarks/literature.py", "bench/report/results.py"}
"""Where those words may stand in the code: where they are named, and in the table of their signs."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "bench").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def test_only_its_module_makes_a_verdict_from_parts() -> None:
    found = []
    for file, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and MAKERS.get(node.func.id, file) != file:
                found.append(f"{file}:{node.lineno}: {node.func.id}(…)")
    assert found == []


def test_verdicts_are_named_and_not_written() -> None:
    """A literal "met" beside a comparison of one's own is how a verdict without an interval was written."""
    found = []
    for file, tree in sources():
        if file not in SHOWN_IN:
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and node.value in WORDS:
                    found.append(f"{file}:{node.lineno}: {node.value!r}")
    assert found == []


def test_the_search_finds_something() -> None:
    calls = [node for _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "Decision" in {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    assert all(Path(ROOT / file).is_file() for file in (*MAKERS.values(), *SHOWN_IN))
