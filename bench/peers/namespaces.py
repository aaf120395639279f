"""Makes two network namespaces with a veth pair between them, hands out a UDP socket in each and the namespaces, and ends.

``python -m bench.peers.namespaces FD``: one message goes out on FD: both sockets, the sender's first; the user namespace; both
network namespaces, in the same order. These have no names: they, and the pair with them, last as long as one of those is held. A
socket stays in the namespace in which it was made, whoever holds it.
Without privilege both namespaces are in a new user namespace. Sources: network_namespaces(7), ip-link(8).
"""

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

from hyp import linux

ADDRESSES = ("10.99.0.1", "10.99.0.2")
MACS = ("02:00:00:00:99:01", "02:00:00:00:99:02")
PORT = 9999
_libc = ctypes.CDLL(None, use_errno=True)


def _enter_first() -> None:
    """A new network namespace, in a new user namespace if need be."""
    if os.geteuid() == 0:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            return
        except PermissionError:
            pass
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        Path("/proc/self", name).write_text(text)


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, linux.CLONE_NEWNET) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _ip(lines: list[str], fd: int) -> None:
    """Commands for ip(8), in the present namespace."""
    command = ["ip", "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, pass_fds=[fd], check=False)
    if done.returncode:
        raise OSError(0, f"ip: {done.stderr.strip()}")


def _configure(end: int, fd: int) -> None:
    """Address, neighbour and state of one end; no IPv6, so that nothing is sent that no program sent."""
    own, other = f"v{end}", 1 - end
    _ip(
        [
            f"link set {own} addrgenmode none",
            f"addr add {ADDRESSES[end]}/24 dev {own}",
            f"link set {own} address {MACS[end]} up",
            f"neigh add {ADDRESSES[other]} lladdr {MACS[other]} dev {own} nud permanent",
        ],
        fd,
    )


def _socket(end: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ADDRESSES[end], PORT))
    sock.connect((ADDRESSES[1 - end], PORT))
    return sock


def main() -> None:
    """Make them, hand them out."""
    linux.die_with_parent()
    _enter_first()
    first = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNET)
    second = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _ip([f"link add v1 type veth peer name v0 netns /proc/self/fd/{first}"], first)
    _configure(1, first)
    _set_namespace(first)
    _configure(0, first)
    sender = _socket(0)
    _set_namespace(second)
    receiver = _socket(1)
    with socket.socket(fileno=int(sys.argv[1])) as out:
        user = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(out, [b"+"], [sender.fileno(), receiver.fileno(), user, first, second])


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(error.strerror or str(error))
