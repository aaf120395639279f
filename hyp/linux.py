"""What Python 3.11 has no function for: prctl, unshare, setns, mount, pidfd, clone flags, holes in files, what ps shows."""

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NAMESPACES = {
    "user": CLONE_NEWUSER, "mnt": CLONE_NEWNS, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "pid": CLONE_NEWPID, "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
}  # fmt: skip
"""Their names in /proc/<pid>/ns → clone flags."""

# sys/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 1, 2, 4, 8, 4096, 16384, 1 << 18, 1 << 19
_MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_GET_NAME, _PR_CAPBSET_DROP = 1, 4, 15, 16, 24
_PR_SET_TIMERSLACK, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 29, 36, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_CAPABILITY_VERSION = 0x20080522
_CLONE_PIDFD = 0x1000
_SYS_CLONE3, _SYS_PIDFD_GETFD, _SYS_MOUNT_SETATTR = 435, 438, 442  # on every architecture
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_libc = ctypes.CDLL(None, use_errno=True)
_with_gil = ctypes.PyDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, argument: int | bytes) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(argument) if isinstance(argument, int) else argument, 0, 0, 0))


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


def title() -> list[str]:
    """This process's command line, as `set_title` has set it."""
    return Path("/proc/self/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")


def sleep_exactly() -> None:
    """Let timed sleeps of the calling thread end 1 ns late at most, not 50 µs, as far as its timer slack goes."""
    _prctl(_PR_SET_TIMERSLACK, 1)


def die_with_parent() -> None:
    """Be killed when the parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable() -> None:
    """Own one's files in /proc again, after a change of the user."""
    _prctl(_PR_SET_DUMPABLE, 1)


def be_root() -> None:
    """Be root of the user namespace that this process is in. It has to have CAP_SETUID and CAP_SETGID there. OSError."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    set_dumpable()


def no_new_privileges() -> None:
    """Let nothing that is executed have more than this process has (setuid bits, file capabilities)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_from_bounding_set(capability: int) -> bool:
    """Never have this capability again, whatever is executed. False: there is none of that number. OSError EPERM."""
    try:
        _prctl(_PR_CAPBSET_DROP, capability)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def set_capabilities(mask: int) -> None:
    """Have these capabilities, bit n for number n, and hand down none but by what is executed. OSError EPERM."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)))  # effective, permitted, inheritable: twice


def asked_of_a_child(question: Callable[[], str | None]) -> str | None:
    """What `question` says in a child of one thread, or why it could not; None: there is nothing to complain of.

    For what a process can try only by doing it: namespaces, devices, filters.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, (question() or "").encode()[:4096])
        except BaseException as error:
            os.write(writer, (str(error) or repr(error)).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return reason or (None if status == 0 else f"the child that tried ended with wait status {status}")


def unshare(flags: int) -> None:
    """unshare(2). OSError with the kernel's errno."""
    _checked(_libc.unshare(flags))


def fork_into(flags: int) -> tuple[int, int]:
    """fork(2) with the child in new namespaces (`flags`: CLONE_NEW…). Returns (pid, a pidfd); in the child (0, −1).

    Unlike unshare(2) it leaves this process what it was: one whose children are born into another PID namespace could start no
    more threads. It must have one thread, and the child runs none of the handlers that os.fork runs there: it does a few system
    calls, and never returns to what its parent was doing. OSError: EPERM, ENOSPC, ENOSYS before Linux 5.3 or where a filter knows
    no clone3(2).
    """
    pidfd = ctypes.c_int(-1)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    arguments = (ctypes.c_uint64 * 8)(flags | _CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD)
    pid = _with_gil.syscall(_SYS_CLONE3, arguments, ctypes.sizeof(arguments))
    return _checked(pid), pidfd.value


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). OSError with the kernel's errno."""
    _checked(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def make_read_only(tree: str) -> None:
    """Make all mounts at and below `tree` read-only in this mount namespace (mount_setattr(2)). OSError.

    ENOSYS before Linux 5.12.
    """
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY)  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    where, size = os.fsencode(tree), ctypes.sizeof(attributes)
    _checked(_libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, where, _AT_RECURSIVE, attributes, ctypes.c_size_t(size)))


def unmount(target: str) -> None:
    """Take the topmost mount off `target`, also while it is in use (umount2(2), MNT_DETACH)."""
    _checked(_libc.umount2(os.fsencode(target), _MNT_DETACH))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back the memory of a part of a file, which reads as zeroes then; its size stays."""
    _checked(_libc.fallocate64(fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)))


def enter_namespaces(pidfd: int, without: Collection[str] = (), *, folder_outside: bool = True) -> None:
    """Enter those namespaces of a process in which we are not; its PID namespace is entered by children born from now on.

    The working folder stays the one it is, which setns(2) would leave for the root of the mounts that are entered; that is what it
    is if it is not to be one outside of them (`folder_outside`), and its path does not lead to the same one inside. This process
    must have one thread, and can start none afterwards unless it does `without` "pid" (a name of NAMESPACES). Without privilege it
    must be of the user that made the user namespace that is entered with them. OSError: ESRCH if the process has ended, EPERM,
    EINVAL before Linux 5.8.
    """
    ours = Path("/proc/self/ns")
    theirs = Path(f"/proc/{pid_of(pidfd)}/ns")
    try:
        there = {name: flag for name, flag in NAMESPACES.items() if name not in without and (ours / name).exists()}
        flags = [flag for name, flag in there.items() if not (ours / name).samefile(theirs / name)]
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    if not flags:
        return
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = _own_folder()
        _checked(_libc.setns(pidfd, sum(flags)))
        if not _gone_back(path, here):
            os.chdir(here if folder_outside else "/")
    finally:
        os.close(here)


def _own_folder() -> str | None:
    """The path of the working folder; None if it has none any more."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _gone_back(path: str | None, folder: int) -> bool:
    """The working folder is `folder` again, a descriptor, by its `path`, so that it has one here. False if it is not there."""
    if path is not None:
        with contextlib.suppress(OSError):
            os.chdir(path)
            return os.path.samestat(os.stat("."), os.fstat(folder))
    return False


def enter(namespaces: Sequence[int]) -> None:
    """Enter the namespaces of these descriptors (of /proc/<pid>/ns), in order, but for those in which we are already.

    This process must have one thread. OSError as setns(2) gives it.
    """
    ours = [os.stat(path) for path in Path("/proc/self/ns").iterdir()]
    for fd in namespaces:
        if not any(os.path.samestat(os.fstat(fd), one) for one in ours):
            _checked(_libc.setns(fd, 0))


def descriptor_of(pidfd: int, fd: int) -> int:
    """A copy of another process's descriptor `fd`. OSError: EBADF if it has none such, EPERM, ESRCH."""
    return _checked(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))


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
