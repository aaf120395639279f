"""What a confined guest may know of the environment that its topology was started in: what the lab itself runs by.

A guest's process is forked, not executed, and whatever the process that it comes from had in its environment is in its memory. So
where any guest is confined, that process is started with these alone: a shell has passwords and keys in its environment, too.
"""

from collections.abc import Mapping
from typing import Final

NAMES: Final = frozenset(
    {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TZDIR", "TMPDIR", "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"}
)
PREFIXES: Final = ("LC_", "PYTHON", "NUMBA_", "XBL_", "LD_", "OMP_", "MALLOC_")


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an environment what a confined guest may know."""
    return {name: value for name, value in environment.items() if name in NAMES or name.startswith(PREFIXES)}
