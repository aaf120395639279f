"""Addresses as people write them in a topology: checked, each with a reason why it will not do, and put in order.

Standard library only: read by processes that must not import numpy.
"""

import re
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address


def checked_address(value: str) -> str:
    """An IPv4 address that a host can have, with the length of its prefix. ValueError says why it is none."""
    wrong = f"{value!r} is not an IPv4 address with the length of its prefix"
    address, slash, prefix = value.partition("/")
    numbers = address.split(".")
    if not slash or not prefix.isascii() or not prefix.isdigit() or len(numbers) != 4:
        raise ValueError(f"{wrong}, such as 10.0.0.1/24")
    for number in numbers:
        if not re.fullmatch(r"0|[1-9][0-9]{0,2}", number) or int(number) > 255:
            raise ValueError(f"{wrong}: {number!r} is not a number from 0 to 255")
    if len(prefix) > 2 or int(prefix) > 32:
        raise ValueError(f"{wrong}: the prefix must be 1 to 31 bits long, not {prefix}")
    interface = IPv4Interface(f"{address}/{int(prefix)}")
    host, network = interface.ip, interface.network
    if not 1 <= network.prefixlen <= 31:
        raise ValueError(f"{value!r}: the prefix must be 1 to 31 bits long, or the guest reaches nobody")
    if host.is_multicast or host.is_loopback or host.is_reserved or value.startswith("0."):
        raise ValueError(f"{value!r} is not an address that a host can have")
    if network.prefixlen < 31 and host in (network.network_address, network.broadcast_address):
        kind = "network" if host == network.network_address else "broadcast"
        raise ValueError(f"{value!r} is the {kind} address of {network}, not a host's")
    return str(interface)


def checked_address6(value: str) -> str:
    """An IPv6 address that a host can have, with the length of its prefix, in its shortest form. ValueError says why it is none."""
    address, slash, prefix = value.partition("/")
    if not slash or not re.fullmatch(r"[0-9]{1,3}", prefix) or not re.fullmatch(r"[0-9a-fA-F:.]+", address):
        raise ValueError(f"{value!r} is not an IPv6 address with the length of its prefix, such as fd00::1/64")
    try:
        interface = IPv6Interface((IPv6Address(address), int(prefix)))
    except ValueError as error:
        raise ValueError(f"{value!r} is not an IPv6 address with the length of its prefix: {error}") from None
    host, network = interface.ip, interface.network
    if not 1 <= network.prefixlen <= 127:
        raise ValueError(f"{value!r}: the prefix must be 1 to 127 bits long, or the guest reaches nobody")
    if host.is_multicast or host.is_loopback or host.is_unspecified or host.ipv4_mapped is not None:
        raise ValueError(f"{value!r} is not an address that a host can have")
    if host.is_link_local:
        raise ValueError(f"{value!r} is a link-local address, which link_local = true gives")
    if network.prefixlen < 127 and host == network.network_address:
        raise ValueError(f"{value!r} is the address of all routers of {network}, not a host's")
    return str(interface)


def checked_gateway(value: str, own: str) -> str:
    """The address of a neighbour of who has the address `own` (with prefix). ValueError says why it is none."""
    interface = IPv6Interface(own) if ":" in own else IPv4Interface(own)
    try:
        gateway = ip_address(value)
    except ValueError:
        gateway = None
    if gateway is None or gateway.version != interface.version:
        raise ValueError(f"{value!r} is not an IPv{interface.version} address, such as {interface.network[1]}")
    if gateway not in interface.network:
        raise ValueError(f"{value} is not in {interface.network}, the guest's network, so that it is not reached")
    if gateway == interface.ip:
        raise ValueError(f"{value} is the guest's own address")
    return str(gateway)
