"""rtnetlink(7): settings, addresses, neighbours and default routes of an interface of the present network namespace.

Messages by hand, not by a library: one such import alone costs more than everything here. What fails raises OSError with the
kernel's errno. Sources: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h,
linux/netlink.h.
"""

import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final

RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 16, 20, 24, 28
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLMSG_ERROR = 1, 4, 0x200, 0x400, 2
IFF_UP: Final = 1
IFLA_ADDRESS, IFLA_MTU, IFLA_AF_SPEC, IFLA_GSO_MAX_SIZE = 1, 4, 26, 41
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
RTA_OIF, RTA_GATEWAY = 4, 5
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1

LONGEST_ANSWER = 4096


def set_mac(index: int, mac: bytes) -> None:
    """The MAC address of interface `index`, 6 bytes."""
    _set_link(index, _attribute(IFLA_ADDRESS, mac))


def set_mtu(index: int, mtu: int) -> None:
    """The MTU of interface `index`, in bytes."""
    _set_link(index, _attribute(IFLA_MTU, struct.pack("I", mtu)))


def limit_segments(index: int, size: int) -> None:
    """The kernel leaves no frame unsegmented for interface `index` that is longer than `size` bytes."""
    _set_link(index, _attribute(IFLA_GSO_MAX_SIZE, struct.pack("I", size)))


def no_link_local(index: int) -> None:
    """Interface `index` gets no IPv6 address by itself. EAFNOSUPPORT where the kernel has no IPv6."""
    mode = _attribute(IFLA_INET6_ADDR_GEN_MODE, struct.pack("B", IN6_ADDR_GEN_MODE_NONE))
    _set_link(index, _attribute(IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode)))


def bring_up(index: int) -> None:
    """Interface `index` goes up."""
    _set_link(index, b"", IFF_UP)


def add_address(index: int, interface: IPv4Interface | IPv6Interface) -> None:
    """Give interface `index` an address, and with it the route to its network. It is there at once: nobody is asked whether it is
    taken (duplicate address detection)."""
    packed, network = interface.ip.packed, interface.network
    attributes = _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    if interface.version == 4 and network.prefixlen < 31:
        attributes += _attribute(IFA_BROADCAST, network.broadcast_address.packed)
    flags = IFA_F_PERMANENT | (IFA_F_NODAD if interface.version == 6 else 0)
    body = struct.pack("BBBBI", _family(interface), network.prefixlen, flags, RT_SCOPE_UNIVERSE, index)
    _ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body + attributes)


def add_neighbour(index: int, address: IPv4Address | IPv6Address, mac: bytes) -> None:
    """Who has an address at interface `index`, for good: what anybody says by ARP or neighbour discovery changes nothing."""
    body = struct.pack("BxHiHBB", _family(address), 0, index, NUD_PERMANENT, 0, RTN_UNICAST)
    _ask(RTM_NEWNEIGH, NLM_F_CREATE, body + _attribute(NDA_DST, address.packed) + _attribute(NDA_LLADDR, mac))


def add_default_route(index: int, gateway: IPv4Address | IPv6Address) -> None:
    """What no other route leads to goes by interface `index` to `gateway`."""
    body = struct.pack(
        "8BI", _family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    ) + _attribute(RTA_GATEWAY, gateway.packed)
    _ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body + _attribute(RTA_OIF, struct.pack("I", index)))


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    """A struct rtattr with its value, padded to four bytes."""
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _set_link(index: int, attributes: bytes, flags: int = 0) -> None:
    _ask(RTM_NEWLINK, 0, struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags) + attributes)


def _ask(kind: int, flags: int, body: bytes) -> None:
    header = struct.pack("IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(header + body)
        answer = link.recv(LONGEST_ANSWER)
    (answered,) = struct.unpack_from("H", answer, 4)
    (code,) = struct.unpack_from("i", answer, 16)
    if answered != NLMSG_ERROR or code:
        raise OSError(-code, os.strerror(-code))
