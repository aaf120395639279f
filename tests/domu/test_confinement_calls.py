"""System calls of a confined guest, argument by argument: what is refused, what is said to be done, and what goes on as it does."""

import ctypes
import errno
import os
import resource
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from domu.confinement import landlock, proc, syscalls
from domu.confinement.confine import Confinement, enter, furnish, seal
from hyp import linux
from tests.domu.test_confinement import be_a_user, in_a_child, outcome

pytestmark = pytest.mark.needs("confinement")

NUMBERS: Final = {
    "x86_64": {
        "arch_prctl": 158,
        "clone": 56,
        "fcntl": 72,
        "flock": 73,
        "getsockopt": 55,
        "ioctl": 16,
        "membarrier": 324,
        "prctl": 157,
        "seccomp": 317,
        "setsockopt": 54,
        "signalfd4": 289,
        "socket": 41,
        "socketpair": 53,
        "timerfd_create": 283,
    },
    "aarch64": {
        "clone": 220,
        "fcntl": 25,
        "flock": 32,
        "getsockopt": 209,
        "ioctl": 29,
        "membarrier": 283,
        "prctl": 167,
        "seccomp": 277,
        "setsockopt": 208,
        "signalfd4": 74,
        "socket": 198,
        "socketpair": 199,
        "timerfd_create": 85,
    },
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
TIOCGWINSZ, TIOCSETD, FIOSETOWN, SIOCSPGRP = 0x5413, 0x5423, 0x8901, 0x8902
F_GETLK, F_SETLK, F_SETLKW, F_SETOWN, F_GETOWN, F_SETOWN_EX, F_OFD_SETLK, F_OFD_SETLKW = 5, 6, 7, 8, 9, 15, 37, 38
PR_SET_SECCOMP, PR_FUTEX_HASH = 22, 78
SOL_RAW, SOL_PACKET, SOL_NETLINK, SO_PEERPIDFD = 255, 263, 270, 77
TUNSETOFFLOAD, FIONREAD, FIONBIO, TCGETS, F_GETPIPE_SZ = 0x4004_54D0, 0x541B, 0x5421, 0x5401, 1032


def came_of(*calls: tuple[Any, ...], network: bool = True) -> list[str]:
    """What came of system calls, each with its arguments, in a process that may make a confined guest's alone."""

    def body() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        syscalls.restrict(network=network)

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
    (socket.AF_NETLINK, socket.SOCK_RAW | FLAGS, 0), (socket.AF_NETLINK, socket.SOCK_DGRAM, 0),
]  # fmt: skip
UNUSUAL: Final = [
    (socket.AF_UNIX, socket.SOCK_STREAM, 0), (AF_VSOCK, socket.SOCK_STREAM, 0), (AF_TIPC, socket.SOCK_SEQPACKET, 0),
    (socket.AF_INET, SOCK_DCCP, 0), (socket.AF_INET, socket.SOCK_SEQPACKET, 0), (socket.AF_INET, socket.SOCK_STREAM, 132),
    (socket.AF_INET, socket.SOCK_STREAM | FLAGS, 132), (socket.AF_INET, socket.SOCK_STREAM, 132 | UPPER),
    (socket.AF_INET6, socket.SOCK_DGRAM, 136), (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    (socket.AF_INET, socket.SOCK_RAW, 256), (socket.AF_INET, socket.SOCK_RAW, UPPER),
    (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)), (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
    *((socket.AF_NETLINK, socket.SOCK_RAW | FLAGS, protocol) for protocol in (4, 6, 12, 15, 16, 21, UPPER)),
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
        assert came_of(*calls) == ["ENOSYS"] * len(calls)
        assert came_of(("ioctl", reader, TIOCGWINSZ, 0)) == ["ENOTTY"]
    finally:
        os.close(reader)
        os.close(writer)


USUAL_OPTIONS: Final = [
    (socket.SOL_SOCKET, 2), (socket.SOL_SOCKET, 8), (socket.SOL_SOCKET, 13), (socket.SOL_SOCKET, 15), (socket.SOL_SOCKET, 25),
    (socket.IPPROTO_TCP, 1), (socket.IPPROTO_TCP, 13), (socket.IPPROTO_TCP, 25), (socket.IPPROTO_IP, 1),
    (socket.IPPROTO_IP, 35), (socket.IPPROTO_IPV6, 26), (socket.IPPROTO_UDP, 103), (SOL_RAW, 1), (SOL_NETLINK, 11),
]  # fmt: skip
MISSED_OPTIONS: Final = [  # SO_ATTACH_FILTER, SO_MAX_PACING_RATE, SO_ATTACH_REUSEPORT_CBPF, UDP_ENCAP, UDP_GRO, SO_TIMESTAMP, …
    (socket.SOL_SOCKET, 26), (socket.SOL_SOCKET, 47), (socket.SOL_SOCKET, 51), (socket.IPPROTO_UDP, 100), (socket.IPPROTO_UDP, 104),
    *((socket.SOL_SOCKET, option) for option in (29, 35, 37, 63, 64, 65)),
]  # fmt: skip
UNUSUAL_OPTIONS: Final = [  # SO_LOCK_FILTER, SO_TXTIME, IP_MINTTL, IPT_SO_SET_REPLACE, TCP_MD5SIG, TCP_ULP, TCP_TX_DELAY, …
    (socket.SOL_SOCKET, 44), (socket.SOL_SOCKET, 61), (socket.IPPROTO_IP, 21), (socket.IPPROTO_IP, 64), (socket.IPPROTO_TCP, 14),
    (socket.IPPROTO_TCP, 31), (socket.IPPROTO_TCP, 37), (136, 100), (socket.IPPROTO_IPV6, 32), (socket.IPPROTO_IPV6, 73),
    *((SOL_PACKET, option) for option in (1, 5, 13, 18)), (SOL_NETLINK, 1),
    (SOL_PACKET, 5 | UPPER), (socket.IPPROTO_UDP | UPPER, 100),
    (socket.SOL_SOCKET, 26 | UPPER),
]  # fmt: skip


@pytest.mark.parametrize("network", [True, False])
def test_of_sockets_it_sets_what_programs_set(network: bool) -> None:
    """Others have the kernel interrupt all CPUs, compile into memory that is everybody's, or work on somebody else's time."""
    reader, writer = os.pipe()  # of which nothing is asked but by the filter
    try:
        for options, answer in ((USUAL_OPTIONS, "ENOTSOCK"), (MISSED_OPTIONS, "ENOPROTOOPT"), (UNUSUAL_OPTIONS, "ENOSYS")):
            assert came_of(*(("setsockopt", reader, *one, 0, 0) for one in options), network=network) == [answer] * len(options)
        calls = [("getsockopt", reader, socket.SOL_SOCKET, option, 0, 0) for option in (SO_PEERPIDFD, SO_PEERPIDFD | UPPER, 4)]
        assert came_of(*calls, network=network) == ["ENOPROTOOPT", "ENOPROTOOPT", "ENOTSOCK"]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_program_that_asks_for_more_of_its_sockets_goes_on_without() -> None:
    """As libpcap does, which filters by itself then."""

    def body() -> str:
        syscalls.restrict(network=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            udp.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            )
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            return outcome(lambda: udp.setsockopt(socket.IPPROTO_UDP, 104, 1))

    assert in_a_child(body) == "ENOPROTOOPT"


# --- other processes -------------------------------------------------------------------------------------------------


def test_no_child_for_its_parent() -> None:
    """Of flags that make no sense together the kernel makes nothing, in any case."""
    calls = [("clone", flags, 0, 0, 0, 0) for flags in (CLONE_PARENT | CLONE_THREAD, CLONE_THREAD)]
    assert came_of(*calls) == ["ENOSYS", "EINVAL"]


def test_nobody_is_nice_for_its_user() -> None:
    """For its group it may be: that is its own (test_confinement_programs.py)."""

    def body() -> str:
        os.setpgid(0, 0)
        syscalls.restrict(network=False)
        everybody = ((PRIO_USER, NOBODYS_UID), (PRIO_PGRP, 0), (PRIO_PROCESS, 0))
        return " ".join(outcome(lambda which=which, who=who: os.setpriority(which, who, 19)) for which, who in everybody)  # type: ignore[misc]

    assert in_a_child(body) == "ENOSYS done done"


def test_nobody_waits_for_a_lease_of_its_or_is_watched() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        where, what = os.open(folder, os.O_RDONLY), os.open(file.name, os.O_RDONLY)
        leases = [("fcntl", what, F_SETLEASE | upper, 0) for upper in (0, UPPER)]
        assert came_of(*leases, ("fcntl", where, F_NOTIFY, 1), ("fcntl", what, F_GETLEASE, 0)) == ["ENOSYS"] * 3 + ["done"]
        os.close(where)
        os.close(what)


def test_what_a_device_is_asked_for_by_its_administrator_is_refused() -> None:
    """TUNATTACHFILTER and its like, of a TAP that the guest's process has; SIOCSIFHWADDR, SIOCETHTOOL; time stamps by ioctl(2)."""
    reader, writer = os.pipe()  # which has none of them
    try:
        requests = (0x4004_54CA, 0x4010_54D5, 0x4004_54E2, 0x54E3, 0x8924, 0x8946, 0x8906, 0x8010_8907)
        assert came_of(*(("ioctl", reader, one | upper, 0) for one in requests for upper in (0, UPPER))) == ["ENOSYS"] * 16
        assert came_of(("ioctl", reader, TUNSETOFFLOAD, 0)) == ["ENOTTY"]
    finally:
        os.close(reader)
        os.close(writer)


def test_what_nobody_knows_of_is_not_asked_for() -> None:
    """Requests that this kernel has not, or that no program has need of; those that programs make are the kernel's to answer."""
    reader, writer = os.pipe()
    try:
        unknown = [("ioctl", reader, one | upper, 0) for one in (0, 0x1234_5678, 0xC0DE_FFFF) for upper in (0, UPPER)]
        unknown += [("fcntl", reader, one | upper, 0) for one in (10, 1036, 1038, 4000) for upper in (0, UPPER)]
        assert came_of(*unknown) == ["ENOSYS"] * len(unknown)
        room, where = ctypes.create_string_buffer(8), ctypes.create_string_buffer(64)
        known: list[tuple[Any, ...]] = [("ioctl", reader, one, room) for one in (FIONREAD, FIONREAD | UPPER, FIONBIO)]
        known += [("fcntl", reader, F_GETPIPE_SZ | upper, 0) for upper in (0, UPPER)]
        assert came_of(*known, ("ioctl", reader, TCGETS, where)) == ["done"] * len(known) + ["ENOTTY"]
    finally:
        os.close(reader)
        os.close(writer)


def test_nothing_wakes_by_interrupts() -> None:
    """By timerfd(2) and signalfd(2) any number of waiters are woken in one, on the time of whoever is interrupted."""
    assert came_of(("timerfd_create", 1, 0), ("signalfd4", -1, 0, 8, 0)) == ["ENOSYS"] * 2


def test_no_signals_to_a_group_for_what_arrives() -> None:
    reader, writer = os.pipe()
    try:
        calls = [("fcntl", reader, command | upper, 0) for command in (F_SETOWN, F_SETOWN_EX) for upper in (0, UPPER)]
        calls += [("ioctl", reader, request, 0) for request in (FIOSETOWN, SIOCSPGRP)]
        assert came_of(*calls, ("fcntl", reader, F_GETOWN, 0)) == ["ENOSYS"] * 6 + ["done"]
    finally:
        os.close(reader)
        os.close(writer)


def test_files_are_not_locked() -> None:
    """Those of the host's could be, by who may read them, and locks are memory that nothing limits."""
    with tempfile.NamedTemporaryFile() as file:
        what = os.open(file.name, os.O_RDONLY)
        lock = ctypes.create_string_buffer(64)  # a struct flock: F_RDLCK, of all
        kinds = [
            ("fcntl", what, command | upper, lock)
            for command in (F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW)
            for upper in (0, UPPER)
        ]
        flocks = [("flock", what, how) for how in (1, 2 | 4, 8)]
        assert came_of(*kinds, *flocks, ("fcntl", what, F_GETLK, lock)) == ["ENOLCK"] * 11 + ["done"]
        os.close(what)


def test_no_filters_of_its_own() -> None:
    """They are compiled, into memory that is the whole machine's: nobody else could be confined when that is used up."""
    filters = ctypes.create_string_buffer(16)
    calls = [("prctl", PR_SET_SECCOMP | upper, 2, filters, 0, 0) for upper in (0, UPPER)]
    assert came_of(*calls, ("seccomp", 1, 0, filters)) == ["ENOSYS"] * 3


def test_of_itself_it_says_what_programs_say() -> None:
    """Of prctl(2), and of arch_prctl(2): other options take memory that no limit counts, or make a switch to it dearer."""
    unusual = [("prctl", option, 1, 1 << 16, 0, 0) for option in (PR_FUTEX_HASH, 33, 35, 1000)]
    usual = [("prctl", option, 0, 0, 0, 0) for option in (3, 30, 39, PR_GET_SPECULATION_CTRL)]
    assert came_of(*unusual) == ["ENOSYS"] * 4
    assert "ENOSYS" not in came_of(*usual)
    if "arch_prctl" in NUMBERS:
        where = ctypes.create_string_buffer(8)
        calls = [
            ("arch_prctl", code, where) for code in (0x1003, 0x1012, 0x1023)
        ]  # ARCH_GET_FS, ARCH_SET_CPUID, ARCH_REQ_XCOMP_PERM
        assert came_of(*calls) == ["done", "ENOSYS", "ENOSYS"]


def test_cores_are_everybodys() -> None:
    calls = [("prctl", option | upper, 0, 0, 0, 0) for option in (PR_SCHED_CORE, PR_SET_SPECULATION_CTRL) for upper in (0, UPPER)]
    assert came_of(*calls) == ["ENOSYS"] * 4
    assert came_of(("membarrier", 0, 0, 0)) == ["ENOSYS"]
    assert came_of(("prctl", PR_GET_SPECULATION_CTRL, 0, 0, 0, 0))[0] != "EPERM"


# --- what is said to be done -----------------------------------------------------------------------------------------


def test_what_is_everybodys_is_neither_written_back_nor_forgotten() -> None:
    """Who does it finds that there is no such descriptor."""

    def body() -> str:
        syscalls.restrict(network=False)
        libc = ctypes.CDLL(None, use_errno=True)
        whole = (ctypes.c_long(0), ctypes.c_long(0))
        advised = [libc.posix_fadvise(-1, *whole, advice) for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED)]
        os.sync()
        return f"{libc.syncfs(-1)} {libc.sync_file_range(-1, *whole, 0)} {advised}"

    assert in_a_child(body) == f"0 0 {[0, errno.EBADF]}"


CONFINED: Final = Confinement(None, (), (), network=False)


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
def test_of_proc_it_has_what_is_of_processes_and_what_programs_ask_for(user: bool) -> None:
    """To read the rest takes locks that others wait for: of files, consoles, memory zones."""

    def body() -> str:
        there = {name for name in os.listdir("/proc") if not name.isdecimal()}
        found = {name for name in there - proc.KEPT if not is_empty(Path("/proc", name))}
        kept = {name for name in ("cpuinfo", "meminfo", "stat", "self/status", "net/dev") if is_empty(Path("/proc", name))}
        looked = outcome(lambda: os.listdir("/sys/kernel")), outcome(lambda: os.listdir("/sys/devices/system/cpu"))
        return f"{sorted(found)} {sorted(kept)} {len(there) > len(proc.KEPT)} {looked}"

    assert confined(body, user=user) == "[] [] True ('EACCES', 'done')"


def is_empty(path: Path) -> bool:
    """A folder with nothing in it, or a file."""
    return not (os.listdir(path) if path.is_dir() else path.read_bytes())


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
