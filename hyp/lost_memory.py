"""Memory that its owner takes away: a guest can cut its own short, and punch holes into it.

Who touches what has been cut off gets SIGBUS.

With POSIX shared memory (hyp/memory.py) nothing keeps a guest from `ftruncate` of its own RAM. It must cost the guest its device
and nobody else, so a process that maps others' memory has a handler for SIGBUS, compiled, which

1. finds the address among the regions that are guarded here (`TABLE`); one that is none of them is a fault of ours, and goes to
   whoever had the signal before (faulthandler, which tells where, and then the default action);
2. maps zeroed private memory over *all* of the region, in one call, so that the access is tried again and succeeds, nothing of it
   faults twice, and the process's mappings do not become more;
3. marks the region as lost and writes to an eventfd, by which the process's event loop learns of it.

What the guest does from then on nobody sees, and what a device reads is zeros: empty descriptors, rings that ran backwards, grants
that are not there. So its device fails, or serves nothing, by the checks that any guest's passes. Nothing of this is on the data
path.

Who touches a hole gets a page made anew, by a page fault that waits as long as a hole is being punched: who goes on punching takes
up the loops that serve it. All regions are whole from the beginning: one that has fewer blocks than its size says has holes, and
one that has more has got some beyond its end, which would hide as many holes. Nothing of that is learnt from the file when it is
mapped: its owner may have made holes, or added memory, before.
So a process looks every `LOOK_S` which regions have holes, and more closely if it had many page faults: these are lost, too.

Its owner can take a region out of others' page tables without any hole: it has the kernel make a huge page of its pages
(MADV_COLLAPSE), and splits that by a punch of less than a page. All of a region is mapped from the beginning: a process that has
some page faults sees by /proc/self/smaps whether a huge page's worth of one is not any more, and maps it again. If nothing was
swapped out by the machine meanwhile, and it is missing again, that is its owner's doing, or the kernel's, which makes a huge page
now and then by itself; so a region is lost of which that is seen STRIKES times within STRIKES_S (`Unmapped`).

The handler is called with no argument of ours, so the table is at an address that every process knows. All of it is
async-signal-safe: loads and stores, mmap(2), write(2), sigaction(2).
"""

import asyncio
import contextlib
import ctypes
import logging
import mmap
import os
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

import numpy as np

from hyp import limits
from hyp.atomics import load64, store64, sys_syscall, sys_write
from hyp.control.limited_log import LimitedLog
from hyp.events import new_eventfd
from hyp.kernels import i64, operation
from hyp.memory import Mapping, told_of_mappings

log = logging.getLogger(__name__)

TABLE: Final = 0x5EAD_0000_0000
"""Address of the table: a header of as many bytes as an entry has, then ENTRIES entries."""
ENTRIES: Final = 4096
ENTRY: Final = np.dtype([("start", "<i8"), ("end", "<i8"), ("lost", "<i8"), ("spare", "<i8")])
ENTRY_BYTES: Final = 32
EVENTFD, USED, BEFORE, ONE = 0, 8, 16, 24
"""In the header: descriptor to write to; entries in use, at most; what handled the signal before; the 1 to be written."""
TABLE_BYTES: Final = (ENTRIES + 1) * ENTRY_BYTES
SI_ADDR: Final = 16  # in siginfo_t, on 64-bit machines
SIGBUS: Final = 7
SYS_MMAP: Final = {"x86_64": 9, "aarch64": 222}.get(os.uname().machine, -1)
SYS_RT_SIGACTION: Final = {"x86_64": 13, "aarch64": 134}.get(os.uname().machine, -1)
READ_WRITE: Final = 3  # PROT_READ | PROT_WRITE
IN_ITS_PLACE: Final = 0x32 | 0x4000  # MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE
FIXED_NOREPLACE: Final = 0x22 | 0x100000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
SA_SIGINFO, SA_ONSTACK, SA_NODEFER = 4, 0x0800_0000, 0x4000_0000
KERNEL_SIGACTION_BYTES: Final = 32
LOOK_S: Final = 0.25
MANY_FAULTS: Final = 500
"""Page faults in that time, from which on it is looked more closely for holes."""
SOME_FAULTS: Final = 32
"""From which on it is looked for what is not mapped: each may wait for a huge page to be made."""
RESTS: Final = 20
"""Times as long as such a look takes, which goes by all pages that are mapped, passes until the next one."""
BLOCK: Final = 512
"""In which stat(2) counts, in bytes."""
MANY_BLOCKS: Final = 1 << 62
STRIKES: Final = 3
STRIKES_S: Final = 10.0
HUGE: Final = 2 << 20
"""The smallest huge page that there is on any of our machines."""
MADV_POPULATE_READ: Final = 22
LOOKS: Final = 32
"""At the blocks of each region, as a hole may have been filled again."""

_names: list[str] = [""] * ENTRIES
File = tuple[int, int]
"""Device and inode: several file systems have the same inodes."""
NO_FILE: Final[File] = (0, 0)

_files: list[tuple[File, int, int]] = [(NO_FILE, 0, 0)] * ENTRIES
"""The file of each region, how many blocks it has to have, and may have: its size says so, not what its owner has made of it."""
_mappings: list[Callable[[], Mapping | None]] = [lambda: None] * ENTRIES
"""Of each region, as long as there is one."""
_holed: set[File] = set()
"""Those in which holes were seen."""
_logs: dict[str, LimitedLog] = {}
"""By names of regions, which are no more than a topology's domains have: pages that come and go can be lost again and again."""
_libc: Any = None
_table: Any = None
_before: Any = None


@operation(i64(i64, i64, i64))
def _handle(signal_number: int, siginfo: int, context: int) -> int:
    """The handler: (int, siginfo_t *, void *)."""
    address = load64(siginfo + SI_ADDR)
    for k in range(load64(TABLE + USED)):
        entry = TABLE + (k + 1) * ENTRY_BYTES
        start, end = load64(entry), load64(entry + 8)
        if start <= address < end:
            if sys_syscall(SYS_MMAP, start, end - start, READ_WRITE, IN_ITS_PLACE, -1, 0) == start:
                store64(entry + 16, 1)
                sys_write(load64(TABLE + EVENTFD), TABLE + ONE, 8)
                return 0
            break
    sys_syscall(SYS_RT_SIGACTION, SIGBUS, load64(TABLE + BEFORE), 0, 8, 0, 0)
    return 0


class _Sigaction(ctypes.Structure):
    """glibc's struct sigaction."""

    _fields_ = (("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p))


def guard(told: Callable[[str], None] | None = None) -> None:
    """From now on lost memory is replaced in this process. `told`: called on the event loop with the region's name; logged anyway.

    Once a process. OSError if the kernel has no place for the table.
    """
    global _table, _before, _libc
    _libc = libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    found = libc.mmap(TABLE, TABLE_BYTES, READ_WRITE, FIXED_NOREPLACE, -1, 0)
    if found != TABLE:
        raise OSError(ctypes.get_errno(), "no place for the table of guarded memory")
    memory: Any = (ctypes.c_char * TABLE_BYTES).from_address(TABLE)
    header = np.frombuffer(memory, np.int64, 4)
    _before = ctypes.create_string_buffer(KERNEL_SIGACTION_BYTES)
    if libc.syscall(ctypes.c_long(SYS_RT_SIGACTION), ctypes.c_long(SIGBUS), None, _before, ctypes.c_long(8)) != 0:
        raise OSError(ctypes.get_errno(), "SIGBUS cannot be handled")
    told_fd = new_eventfd()
    header[:] = [told_fd, 0, ctypes.addressof(_before), 1]
    action = _Sigaction(_handle.address, (ctypes.c_ulong * 16)(), SA_SIGINFO | SA_ONSTACK | SA_NODEFER, None)
    if libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) != 0:
        raise OSError(ctypes.get_errno(), "SIGBUS cannot be handled")
    _table = np.frombuffer(memory, ENTRY, ENTRIES, ENTRY_BYTES)
    told_of_mappings.append(_enter)
    asyncio.get_running_loop().add_reader(told_fd, _look, told_fd, told)
    with limits.told_of_threads("the thread that looks for holes in others' memory"):
        threading.Thread(target=_look_for_holes, args=(told_fd,), name="holes", daemon=True).start()


def _look_for_holes(told_fd: int) -> None:
    """The thread that looks at the regions' blocks: fstat(2) may wait until a hole has been punched."""
    fds: dict[File, int] = {}
    faults, unmapped, again_at = 0, Unmapped(_map_again), 0.0
    while True:
        time.sleep(LOOK_S)
        before, faults = faults, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        whole: dict[File, tuple[int, int]] = {}
        for file, least, most in (_files[k] for k in np.flatnonzero(_table["end"])):
            if file != NO_FILE:  # else it is lost already
                before_it = whole.get(file, (0, 0))
                whole[file] = max(least, before_it[0]), max(most, before_it[1])
        if not whole.keys() <= fds.keys():
            fds = _open_files(whole)
        holed = {file for _ in range(LOOKS if faults - before >= MANY_FAULTS else 1) for file in _with_holes(whole, fds)}
        if faults - before >= SOME_FAULTS and (begun := time.monotonic()) >= again_at:
            watched = {int(_table[k]["start"]): _files[k][0] for k in np.flatnonzero(_table["end"])}
            with open("/proc/self/smaps") as smaps, open("/proc/vmstat") as vmstat:
                holed |= unmapped.look({start: file for start, file in watched.items() if file != NO_FILE}, smaps, vmstat)
            again_at = time.monotonic() + RESTS * (time.monotonic() - begun)
        if holed:
            _holed.update(holed)
            os.eventfd_write(told_fd, 1)


def _open_files(files: Collection[File]) -> dict[File, int]:
    """A descriptor of this process for each: each is open, by its mapping's at least."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            file = _file_of(os.fstat(int(name)))
            if file in files:
                found[file] = int(name)
    return found


def _file_of(found: os.stat_result) -> File:
    return found.st_dev, found.st_ino


def _with_holes(whole: dict[File, tuple[int, int]], fds: dict[File, int]) -> Iterator[File]:
    """Those that have fewer blocks than when they were `whole`, or more."""
    for file, fd in list(fds.items()):
        try:
            found = os.fstat(fd)
        except OSError:
            found = None
        if found is None or _file_of(found) != file:
            del fds[file]  # it was another mapping's, which has gone
            continue
        least, most = whole.get(file, (0, MANY_BLOCKS))
        if not least <= found.st_blocks <= most:
            yield file


def _map_again(start: int, size: int) -> None:
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_POPULATE_READ)


class Unmapped:
    """Regions of which again and again a huge page's worth is not mapped. `map_again(start, size)`."""

    def __init__(self, map_again: Callable[[int, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._map_again, self._clock = map_again, clock
        self._mapped: dict[tuple[int, File], int] = {}  # how many pages the machine had swapped out when it was mapped again
        self._strikes: dict[File, list[float]] = {}

    def look(self, watched: dict[int, File], smaps: Iterable[str], vmstat: Iterable[str]) -> set[File]:
        """Files of the regions that are lost. `watched`: by where they begin. `smaps`, `vmstat`: lines, as proc(5) has them."""
        swapped = next((int(line.split()[1]) for line in vmstat if line.startswith("pswpout ")), 0)
        lost = set()
        for start, size, missing in _missing_of(smaps):
            if missing < HUGE or start not in watched:
                continue
            file = watched[start]
            if self._mapped.get((start, file)) == swapped:
                now = self._clock()
                seen = self._strikes[file] = [at for at in self._strikes.get(file, []) if now - at <= STRIKES_S] + [now]
                if len(seen) >= STRIKES:
                    lost.add(file)
            self._map_again(start, size)
            self._mapped[start, file] = swapped
        return lost


def _missing_of(smaps: Iterable[str]) -> Iterator[tuple[int, int, int]]:
    """(start, size, bytes that are neither mapped nor swapped out) of each mapping."""
    start = size = there = 0
    for line in smaps:
        name, _, rest = line.partition(":")
        if name in ("Rss", "Swap"):
            there += int(rest.split()[0]) << 10
        elif name == "VmFlags":  # the last of a mapping's
            yield start, size, size - there
        elif "-" in name:
            first, _, last = line.split(None, 1)[0].partition("-")
            start, size, there = int(first, 16), int(last, 16) - int(first, 16), 0


def _look(told_fd: int, told: Callable[[str], None] | None) -> None:
    """Which regions were lost."""
    os.eventfd_read(told_fd)
    while _holed:
        file = _holed.pop()
        for k in np.flatnonzero(_table["end"]):
            start, size = int(_table[k]["start"]), int(_table[k]["end"] - _table[k]["start"])
            if _files[k][0] == file and _libc.mmap(start, size, READ_WRITE, IN_ITS_PLACE, -1, 0) == start:
                _table[k]["lost"] = 2
    for k in np.flatnonzero(_table["lost"]):
        if (mapping := _mappings[k]()) is not None:
            mapping.lost = True
        what = "was cut off" if _table[k]["lost"] == 1 else "has had holes punched into it, memory added, or its pages made anew,"
        _table[k]["lost"], _files[k] = 0, (NO_FILE, 0, 0)
        _log_of(_names[k]).warning(f"{what} by its owner: zeros are in its place, and its device serves nothing any more")
        if told is not None:
            told(_names[k])


def _log_of(name: str) -> LimitedLog:
    return _logs.setdefault(name, LimitedLog(log, name))


def _whole_file(fd: int, size: int) -> tuple[File, int, int]:
    """What is watched of the file of a region of `size` bytes, all of which was reserved when it was made.

    Its memory may be in units of more than a page (st_blksize says so), so that it reaches beyond its end.
    """
    found = os.fstat(fd)
    pages, unit = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, max(found.st_blksize, mmap.PAGESIZE)
    return _file_of(found), pages // BLOCK, -(-size // unit) * unit // BLOCK


def _enter(mapping: Mapping, fd: int, mapped: mmap.mmap, whole: bool) -> None:
    """Guard a mapping of `fd` for as long as it is there. `whole`: all of its memory is there, and is to stay."""
    start, size = mapping.address, mapping.size
    free = np.flatnonzero(_table["end"] == 0)
    if len(free) == 0:
        _log_of("the table of guarded memory").error("no place is left in it")
        return
    k = int(free[0])
    _names[k] = os.path.basename(os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)"))
    _mappings[k] = weakref.ref(mapping)
    _files[k] = _whole_file(fd, size) if whole else (NO_FILE, 0, 0)
    _table[k] = (start, 0, 0, 0)
    _table[k]["end"] = start + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    header: Any = (ctypes.c_long * 4).from_address(TABLE)
    header[USED // 8] = max(header[USED // 8], k + 1)
    weakref.finalize(mapped, _leave, k)


def _leave(place: int) -> None:
    """The mapping is about to go."""
    _table[place] = (0, 0, 0, 0)
