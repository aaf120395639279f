"""Compiled code: how the data plane's functions are declared, compiled, cached and loaded.

Four kinds, one decorator each:

``@compiled``            a helper, inlined into whatever compiled code calls it;
``@outlined``            a helper that is called: for what is large and seldom needed, so that it stands in no hot loop;
``@entry(signature)``    an entry point that Python calls once per engine life, in a thread (it releases the GIL);
``@operation(signature)``a C function whose address goes into an operations table (`domu.device`).

Nothing is compiled at import. `load_all` compiles, or loads from the cache, every entry point declared so far: the fork
server does it once and every process of a topology inherits the machine code.

What is compiled is kept (hyp/kernels/store.py) under a key over the text of all files that the kernel depends on, and over
the versions of the compilers and the processor (hyp/kernels/reach.py). numba's own cache, which knows a function's own file
only, is not used. How helpers become part of a kernel: hyp/kernels/inlining.py.
"""

import contextlib
import functools
import os
import pickle
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvmlite
import numba
from numba.core import sigutils, types
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from hyp.kernels import reach
from hyp.kernels.inlining import OPTIONS, compiled, njit, outlined
from hyp.kernels.store import Store, default_folder

__all__ = ["Entry", "Operation", "compiled", "entry", "i64", "load_all", "missing", "operation", "outlined", "store", "void"]

os.environ.pop("NUMBA_DISABLE_JIT", None)  # meant for others: there is no lab without compiled code
vars(numba.config)["DISABLE_JIT"] = 0

i64 = types.int64
void = types.void
store = Store(default_folder())
MOST_HELPERS = 3


class _Cache(NullCache):
    """What numba asks for a compiled function, and gives one to: the store's file for one kernel."""

    def __init__(self, function: Callable[..., Any], name: str, signature: Any) -> None:
        self._function, self._name, self._signature = function, name, signature
        self.was_compiled = False

    @functools.cached_property
    def key(self) -> str | None:
        """What the kernel is kept under; None if it must not be kept."""
        return reach.key(self._function, self._signature)

    def read(self) -> bytes | None:
        """The file's content, or None if there is none that can be used."""
        return store.read(self._name, self.key) if self.key else None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The cached result of a compilation, or None."""
        data = self.read()
        if data is None:
            return None
        rtsys.initialize(target_context)  # what it may call; its types, which take longer to load, are not needed
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(data))
        except Exception:  # whatever is wrong with it: it is compiled again, and replaced
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a result, if it can be kept. `data`: numba's CompileResult."""
        self.was_compiled = True
        if self.key and not data.library.has_dynamic_globals:
            library, *rest = data._reduce()
            store.write(self._name, self.key, dumps((_for_calls_only(library, data.fndesc), *rest)))


def _for_calls_only(library: tuple[str, str, tuple[bytes, bytes]], fndesc: Any) -> tuple[str, str, tuple[bytes, bytes]]:
    """A library as numba keeps it, without the code in it that others could inline: that takes longer to load than all the rest.

    What stands for it says no more than which functions can be called.
    """
    name, kind, (machine_code, inlinable) = library
    names = (fndesc.llvm_func_name, fndesc.llvm_cpython_wrapper_name, fndesc.llvm_cfunc_wrapper_name)
    there = {function.name for function in llvmlite.parse_bitcode(inlinable).functions if not function.is_declaration}
    text = "".join(f'define void @"{one}"() {{ ret void }}\n' for one in names if one in there)
    return name, kind, (machine_code, llvmlite.parse_assembly(text).as_bitcode())


class _Kernel:
    """What both kinds of entry points have."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.name = f"{function.__module__}.{function.__name__}"
        self.function, self.signature = function, signature
        self.cache = _Cache(function, self.name, signature)
        self.__doc__ = function.__doc__

    def load(self) -> bool:
        """Make it ready to call. True if it had to be compiled, False if it came from the cache."""
        raise NotImplementedError


class Entry(_Kernel):
    """An entry point: compiled for one signature, called from Python, runs without the GIL."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        super().__init__(function, signature)
        self.dispatcher = njit(no_cfunc_wrapper=True, **OPTIONS)(function)
        self.dispatcher._cache = self.cache

    def load(self) -> bool:
        """Make it ready to call. True if it had to be compiled, False if it came from the cache."""
        if self.dispatcher.signatures:
            return False
        self.dispatcher.compile(self.signature)
        self.dispatcher.disable_compile()
        return self.cache.was_compiled

    def __call__(self, *args: Any) -> Any:
        self.load()
        return self.dispatcher(*args)


class Operation(_Kernel):
    """A C function (all arguments and the result int64) for an operations table."""

    _cfunc: Any = None

    def load(self) -> bool:
        """Make its address available. True if it had to be compiled."""
        if self._cfunc is not None:
            return False
        self._cfunc = CFunc(
            self.function, sigutils.normalize_signature(self.signature), locals={}, options={"error_model": OPTIONS["error_model"]}
        )
        self._cfunc._cache = self.cache
        self._cfunc.compile()
        return self.cache.was_compiled

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


def missing() -> list[Entry | Operation]:
    """The declared kernels that are not in the cache, the largest first."""
    found = [kernel for kernel in _declared if kernel.cache.read() is None]
    return sorted(found, key=lambda kernel: -reach.weight(kernel.function))


def load_all(together: bool = False) -> Iterator[tuple[str, int, int, bool, float]]:
    """Load every declared kernel; yields ``(name, index, total, compiled?, seconds)`` after each.

    `together`: what is missing is compiled by this process and by others that it forks meanwhile, one for each further CPU. The
    caller then has one thread. ``compiled?`` is true for what this process compiled.
    """
    absent = missing() if together else []
    index = 0
    with _shared(absent) as mine:
        for kernels in (mine, iter(_declared)):
            for kernel in kernels:
                start = time.perf_counter()
                fresh = kernel.load()
                if kernels is not mine and kernel in absent and kernel.cache.was_compiled and not fresh:
                    continue  # told already
                index += 1
                yield kernel.name, index, len(_declared), fresh, time.perf_counter() - start


@contextlib.contextmanager
def _shared(kernels: list[Entry | Operation]) -> Iterator[Iterator[Entry | Operation]]:
    """Give `kernels` out, one at a time, to this process (the iterator) and to helpers; at its end all of them are in the cache.

    Claims are made by reading from a pipe, in which each kernel's number stands once. If a helper is lost or can't write, what it
    claimed is not there, and the caller compiles it like anything else that is missing.
    """
    helpers = min(len(os.sched_getaffinity(0)) - 1, len(kernels) - 1, MOST_HELPERS)
    with contextlib.ExitStack() as stack:
        if helpers < 1 or not _exchange(stack):
            yield iter(kernels)
            return
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        os.write(writer, b"".join(number.to_bytes(2, "little") for number in range(len(kernels))))
        os.close(writer)
        pids = [_fork_helper(reader, kernels) for _ in range(helpers)]
        stack.callback(_end, pids)
        yield _claims(reader, kernels, pids)


def _claims(reader: int, kernels: list[Entry | Operation], helpers: list[int]) -> Iterator[Entry | Operation]:
    """The kernels that this process gets; then waits until the helpers have done theirs."""
    while claim := os.read(reader, 2):
        yield kernels[int.from_bytes(claim, "little")]
    while helpers:
        os.waitpid(helpers[-1], 0)
        helpers.pop()


def _fork_helper(reader: int, kernels: list[Entry | Operation]) -> int:
    from hyp.linux import die_with_parent

    caller = os.getpid()
    helper = os.fork()
    if helper == 0:
        try:
            die_with_parent()
            while os.getppid() == caller and (claim := os.read(reader, 2)):
                kernels[int.from_bytes(claim, "little")].load()
        except BaseException:  # whoever called meets the same error, and says so
            pass
        finally:
            os._exit(0)
    return helper


def _end(helpers: list[int]) -> None:
    for helper in helpers:
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)


def _exchange(stack: contextlib.ExitStack) -> bool:
    """Have a folder by which processes can give each other what they compile: the cache, or else a passing one."""
    if store.is_writable():
        return True
    try:
        passing = tempfile.mkdtemp(prefix="xen-bypass-lab-")
    except OSError:
        return False
    kept = store.folder
    store.folder = Path(passing)
    stack.callback(setattr, store, "folder", kept)
    stack.callback(shutil.rmtree, passing, ignore_errors=True)
    stack.callback(_end, [_fork_remover(passing)])
    return True


def _fork_remover(folder: str) -> int:
    """Fork a process that removes `folder` should this one be killed: nobody else would."""
    ours = os.pidfd_open(os.getpid())
    remover = os.fork()
    if remover == 0:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.dup2(ours, 0)
            os.closerange(1, os.sysconf("SC_OPEN_MAX"))
            select.select([0], [], [])
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os._exit(0)
    os.close(ours)
    return remover
