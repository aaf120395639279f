"""Attacks by page faults that do not end: the kernel copies to or from such a page with a lock held that others wait for.

Who may have a userfaultfd gets the kernel's own page faults by it and does not answer (``vm.unprivileged_userfaultfd``). Who may
not is told so by the kernel, and has tried.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker

SYS_USERFAULTFD: Final = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine, -1)
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
MISSING: Final = 1  # UFFDIO_REGISTER_MODE_MISSING
SIZE: Final = 1 << 16
PIPE_BYTES: Final = 60_000
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.epoll_wait.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]


class Nowhere:
    """Memory the first touch of which waits until `close`. OSError if there can be none."""

    def __init__(self) -> None:
        self._fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.address = libc.mmap(None, SIZE, 3, 0x22, -1, 0)
        fcntl.ioctl(self._fd, UFFDIO_API, struct.pack("QQQ", 0xAA, 0, 0))
        fcntl.ioctl(self._fd, UFFDIO_REGISTER, struct.pack("QQQQ", self.address, SIZE, MISSING, 0))

    def close(self) -> None:
        os.close(self._fd)


def _held(a: Attacker, touch: Callable[[int], Any], then: Callable[[], Any]) -> None:
    """One thread touches the memory, by a system call; when it waits, another one does the rest, for which somebody may wait."""
    try:
        memory = Nowhere()
    except OSError as error:
        a.got[str(error.strerror)] += 1
        a.goes_on(2)
        a.rest()
        return
    threading.Thread(target=touch, args=(memory.address,), daemon=True).start()
    a.goes_on(2)
    a.rest(0.02)
    done = threading.Thread(target=then, daemon=True)
    done.start()
    a.rest()
    memory.close()
    done.join()


def _channel(a: Attacker) -> tuple[int, list[int], list[int]]:
    """An upcall's descriptor, the ports of an event channel to itself, both of which are pending, and what the binding gave."""
    before = len(a.kept)
    upcall = a.call("upcall_create", keep=True) or {}
    epoll = int(a.kept[before])
    one = a.call("evtchn_alloc_unbound", remote=a.guest.domid, upcall=upcall["upcall"]) or {}
    other = a.call(
        "evtchn_bind_interdomain", keep=True, remote=a.guest.domid, remote_port=one["port"], upcall=upcall["upcall"]
    ) or {}  # fmt: skip
    return epoll, [one["port"], other["port"]], [int(fd) for fd in a.kept[before + 1 :]]


@attack("takes events from its upcall into a page that never comes, then has that upcall changed", Door.CALLS, Control.QUIET)
def upcall_into_nowhere(a: Attacker) -> None:
    epoll, ports, _ = _channel(a)
    _held(a, lambda address: libc.epoll_wait(epoll, address, 16, -1), lambda: [a.call("evtchn_close", port=port) for port in ports])


@attack("has its upcall changed while it is in use, for as long as is waited for it, lets go, and again", Door.CALLS, Control.CALLS)
def let_go_in_time(a: Attacker) -> None:
    before = len(a.kept)
    upcall = (a.call("upcall_create", keep=True) or {})["upcall"]
    epoll = select.epoll.fromfd(os.dup(int(a.kept[before])))
    port = (a.call("evtchn_alloc_unbound", remote=a.guest.domid, upcall=upcall) or {})["port"]
    always = os.eventfd(1)
    a.kept += [epoll, always]
    epoll.register(always, select.EPOLLIN)
    while a.goes_on():
        try:
            memory = Nowhere()
        except OSError as error:
            a.got[str(error.strerror)] += 1
            a.rest(0.001)
            continue
        held = threading.Thread(target=libc.epoll_wait, args=(epoll.fileno(), memory.address, 16, -1), daemon=True)
        held.start()
        a.rest(0.002)
        a.call("evtchn_bind_interdomain", remote=a.guest.domid, remote_port=port, upcall=upcall)
        memory.close()
        held.join()


@attack("has the last close of an event channel wait for an epoll of its own", Door.CALLS, Control.QUIET)
def last_close_into_nowhere(a: Attacker) -> None:
    _, ports, notifiers = _channel(a)
    own = select.epoll()
    for fd in notifiers:
        own.register(fd, select.EPOLLIN | select.EPOLLOUT)
        os.close(fd)
        a.kept.remove(fd)
    a.kept.append(own)
    _held(
        a,
        lambda address: libc.epoll_wait(own.fileno(), address, 16, -1),
        lambda: [a.call("evtchn_close", port=one) for one in ports],
    )


@attack("prints from a page that never comes", Door.CALLS, Control.QUIET)
def output_from_nowhere(a: Attacker) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(1, bytes(PIPE_BYTES))
    _held(a, lambda address: libc.write(1, address, 4096), lambda: None)
