"""What a call can raise, and exceptions as replies have them."""

import errno

from hyp import limits
from hyp.control.words import printable

MAX_NAME, MAX_REASON = 40, 4000


class ControlError(Exception):
    """Base of what a call can raise."""


class PeerGone(ControlError):
    """The other side closed its socket, died, or broke the protocol."""


class Refused(ControlError):
    """The other side answered with an error: `name` as in errno (``"EINVAL"``), and a sentence that says why."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def describe(error: Exception) -> list[str]:
    """An exception as ``[errno name, message]`` for a reply. What is nobody's fault but ours is EFAULT: it is logged, too."""
    if isinstance(error, Refused):
        return [error.name[:MAX_NAME], str(error)[:MAX_REASON]]
    if isinstance(error, PeerGone):
        return ["ENOTCONN", str(error)]
    if isinstance(error, TimeoutError):
        return ["ETIMEDOUT", str(error) or "it took too long"]
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return ["EMFILE", limits.descriptor_reason()]
    if isinstance(error, OSError) and error.errno:
        return [errno.errorcode.get(error.errno, "EIO"), error.strerror or str(error)]
    if isinstance(error, (ValueError, TypeError, KeyError, LookupError)):
        text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        return ["EINVAL", printable(text)]  # it may quote what a peer sent
    return ["EFAULT", printable(f"{type(error).__name__}: {error}")]
