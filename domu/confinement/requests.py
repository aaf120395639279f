"""What a confined guest may ask for by ioctl(2) and fcntl(2): what programs ask for, of files, terminals, sockets and interfaces.

Of either the kernel has hundreds, and each version and each driver has more. Not on the list: what types on a terminal for who sits
at it (TIOCSTI, TIOCLINUX), changes its discipline, or takes the console; what signals somebody (FIOSETOWN, F_SETOWN); what has
others wait (leases, F_NOTIFY), has the kernel change its code or look for a module (SIOCGSTAMP, bridges, VLANs), administers an
interface, or a file system of the host's. Any other is ENOSYS.

Source: the kernel's headers (asm-generic/ioctls.h, linux/sockios.h, linux/fs.h, linux/if_tun.h, and of either folder fcntl.h).
"""

from typing import Final

_TERMINALS = (
    *range(0x5401, 0x540C),  # TCGETS to TCFLSH
    *(0x540E, 0x540F, 0x5410, 0x5411, 0x5413, 0x5414, 0x5422, 0x5425, 0x5429),
    # TIOCSCTTY, TIOCGPGRP, TIOCSPGRP, TIOCOUTQ, TIOCGWINSZ, TIOCSWINSZ, TIOCNOTTY, TCSBRKP, TIOCGSID
    *(0x802C_542A, 0x402C_542B, 0x402C_542C, 0x402C_542D),  # TCGETS2, TCSETS2, TCSETSW2, TCSETSF2
)
_FILES = (
    *(0x541B, 0x5421, 0x5450, 0x5451, 0x5460),  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FIOQSIZE
    *(0x8008_6601, 0xC020_660B),  # FS_IOC_GETFLAGS, FS_IOC_FIEMAP
)
_INTERFACES = (
    *(0x8905, 0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B, 0x891D, 0x8921, 0x8927, 0x8933, 0x8942, 0x8970),
    # SIOCATMARK; SIOCGIFNAME, …CONF, …FLAGS, …ADDR, …DSTADDR, …BRDADDR, …NETMASK, …METRIC, …MTU, …HWADDR, …INDEX, …TXQLEN, …MAP
)
_TAP = (0x4004_54D0,)  # TUNSETOFFLOAD
IOCTLS: Final = (*_TERMINALS, *_FILES, *_INTERFACES, *_TAP)
LOCKS: Final = (6, 7, 37, 38)
"""Of fcntl(2): F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW. There are none, and it is said so (ENOLCK)."""
FCNTLS: Final = (
    *range(6),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK
    *(9, 11, 16, 36, 1025),  # F_GETOWN, F_GETSIG, F_GETOWN_EX, F_OFD_GETLK, F_GETLEASE
    *(1027, 1028, 1030, 1031, 1032),  # F_DUPFD_QUERY, F_CREATED_QUERY, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ
    *(1033, 1034, 1035, 1037),  # F_ADD_SEALS, F_GET_SEALS, F_GET_RW_HINT, F_GET_FILE_RW_HINT
    *LOCKS,
)
