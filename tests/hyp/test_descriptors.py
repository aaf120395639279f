"""Descriptors that come on a stream: nobody takes any, and nobody's last close waits for them."""

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from hyp.control.descriptors import receive_plain

pytestmark = pytest.mark.usefixtures("settled", "no_descriptor_is_left")


class Late(socket.socket):
    """A stream on which something more is sent just after it was looked at."""

    def then(self, send: Callable[[], object]) -> None:
        self._more = send

    def recvmsg(self, *args: Any) -> Any:
        seen = super().recvmsg(*args)
        self._more()
        return seen


def test_a_stream_s_descriptors_that_come_after_the_look_are_not_received_with_what_was_seen() -> None:
    """Where there is no SO_PASSRIGHTS: received without room for them, they would be closed there and then."""
    plain, peer = socket.socketpair()
    ours = Late(plain.family, plain.type, plain.proto, plain.detach())
    null = os.open(os.devnull, os.O_RDONLY)
    with ours, peer:
        peer.send(b"first")
        ours.then(lambda: socket.send_fds(peer, [b"second"], [null]))
        assert receive_plain(ours, 4096) == b"first"
        ours.then(lambda: None)
        with pytest.raises(OSError, match="descriptors"):
            receive_plain(ours, 4096)
        assert socket.socket.recvmsg(ours, 4096)[0] == b"second", "it is all still there"
        peer.close()
        assert receive_plain(ours, 4096) == b""
    os.close(null)
