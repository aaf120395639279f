"""Compiled code: cached, never stale, and taking constants only from files that are in the cache's hash."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyp.kernels import MARK, PACKAGES, ROOT, kernel_sources
from tests.support.patience import patient

DECORATORS = {"compiled", "entry", "operation", "intrinsic", "njit", "jit", "cfunc"}

# --- the cache -------------------------------------------------------------------------------------------------------

PROBE = """
from hyp.kernels import compiled, entry, operation, i64
from hyp.probe_helper import helper
from hyp.abi.probe_layout import OFFSET

@entry(i64(i64))
def probe(x):
    return helper(x) * 1000 + OFFSET

@operation(i64(i64))
def probe_operation(x):
    return helper(x)
"""
HELPER = "from hyp.kernels import compiled\n\n@compiled\ndef helper(x):\n    return x + 1\n"
RUN = """
import json
from hyp import kernels
from hyp.probe import probe, probe_operation
import ctypes
cold = kernels.is_cold()
loaded = {name: compiled for name, _, _, compiled, _ in kernels.load_all()}
operation = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(probe_operation.address)
print(json.dumps({"hash": kernels.source_hash(), "cold": cold, "loaded": loaded, "values": [probe(1), operation(1)]}))
"""


class Tree:
    """A copy of what hyp/kernels.py needs, with a kernel, a helper in another file, and a layout."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cache = folder / "tree", folder / "cache"
        shutil.copytree(ROOT / "hyp" / "abi", self.root / "hyp" / "abi", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("__init__.py", "kernels.py", "linux.py"):
            shutil.copy(ROOT / "hyp" / name, self.root / "hyp" / name)
        for package in PACKAGES[1:]:
            (self.root / package).mkdir()
        self.write("hyp/probe.py", PROBE)
        self.write("hyp/probe_helper.py", HELPER)
        self.write("hyp/abi/probe_layout.py", "OFFSET = 7\n")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def run(self, script: str = RUN, cache: Path | None = None) -> dict[str, Any]:
        env = {**os.environ, "XBL_CACHE": str(cache or self.cache), "PYTHONDONTWRITEBYTECODE": "1"}
        env.pop("NUMBA_CACHE_DIR", None)
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=self.root, env=env, capture_output=True, text=True, timeout=patient(100)
        )
        assert result.returncode == 0, result.stderr
        return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    folder = tmp_path_factory.mktemp("kernels")
    yield Tree(folder)
    shutil.rmtree(folder)


def test_a_warm_run_compiles_nothing_and_an_edit_is_never_served_stale(tree: Tree) -> None:
    first = tree.run()
    assert first["cold"]
    assert set(first["loaded"].values()) == {True}
    assert first["values"] == [2007, 2]

    warm = tree.run()
    assert not warm["cold"]
    assert set(warm["loaded"].values()) == {False}, "a warm run compiled something"
    assert (warm["hash"], warm["values"]) == (first["hash"], [2007, 2])

    tree.write("hyp/probe_helper.py", HELPER.replace("x + 1", "x + 2"))
    edited = tree.run()
    assert edited["hash"] != first["hash"]
    assert set(edited["loaded"].values()) == {True}
    assert edited["values"] == [3007, 3], "a caller kept the old callee"

    tree.write("hyp/abi/probe_layout.py", "OFFSET = 8\n")
    moved = tree.run()
    assert moved["hash"] not in (first["hash"], edited["hash"])
    assert moved["values"] == [3008, 3], "a caller kept the old layout"

    tree.write("hyp/probe_helper.py", HELPER)
    tree.write("hyp/abi/probe_layout.py", "OFFSET = 7\n")
    tree.write("hyp/plain.py", "VALUE = 1\n")  # no compiled code: none of the cache's business
    back = tree.run()
    assert (back["hash"], back["values"]) == (first["hash"], [2007, 2])
    assert set(back["loaded"].values()) == {False}
    assert {path.name for path in tree.cache.iterdir()} == {run["hash"] for run in (first, edited, moved)}
    assert all(path.stat().st_mode & 0o077 == 0 for path in tree.cache.iterdir()), "others may write compiled code"


HELPED = """
import json, os
from hyp import kernels
from hyp.probe import probe, probe_operation

forked, plain = [], os.fork
def fork():
    forked.append(plain())
    return forked[-1]
os.fork = fork
runs = []
for _ in range(2):
    with kernels.helped():
        if forked and not runs:  # let the helper do all of it
            os.waitid(os.P_PID, forked[0], os.WEXITED | os.WNOWAIT)
        runs.append([compiled for _, _, _, compiled, _ in kernels.load_all()])
try:
    os.waitpid(-1, os.WNOHANG)
    left = True
except ChildProcessError:
    left = False
print(json.dumps({"forked": len(forked), "runs": runs, "left": left, "value": probe(1)}))
"""


@pytest.mark.needs("two-cpus")  # a helper has one of its own
def test_a_helper_compiles_what_is_not_there_yet_and_is_gone_afterwards(tree: Tree, tmp_path: Path) -> None:
    found = tree.run(HELPED, tmp_path / "cache")
    assert found["forked"] == 1, "once, when nothing was there"
    assert found["runs"] == [[False, False], [False, False]], "what the helper compiled was compiled again"
    assert not found["left"]
    assert found["value"] == 2007


# --- what the hash covers --------------------------------------------------------------------------------------------


def all_sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def is_compiled(node: ast.AST) -> bool:
    """A function that numba compiles (the functions nested in an intrinsic are code of the compiler)."""
    if not isinstance(node, ast.FunctionDef):
        return False
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")) in DECORATORS:
            return True
    return False


class Module:
    """A source file: where its names come from, and which of them compiled code depends on."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.tree = path, ast.parse(text)
        self.imported: dict[str, str] = {}
        self.assigned: dict[str, ast.AST] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
            elif isinstance(node, ast.Import):
                self.imported.update({alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names})
        for node in self.tree.body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            self.assigned[name.id] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.assigned[node.target.id] = node
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.assigned[node.name] = node
        self.compiled = [node for node in ast.walk(self.tree) if is_compiled(node)]

    def depends_on(self) -> set[str]:
        """Full names of the imports that compiled code uses, also by way of the module's own constants and functions."""
        todo: list[ast.AST] = list(self.compiled)
        seen: set[str] = set()
        while todo:
            for name in ast.walk(todo.pop()):
                if isinstance(name, ast.Name) and name.id not in seen:
                    seen.add(name.id)
                    if name.id in self.assigned:
                        todo.append(self.assigned[name.id])
        return {self.imported[name] for name in seen if name in self.imported}


def source_of(dotted: str) -> Path | None:
    """The file of ours that an imported name comes from; None if it is none of ours."""
    parts = dotted.split(".")
    if parts[0] not in PACKAGES:
        return None
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length]).with_suffix(".py")
        if path.exists():
            return path
    return ROOT / parts[0] / "__init__.py"


def uncovered(module: Module, covered: set[Path]) -> list[str]:
    """Imports that compiled code of the module depends on and whose files are not in the hash."""
    found = ((dotted, source_of(dotted)) for dotted in sorted(module.depends_on()))
    return [dotted for dotted, source in found if source is not None and source not in covered]


def test_every_file_with_compiled_code_is_in_the_hash() -> None:
    covered = set(kernel_sources())
    missing = [path for path in all_sources() if Module(path, path.read_text()).compiled and path not in covered]
    assert missing == []
    assert {path for path in all_sources() if path.parent.name == "abi"} <= covered
    assert ROOT / "hyp" / "kernels.py" in covered
    assert len(covered) > 25


def test_compiled_code_takes_constants_only_from_files_in_the_hash() -> None:
    covered = set(kernel_sources())
    wrong = {}
    for path in covered:
        if MARK in path.read_bytes() and path.name != "kernels.py":
            found = uncovered(Module(path, path.read_text()), covered)
            if found:
                wrong[str(path.relative_to(ROOT))] = found
    assert wrong == {}


def test_layouts_depend_on_layouts_only() -> None:
    covered = set(kernel_sources())
    for path in covered:
        if path.parent.name == "abi":
            module = Module(path, path.read_text())
            outside = [dotted for dotted in module.imported.values() if (source := source_of(dotted)) and source not in covered]
            assert outside == [], path


@pytest.mark.parametrize("body", [
    "@compiled\ndef f(x):\n    return x + PLAIN",
    "SUM = PLAIN * 2\n@entry(i64(i64))\ndef f(x):\n    return x + SUM",
    "SUM: Final = PLAIN * 2\nTWICE = SUM\n@operation(i64(i64))\ndef f(x):\n    return TWICE",
    "view = record_view(PLAIN)\n@numba.njit\ndef f(x):\n    return view(x)",
    "def make():\n    return PLAIN\nMADE = make()\n@compiled\ndef f(x):\n    return MADE",
])  # fmt: skip
def test_the_check_sees_a_constant_from_elsewhere(body: str) -> None:
    head = "from hyp.kernels import compiled, entry, i64, operation\nfrom hyp.control import PLAIN\n"
    module = Module(ROOT / "hyp" / "invented.py", head + body)
    assert uncovered(module, set(kernel_sources())) == ["hyp.control.PLAIN"]
    harmless = Module(ROOT / "hyp" / "invented.py", head + "@compiled\ndef f(x):\n    return x\n\ndef g():\n    return PLAIN")
    assert uncovered(harmless, set(kernel_sources())) == []
