"""Sockets of a guest's network namespace for a process that stays outside: a child that has entered it makes and passes them.

A socket belongs to the namespace that it was made in, whoever uses it (network_namespaces(7)).
"""

import array
import errno
import os
import signal
import socket
import struct

from hyp import limits, linux
from lab.execute.supervisor import Machine

_FAMILY = struct.Struct("i")  # what is asked for, and the errno of a refusal


class GuestSockets:
    """TCP sockets of a guest's. The child ends with this process, and with `close`."""

    def __init__(self, guest: Machine) -> None:
        """This process must have no event loop and no threads. `guest` stays the caller's. OSError: it cannot be entered."""
        self._asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if self._child == 0:
            try:
                self._asking.close()
                _make_sockets(answering, guest)
            finally:
                os._exit(1)
        answering.close()
        self._answer()  # it has entered, or has not

    def tcp(self, family: int) -> socket.socket:
        """A fresh non-blocking socket. OSError with the errno that it could not be made for; EPIPE once the child has ended.

        EMFILE, and why, if this process has no place for one more descriptor: the kernel drops it then, and passes the rest on.
        """
        self._asking.send(_FAMILY.pack(family))
        fds = self._answer()
        if not fds:
            raise OSError(errno.EMFILE, limits.descriptor_reason())
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        return sock

    def _answer(self) -> list[int]:
        data, fds, _, _ = socket.recv_fds(self._asking, _FAMILY.size, 1)
        if len(data) < _FAMILY.size:
            raise BrokenPipeError("the process in the guest has ended")
        (code,) = _FAMILY.unpack(data)
        if code:
            raise OSError(code, os.strerror(code))
        return fds

    def close(self) -> None:
        """End the child."""
        self._asking.close()
        os.waitpid(self._child, 0)


def _make_sockets(answering: socket.socket, guest: Machine) -> None:
    """In the child: enter, then serve until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for who asks
    linux.die_with_parent()
    linux.set_name("guest-sockets")
    os.close(guest.lifeline)
    try:
        linux.enter_namespaces(guest.init)
        answering.send(_FAMILY.pack(0))
    except OSError as error:
        answering.send(_FAMILY.pack(error.errno or 0))
        return
    while request := answering.recv(_FAMILY.size):
        try:
            with socket.socket(_FAMILY.unpack(request)[0], socket.SOCK_STREAM) as made:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))
                answering.sendmsg([_FAMILY.pack(0)], [rights])
        except OSError as error:
            answering.send(_FAMILY.pack(error.errno or 0))
