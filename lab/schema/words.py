"""What a topology's words mean, and how they are said to people. Plain Python only: clients read it, who need no schema."""

import difflib
from collections.abc import Iterable

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def suggest(word: object, known: Iterable[str]) -> str:
    """A hint for the end of a message, if one of the `known` words is like `word`; else nothing."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def show_size(size: int) -> str:
    """A number of bytes as people read it: ``"16 MiB"``, ``"64.5 MiB"``."""
    unit, name = next(((u, n) for u, n in ((GIB, "GiB"), (MIB, "MiB")) if size >= u), (KIB, "KiB"))
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"


def speed_factor(speed: float | str) -> float:
    """A speed as a multiple of the recorded one; 0: as fast as frames are taken."""
    return {"recorded": 1.0, "max": 0.0}[speed] if isinstance(speed, str) else float(speed)
