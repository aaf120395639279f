"""TAP devices: Ethernet interfaces of the present network namespace, whose other end is a descriptor of ours.

What is sent by the interface comes out of the descriptor as Ethernet frames, and what is written there it receives; before each
stands a virtio_net_hdr (hyp/abi/vnet.py). The interface goes with its descriptor, however the process ends.

Sources: Documentation/networking/tuntap.rst, linux/if_tun.h.
"""

import errno
import fcntl
import os
import struct
from typing import Final

from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.net.steps import step

TUN_DEVICE: Final = "/dev/net/tun"
# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4


def open_tap(name: str, remedies: dict[int, str]) -> int:
    """A new TAP `name`, down, without offloads; returns its descriptor, which is non-blocking and closed on exec.

    SetupError if it is not to be had; `remedies`: what to do where it cannot be created, by errno.
    """
    opening = {
        errno.ENOENT: "load the driver (modprobe tun), or give the container the device (--device /dev/net/tun)",
        errno.ENODEV: "load the driver: modprobe tun",
        errno.EACCES: f"let users open it: chmod 0666 {TUN_DEVICE}, as most distributions do",
        errno.EPERM: "give the container the device: --device /dev/net/tun",
    }
    with step(f"open {TUN_DEVICE}", opening):
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with step(f"create the TAP {name}", remedies):
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_offloads(fd: int, name: str, features: int) -> None:
    """Let the kernel leave undone what a device with these `features` (hyp/abi/features.py) does. `fd`: of the TAP `name`."""
    flags = 0
    if features & CSUM:
        flags = TUN_F_CSUM
        if features & SG:
            flags |= (TUN_F_TSO4 if features & TSO4 else 0) | (TUN_F_TSO6 if features & TSO6 else 0)
    with step(f"set the offloads of {name}"):
        fcntl.ioctl(fd, TUNSETOFFLOAD, flags)
