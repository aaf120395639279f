"""A topology's life and the public Python API: schema, plan, keeper, fork server, run folder, owner's handle. Nothing compiled.

The API (docs/api.md) is loaded when it is first asked for: the keeper imports modules of this package, and must stay small.
"""

from typing import TYPE_CHECKING

__all__ = ["AsyncLab", "AsyncProgram", "Lab", "LabError", "Program", "TopologyError", "WorkloadError", "shipped"]

if TYPE_CHECKING:
    from lab.api import AsyncLab, AsyncProgram, Lab, LabError, Program, TopologyError, WorkloadError, shipped
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("lab.api"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
