"""Descriptors that come in sockets: closing them, and not taking them.

The last close of a descriptor can take as long as who made it chose: that of a TCP socket with data unsent and SO_LINGER, of a
file on a file system of a process's. Descriptors that wait in a socket are closed by who receives them, with or without room for
them, or by who closes the socket, and that holds up a loop. So where nothing is to be received the socket refuses them
(SO_PASSRIGHTS, since Linux 6.16: the sender gets EPERM); where the kernel does not know that, or a packet came before, a packet
that carries some is seen without being received (MSG_PEEK), and its socket closed by a thread that nobody waits for: one for each
such socket.
"""

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

_SO_PASSRIGHTS = 83  # asm-generic/socket.h
_LONGEST_LOOK = 1  # a packet's descriptors are seen with its first byte


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, each of which is the caller's: one that was closed before may be somebody else's by now."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def close_shared(fds: Sequence[int]) -> None:
    """Close descriptors that a guest has, or has had: where that is the last close, its epolls are waited for. By a thread."""
    _by_a_thread(lambda: close_all(fds))


_left: deque[Callable[[], object]] = deque()


def _by_a_thread(close: Callable[[], object]) -> None:
    """Have it called, and wait for nothing. Where there are no more threads it is left for that of the next one."""
    _left.append(close)
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=_close_what_is_left, name="closing", daemon=True).start()


def _close_what_is_left() -> None:
    while True:
        try:
            close = _left.popleft()
        except IndexError:
            return
        close()


def refuse_descriptors(sock: socket.socket) -> None:
    """Let the kernel refuse all that are sent to this socket from now on, if it can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def urgent_in_line(sock: socket.socket) -> None:
    """Have a byte that is sent as urgent (MSG_OOB) come as any other, if the kernel has such.

    Else it is passed by in looking, and the stream stays readable for good.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def brings_descriptors(sock: socket.socket) -> bool:
    """True if the packet that would be received next carries descriptors. Receives nothing; OSError as recv(2)."""
    _, _, flags, _ = sock.recvmsg(_LONGEST_LOOK, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return bool(flags & socket.MSG_CTRUNC)


def receive_plain(sock: socket.socket, size: int) -> bytes:
    """What has come on a stream, `size` bytes at most; b"" at its end. OSError, also if descriptors come with it.

    No more than was looked at: who received `size` bytes would take descriptors that have come since, and close them.
    """
    seen, _, flags, _ = sock.recvmsg(size, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EPERM, "it sent descriptors, and nobody takes any from it")
    return sock.recv(len(seen)) if seen else b""


def hang_up(sock: socket.socket, *, shared: bool = False) -> None:
    """End a connection for both sides, whoever else holds copies of the socket, and close it; never waits.

    `shared`: others have this end, too. Who reads from it has its lock as long as his page faults take: it is not even looked at.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    if not shared and _is_empty(sock):
        sock.close()
    else:
        _by_a_thread(sock.close)


def _is_empty(sock: socket.socket) -> bool:
    """Nothing is left in a socket that has been shut down.

    With SO_PASSCRED a packet brings its sender's credentials, for which there is no room here: so one of no bytes is not the end.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        packet, _, flags, _ = sock.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)  # others who have it would take credentials for descriptors
    except OSError:
        return True
    return not packet and not flags & socket.MSG_CTRUNC
