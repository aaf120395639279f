"""Files and folders that are this user's own, opened so that what was checked is what is used; locks that tell the living.

Other users may write to /dev/shm and /tmp, where they can lay links, pipes and files under any name. So nothing is followed,
what was opened is judged by its descriptor (kind, owner, mode, number of names), and the next step goes by that descriptor.

Locks are of the open file description (fcntl(2), F_OFD_SETLK): a child process inherits one with its descriptor and holds it
as long as any copy is open, whoever dies. Unlike flock's they can be asked about without being taken, so that looking at
something never makes it look taken to others.
"""

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock
_OTHERS_WRITE = 0o022


def _refused(reason: str, path: str | Path) -> PermissionError:
    return PermissionError(errno.EPERM, reason, str(path))


def _foreign(found: os.stat_result, path: str | Path) -> PermissionError | None:
    return None if found.st_uid == os.getuid() else _refused(f"belongs to another user (uid {found.st_uid})", path)


def open_folder(path: str | Path, *, dir_fd: int | None = None) -> int:
    """A descriptor of a folder of ours. OSError if there is none; PermissionError for a link, or what others own or may write."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise _refused("is a link, and not followed", path) from None
        raise
    found = os.fstat(fd)
    error = _foreign(found, path)
    if error is None and found.st_mode & _OTHERS_WRITE:
        error = _refused("can be written by others", path)
    if error is not None:
        os.close(fd)
        raise error
    return fd


def open_file(path: str | Path, flags: int, *, dir_fd: int | None = None) -> int:
    """A descriptor of a regular file of ours, mode 0600 where it is made. PermissionError for a link, or what is not ours alone."""
    # O_NONBLOCK: a pipe that somebody laid there must not hold us up. The kernel may refuse another user's file by itself
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused("is a link, and not followed", path) from None
        if error.errno == errno.EACCES:
            raise _foreign(os.stat(path, dir_fd=dir_fd, follow_symlinks=False), path) or error from None
        raise
    refusal = private_file(os.fstat(fd), path)
    if refusal is not None:
        os.close(fd)
        raise refusal
    return fd


def private_file(found: os.stat_result, path: str | Path) -> PermissionError | None:
    """None for a regular file that is this user's alone: to read, to write, by name. Else what is wrong with it."""
    if not stat.S_ISREG(found.st_mode):
        return _refused("is not a file of the lab's", path)
    if (error := _foreign(found, path)) is not None:
        return error
    if found.st_mode & 0o077:
        return _refused("is open to others, so the lab has not made it", path)
    if found.st_nlink > 1:
        return _refused("has another name, so the lab has not made it", path)
    return None


def take_lock(fd: int) -> bool:
    """Lock a file open for writing, as long as any copy of this descriptor is open. False if somebody else holds it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_locked(fd: int) -> bool:
    """True while somebody else holds the file's lock. Takes nothing."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def lock_file(path: Path) -> int | None:
    """The file `path`, made if need be, locked, and still under its name; None if somebody else holds it. Others as `open_file`.

    Whoever holds it may take the name away, as the last thing before the lock.
    """
    while True:
        fd = open_file(path, os.O_RDWR | os.O_CREAT)
        if not take_lock(fd):
            os.close(fd)
            return None
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)  # its last owner took the name away between open and lock
