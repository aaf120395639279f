"""An Ethernet interface of ours, a TAP's, from made to up: what nobody has asked for is not sent.

Without IPv6 addresses it has IPv6 off. With them it has these and no other: they are there at once, without duplicate address
detection, and routers are neither solicited nor heeded; what is left are the kernel's reports of the multicast groups that an IPv6
address is in (MLD, RFC 3810).

Sources: Documentation/networking/ip-sysctl.rst; RFC 4291, appendix A, for link-local addresses.
"""

import errno
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

from hyp.abi.sizes import MAX_FRAME
from hyp.net import netlink
from hyp.net.steps import SetupError, step

_IPV6 = Path("/proc/sys/net/ipv6/conf")


def configure(
    name: str, mac: bytes, mtu: int, addresses: Sequence[IPv4Interface | IPv6Interface], neighbours: Mapping[str, str] | None = None
) -> int:
    """Give interface `name`, which is down, what it is to have, and bring it up; returns its index. SetupError names what fails.

    `neighbours`: address → MAC address, of whom nobody else is to be taken for.
    """
    index = socket.if_nametoindex(name)
    with step(f"set the MAC address of {name}"):
        netlink.set_mac(index, mac)
    with step(f"set the MTU of {name}"):
        netlink.set_mtu(index, mtu)
    with step(f"limit the frames of {name}"):
        netlink.limit_segments(index, MAX_FRAME)  # XEN_NETIF_MAX_TX_SIZE, and the NIC's
    _prepare_ipv6(name, index, any(interface.version == 6 for interface in addresses))
    with step(f"bring {name} up"):
        netlink.bring_up(index)
    for interface in addresses:
        with step(f"give {name} the address {interface}", {errno.EACCES: "IPv6 is disabled here"}):
            netlink.add_address(index, interface)
    versions = {interface.version for interface in addresses}
    for address, theirs in ((ip_address(text), octets_of(text_mac)) for text, text_mac in (neighbours or {}).items()):
        if address.version in versions and theirs != mac:
            with step(f"tell {name} who has {address}"):
                netlink.add_neighbour(index, address, theirs)
    return index


def octets_of(mac: str) -> bytes:
    """A MAC address "02:00:00:00:00:01" as six bytes."""
    return bytes(int(part, 16) for part in mac.split(":"))


def link_local(mac: bytes) -> IPv6Interface:
    """The link-local address that a MAC address makes: its modified EUI-64."""
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Interface((IPv6Address(b"\xfe\x80" + bytes(6) + identifier), 64))


def set_ipv6_defaults(*, wanted: bool) -> None:
    """The same for whatever interface of this namespace has IPv6 from now on, as far as /proc/sys is not read-only.

    It is more than `configure` does: an interface whose MTU is less than 1280 has no IPv6, and gets it afresh when it is raised.
    """
    _set_ipv6("default", wanted)


def _prepare_ipv6(name: str, index: int, wanted: bool) -> None:
    """An interface, which is down, is to have IPv6 or not, and nothing by itself."""
    if not (_IPV6 / name).exists():
        if wanted:
            raise SetupError(f"give {name} an IPv6 address", "this kernel has no IPv6")
        return
    with step(f"silence IPv6 on {name}"):
        netlink.no_link_local(index)
    _set_ipv6(name, wanted)


def _set_ipv6(name: str, wanted: bool) -> None:
    settings = {
        "disable_ipv6": not wanted,
        "accept_ra": 0,
        "router_solicitations": 0,
        "addr_gen_mode": netlink.IN6_ADDR_GEN_MODE_NONE,
    }
    for setting, value in settings.items():
        with suppress(OSError):
            (_IPV6 / name / setting).write_text(f"{value:d}")
