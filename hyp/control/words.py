"""What others say, before it is shown, logged or passed on: short, and nothing that a terminal takes for more than text."""

from typing import Any

MAX_WORDS = 400
"""Characters that are kept of a sentence: of a cause, a notice, an error's message."""


def printable(said: Any, most: int = MAX_WORDS) -> str:
    """`said` on one line, at most `most` characters and a sign that it was cut; what is not printable is shown as ``\\x1b`` is.

    Anything but text is named by its type alone: its representation may be of any length.
    """
    if not isinstance(said, str):
        return f"<{type(said).__name__}>"
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in said[: most + 1]
    )
    return shown if len(shown) <= most else shown[: most - 1] + "…"
