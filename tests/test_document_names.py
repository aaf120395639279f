"""What documents and comments name is there: files, modules, what is in them, links, rules."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.schema import tables, values
from tests.support.documents import DOCUMENTS, ROOT, read, sources

FILE = re.compile(r"\b((?:hyp|nic|dom0|domu|lab|bench|tests|docs|topologies)/[\w/.-]*\.(?:py|md|toml|css))\b")
NAMES_OF_FILE = re.compile(r"`([\w/]+\.py)` ((?:`\w+`(?:, | and )?)+)")
MODULE = re.compile(r"`((?:hyp|nic|dom0|domu|lab|bench)(?:\.\w+)+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SCHEMA: dict[str, type[values.Table]] = {"nic": tables.Nic, "dom0": tables.Dom0}


def texts() -> Iterator[tuple[str, str]]:
    """Documents, and code with its comments: name, text."""
    for document in DOCUMENTS:
        yield document, (ROOT / document).read_text()
    for path in sources():
        yield str(path.relative_to(ROOT)), path.read_text()


def test_files_that_are_named_exist() -> None:
    wrong = [f"{name}: {file}" for name, text in texts() for file in FILE.findall(text) if not (ROOT / file).exists()]
    assert [line for line in wrong if not line.startswith(("tests/hyp/test_kernels.py", "tests/test_imports.py"))] == []


def test_what_a_document_finds_in_a_file_is_there() -> None:
    found = [(document, *match) for document in DOCUMENTS for match in NAMES_OF_FILE.findall(read(document))]
    assert len(found) > 20
    wrong = []
    for document, file, names in found:
        defined = defines((ROOT / file).read_text())
        wrong += [f"{document}: {file} has no {name}" for name in re.findall(r"\w+", names) if name not in defined]
    assert wrong == []


def defines(text: str) -> set[str]:
    """Names of functions, classes and constants of a source text, at any depth."""
    nodes = list(ast.walk(ast.parse(text)))
    named = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    return named | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def exists(dotted: str) -> bool:
    """True if a dotted name is a module of ours or something in one, or a key of the topology file."""
    parts = dotted.split(".")
    if parts[0] in SCHEMA and parts[1] in SCHEMA[parts[0]].model_fields:
        return True
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(thing, name):
                return False
            thing = getattr(thing, name)
        return True
    return False


def test_modules_that_documents_and_comments_name_exist() -> None:
    named = {(name, dotted) for name, text in texts() if not name.startswith("tests/") for dotted in MODULE.findall(text)}
    assert len(named) > 10
    assert [f"{name}: {dotted}" for name, dotted in sorted(named) if not exists(dotted)] == []


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    targets = [target for target in LINK.findall((ROOT / document).read_text()) if "://" not in target]
    wrong = []
    for target in targets:
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert wrong == []


def test_rules_that_are_cited_are_defined() -> None:
    rules = set(re.findall(r"^## (R\d):", (ROOT / "docs/rules.md").read_text(), re.MULTILINE))
    assert rules == {f"R{number}" for number in range(1, 7)}
    cited = {(name, rule) for name, text in texts() for rule in re.findall(r"\bR\d\b", text)}
    assert {rule for _, rule in cited} <= rules
    assert len({name for name, _ in cited}) > 10


@pytest.mark.parametrize(("name", "there"), [
    ("hyp.ring.signed16", True), ("hyp.ring.signed17", False), ("hyp.rings", False), ("nic.queue", True), ("nic.queues", True),
    ("nic.qeue", False), ("lab.keeper.Keeper.boot", True), ("lab.keeper.Keeper.boots", False),
])  # fmt: skip
def test_the_check_of_names_sees_what_is_not_there(name: str, there: bool) -> None:
    assert exists(name) is there
