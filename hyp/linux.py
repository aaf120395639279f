"""What Python 3.11 has no function for in Linux: prctl, unshare, pidfd, clone flags, the command line that ps shows."""

import ctypes
import errno
import os
import signal

CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_GET_NAME, _PR_SET_TIMERSLACK, _PR_SET_CHILD_SUBREAPER = 1, 15, 16, 29, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument) if isinstance(argument, int) else argument, 0, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_name(name: str) -> None:
    """Name the calling thread, as ps and top show it (15 bytes)."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def own_name() -> str:
    """The name of the calling thread."""
    name = ctypes.create_string_buffer(16)
    _prctl(_PR_GET_NAME, ctypes.addressof(name))
    return name.value.decode(errors="replace")


def shown_name(name: str, role: str) -> str:
    """What ps and top call a process of a topology: "nic", "domu:alice"."""
    return f"{role}:{name}" if role != name else name


def set_title(*words: str) -> None:
    """Show `words` as this process's command line (ps -ef, /proc/<pid>/cmdline), cut to the length of the one it was started with.

    The kernel reads a command line from the process's own memory, between the addresses that /proc/self/stat ends with; a forked
    process has a copy. Does nothing where the kernel does not say them.
    """
    with open("/proc/self/stat") as file:
        start, end = (int(word) for word in file.read().rpartition(")")[2].split()[45:47])  # arg_start, arg_end: proc(5)
    room = end - start
    if start == 0 or room <= 0:
        return
    title = "\0".join(words).encode()[: room - 1]
    ctypes.memmove(start, title.ljust(room, b"\0"), room)


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
