"""The key of a kernel in the cache: it covers every file from which its compiled code takes anything, and no more than that."""

import ast
import importlib
import sys
import types
from pathlib import Path

import pytest

from hyp.kernels import reach
from hyp.kernels.reach import HERE, MARK, is_kernel_source
from lab.plan import MODULES

ROOT = HERE.parent.parent
PACKAGES = ("hyp", "nic", "dom0", "domu", "lab", "bench")
DECORATORS = {"compiled", "outlined", "entry", "operation", "intrinsic", "njit", "jit", "cfunc"}


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
        path = ROOT.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


def uncovered(module: Module) -> list[str]:
    """Imports that compiled code of the module depends on and whose files can be in no key."""
    found = ((dotted, source_of(dotted)) for dotted in sorted(module.depends_on()))
    return [dotted for dotted, source in found if source is not None and not is_kernel_source(source)]


def test_every_file_with_compiled_code_can_be_in_a_key() -> None:
    missing = [path for path in all_sources() if Module(path, path.read_text()).compiled and not is_kernel_source(path)]
    assert missing == []
    assert all(is_kernel_source(path) for path in all_sources() if path.parent.name == "abi")
    assert sum(map(is_kernel_source, all_sources())) > 25


def test_compiled_code_takes_constants_only_from_files_in_its_key() -> None:
    wrong = {}
    for path in filter(is_kernel_source, all_sources()):
        if MARK in path.read_bytes() and path.parent != HERE:
            found = uncovered(Module(path, path.read_text()))
            if found:
                wrong[str(path.relative_to(ROOT))] = found
    assert wrong == {}


def test_layouts_depend_on_layouts_only() -> None:
    for path in all_sources():
        if path.parent.name == "abi":
            module = Module(path, path.read_text())
            outside = [
                dotted for dotted in module.imported.values() if (source := source_of(dotted)) and not is_kernel_source(source)
            ]
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
    assert uncovered(module) == ["hyp.control.PLAIN"]
    harmless = Module(ROOT / "hyp" / "invented.py", head + "@compiled\ndef f(x):\n    return x\n\ndef g():\n    return PLAIN")
    assert uncovered(harmless) == []


# --- what is in a key ---------------------------------------------------------------------------------------------------


def imports_by_ast(text: str, package: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def test_imports_are_found_as_the_compiler_finds_them() -> None:
    """At least those: a docstring may have a line that looks like one."""
    for path in all_sources():
        package = ".".join(path.relative_to(ROOT).parent.parts)
        missed = imports_by_ast(path.read_text(), package) - reach.imports(path.read_bytes(), package)
        assert missed == set(), path


@pytest.mark.parametrize(("text", "expected"), [
    ("import a.b as c, d", {"a.b", "d"}),
    ("from a import b as c, d  # why", {"a", "a.b", "a.d"}),
    ("from a import (\n    b,  # why\n    c as d,\n)\n", {"a", "a.b", "a.c"}),
    ("def f():\n    from a.b import c", {"a.b", "a.b.c"}),
    ("from . import b", {"p.q", "p.q.b"}),
    ("from ..r import b", {"p.r", "p.r.b"}),
    ("importing = 1\nx = 'import a'", set()),
])  # fmt: skip
def test_every_form_of_import(text: str, expected: set[str]) -> None:
    assert reach.imports(text.encode(), "p.q") == expected
    assert imports_by_ast(text, "p.q") <= expected


def test_a_kernel_depends_on_what_it_reaches_and_on_nothing_else() -> None:
    for module in MODULES:
        importlib.import_module(module)
    nic, dom0, traffic = (set(reach.sources(name)) for name in ("nic.engine", "dom0.engine", "domu.programs.traffic"))
    assert {"nic.engine", "nic.wire.outward", "hyp.atomics", "hyp.abi.nic", "hyp.kernels.inlining"} <= nic
    assert not any(name.startswith(("domu.", "dom0.")) for name in nic | dom0 if name not in dom0 or name.startswith("domu."))
    assert "domu.device" in traffic
    assert not any(name.startswith(("nic.", "dom0.")) for name in traffic)


def test_what_was_written_after_the_start_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text need not be what was loaded."""
    path = tmp_path / "late.py"
    path.write_text("from hyp.kernels import compiled\n")
    monkeypatch.setitem(sys.modules, "late", types.ModuleType("late"))
    sys.modules["late"].__file__ = str(path)
    assert path.stat().st_ctime_ns > reach._STARTED_NS
    with pytest.raises(reach.Changed):
        reach.sources("late")
    function = types.FunctionType((lambda x: x).__code__, {"__name__": "late"})
    assert reach.key(function, None) is None
