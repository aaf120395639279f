"""Compiled code: how the data plane's functions are declared, compiled, cached and loaded.

Four kinds, one decorator each:

``@compiled``            a helper, inlined into whatever compiled code calls it;
``@outlined``            a helper that is called: for what is large and seldom needed, so that it stands in no hot loop;
``@entry(signature)``    an entry point that Python calls once per engine life, in a thread (it releases the GIL);
``@operation(signature)``a C function whose address goes into an operations table (`domu.device`).

Nothing is compiled at import. `load_all` compiles, or loads from the cache, every entry point declared so far: the fork
server does it once and every process of a topology inherits the machine code.

The cache. numba keys a cached function by its own file only, so that editing a helper in another file would leave its
callers stale. The cache folder is therefore named by a hash over *all* files that hold compiled code or the layouts
frozen into it, and over the versions of the compilers. `tests/hyp/test_kernels.py` checks that files with compiled code take
constants only from files that are in the hash.
"""

import hashlib
import importlib.metadata
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core import types

from hyp.kernels.inlining import compiled as compiled
from hyp.kernels.inlining import outlined as outlined

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("hyp", "nic", "dom0", "domu", "bench")
# Compiled code is recognised by this import. A file that has it may take constants only from others that have it, and from hyp/abi.
MARK = b"from hyp.kernels import"


def kernel_sources() -> list[Path]:
    """Every file whose text decides what compiled code does: those with compiled code, and all layouts."""
    found = [Path(__file__).resolve()]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent.name == "abi" or MARK in path.read_bytes():
                found.append(path)
    return found


def source_hash() -> str:
    """Hex digest over kernel sources, their names and the compiler's versions."""
    digest = hashlib.sha256()
    for name in ("numba", "llvmlite", "numpy"):
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    digest.update(sys.version.encode())
    for path in kernel_sources():
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def cache_root() -> Path:
    """The folder that holds one cache per source hash (``XBL_CACHE``, or the user's cache folder)."""
    if "XBL_CACHE" in os.environ:
        return Path(os.environ["XBL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xen-bypass-lab"


CACHE = cache_root() / source_hash()
CACHE.mkdir(parents=True, exist_ok=True, mode=0o700)
# Not by the environment: whoever imported numba before us has had it read.
vars(numba.config)["CACHE_DIR"] = str(CACHE)

i64 = types.int64
void = types.void


class Entry:
    """An entry point: compiled for one signature, called from Python, runs without the GIL."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.name = f"{function.__module__}.{function.__name__}"
        self.signature = signature
        self.dispatcher = numba.njit(error_model="numpy", nogil=True, cache=True)(function)
        self.__doc__ = function.__doc__

    def load(self) -> bool:
        """Make it ready to call. True if it had to be compiled, False if it came from the cache."""
        if not self.dispatcher.signatures:
            self.dispatcher.compile(self.signature)
            self.dispatcher.disable_compile()
            return bool(self.dispatcher.stats.cache_misses)
        return False

    def __call__(self, *args: Any) -> Any:
        self.load()
        return self.dispatcher(*args)


class Operation:
    """A C function (all arguments and the result int64) for an operations table."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.name = f"{function.__module__}.{function.__name__}"
        self._function, self._signature = function, signature
        self._cfunc: Any = None

    def load(self) -> bool:
        """Make its address available. True if it had to be compiled."""
        if self._cfunc is None:
            self._cfunc = numba.cfunc(self._signature, cache=True, error_model="numpy")(self._function)
            return not self._cfunc.cache_hits
        return False

    @property
    def address(self) -> int:
        """Address of the machine code, valid in this process and in all forked from it."""
        self.load()
        return int(self._cfunc.address)


_declared: list[Entry | Operation] = []


def entry(signature: Any) -> Callable[[Callable[..., Any]], Entry]:
    """Declare an entry point with an explicit numba signature."""

    def declare(function: Callable[..., Any]) -> Entry:
        kernel = Entry(function, signature)
        _declared.append(kernel)
        return kernel

    return declare


def operation(signature: Any) -> Callable[[Callable[..., Any]], Operation]:
    """Declare a C function for an operations table."""

    def declare(function: Callable[..., Any]) -> Operation:
        kernel = Operation(function, signature)
        _declared.append(kernel)
        return kernel

    return declare


def is_cold() -> bool:
    """True if nothing has been compiled yet for the present sources."""
    return next(CACHE.rglob("*.nbi"), None) is None


@contextmanager
def helped() -> Iterator[None]:
    """While this lasts, a forked process compiles from the last kernel on backwards, so that `load_all` finds half of them done.

    Only if nothing has been compiled yet and there is a CPU to do it on. The caller has one thread. Both write to the cache, each
    file under another name first; should both compile the same kernel, they write the same.
    """
    if not is_cold() or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    from hyp.linux import die_with_parent

    caller = os.getpid()
    helper = os.fork()
    if helper == 0:
        try:
            die_with_parent()
            for kernel in reversed(_declared):
                if os.getppid() != caller:
                    break
                kernel.load()
        except BaseException:  # whoever called meets the same error, and says so
            pass
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)


def load_all() -> Iterator[tuple[str, int, int, bool, float]]:
    """Load every declared kernel; yields ``(name, index, total, compiled?, seconds)`` after each."""
    for index, kernel in enumerate(_declared, 1):
        start = time.perf_counter()
        fresh = kernel.load()
        yield kernel.name, index, len(_declared), fresh, time.perf_counter() - start
