"""A guest's network namespace, for programs that know nothing of the lab: a TAP device `eth0` (hyp/net/tap.py), and `lo`.

The TAP has the offloads that its program sets: none at first, so that every frame is at most MTU + 14 bytes long and its checksums
are complete, as a wire's are. The namespace has no name: it goes with the last process in it, and so does the TAP. Whoever may not
create one (CAP_SYS_ADMIN) gets it inside a new user namespace, where the calling user is root.

What nobody has asked for is not sent. Without IPv6 addresses `eth0` has IPv6 off. With them it has these and no other: they are
there at once, without duplicate address detection, and routers are neither solicited nor heeded; what is left are the kernel's
reports of the multicast groups that an IPv6 address is in (MLD, RFC 3810).

Sources: network_namespaces(7), user_namespaces(7), Documentation/networking/ip-sysctl.rst; RFC 4291, appendix A, for link-local
addresses.
"""

import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path
from typing import Final

from hyp import linux
from hyp.abi.sizes import MAX_FRAME
from hyp.net import netlink
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
    octets = bytes(int(part, 16) for part in mac.split(":"))
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SetupError(
            "enter a network namespace",
            f"the process has {threads} threads, and only one of them would enter",
            "create it before any thread is started (importing numpy starts some, unless OPENBLAS_NUM_THREADS=1)",
        )
    _enter()
    fd = open_tap(INTERFACE, {errno.EPERM: _user_namespace_remedy()})
    try:
        _configure(octets, addresses, mtu)
    except BaseException:
        os.close(fd)
        raise
    return Tap(fd, INTERFACE)


def can_create() -> str | None:
    """None if this process could call `create` (in a child of one thread), otherwise why not. Tries it in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            create("02:00:00:00:00:01", Addresses("10.0.0.1/24"), 1500)
        except BaseException as error:
            os.write(writer, (str(error) or repr(error)).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return reason or (None if status == 0 else f"the child that tried ended with wait status {status}")


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
    remedy = _user_namespace_remedy()
    remedies = dict.fromkeys((errno.EPERM, errno.ENOSPC, errno.EUSERS), remedy)
    with step("create a user namespace", remedies):
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
    undumpable = "the process changed its user and is not dumpable: prctl(PR_SET_DUMPABLE, 1) first"
    with step("become root of the user namespace", {errno.EACCES: undumpable, errno.EPERM: remedy}):
        # user_namespaces(7): without privilege outside, setgroups must be given up before gid_map can be written
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def _user_namespace_remedy() -> str:
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
    index = socket.if_nametoindex(INTERFACE)
    with step("bring lo up"):
        netlink.bring_up(socket.if_nametoindex("lo"))
    with step(f"set the MAC address of {INTERFACE}"):
        netlink.set_mac(index, mac)
    with step(f"set the MTU of {INTERFACE}"):
        netlink.set_mtu(index, mtu)
    with step(f"limit the frames of {INTERFACE}"):
        netlink.limit_segments(index, MAX_FRAME)  # XEN_NETIF_MAX_TX_SIZE, and the NIC's MAX_FRAME
    wanted = [IPv6Interface(addresses.address6)] if addresses.address6 is not None else []
    wanted += [link_local(mac)] if addresses.link_local else []
    _prepare_ipv6(index, bool(wanted))
    with step(f"set the address of {INTERFACE}"):
        netlink.add_address(index, IPv4Interface(addresses.address))
    with step(f"bring {INTERFACE} up"):
        netlink.bring_up(index)
    for interface in wanted:
        with step(f"give {INTERFACE} the address {interface}", {errno.EACCES: "IPv6 is disabled here"}):
            netlink.add_address(index, interface)
    for gateway in (addresses.gateway, addresses.gateway6):
        if gateway is not None:
            with step(f"set the gateway {gateway}"):
                netlink.add_default_route(index, ip_address(gateway))


def link_local(mac: bytes) -> IPv6Interface:
    """The link-local address that a MAC address makes: its modified EUI-64."""
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Interface((IPv6Address(b"\xfe\x80" + bytes(6) + identifier), 64))


def _prepare_ipv6(index: int, wanted: bool) -> None:
    """The TAP, which is down, is to have IPv6, or not; and nothing by itself. Does what it can where /proc/sys is read-only."""
    settings = Path(f"/proc/sys/net/ipv6/conf/{INTERFACE}")
    if not settings.exists():
        if wanted:
            raise SetupError(f"give {INTERFACE} an IPv6 address", "this kernel has no IPv6")
        return
    with step(f"silence IPv6 on {INTERFACE}"):
        netlink.no_link_local(index)
    for name, value in (("disable_ipv6", not wanted), ("accept_ra", 0), ("router_solicitations", 0)):
        with suppress(OSError):
            (settings / name).write_text(f"{value:d}")
