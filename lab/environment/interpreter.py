"""Which Python runs the lab: the one that was called, if it has all packages, else the one in ``.venv``. Standard library alone."""

import importlib.util
import os
import sys
from pathlib import Path

from lab.execute import inherited

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv"
NEEDED = ("msgpack", "numba", "numpy", "posix_ipc", "pydantic", "rich", "typer", "uvloop")
"""What the lab imports, as pyproject.toml's dependencies bring it."""


def _is_brought_by_path(name: str) -> bool:
    """True if a package comes from PYTHONPATH, which may be meant for another Python."""
    spec = importlib.util.find_spec(name)
    places = [os.path.realpath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    origin = os.path.realpath(spec.origin) if spec is not None and spec.origin else ""
    return any(origin.startswith(place + os.sep) for place in places)


def settle(command: list[str]) -> None:
    """Return if this Python has what the lab needs. Else become the lab's own Python with `command` as its arguments, or exit."""
    lacks = any(importlib.util.find_spec(name) is None for name in NEEDED)
    astray = not lacks and any(_is_brought_by_path(name) for name in NEEDED)
    python = VENV / "bin" / "python"
    if not lacks and not (astray and python.exists()):
        return
    if not python.exists() or (lacks and Path(sys.prefix) == VENV and not os.environ.get("PYTHONPATH")):
        sys.exit("the lab's packages are not installed for this Python: run `make setup` first")
    inherited.give_back()
    os.execve(python, [str(python), *command], inherited.laid_aside({b"PYTHONPATH", b"PYTHONHOME"}))
