"""Landlock: a process gives up all files but those beneath what it names, for good, for itself and its descendants.

Also connections to abstract sockets and signals to processes outside of it, from ABI 6 on. Sources: landlock(7), linux/landlock.h.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_libc = ctypes.CDLL(None, use_errno=True)

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
READ = EXECUTE | READ_FILE | READ_DIR
ALL = (1 << 16) - 1
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}  # by ABI: so many bits; 16 from ABI 5 on
_SCOPES, _SCOPES_SINCE = 3, 6
"""Abstract sockets, signals."""
_SILENT, _SILENT_SINCE = 1 << 0 | 1 << 2, 7
"""LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF, …_LOG_SUBDOMAINS_OFF: who tries without end floods no log of the host's."""


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def abi() -> int:
    """The kernel's version of it. OSError: ENOSYS or EOPNOTSUPP where there is none."""
    return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)


def restrict(allowed: Iterable[tuple[str, int]]) -> None:
    """From now on this thread has of all files those beneath these paths, and may do with them what stands beside: (path, access).

    What isn't there, or can't be reached, is passed over. The thread must not gain privileges (no_new_privs). OSError.
    """
    version = abi()
    handled = (1 << _KNOWN.get(version, 16)) - 1
    attributes = struct.pack("QQQ", handled, 0, _SCOPES if version >= _SCOPES_SINCE else 0)
    size = 8 if version < 4 else 16 if version < _SCOPES_SINCE else 24
    ruleset = _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        for path, access in allowed:
            _allow(ruleset, path, access & handled)
        _syscall(_RESTRICT_SELF, ruleset, _SILENT if version >= _SILENT_SINCE else 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_FILES
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, fd), 0)
    finally:
        os.close(fd)
