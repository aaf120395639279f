"""Standard output in whatever encoding: a character that it does not have is replaced by one that it has."""

import codecs
import contextlib
import io
import sys

_ASCII = {"→": ">", "–": "-", "—": "-", "…": ".", "×": "x", "÷": "/", "±": "~", "µ": "u", "μ": "u", "≤": "<", "≥": ">",
          "─": "-", "▶": ">", "◀": "<", "█": "#"}  # fmt: skip
_ERRORS = "xbl-readable"


def _readable(error: UnicodeError) -> tuple[bytes, int]:
    """A codec's error handler: something like the character, or the byte that it stands for (PEP 383)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = bytearray()
    for character in error.object[error.start : error.end]:
        code = ord(character)
        found += bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else _ASCII.get(character, "?").encode()
    return bytes(found), error.end


def speak_any_encoding() -> None:
    """Let standard output take every character: what its encoding does not have is replaced."""
    codecs.register_error(_ERRORS, _readable)
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):  # closed: whoever writes to it is told
            sys.stdout.reconfigure(errors=_ERRORS)
