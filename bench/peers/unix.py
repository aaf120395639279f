"""AF_UNIX SOCK_SEQPACKET between two processes: what a program gets that uses sockets and is frugal with system calls."""

import socket

from bench.peers.sockets import SO_SNDBUFFORCE, SocketPeer, buffer_for, depth_of, out_queue, set_buffer


class Unix(SocketPeer):
    """One socketpair. A sender that finds it full sleeps: nothing is lost."""

    name = "unix"

    @staticmethod
    def missing(cores: int = 2) -> str | None:
        """Every Linux has it."""
        return None

    async def open_sockets(self) -> tuple[socket.socket, socket.socket]:
        """A pair."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def set_depth(self, length: int) -> int:
        """The sender's buffer limits what is under way; one frame tells what a frame takes of it."""
        sender, receiver = self._sockets
        sender.send(bytes(length))
        truesize = out_queue(sender)
        receiver.recv(length)
        size = set_buffer(sender, buffer_for(truesize), socket.SO_SNDBUF, SO_SNDBUFFORCE)
        return depth_of(size, truesize)
