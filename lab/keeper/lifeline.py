"""What a guest's init lives by (domu/machine.py), and who it is: the keeper's side."""

import contextlib
import os
import socket
import struct

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


class Lifeline:
    """One guest's: a pair of sockets. `ends`: those that it is born with, by purpose."""

    def __init__(self) -> None:
        self._held, self._inits = socket.socketpair()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.init: int | None = None
        """A pidfd of init, once that is known."""

    @property
    def ends(self) -> dict[str, int]:
        """Of the guest's process, and of its init."""
        return {"lifeline": self._held.fileno(), "init": self._inits.fileno()}

    def handed_over(self) -> None:
        """The guest has its ends."""
        self._inits.close()

    def look(self) -> None:
        """See who said the first byte: init, before the guest was ready; nobody else could by then."""
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        with contextlib.suppress(OSError):  # it has said nothing, or is gone
            for level, kind, data in self._held.recvmsg(1, space, socket.MSG_DONTWAIT)[1]:
                if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, _CREDENTIALS.size):
                    self.init = os.pidfd_open(_CREDENTIALS.unpack(data)[0])

    @property
    def fd(self) -> int:
        """Init lives as long as anybody has it."""
        return self._held.fileno()

    def close(self) -> None:
        """The guest's process has ended."""
        self._held.close()
        if self.init is not None:
            os.close(self.init)
            self.init = None
