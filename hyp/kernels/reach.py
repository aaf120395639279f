"""Which files decide what a kernel's machine code does, and the key under which it is cached.

A kernel depends on its own file and, by way of its imports, on every other file with compiled code or with layouts: a file that has
such code takes its constants from such files alone (`tests/hyp/test_kernels.py`). The key is a hash over all their text, and
over all that numba is given besides: versions, processor, settings, signature. Two checkouts with the same text share their code.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target

HERE = Path(__file__).resolve().parent
# Compiled code is recognised by this import. A file that has it may take constants only from others that have it, and from layouts.
MARK = b"from hyp.kernels import"
LAYOUTS = "abi"
"""The name of the folder that a layout is in."""

_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]*(\((?:[^)#]|#[^\n]*)*\)|[^\n]*)|import[ \t]+([^\n]*))", re.MULTILINE
)
_REST = re.compile(rb"#[^\n]*|;[^\n]*|[()\\]")
_STARTED_NS = time.time_ns()
_UNIMPORTANT = re.compile(r"_|.*THREAD|.*CACHE|.*COLOR|.*HIGHLIGHT|.*WARN|.*PRINT|SHOW_|FULL_TRACEBACKS|HELP|GDB|USER|HOME")
"""Settings of numba's that change nothing in machine code."""


class Changed(Exception):
    """A file was written after this process began to load: what its text says now need not be what was loaded."""


def imports(text: bytes, package: str) -> set[str]:
    """Full names of all modules that a source text imports, or may (in ``from a import b`` both ``a`` and ``a.b``)."""
    found: set[str] = set()
    for source, names, plain in _IMPORT.findall(text):
        if plain:
            found.update(_names(plain))
            continue
        base = importlib.util.resolve_name(source.decode(), package) if source.startswith(b".") else source.decode()
        found.add(base)
        found.update(f"{base}.{name}" for name in _names(names))
    return found


def _names(text: bytes) -> Iterator[str]:
    """The names in what follows ``import``."""
    for part in _REST.sub(b"", text).split(b","):
        if words := part.split():
            yield words[0].decode()


@cache
def _text(path: Path) -> bytes:
    status = os.stat(path)
    if max(status.st_mtime_ns, status.st_ctime_ns) > _STARTED_NS:
        raise Changed(str(path))
    return path.read_bytes()


def is_kernel_source(path: Path) -> bool:
    """True if a file's text may decide what compiled code does."""
    return path.suffix == ".py" and (path.parent.name == LAYOUTS or path.parent == HERE or MARK in path.read_bytes())


@cache
def _file(module: str) -> Path | None:
    """The file of a module that is loaded and whose text matters to compiled code."""
    loaded = sys.modules.get(module)
    name = getattr(loaded, "__file__", None) or ""
    if not isinstance(loaded, ModuleType) or not name.endswith(".py") or module.partition(".")[0] in sys.stdlib_module_names:
        return None
    path = Path(name).resolve()
    return path if path.suffix == ".py" and is_kernel_source(path) else None


@cache
def sources(module: str) -> dict[str, Path]:
    """The modules on whose text the compiled code of `module` depends, itself among them, and their files."""
    found: dict[str, Path] = {}
    todo = {module, __package__, *(f"{__package__}.{path.stem}" for path in HERE.glob("[a-z]*.py"))}
    while todo:
        name = todo.pop()
        path = _file(name)
        if path is not None and name not in found:
            found[name] = path
            todo |= _imports_of(name, path)
    return found


@cache
def _imports_of(module: str, path: Path) -> set[str]:
    return imports(_text(path), module if path.name == "__init__.py" else module.rpartition(".")[0])


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(_text(path)).hexdigest()


@cache
def _surroundings() -> bytes:
    """Whatever else decides what numba makes of a text."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("numba", "llvmlite", "numpy")]
    settings = [
        f"{name}={value!r}"
        for name, value in sorted(vars(numba.config).items())
        if name.isupper() and not _UNIMPORTANT.match(name) and isinstance(value, (int, str, float, type(None)))
    ]
    processor = cpu_target.target_context.codegen().magic_tuple()
    return "\n".join([sys.version, *versions, *settings, repr(processor)]).encode()


def key(function: Callable[..., Any], signature: Any) -> str | None:
    """The key of a kernel in the cache; None if it must not be cached, since it isn't known what it depends on."""
    if function.__closure__:
        return None
    try:
        files = sources(function.__module__)
        if function.__module__ not in files:
            return None
        digest = hashlib.sha256(_surroundings())
        digest.update(f"{function.__qualname__} {signature}\n".encode())
        for name, path in sorted(files.items()):
            digest.update(f"{name} {_digest(path)}\n".encode())
    except (Changed, OSError):
        return None
    return digest.hexdigest()[:32]


def weight(function: Callable[..., Any]) -> int:
    """How much there is to compile for a kernel, by size of bytecode: its own and that of all helpers that it reaches."""
    seen: dict[Any, int] = {}
    todo = [function]
    while todo:
        code, names = todo[-1].__code__, todo.pop()
        if code not in seen:
            seen[code] = len(code.co_code)
            todo.extend(_called(names))
    return sum(seen.values())


def _called(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    for name in function.__code__.co_names:
        value = getattr(function, "__globals__", {}).get(name)
        if isinstance(value, Dispatcher):
            yield value.py_func
