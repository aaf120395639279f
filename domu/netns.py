"""A guest's network namespace, for programs that know nothing of the lab: a TAP device and no other way out.

What the programs send comes out of the TAP's descriptor as Ethernet frames, and what is written there they receive; before each
stands a virtio_net_hdr (hyp/abi/vnet.py). The TAP has the offloads that `set_offloads` gives it: none at first, so that every frame
is at most MTU + 14 bytes long and its checksums are complete, as a wire's are.

The namespace has no name: it goes with the last process in it and the last descriptor that refers to it, and so does
the TAP. Whoever may not create one (CAP_SYS_ADMIN) gets it inside a new user namespace, where the calling user is root.

Set up with ioctls (netdevice(7)), not with a netlink library: one such import alone costs more than everything here.
Sources: network_namespaces(7), user_namespaces(7), netdevice(7), Documentation/networking/tuntap.rst,
linux/if_tun.h, linux/if_link.h.
"""

import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.sizes import MAX_FRAME

INTERFACE: Final = "eth0"
TUN_DEVICE: Final = "/dev/net/tun"

# linux/sched.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
# linux/sockios.h, linux/if.h, linux/if_arp.h
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
SIOCSIFMTU, SIOCSIFHWADDR = 0x8922, 0x8924
IFF_UP: Final = 1
ARPHRD_ETHER: Final = 1
# linux/rtnetlink.h, linux/if_link.h
NETLINK_ROUTE, RTM_SETLINK, NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR = 0, 19, 1, 4, 2
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
IFLA_GSO_MAX_SIZE = 41

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(Exception):
    """A step of the set-up failed; the text names the step, the cause and what to do about it."""

    def __init__(self, step: str, cause: str, remedy: str = "") -> None:
        self.step, self.cause, self.remedy = step, cause, remedy
        super().__init__(f"cannot {step}: {cause}" + (f"; {remedy}" if remedy else ""))


@dataclass(frozen=True, slots=True)
class Tap:
    """The TAP `name`: `fd` (non-blocking) moves one frame per read and write; `netns_fd` is for setns(2).

    Both descriptors close on exec and belong to the caller. A copy of `netns_fd` elsewhere keeps the namespace alive.
    """

    fd: int
    name: str
    netns_fd: int


def create(mac: str, address: str, mtu: int) -> Tap:
    """Move this process into a network namespace of its own with a TAP `eth0` and `lo`, both up, and nothing else.

    `address` is IPv4 with the length of its prefix ("10.0.0.1/24"), `mtu` is in bytes. The process must have one thread
    only: others would stay outside. After a NamespaceError the process may be half inside and should end.
    """
    interface = ipaddress.IPv4Interface(address)
    octets = bytes(int(part, 16) for part in mac.split(":"))
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise NamespaceError(
            "enter a network namespace",
            f"the process has {threads} threads, and only one of them would enter",
            "create it before any thread is started (importing numpy starts some, unless OPENBLAS_NUM_THREADS=1)",
        )
    _enter()
    descriptors: list[int] = []
    try:
        quiet = _disable_ipv6()
        descriptors.append(_open_tap())
        _configure(octets, interface, mtu, quiet)
        with _step("refer to the network namespace"):
            descriptors.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Tap(descriptors[0], INTERFACE, descriptors[1])


def can_create() -> str | None:
    """None if this process could call `create` (in a child of one thread), otherwise why not. Tries it in a child."""
    return tried(lambda _: None)


def tried(question: Callable[[Tap], str | None]) -> str | None:
    """What `question` says of a TAP made for it in a child, or why there can be none. None: there is nothing to complain of."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = question(create("02:00:00:00:00:01", "10.0.0.1/24", 1500))
            os.write(writer, (answer or "").encode()[:4096])
        except BaseException as error:
            os.write(writer, (str(error) or repr(error)).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return reason or (None if status == 0 else f"the child that tried ended with wait status {status}")


@contextmanager
def _step(step: str, remedies: dict[int, str] | None = None) -> Iterator[None]:
    """Turn an OSError into a NamespaceError that names the step."""
    try:
        yield
    except OSError as error:
        remedy = (remedies or {}).get(error.errno or 0, "")
        raise NamespaceError(step, os.strerror(error.errno or 0), remedy) from error


# --- the namespace ---------------------------------------------------------------------------------------------------


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _enter() -> None:
    """A new network namespace; inside a new user namespace, as root of it, if we are not root or may not otherwise."""
    limit = {errno.ENOSPC: "the machine allows no more of them: raise /proc/sys/user/max_net_namespaces"}
    if os.geteuid() == 0:
        try:
            with _step("create a network namespace", limit):
                _unshare(CLONE_NEWNET)
            return
        except NamespaceError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
    uid, gid = os.geteuid(), os.getegid()
    remedy = _user_namespace_remedy()
    remedies = dict.fromkeys((errno.EPERM, errno.ENOSPC, errno.EUSERS), remedy)
    with _step("create a user namespace", remedies):
        _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    undumpable = "the process changed its user and is not dumpable: prctl(PR_SET_DUMPABLE, 1) first"
    with _step("become root of the user namespace", {errno.EACCES: undumpable, errno.EPERM: remedy}):
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


# --- the TAP ---------------------------------------------------------------------------------------------------------


def _open_tap() -> int:
    """A new TAP in the present namespace: a virtio_net_hdr, no packet information, no offloads. Its descriptor."""
    remedies = {
        errno.ENOENT: "load the driver (modprobe tun), or give the container the device (--device /dev/net/tun)",
        errno.ENODEV: "load the driver: modprobe tun",
        errno.EACCES: f"let users open it: chmod 0666 {TUN_DEVICE}, as most distributions do",
        errno.EPERM: "give the container the device: --device /dev/net/tun",
    }
    with _step(f"open {TUN_DEVICE}", remedies):
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with _step(f"create the TAP {INTERFACE}", {errno.EPERM: _user_namespace_remedy()}):
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
            fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_offloads(fd: int, features: int) -> None:
    """Let the kernel leave undone what a device with these `features` (hyp/abi/features.py) does. `fd`: of the TAP."""
    flags = 0
    if features & CSUM:
        flags = TUN_F_CSUM
        if features & SG:
            flags |= (TUN_F_TSO4 if features & TSO4 else 0) | (TUN_F_TSO6 if features & TSO6 else 0)
    with _step(f"set the offloads of {INTERFACE}"):
        fcntl.ioctl(fd, TUNSETOFFLOAD, flags)


def _configure(mac: bytes, address: ipaddress.IPv4Interface, mtu: int, quiet: bool) -> None:
    """MAC, MTU and IPv4 address of the TAP; then it and `lo` go up. `quiet`: IPv6 is off already."""

    def ifreq(name: str, value: bytes) -> bytes:
        return struct.pack("16s24s", name.encode(), value)

    def sockaddr(ip: ipaddress.IPv4Address) -> bytes:
        return struct.pack("HH4s8x", socket.AF_INET, 0, ip.packed)

    settings = (
        ("MAC address", SIOCSIFHWADDR, struct.pack("H6s", ARPHRD_ETHER, mac)),
        ("MTU", SIOCSIFMTU, struct.pack("i", mtu)),
        ("address", SIOCSIFADDR, sockaddr(address.ip)),
        ("netmask", SIOCSIFNETMASK, sockaddr(address.netmask)),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for what, request, value in settings:
            with _step(f"set the {what} of {INTERFACE}"):
                fcntl.ioctl(control, request, ifreq(INTERFACE, value))
        _limit_frames(socket.if_nametoindex(INTERFACE))
        if not quiet:
            _no_link_local(socket.if_nametoindex(INTERFACE))
        for name in ("lo", INTERFACE):
            with _step(f"bring {name} up"):
                flags = fcntl.ioctl(control, SIOCGIFFLAGS, ifreq(name, b""))
                up = struct.unpack_from("H", flags, 16)[0] | IFF_UP
                fcntl.ioctl(control, SIOCSIFFLAGS, ifreq(name, struct.pack("H", up)))


# --- silence ---------------------------------------------------------------------------------------------------------


def _disable_ipv6() -> bool:
    """No IPv6 in this namespace, so that nothing is sent that no program sent. False if /proc/sys is read-only."""
    try:
        for which in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
    except FileNotFoundError:
        return True  # a kernel without IPv6
    except OSError:
        return False
    return True


def _no_link_local(index: int) -> None:
    """Where IPv6 cannot be disabled: no address by itself for interface `index`, hence no router solicitation."""
    mode = struct.pack("HHB3x", 5, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
    family = struct.pack("HH", 4 + len(mode), socket.AF_INET6) + mode
    with _step(f"silence IPv6 on {INTERFACE}"):
        _set_link(index, struct.pack("HH", 4 + len(family), IFLA_AF_SPEC) + family)


def _limit_frames(index: int) -> None:
    """The kernel leaves no frame uncut that is longer than a device takes: XEN_NETIF_MAX_TX_SIZE, and the NIC's MAX_FRAME."""
    with _step(f"limit the frames of {INTERFACE}"):
        _set_link(index, struct.pack("HHI", 8, IFLA_GSO_MAX_SIZE, MAX_FRAME))


def _set_link(index: int, attribute: bytes) -> None:
    """Set one attribute of an interface (rtnetlink(7))."""
    body = struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, 0, 0) + attribute
    header = struct.pack("IHHII", 16 + len(body), RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as link:
        link.send(header + body)
        answer = link.recv(4096)
        (kind,) = struct.unpack_from("H", answer, 4)
        (code,) = struct.unpack_from("i", answer, 16)
        if kind != NLMSG_ERROR or code:
            raise OSError(-code, os.strerror(-code))
