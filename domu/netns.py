"""A guest's network namespace, for programs that know nothing of the lab: a TAP device `eth0` (hyp/net/tap.py), and `lo`.

The TAP has the offloads that its program sets: none at first, so that every frame is at most MTU + 14 bytes long and its checksums
are complete, as a wire's are. The namespace has no name: it goes with the last process in it, and so does the TAP. Whoever may not
create one (CAP_SYS_ADMIN) gets it inside a new user namespace, where the calling user is root.

Sources: network_namespaces(7), user_namespaces(7).
"""

import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Final

from hyp import linux
from hyp.net import netlink
from hyp.net.interface import configure, link_local, octets_of, set_ipv6_defaults
from hyp.net.steps import SetupError, step
from hyp.net.tap import open_tap

INTERFACE: Final = "eth0"


@dataclass(frozen=True, slots=True)
class Addresses:
    """What `eth0` has: addresses with the lengths of their prefixes, and gateways, which are for all else. None: there is none.

    `link_local`: it has the link-local IPv6 address that its MAC address makes, too.
    """

    address: str
    address6: str | None = None
    link_local: bool = False
    gateway: str | None = None
    gateway6: str | None = None
    neighbours: Mapping[str, str] = field(default_factory=dict)
    """Address → MAC address, of whom nobody else is to be taken for."""


@dataclass(frozen=True, slots=True)
class Tap:
    """The TAP `name`: `fd` (non-blocking, closed on exec, the caller's) moves one frame per read and write."""

    fd: int
    name: str


def create(mac: str, addresses: Addresses, mtu: int) -> Tap:
    """Move this process into a network namespace of its own with a TAP `eth0` and `lo`, both up, and nothing else.

    `mtu` is in bytes. The process must have one thread only: others would stay outside. After a SetupError the process may be
    half inside and should end.
    """
    octets = octets_of(mac)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SetupError(
            "enter a network namespace",
            f"the process has {threads} threads, and only one of them would enter",
            "create it before any thread is started (importing numpy starts some, unless OPENBLAS_NUM_THREADS=1)",
        )
    _enter()
    fd = open_tap(INTERFACE, {errno.EPERM: user_namespace_remedy()})
    try:
        _configure(octets, addresses, mtu)
    except BaseException:
        os.close(fd)
        raise
    return Tap(fd, INTERFACE)


def can_create() -> str | None:
    """None if this process could call `create` (in a child of one thread), otherwise why not. Tries it in a child."""
    return tried(lambda _: None)


def tried(question: Callable[[Tap], str | None]) -> str | None:
    """What `question` says of a TAP made for it in a child, or why there can be none. None: there is nothing to complain of."""
    return linux.asked_of_a_child(lambda: question(create("02:00:00:00:00:01", Addresses("10.0.0.1/24"), 1500)))


# --- the namespace ---------------------------------------------------------------------------------------------------


def _enter() -> None:
    """A new network namespace; inside a new user namespace, as root of it, if we are not root or may not otherwise."""
    limit = {errno.ENOSPC: "the machine allows no more of them: raise /proc/sys/user/max_net_namespaces"}
    if os.geteuid() == 0:
        try:
            with step("create a network namespace", limit):
                linux.unshare(linux.CLONE_NEWNET)
            return
        except SetupError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
    uid, gid = os.geteuid(), os.getegid()
    remedies = dict.fromkeys((errno.EPERM, errno.ENOSPC, errno.EUSERS), user_namespace_remedy())
    with step("create a user namespace", remedies):
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
    become_root(uid, gid)


def become_root(uid: int, gid: int) -> None:
    """Be root of the new user namespace that this process is in, outside of which it is `uid` and `gid`. SetupError."""
    undumpable = "the process changed its user and is not dumpable: prctl(PR_SET_DUMPABLE, 1) first"
    with step("become root of the user namespace", {errno.EACCES: undumpable, errno.EPERM: user_namespace_remedy()}):
        # user_namespaces(7): without privilege outside, setgroups must be given up before gid_map can be written
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def user_namespace_remedy() -> str:
    """What keeps ordinary users from creating user namespaces on this machine, and how to allow it."""
    switches = (
        ("user/max_user_namespaces", "0", "15000"),
        ("kernel/unprivileged_userns_clone", "0", "1"),  # Debian's
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu's
    )
    for name, forbids, allows in switches:
        try:
            value = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
        if value == forbids:
            return f"user namespaces are disabled here: sysctl -w {name.replace('/', '.')}={allows}, or run as root"
    return "run as root, or where a seccomp filter or a chroot forbids it (containers), grant CAP_SYS_ADMIN"


# --- what is in it ---------------------------------------------------------------------------------------------------


def _configure(mac: bytes, addresses: Addresses, mtu: int) -> None:
    """Addresses, MTU and routes of the TAP, which goes up, and `lo` before it."""
    with step("bring lo up"):
        netlink.bring_up(socket.if_nametoindex("lo"))
    given = [addresses.address, addresses.address6]
    interfaces = [ip_interface(one) for one in given if one is not None] + [link_local(mac)] * addresses.link_local
    set_ipv6_defaults(wanted=any(one.version == 6 for one in interfaces))
    index = configure(INTERFACE, mac, mtu, interfaces, addresses.neighbours)
    for gateway in (addresses.gateway, addresses.gateway6):
        if gateway is not None:
            with step(f"set the gateway {gateway}"):
                netlink.add_default_route(index, ip_address(gateway))
