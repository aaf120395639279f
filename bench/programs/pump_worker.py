"""The floor of TAP guests: one process that moves frames between two TAPs, each the `eth0` of a network namespace of its own.

``python -m bench.programs.pump_worker FD ADDRESS ADDRESS``: descriptors of the two namespaces go out on FD once all is set up, a
message each: its user namespace and its network namespace. Whatever carries frames between TAP guests reads each from one TAP and
writes it to another; this does nothing else. The TAPs are made as the lab's guests' are, by the same code with the same offloads;
frames are read and written whole with their virtio_net_hdr, and not looked at.

Sources: Documentation/networking/tuntap.rst, epoll(7).
"""

import contextlib
import os
import select
import socket
import sys

import numpy as np

from bench.programs.pump import ROOM, pump
from domu import netns
from hyp import linux
from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.sizes import DEFAULT_MTU
from hyp.net.tap import set_offloads

MACS = ("02:00:00:00:98:01", "02:00:00:00:98:02")


def _tap(mac: str, address: str, out: socket.socket) -> None:
    """In a child of one thread: make a namespace with its TAP; hand out the TAP, the user and the network namespace."""
    tap = netns.create(mac, netns.Addresses(address), DEFAULT_MTU)
    set_offloads(tap.fd, tap.name, int(CSUM | SG | TSO4 | TSO6))
    user, network = (os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net"))
    socket.send_fds(out, [b"+"], [tap.fd, user, network])


def _taps(addresses: list[str]) -> list[list[int]]:
    """Both ends' descriptors, as `_tap` hands them out. SystemExit with the reason if one can't be made."""
    found = []
    for mac, address in zip(MACS, addresses, strict=True):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            child = os.fork()
            if child == 0:
                try:
                    _tap(mac, address, theirs)
                except BaseException as error:
                    with contextlib.suppress(OSError):
                        theirs.send(str(error).encode())
                finally:
                    os._exit(0)
            text, fds, _, _ = socket.recv_fds(ours, 4096, 3)
            os.waitpid(child, 0)
            if len(fds) != 3:
                sys.exit(text.decode(errors="replace"))
            found.append(fds)
    return found


def main() -> None:
    """Make both ends, hand out their namespaces, pump until killed."""
    linux.die_with_parent()
    linux.set_name("pump")
    ends = _taps(sys.argv[2:4])  # while there is one thread
    epoll = select.epoll()
    for tap, _, _ in ends:
        epoll.register(tap, select.EPOLLIN)
    room = np.zeros(ROOM, np.uint8)
    pump.load()
    with socket.socket(fileno=int(sys.argv[1])) as out:
        for _, user, network in ends:
            socket.send_fds(out, [b"+"], [user, network])
            os.close(user)
            os.close(network)
    while True:
        pump(ends[0][0], ends[1][0], epoll.fileno(), int(room.ctypes.data))


if __name__ == "__main__":
    main()
