"""Two TAPs, each the `eth0` of a network namespace of its own, for whatever of the bench's carries frames between them.

They are made as the lab's guests' are, by the same code with the same offloads.

Source: Documentation/networking/tuntap.rst.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple

from domu import netns
from hyp.abi.features import CSUM, SG, TSO4, TSO6
from hyp.abi.sizes import DEFAULT_MTU
from hyp.net.tap import set_offloads

MACS = ("02:00:00:00:98:01", "02:00:00:00:98:02")


class End(NamedTuple):
    """Descriptors: of the TAP, and of the user and the network namespace that it is in."""

    tap: int
    user: int
    network: int


def _make(mac: str, address: str, out: socket.socket) -> None:
    """In a child of one thread: make a namespace with its TAP, and hand it out."""
    tap = netns.create(mac, netns.Addresses(address), DEFAULT_MTU)
    set_offloads(tap.fd, tap.name, int(CSUM | SG | TSO4 | TSO6))
    user, network = (os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net"))
    socket.send_fds(out, [b"+"], [tap.fd, user, network])


def make_ends(addresses: Sequence[str]) -> list[End]:
    """An end for each address with its prefix, of a process of one thread. SystemExit with the reason if one can't be made."""
    found = []
    for mac, address in zip(MACS, addresses, strict=True):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            child = os.fork()
            if child == 0:
                try:
                    _make(mac, address, theirs)
                except BaseException as error:
                    with contextlib.suppress(OSError):
                        theirs.send(str(error).encode())
                finally:
                    os._exit(0)
            text, fds, _, _ = socket.recv_fds(ours, 4096, 3)
            os.waitpid(child, 0)
            if len(fds) != len(End._fields):
                sys.exit(text.decode(errors="replace"))
            found.append(End(*fds))
    return found


def hand_out(fd: int, ends: Sequence[End], carriers: bytes) -> None:
    """Tell whoever started this process, on the SEQPACKET socket `fd`, that all is set up: who carries the frames, as JSON
    (name → process id), with the user and the network namespace of each end. These are closed here."""
    namespaces = [fd for end in ends for fd in (end.user, end.network)]
    with socket.socket(fileno=fd) as out:
        socket.send_fds(out, [carriers], namespaces)
    for namespace in namespaces:
        os.close(namespace)
