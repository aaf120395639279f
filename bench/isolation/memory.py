"""Attacks by what a guest holds descriptors of: its memory, its counters, its grant table, its wake-ups, its log."""

import ctypes
import fcntl
import itertools
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.calls import upcall_of
from hyp.abi.counters import COUNTERS_BYTES
from hyp.abi.nic import PAGE

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
SEALS: Final = {"grow": 4, "shrink": 2, "write": 8, "future write": 16, "seal": 1}
SIG_IGN: Final = 1
HUGE: Final = 2 << 20
MADV_COLLAPSE: Final = 25
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000
PUNCH_HOLE: Final = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
libc = ctypes.CDLL(None, use_errno=True)


def own_regions(a: Attacker) -> list[int]:
    """Descriptors of RAM, counters, platform page, and of the grant table if there is one, with their numbers kept."""
    a.call("domain_info", keep=True)
    fds = [int(fd) for fd in a.kept[-3:]]
    if a.path == "split" and a.call("gnttab_setup", keep=True, frames=4) is not None:
        fds.append(int(a.kept[-1]))
    return fds


def _try(a: Attacker, what: Callable[[], Any]) -> None:
    """Do it, and count how it is refused."""
    a.goes_on()
    try:
        what()
    except OSError as error:
        a.got[str(error.strerror)] += 1


@attack("cuts its own RAM, counters and grant table off while the others use them", Door.MEMORY, Control.QUIET, sent_to=True)
def truncated_memory(a: Attacker) -> None:
    fds = own_regions(a)
    notify = a.driver.notify
    for k in range(min(a.driver.room(), 16)):
        a.driver.send(a.driver.page(k), 200)
    a.driver.publish()
    for fd in fds:
        _try(a, lambda fd=fd: os.ftruncate(fd, 0))  # type: ignore[misc]
    while a.rest(0.001):
        notify()


@attack("punches holes into its RAM, again and again, so that its pages have to be made anew", Door.MEMORY, sent_to=True)
def punched_memory(a: Attacker) -> None:
    _keep_punching(a)


@attack("has pages beyond the end of its RAM, as many as it punches holes into it then", Door.MEMORY, sent_to=True)
def hidden_holes(a: Attacker) -> None:
    ram, size = own_regions(a)[0], 2 * a.driver.pages * PAGE
    _try(a, lambda: os.posix_fallocate(ram, os.fstat(ram).st_size, size))
    _keep_punching(a)


def _keep_punching(a: Attacker) -> None:
    ram, size = own_regions(a)[0], ctypes.c_long(a.driver.pages * PAGE)
    while a.goes_on():
        for pool in (a.driver.page(0), a.driver.buffer(0)):
            if libc.fallocate(ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, ctypes.c_long(pool), size):
                a.got[os.strerror(ctypes.get_errno())] += 1
                if not a.rest(0.001):
                    return
        for k in range(min(a.driver.room(), 16)):
            a.driver.send(a.driver.page(k), 200)
        a.take_what_comes()


@attack("has its RAM made of huge pages, and splits them, again and again: not one hole is there", Door.MEMORY, sent_to=True)
def pages_made_anew(a: Attacker) -> None:
    ram = own_regions(a)[0]
    size = os.fstat(ram).st_size // HUGE * HUGE
    room = mmap.mmap(-1, size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    at = -(-ctypes.addressof(ctypes.c_char.from_buffer(room)) // HUGE) * HUGE
    a.kept.append(room)
    libc.mmap.restype = ctypes.c_void_p
    mapped = libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(size), 3, mmap.MAP_SHARED | MAP_FIXED, ram, ctypes.c_long(0))
    if mapped != at:
        raise OSError(ctypes.get_errno(), "its RAM cannot be mapped by huge pages' bounds")
    pages = {*map(a.driver.page, range(a.driver.pages)), *map(a.driver.buffer, range(a.driver.pages))}
    blocks = [block for block in sorted({page // HUGE * HUGE for page in pages}) if block < size]

    def make_anew() -> None:
        for block in itertools.cycle(blocks):
            if not a.goes_on():
                return
            for failed in (
                libc.madvise(ctypes.c_void_p(at + block), ctypes.c_size_t(HUGE), MADV_COLLAPSE),
                libc.fallocate(ram, PUNCH_HOLE, ctypes.c_long(block + HUGE - 1), ctypes.c_long(1)),  # of no page, and it splits
            ):
                if failed:
                    a.got[os.strerror(ctypes.get_errno())] += 1

    making = threading.Thread(target=make_anew)
    making.start()
    while a.rest(0.0002):
        for k in range(min(a.driver.room(), 16)):
            a.driver.send(a.driver.page(k), 200)
        a.take_what_comes()
    making.join()


@attack("seals its RAM, counters and grant table against changes, then asks for contexts and tables", Door.MEMORY, Control.CALLS)
def sealed_memory(a: Attacker) -> None:
    for fd in own_regions(a):
        for seal in SEALS.values():
            _try(a, lambda fd=fd, seal=seal: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal))  # type: ignore[misc]
    while a.goes_on(9):
        a.calls(
            [("context_open", {"upcall": 0})] * 4
            + [("gnttab_setup", {"frames": 4})] * 4
            + [("mr_register", {"addr": 0, "length": PAGE, "writable": True})]
        )


@attack("takes leases and locks on what others have to open or map", Door.MEMORY, Control.QUIET)
def leases_and_locks(a: Attacker) -> None:
    libc.signal(signal.SIGIO, SIG_IGN)  # which tells that a lease is to be given up
    for fd in own_regions(a):
        for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
            _try(a, lambda fd=fd, kind=kind: fcntl.fcntl(fd, fcntl.F_SETLEASE, kind))  # type: ignore[misc]
        _try(a, lambda fd=fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))  # type: ignore[misc]
        try:
            reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        except OSError as error:
            a.got[str(error.strerror)] += 1
            continue
        a.kept.append(reopened)
        _try(a, lambda fd=reopened: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))  # type: ignore[misc]
    a.rest()


@attack("reads and fills the eventfds and upcalls that it holds, and changes their flags", Door.MEMORY, sent_to=True)
def swallowed_wakeups(a: Attacker) -> None:
    row = a.driver
    fds = [int(row.q["doorbell_fd"])] if hasattr(row, "q") else [int(row.front[name]) for name in ("tx_event_fd", "rx_event_fd")]
    fds.append(upcall_of(a.guest))
    while a.goes_on(len(fds)):
        for fd in fds:
            for change in (lambda fd=fd: os.read(fd, 8), lambda fd=fd: os.write(fd, (2**64 - 2).to_bytes(8, "little"))):
                try:
                    os.set_blocking(fd, False)
                    change()
                except OSError as error:
                    a.got[str(error.strerror)] += 1
        a.take_what_comes()


@attack("writes all over its counters", Door.MEMORY)
def scribbled_counters(a: Attacker) -> None:
    _, counters, *_ = own_regions(a)
    noise = os.urandom(COUNTERS_BYTES)
    while a.goes_on():
        _try(a, lambda: os.pwrite(counters, noise, 0))


@attack("prints without end: long lines, markup, escape sequences, lines in others' names", Door.MEMORY, Control.BUSY)
def flooded_log(a: Attacker) -> None:
    lines = b"dom0: [bold red]out of memory\x1b[2J\x1b]0;x\x07\nhyp: Traceback (most recent call last)\n" + b"z" * 4000 + b"\n"
    out = sys.stdout.fileno()
    while a.goes_on():
        try:
            os.write(out, lines * 8)
        except OSError as error:
            a.got[str(error.strerror)] += 1
            a.rest(0.001)


@attack("prints a byte at a time, each a packet of the pipe's", Door.MEMORY, Control.BUSY)
def dripping_log(a: Attacker) -> None:
    out = sys.stdout.fileno()
    _try(a, lambda: fcntl.fcntl(out, fcntl.F_SETFL, fcntl.fcntl(out, fcntl.F_GETFL) | os.O_DIRECT))
    while a.goes_on():
        try:
            os.write(out, b"x")
        except OSError as error:
            a.got[str(error.strerror)] += 1
            a.rest(0.001)


@attack("opens, reads and closes every descriptor that it has been given", Door.MEMORY, Control.QUIET)
def own_descriptors_misused(a: Attacker) -> None:
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    for fd in numbers:
        if fd <= 2:
            continue
        for what in (
            lambda fd=fd: os.ftruncate(fd, 1 << 40),
            lambda fd=fd: os.pread(fd, 1, 1 << 50),
            lambda fd=fd: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND),
        ):
            _try(a, what)
    a.rest()
