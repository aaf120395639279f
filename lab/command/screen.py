"""Standard output as people read it: however wide, and with users' words as they are.

What a user wrote (a path, a cause, a name) is printed as it is: nothing in square brackets is markup, nothing between colons an
emoji. Emphasis is a `style`. A line is as long as it is, and a table as wide as its figures: wrapped by the terminal if need be,
never cut.
"""

import errno
import os
import shutil
import sys
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 10_000
_WIDTH = 104  # where there is no terminal: of the widest table with short names


class Screen(Console):
    """Standard output."""

    def __init__(self) -> None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
        super().__init__(width=columns, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`; tables in full."""
        shown = self.width
        room = self.options.update(max_width=_WIDEST)
        tables = [Measurement.get(self, room, one).maximum for one in objects if isinstance(one, Table | Group)]
        self.width = max([shown, *tables])
        try:
            super().print(*objects, **options)
        finally:
            self.width = shown

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles a BrokenPipeError, on whose account it would exit by itself."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
