"""The options of sockets that a confined guest may set: those that programs set, of TCP, UDP, ICMP, and routing sockets.

Of others the kernel is long in getting: what has it change its own code, for which it interrupts all CPUs (UDP_ENCAP, UDP_GRO,
SO_TIMESTAMP), what is compiled and kept for nobody's account (filters: memory that is the whole machine's, and that seccomp needs,
too), what wakes by timers, on somebody else's time (pacing), modules, tables of netfilter's. So this is a list of what is allowed,
too. Any other is ENOSYS; those that programs ask for and can do without, ENOPROTOOPT.

Source: the kernel's headers (asm-generic/socket.h, linux/in.h, in6.h, tcp.h, netlink.h).
"""

from typing import Final

SOL_SOCKET, SOL_IP, SOL_TCP, SOL_UDP, SOL_IPV6, SOL_ICMPV6, SOL_RAW, SOL_NETLINK = 1, 0, 6, 17, 41, 58, 255, 270
_GROUPS = tuple(range(42, 49))
"""MCAST_JOIN_GROUP to MCAST_LEAVE_SOURCE_GROUP, and MCAST_MSFILTER, of either version of IP."""

ALLOWED: Final = {
    # Not: ATTACH_FILTER and its kind, LOCK_FILTER, MAX_PACING_RATE, ZEROCOPY, TXTIME, INCOMING_CPU, TIMESTAMP…, what is root's
    SOL_SOCKET: (2, *range(5, 14), 15, 16, 18, 20, 21, 25, 27, 36, 40, 42, 43, 46, 66, 67, 74, 75),
    # Not: IP_IPSEC_POLICY, IP_MINTTL, IP_CHECKSUM, tables of netfilter's (64 on)
    SOL_IP: (*range(1, 5), *range(6, 14), 15, 19, 20, 24, 26, *range(32, 37), 39, 40, *_GROUPS, 49, 50, 51),
    # Not: TCP_MD5SIG, TCP_REPAIR and its kind, TCP_ULP, TCP_ZEROCOPY_RECEIVE, TCP_TX_DELAY, TCP_AO_…
    SOL_TCP: (*range(1, 11), 12, 13, 16, 17, 18, 23, 25, 27, 30, 36),
    # Not: UDP_ENCAP, UDP_GRO
    SOL_UDP: (1, 101, 102, 103),
    # Not: IPV6_ADDRFORM, IPV6_FLOWLABEL_MGR, IPV6_IPSEC_POLICY, IPV6_MINHOPCOUNT
    SOL_IPV6: (
        *range(2, 10),
        *range(16, 22),
        23,
        24,
        25,
        26,
        29,
        *_GROUPS,
        *range(49, 55),
        *range(56, 63),
        66,
        67,
        70,
        72,
        74,
        76,
        78,
    ),
    SOL_ICMPV6: (1,),
    SOL_RAW: (1, 7),
    # Not: NETLINK_ADD_MEMBERSHIP
    SOL_NETLINK: (2, 3, 5, 10, 11, 12),
}
DONE_WITHOUT: Final = {
    # SO_ATTACH_FILTER, SO_MAX_PACING_RATE, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF, …_EBPF; SO_TIMESTAMP, …NS, …ING, old and new
    SOL_SOCKET: (26, 47, 50, 51, 52, 29, 35, 37, 63, 64, 65),
    SOL_UDP: (100, 104),  # UDP_ENCAP, UDP_GRO
}
PEER_PIDFD: Final = (SOL_SOCKET, 77)
"""SO_PEERPIDFD, of getsockopt(2): the process at the other end, which is a daemon that serves it."""
