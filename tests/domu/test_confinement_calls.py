"""System calls of a confined guest, argument by argument: what is refused, what is said to be done, and what goes on as it does."""

import ctypes
import errno
import os
import resource
import socket
import tempfile
from collections.abc import Callable
from typing import Any, Final

import pytest

from domu.confinement import landlock, syscalls
from domu.confinement.confine import Confinement, enter, furnish, seal
from hyp import linux
from tests.domu.test_confinement import be_a_user, in_a_child, outcome

pytestmark = pytest.mark.needs("confinement")

NUMBERS: Final = {
    "x86_64": {"clone": 56, "fcntl": 72, "ioctl": 16, "membarrier": 324, "prctl": 157, "socket": 41, "socketpair": 53},
    "aarch64": {"clone": 220, "fcntl": 25, "ioctl": 29, "membarrier": 283, "prctl": 167, "socket": 198, "socketpair": 199},
}[os.uname().machine]
AF_TIPC, AF_VSOCK, SOCK_DCCP = 30, 40, 6
FLAGS: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
UPPER: Final = 1 << 32
"""A bit of an argument of which the kernel reads 32."""
CLONE_PARENT, CLONE_THREAD = 0x8000, 0x10000
PRIO_PROCESS, PRIO_PGRP, PRIO_USER = 0, 1, 2
NOBODYS_UID: Final = 0x7FFF_FFF0
F_SETLEASE, F_GETLEASE, F_NOTIFY = 1024, 1025, 1026
PR_GET_SPECULATION_CTRL, PR_SET_SPECULATION_CTRL, PR_SCHED_CORE = 52, 53, 62
TIOCGWINSZ, TIOCSETD = 0x5413, 0x5423


def came_of(*calls: tuple[Any, ...], network: bool = True) -> list[str]:
    """What came of system calls, each with its arguments, in a process that may make a confined guest's alone."""

    def body() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        syscalls.restrict(network=network, placed=False)

        def attempt(name: str, *arguments: Any) -> None:
            words = [ctypes.c_long(one) if isinstance(one, int) else one for one in (NUMBERS[name], *arguments)]
            if libc.syscall(*words) < 0:
                raise OSError(ctypes.get_errno(), name)

        return " ".join(outcome(lambda call=call: attempt(*call)) for call in calls)  # type: ignore[misc]

    return in_a_child(body).split()


# --- sockets ---------------------------------------------------------------------------------------------------------

USUAL: Final = [
    (socket.AF_INET, socket.SOCK_STREAM, 0), (socket.AF_INET, socket.SOCK_STREAM | FLAGS, socket.IPPROTO_TCP),
    (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.AF_INET, socket.SOCK_DGRAM, 0),
    (socket.AF_INET6, socket.SOCK_DGRAM | FLAGS, socket.IPPROTO_UDP),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP), (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
    (socket.AF_INET6, socket.SOCK_RAW | FLAGS, socket.IPPROTO_ICMPV6), (socket.AF_INET, socket.SOCK_RAW, 89),
    (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)), (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
    *((socket.AF_NETLINK, socket.SOCK_RAW | FLAGS, protocol) for protocol in (0, 4, 12, 15, 16)),
]  # fmt: skip
UNUSUAL: Final = [
    (socket.AF_UNIX, socket.SOCK_STREAM, 0), (AF_VSOCK, socket.SOCK_STREAM, 0), (AF_TIPC, socket.SOCK_SEQPACKET, 0),
    (socket.AF_INET, SOCK_DCCP, 0), (socket.AF_INET, socket.SOCK_SEQPACKET, 0), (socket.AF_INET, socket.SOCK_STREAM, 132),
    (socket.AF_INET, socket.SOCK_STREAM | FLAGS, 132), (socket.AF_INET, socket.SOCK_STREAM, 132 | UPPER),
    (socket.AF_INET6, socket.SOCK_DGRAM, 136), (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    (socket.AF_INET, socket.SOCK_RAW, 256), (socket.AF_INET, socket.SOCK_RAW, UPPER),
    (socket.AF_NETLINK, socket.SOCK_RAW, 6), (socket.AF_NETLINK, socket.SOCK_RAW, 21),
]  # fmt: skip


def test_the_kernel_looks_for_no_module_for_a_socket() -> None:
    """It would run modprobe(8), as root, and have more of what may be attacked."""
    given = came_of(*(("socket", *one) for one in USUAL))
    refusals = {"EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT"}  # this kernel's, if it has no IPv6, say
    assert [one for one, came in zip(USUAL, given, strict=True) if came not in refusals | {"done"}] == []
    assert came_of(*(("socket", *one) for one in UNUSUAL)) == ["ENOSYS"] * len(UNUSUAL)
    raw = [("socket", family, socket.SOCK_RAW | FLAGS, 0) for family in (socket.AF_INET, socket.AF_INET6)]
    assert came_of(*raw) == ["EPROTONOSUPPORT"] * 2
    assert set(came_of(*(("socket", *one) for one in (*USUAL, *UNUSUAL)), network=False)) == {"ENOSYS"}


def test_pairs_of_sockets_are_of_the_family_that_is_local() -> None:
    ends = (ctypes.c_int * 2)()
    families = (socket.AF_UNIX, AF_TIPC, AF_VSOCK, socket.AF_INET, socket.AF_UNIX | UPPER)
    calls = [("socketpair", family, kind, 0, ends) for family in families for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)]
    for network in (True, False):
        assert came_of(*calls, network=network) == ["done"] * 2 + ["ENOSYS"] * 8


def test_no_module_for_a_bridge_a_vlan_or_a_terminal_either() -> None:
    requests = (TIOCSETD, 0x8940, 0x8941, 0x8980, 0x8981, 0x8982, 0x8983, 0x89A0, 0x89A1, 0x89A2, 0x89A3)
    reader, writer = os.pipe()  # which has none of them
    calls = [("ioctl", reader, request | upper, 0) for request in requests for upper in (0, UPPER)]
    try:
        assert came_of(*calls) == ["EPERM"] * len(calls)
        assert came_of(("ioctl", reader, TIOCGWINSZ, 0)) == ["ENOTTY"]
    finally:
        os.close(reader)
        os.close(writer)


# --- other processes -------------------------------------------------------------------------------------------------


def test_no_child_for_its_parent() -> None:
    """Of flags that make no sense together the kernel makes nothing, in any case."""
    calls = [("clone", flags, 0, 0, 0, 0) for flags in (CLONE_PARENT | CLONE_THREAD, CLONE_THREAD)]
    assert came_of(*calls) == ["ENOSYS", "EINVAL"]


def test_nobody_is_nice_for_its_user() -> None:
    """For its group it may be: that is its own (test_confinement_programs.py)."""

    def body() -> str:
        os.setpgid(0, 0)
        syscalls.restrict(network=False, placed=False)
        everybody = ((PRIO_USER, NOBODYS_UID), (PRIO_PGRP, 0), (PRIO_PROCESS, 0))
        return " ".join(outcome(lambda which=which, who=who: os.setpriority(which, who, 19)) for which, who in everybody)  # type: ignore[misc]

    assert in_a_child(body) == "ENOSYS done done"


def test_nobody_waits_for_a_lease_of_its_or_is_watched() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        where, what = os.open(folder, os.O_RDONLY), os.open(file.name, os.O_RDONLY)
        leases = [("fcntl", what, F_SETLEASE | upper, 0) for upper in (0, UPPER)]
        assert came_of(*leases, ("fcntl", where, F_NOTIFY, 1), ("fcntl", what, F_GETLEASE, 0)) == ["EPERM"] * 3 + ["done"]
        os.close(where)
        os.close(what)


def test_cores_are_everybodys() -> None:
    calls = [("prctl", option | upper, 0, 0, 0, 0) for option in (PR_SCHED_CORE, PR_SET_SPECULATION_CTRL) for upper in (0, UPPER)]
    assert came_of(*calls) == ["EPERM"] * 4
    assert came_of(("membarrier", 0, 0, 0)) == ["ENOSYS"]
    assert came_of(("prctl", PR_GET_SPECULATION_CTRL, 0, 0, 0, 0))[0] != "EPERM"


# --- what is said to be done -----------------------------------------------------------------------------------------


def test_what_is_everybodys_is_neither_written_back_nor_forgotten() -> None:
    """Who does it finds that there is no such descriptor."""

    def body() -> str:
        syscalls.restrict(network=False, placed=False)
        libc = ctypes.CDLL(None, use_errno=True)
        whole = (ctypes.c_long(0), ctypes.c_long(0))
        advised = [libc.posix_fadvise(-1, *whole, advice) for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED)]
        os.sync()
        return f"{libc.syncfs(-1)} {libc.sync_file_range(-1, *whole, 0)} {advised}"

    assert in_a_child(body) == f"0 0 {[0, errno.EBADF]}"


CONFINED: Final = Confinement(None, (), (), network=False, placed=False)


def confined(body: Callable[[], str], *, user: bool) -> str:
    """What it says in a confined process, of root's or of another `user`'s."""

    def sealed() -> str:
        furnish(CONFINED)
        seal(CONFINED)
        return body()

    def outside() -> str | None:
        if user:
            be_a_user()
        enter(CONFINED)
        return linux.asked_of_a_child(sealed)

    return in_a_child(outside)


@pytest.mark.parametrize("user", [False, pytest.param(True, marks=pytest.mark.needs("root"))])
def test_no_program_of_roots_is_started_for_its_cores(user: bool) -> None:
    """Of a core that goes to a program (core_pattern) the kernel heeds one limit, 1, and no other."""

    def body() -> str:
        found = [str(resource.getrlimit(resource.RLIMIT_CORE))]
        for most in (0, resource.RLIM_INFINITY):
            resource.setrlimit(resource.RLIMIT_CORE, (0, most))
            resource.prlimit(0, resource.RLIMIT_CORE, (0, most))
            found.append(str(resource.prlimit(0, resource.RLIMIT_CORE)))
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        return " ".join([*found, str(resource.getrlimit(resource.RLIMIT_NOFILE))])

    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("nobody here may have another limit on core files than 0")
    assert confined(body, user=user) == "(1, 1) (1, 1) (1, 1) (100, 200)"


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "flags"), [(6, 0), (7, 5)])
def test_denials_are_not_logged_where_the_kernel_can_be_told_so(monkeypatch: pytest.MonkeyPatch, version: int, flags: int) -> None:
    """Landlock's; the kernel is played."""
    calls: dict[int, tuple[object, ...]] = {}

    def played(number: int, *arguments: object) -> int:
        calls[number] = arguments
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(landlock, "_syscall", played)
    monkeypatch.setattr(landlock, "abi", lambda: version)
    landlock.restrict([])
    assert calls[landlock._RESTRICT_SELF][1] == flags


@pytest.mark.needs("root", "mounts")
def test_what_the_host_mounts_later_is_not_there() -> None:
    """It would be there as the host has it, which may be written to."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:

        def guest(reader: int, writer: int) -> str:
            enter(CONFINED)

            def looks() -> str:
                before = os.stat(folder).st_dev
                furnish(CONFINED)
                os.write(writer, b"!")
                os.read(reader, 1)
                return str(os.stat(folder).st_dev == before)

            return str(linux.asked_of_a_child(looks))

        def host() -> str:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", "none", linux.MS_REC | 1 << 20)  # MS_SHARED, as systemd has it
            (go, tell), (ready, say) = os.pipe(), os.pipe()
            answer, told = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.write(told, guest(go, say).encode())
                finally:
                    os._exit(0)
            os.close(told)
            os.close(say)
            os.read(ready, 1)
            linux.mount("tmpfs", folder, "tmpfs")
            os.write(tell, b"!")
            with open(answer) as pipe:
                said = pipe.read()
            os.waitpid(child, 0)
            linux.unmount(folder)
            return said

        assert in_a_child(host) == "True"
