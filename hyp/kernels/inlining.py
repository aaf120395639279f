"""Helpers of compiled code: typed once for all their callers, and given to them as LLVM IR, not as machine code.

numba makes of each function that others call a library of its own, with machine code, a wrapper for Python and one for C, and
optimises it by itself. Ours are called by compiled code alone and most are inlined: for them all that is thrown away. Here a helper
is lowered to IR and no further; whoever calls it links that IR in, and what it needs itself, before it is optimised. Arguments that
are literals are typed as what they are literals of, or there would be one helper for each number that is passed.

This goes deeper into numba than its documented interface. So it is tried out, on two small functions, before anything is compiled
with it (`works`); where that fails, in a version of numba that is built differently, helpers are plain functions of numba's: the
same results, in about twice the time.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
from numba.core import compiler, types
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import CPUDispatcher

njit: Any = numba.njit
OPTIONS = {"error_model": "numpy", "nogil": True}
UNNEEDED = {
    "WithLifting", "InlineClosureLikes", "RewriteDynamicRaises", "MakeFunctionToJitFunction", "InlineInlinables",
    "FindLiterallyCalls", "LiteralUnroll", "LiteralPropagationSubPipelinePass", "InlineOverloads", "NopythonRewrites",
    "DumpParforDiagnostics",
}  # fmt: skip
"""Passes of numba's for what helpers have not: closures, `with`, raised exceptions, arrays. Each walks the whole function."""


class HelperLibrary(JITCodeLibrary):
    """The IR of one helper. What it calls is listed, and linked in by whoever is made into machine code."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout
        for function in ll_module.functions:
            if not function.is_declaration:
                passes, builder = self._codegen._function_pass_manager()
                passes.run(function, builder)

    def add_linking_library(self, library: Any) -> None:
        if library not in self._linking_libraries:
            self._linking_libraries.append(library)

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True


class HelperCompiler(compiler.Compiler):
    """numba's compiler of a function, stopped when it has the IR."""

    def __init__(
        self, typing_context: Any, context: Any, library: Any, args: Any, return_type: Any, flags: Any, variables: Any
    ) -> None:
        if works():
            flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
            library = HelperLibrary(context.codegen(), "helper")
        super().__init__(typing_context, context, library, args, return_type, flags, variables)

    def define_pipelines(self) -> list[Any]:
        """numba's passes, without those that find nothing to do in a helper."""
        manager = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        if works():
            manager.passes = [(step, what) for step, what in manager.passes if step.__name__ not in UNNEEDED]
            manager.finalize()
        return [manager]


class Helper(CPUDispatcher):
    """A function for compiled code to call. Called from Python (by a test), it is compiled for that by itself."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(function, targetoptions={"nopython": True, **OPTIONS, **options}, pipeline_class=HelperCompiler)
        self.inlined = bool(options.get("forceinline"))

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What a call with such arguments is: compiled now, if it has not been."""
        if works():
            args = tuple(types.unliteral(arg) for arg in args)
            kws = {name: types.unliteral(arg) for name, arg in kws.items()}
        return super().get_call_template(args, kws)

    def add_overload(self, result: Any) -> None:
        """Take what was compiled for one tuple of argument types. Callers know it by its entry point, which is a mere name here."""
        if not works():
            super().add_overload(result)
            return
        library, name = result.library, object()
        library._ensure_finalized()
        if not self.inlined:
            library._final_module.get_function(result.fndesc.llvm_func_name).add_function_attribute("noinline")
        result.target_context.insert_user_function(name, result.fndesc, [library, *library._linking_libraries])
        self.overloads[tuple(result.signature.args)] = result._replace(entry_point=name)

    @functools.cached_property
    def _for_python(self) -> Any:
        return njit(**OPTIONS)(self.py_func)

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        return self._for_python._compile_for_args(*args, **kws)


def compiled(function: Callable[..., Any]) -> Any:
    """Declare a helper that is inlined into whatever compiled code calls it."""
    return Helper(function, forceinline=True)


def outlined(function: Callable[..., Any]) -> Any:
    """Declare a helper that is called: for what is large and seldom needed, so that it stands in no hot loop."""
    return Helper(function, forceinline=False)  # said, or numba takes over what its caller says of itself


# --- does it work with this numba? ------------------------------------------------------------------------------------

_state: dict[str, bool] = {}


def works() -> bool:
    """True if helpers can be made in this way here. Found out at the first question, which takes a tenth of a second."""
    if "works" not in _state:
        _state["works"] = True  # as long as it is being tried out
        _state["works"] = _try_out()
    return _state["works"]


def _try_out() -> bool:
    """Compile a function that calls an inlined and an outlined helper, which call another with a literal, and see what it gives."""

    def inner(x, y):
        return max(x, 1) * 10 + y

    def outer(x):
        return inlined(x, 3) + called(x, 4)

    try:
        innermost = compiled(inner)

        def middle(x, y):
            return innermost(x, y) + innermost(x, 1)

        inlined, called = compiled(middle), outlined(middle)
        value = njit(types.int64(types.int64), **OPTIONS)(outer)(2)
    except Exception:  # whatever it is, the plain way does not meet it
        return False
    return bool(value == 23 + 21 + 24 + 21)
