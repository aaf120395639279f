"""Forked children that change what a process can do only once: its user, its namespaces, its mounts."""

import ctypes
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyp import linux
from tests.support.patience import patient

NOBODY = 65534
CHILD_LIMIT_S = 20.0
MS_REMOUNT, MS_PRIVATE = 32, 1 << 18
PR_SET_DUMPABLE = 4
libc = ctypes.CDLL(None, use_errno=True)


def call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def private_mounts() -> None:
    """Mounts made from here on are this child's own and go with it."""
    call(libc.unshare(linux.CLONE_NEWNS))
    call(libc.mount(b"none", b"/", None, linux.MS_REC | MS_PRIVATE, None))


def tun_device(mode: int | None) -> None:
    """A /dev/net of this child's own: with a TUN device of `mode`, or with none."""
    private_mounts()
    call(libc.mount(b"tmpfs", b"/dev/net", b"tmpfs", 0, b"mode=755"))
    if mode is not None:
        os.mknod("/dev/net/tun", 0o020000 | mode, os.makedev(10, 200))
        os.chmod("/dev/net/tun", mode)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # as after the exec that a real change of user comes with
    call(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))


def in_child(body: Callable[[], Any]) -> Any:
    """The result (JSON) of `body` in a forked child, which ends at once after; what it raises fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(patient(CHILD_LIMIT_S)))
            answer = {"result": body()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"wait status {status}"
    answer = json.loads(text)
    assert "error" not in answer, answer["error"]
    return answer["result"]


def read_only_sysctls() -> None:
    """/proc/sys as containers have it. It keeps user namespaces from a /proc of their own, which would show what is hidden."""
    private_mounts()
    call(libc.mount(b"/proc/sys", b"/proc/sys", None, linux.MS_BIND, None))
    call(libc.mount(b"none", b"/proc/sys", None, linux.MS_BIND | MS_REMOUNT | linux.MS_RDONLY, None))


def root_of_nothing() -> None:
    """Root of a user namespace, whose limits one can set."""
    become_nobody()
    call(libc.unshare(linux.CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"0 {NOBODY} 1")
    Path("/proc/self/uid_map").write_text(f"0 {NOBODY} 1")
