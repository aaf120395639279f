"""Shared memory: every region of a topology is made, named, sized and mapped here. Two backings, one interface.

``posix``   a POSIX shared-memory object ``/xbl.<uid>.<topology>.<owner>.<purpose>``, mode 0600, to be seen in /dev/shm while the
            topology lives. Isolation is by convention: a process of the same user can open it for writing.
``sealed``  a memfd whose size is sealed, so that nobody can shrink memory that another process reads (SIGBUS); and its seals, too,
            so that a guest cannot forbid others to map its own RAM.

Creation reserves the memory, so that a full /dev/shm is an error here and not a SIGBUS later. (What is shared with nobody, and only
outlives a process, is a memfd without a reservation: `create_sparse`.)
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import posix_ipc

from hyp import limits
from hyp.abi.nic import PAGE
from hyp.shm import SHM, shm_prefix

BACKINGS = ("posix", "sealed")
_SEAL_FUTURE_WRITE = getattr(fcntl, "F_SEAL_FUTURE_WRITE", 0x10)
told_of_mappings: "list[Callable[[Mapping, int, mmap.mmap, bool], None]]" = []
"""Called with each mapping that this process makes, its descriptor, the map, and whether all of it is there: hyp/lost_memory.py."""
MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0x8000)


class SharedMemoryError(OSError):
    """A region could not be made; the message says which, how large, and why."""


@dataclass(slots=True)
class Region:
    """A piece of shared memory: `fd` is open for reading and writing and belongs to this object."""

    name: str
    size: int
    fd: int
    shm_name: str | None

    def readonly_fd(self) -> int:
        """A new descriptor that allows reading only (the caller closes it).

        BlockingIOError if somebody who has it holds a lease on it, for which an open(2) would wait.
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def map(self) -> "Mapping":
        """Map it for reading and writing."""
        return Mapping(self.fd, self.size)

    def seal_writes(self) -> None:
        """Allow no *new* writable mapping (`sealed` only): what the owner mapped before is the only writer.

        Of a region that was made with `one_writer`.
        """
        if self.shm_name is None:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)

    def close(self) -> None:
        """Close the descriptor and take the name away. Mappings stay."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.shm_name is not None:
            try:
                posix_ipc.unlink_shared_memory(self.shm_name)
            except posix_ipc.ExistentialError:
                pass
            self.shm_name = None


class Mapping:
    """A mapped descriptor. `address` is where it starts in this process; the memory stays mapped as long as the object lives."""

    __slots__ = ("__weakref__", "_map", "address", "array", "lost", "size")

    def __init__(self, fd: int, size: int, *, writable: bool = True, populate: bool = True) -> None:
        have = os.fstat(fd).st_size
        if have < size:
            raise SharedMemoryError(errno.EINVAL, f"a region of {have} bytes cannot be mapped as {size}")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED | (MAP_POPULATE if populate else 0), protection)
        self.size = size
        self.lost = False  # its owner has taken it away, and zeros are in its place
        self.array = np.frombuffer(self._map, np.uint8)
        self.address = int(self.array.ctypes.data)
        for tell in told_of_mappings:
            tell(self, fd, self._map, populate)

    @classmethod
    def adopt(cls, fd: int, size: int, *, writable: bool = True, populate: bool = True) -> "Mapping":
        """Map a descriptor that was received, and close it: the mapping is what keeps the memory."""
        try:
            return cls(fd, size, writable=writable, populate=populate)
        finally:
            os.close(fd)

    def words(self, dtype: str, offset: int = 0, count: int = -1) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
        """A view of `count` elements of `dtype` from byte `offset` on."""
        return np.frombuffer(self._map, dtype, count, offset)


class MappedOnce:
    """Domains' RAM, each mapped at most once while its domain lives.

    To map a GiB takes 0.3 s, in which nobody else is served, and a guest decides how often its device is opened.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Mapping, os.stat_result]] = {}

    def map(self, owner: str, fd: int, size: int) -> Mapping:
        """All of `owner`'s RAM, `fd`, which stays the caller's. SharedMemoryError if it is shorter, or was taken away."""
        file, (mapping, kept) = os.fstat(fd), self._kept.get(owner, (None, None))
        if mapping is None or kept is None or not os.path.samestat(file, kept):  # another domain has its name now
            mapping = Mapping(fd, size)
            self._kept[owner] = mapping, file
        if mapping.lost:
            raise SharedMemoryError(
                errno.ENODEV, f"{owner} has cut off its RAM, or has punched holes into it: it has no device any more"
            )
        return mapping

    def let_go(self, owner: str) -> None:
        """`owner` is no more. Nothing happens if nothing of it is mapped."""
        self._kept.pop(owner, None)


def private_pages(size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """`size` zeroed bytes of this process alone, on a page boundary, and all there. An array's own memory begins anywhere.

    A frame that begins on a cache line's boundary is copied and read with fewer accesses that cross one.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_POPULATE
    return np.frombuffer(mmap.mmap(-1, size, flags), np.uint8)


def create_region(backing: str, topology: str, owner: str, purpose: str, size: int, *, one_writer: bool = False) -> Region:
    """A new, zeroed, reserved region of at least `size` bytes (whole pages). SharedMemoryError if there is no room.

    `one_writer`: `seal_writes` will be called, before anybody else gets it.
    """
    size = -(-size // PAGE) * PAGE
    name = f"{owner}.{purpose}"
    try:
        if backing == "posix":
            shm_name = f"/{shm_prefix(topology)}{name}"
            fd = posix_ipc.SharedMemory(shm_name, posix_ipc.O_CREX, mode=0o600).fd
            os.set_inheritable(fd, False)
            region = Region(name, size, fd, shm_name)
        elif backing == "sealed":
            fd = os.memfd_create(f"xbl.{topology}.{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            region = Region(name, size, fd, None)
        else:
            raise ValueError(f"unknown backing {backing!r}; there are {', '.join(BACKINGS)}")
        try:
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, size)
            if backing == "sealed":
                last = 0 if one_writer else fcntl.F_SEAL_SEAL
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | last)
        except OSError:
            region.close()
            raise
    except posix_ipc.ExistentialError as error:
        raise SharedMemoryError(errno.EEXIST, f"region {name} of topology {topology} exists already") from error
    except OSError as error:
        room = os.statvfs(SHM)
        free = room.f_bavail * room.f_frsize
        code = error.errno or errno.EMFILE  # posix_ipc leaves it out, and has no other error without one
        cause = limits.descriptor_reason() if code == errno.EMFILE else error.strerror
        reason = f"region {name} of topology {topology}: {size} bytes cannot be had ({cause}); /dev/shm has {free} free"
        raise SharedMemoryError(code, reason) from error
    return region


def create_sparse(topology: str, owner: str, purpose: str, size: int) -> Region:
    """A new, zeroed region that takes memory only where it is touched: a process's own, which others only hold for the next one.

    In no folder, whatever the backing, and its size is sealed; `Mapping` maps it with `populate` False.
    """
    name = f"{owner}.{purpose}"
    fd = os.memfd_create(f"xbl.{topology}.{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return Region(name, size, fd, None)
