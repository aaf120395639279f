"""The architecture's import rule: hyp ← nic, dom0, domu ← lab ← bench ← launch.py, and no circle, not even for types."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"hyp", "nic", "dom0", "domu", "lab", "bench", "launch", "tests"}
MAY_IMPORT = {
    "hyp": {"hyp"},
    "nic": {"hyp", "nic"},
    "dom0": {"hyp", "dom0"},
    "domu": {"hyp", "domu"},
    "lab": {"hyp", "nic", "dom0", "domu", "lab"},
    "bench": {"hyp", "nic", "dom0", "domu", "lab", "bench"},
}
LARGEST_FOLDER = 21  # modules: what a reader takes in at one look
GENERATED = {".git", ".venv", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache", "__pycache__", "build", "dist"}
SUFFIXES = {".py", ".toml", ".md", ".sh", ".yml", ".yaml", ".cfg", ""}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, first part of the module's name) of every import, at any depth, and of importlib's with a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value.split(".")[0]


def forbidden(text: str, package: str) -> list[str]:
    """Imports of ours that `package` must not make."""
    found = imports(ast.parse(text), package)
    return [f"line {line}: imports {name}" for line, name in found if name in OURS and name not in MAY_IMPORT[package]]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_downward_only(package: str) -> None:
    files = sources(package)
    assert files
    wrong = [f"{path.relative_to(ROOT)}: {what}" for path in files for what in forbidden(path.read_text(), package)]
    assert wrong == []


def test_nobody_imports_launch() -> None:
    files = [path for package in (*MAY_IMPORT, "tests") for path in sources(package)]
    wrong = [str(path) for path in files if any(name == "launch" for _, name in imports(ast.parse(path.read_text()), ""))]
    assert wrong == []


def modules() -> dict[str, set[str]]:
    """Every module of ours, and those that it imports, at its head, in a function, or for types only."""
    trees = {}
    for path in (path for package in MAY_IMPORT for path in sources(package)):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text())
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                # "from a import b" needs a.b where that is a module, else a
                named |= {f"{node.module}.{x.name}" if f"{node.module}.{x.name}" in trees else node.module for x in node.names}
        found[name] = {other for other in named if other in trees and other != name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What remains when whoever imports nothing that remains, or is imported by nothing that remains, is taken away."""
    left = {name: set(named) for name, named in graph.items()}
    while True:
        named = set().union(*left.values())
        gone = {name for name, others in left.items() if not others & left.keys() or name not in named}
        if not gone:
            return [sorted(left)] if left else []
        left = {name: others - gone for name, others in left.items() if name not in gone}


def test_there_is_no_circle() -> None:
    assert circles(modules()) == []


def test_a_circle_is_seen_and_what_leads_to_it_is_not_named() -> None:
    graph = {"top": {"one"}, "one": {"two"}, "two": {"three", "leaf"}, "three": {"one"}, "leaf": set()}
    assert circles(graph) == [["one", "three", "two"]]
    assert circles({"top": {"one"}, "one": {"leaf"}, "leaf": set()}) == []


def test_no_folder_has_more_than_a_reader_takes_in() -> None:
    folders = {path.parent for package in MAY_IMPORT for path in sources(package)}
    large = {str(folder.relative_to(ROOT)): n for folder in folders if (n := len(list(folder.glob("[!_]*.py")))) > LARGEST_FOLDER}
    assert large == {}


COMMANDS = ("clients", "forward", "move", "session", "store", "top")
LIGHT = [
    ("numba numpy pydantic", [f"lab.command.{name}" for name in COMMANDS] + ["lab.execute.front", "lab.owner", "lab.workloads"]),
    ("numba numpy pydantic", ["lab.keeper.__main__"]),
    ("numba numpy", ["lab.topology"]),
]


@pytest.mark.parametrize(("without", "named"), LIGHT)
def test_clients_owners_and_the_keeper_load_nothing_heavy(without: str, named: list[str]) -> None:
    """A client is there for one answer, and is run often; the schema is for who reads a topology, numba for the data path alone."""
    code = (
        "import importlib, sys; [importlib.import_module(n) for n in sys.argv[2:]]; print(*{*sys.argv[1].split()} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, without, *named], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize("text", [
    "import nic", "import nic.engine as e", "from nic import engine", "def f():\n    from dom0.state import PORT",
    "import os, lab.owner", "import importlib\nimportlib.import_module('domu.programs.tap')", "from launch import main",
    "if TYPE_CHECKING:\n    from tests.support.peers import Bench",
])  # fmt: skip
def test_the_rule_sees_what_it_forbids(text: str) -> None:
    assert forbidden(text, "hyp")


@pytest.mark.parametrize("text", ["import os", "from hyp.ring import RING", "from . import ring", "import nicely", "'import nic'"])
def test_the_rule_lets_the_rest_through(text: str) -> None:
    assert forbidden(text, "hyp") == []


def test_nothing_needs_what_is_not_in_the_repository() -> None:
    """The code must work from a plain clone: nothing in it points beside it."""
    here = Path(__file__).resolve()
    beside = ["/".join(("..", "shared")), "/".join(("", "work", "main"))]
    wrong = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or path == here or path.suffix not in SUFFIXES or GENERATED.intersection(parts):
            continue
        text = path.read_text(errors="replace")
        wrong += [f"{path.relative_to(ROOT)}: {what}" for what in beside if what in text]
    assert wrong == []


def test_every_package_is_installed() -> None:
    """pip takes those that are listed, and no others."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for top in MAY_IMPORT for path in (ROOT / top).rglob("__init__.py")}
    assert there == listed - {"lab.topologies"}
