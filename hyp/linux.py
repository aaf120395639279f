"""The Linux calls that Python 3.11 has no function for: prctl, unshare, pidfd, clone flags."""

import ctypes
import errno
import os
import signal

CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_TIMERSLACK, _PR_SET_CHILD_SUBREAPER = 1, 15, 29, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_name(name: str) -> None:
    """Name the calling thread, as ps and top show it (15 bytes)."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def sleep_exactly() -> None:
    """Let timed sleeps of the calling thread end 1 ns late at most, not 50 µs, as far as its timer slack goes."""
    _prctl(_PR_SET_TIMERSLACK, 1)


def die_with_parent() -> None:
    """Be killed when the parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """unshare(2). OSError with the kernel's errno."""
    if _libc.unshare(flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def new_pid_namespace() -> bool:
    """Let the next child be PID 1 of a new PID namespace; False where the machine does not allow it.

    Without privilege a user namespace is entered too, in which the user stays the user it was.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        if uid == 0:
            unshare(CLONE_NEWPID)
            return True
        unshare(CLONE_NEWUSER | CLONE_NEWPID)
        for path, text in (
            ("/proc/self/setgroups", "deny"),
            ("/proc/self/uid_map", f"{uid} {uid} 1"),
            ("/proc/self/gid_map", f"{gid} {gid} 1"),
        ):
            with open(path, "w") as file:
                file.write(text)
        return True
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSPC, errno.EINVAL, errno.EACCES, errno.ENOSYS, errno.EUSERS):
            return False
        raise


def pid_of(pidfd: int) -> int:
    """The process a pidfd refers to, numbered as this process's /proc numbers it; 0 or less if it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return 0
