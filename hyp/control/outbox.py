"""What waits to be sent on a channel, in its order: nothing of it blocks, and nothing asks again and again.

A message that the socket has no room for waits until it has. One whose descriptors the kernel refuses for the time being
(ETOOMANYREFS: this user has too many under way in sockets, perhaps parked there by somebody) is tried again for `REFS_S`, and then
handed back to who sent it; behind it only messages to the same peer wait. A peer whom to wake is dear gets its messages later
(debt.py).
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hyp.control.debt import Debt
from hyp.control.descriptors import close_all

REFS_S = 2.0
RETRY_S = 0.01
_LATER = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_GONE = (errno.EPIPE, errno.ECONNRESET)

HandBack = Callable[[OSError], bytes | None]
"""``hand_back(why)``: the message cannot be sent. Returns one without descriptors to send in its place, or None."""


@dataclass(slots=True, eq=False)
class Letter:
    """A message that waits, and copies of its descriptors."""

    packet: bytes
    hand_back: HandBack
    fds: list[int] = field(default_factory=list)
    give_up_at: float = 0.0


class Outbox:
    """Of one socket. `gone(reason)` is called once sending has shown that the peer is no more, `fewer()` when less waits."""

    def __init__(self, sock: socket.socket, gone: Callable[[str], None], fewer: Callable[[], None], debt: Debt) -> None:
        self._sock, self._gone, self._fewer, self._debt = sock, gone, fewer, debt
        self._loop = asyncio.get_running_loop()
        self._letters: deque[Letter] = deque()
        self._writing = False
        self._retry: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def descriptors(self) -> int:
        """How many wait, copies that this process has open."""
        return sum(len(letter.fds) for letter in self._letters)

    def send(self, packet: bytes, fds: Sequence[int], hand_back: HandBack) -> Letter | None:
        """Send a message, now or when that can be; the descriptors stay the caller's. Returns the letter if it has to wait."""
        error: OSError | None = None
        if not self._letters and self._debt.wait_s() == 0:
            try:
                with self._debt.pays():
                    socket.send_fds(self._sock, [packet], fds)
                return None
            except OSError as failed:
                error = failed
                if self._fails(error):
                    self._instead(error, hand_back)
                    return None
        letter = Letter(packet, hand_back)
        try:
            for fd in fds:
                letter.fds.append(os.dup(fd))
        except OSError as failed:
            close_all(letter.fds)
            self._instead(failed, hand_back)
            return None
        self._letters.append(letter)
        if error is not None:
            self._wait(letter, error)
        elif len(self._letters) == 1:
            self._wait_until_paid()
        return letter

    def withdraw(self, letter: Letter) -> None:
        """Do not send it any more."""
        with contextlib.suppress(ValueError):
            self._letters.remove(letter)
            close_all(letter.fds)

    def close(self) -> None:
        """Drop all that waits."""
        self._stop_waiting()
        for letter in self._letters:
            close_all(letter.fds)
        self._letters.clear()

    def _flush(self) -> None:
        self._stop_waiting()
        self._send_what_can_be()
        self._fewer()

    def _send_what_can_be(self) -> None:
        while self._letters:
            letter = self._letters[0]
            if self._debt.wait_s() > 0:
                self._wait_until_paid()
                return
            try:
                with self._debt.pays():
                    socket.send_fds(self._sock, [letter.packet], letter.fds)
            except OSError as error:
                overdue = letter.give_up_at and self._loop.time() > letter.give_up_at
                if not self._fails(error) and not (overdue and error.errno == errno.ETOOMANYREFS):
                    self._wait(letter, error)
                    return
                if error.errno in _GONE:
                    self._gone(error.strerror or str(error))
                    return
                self.withdraw(letter)
                self._instead(error, letter.hand_back, first=True)
            else:
                self.withdraw(letter)

    def _instead(self, error: OSError, hand_back: HandBack, *, first: bool = False) -> None:
        """A message is not to be sent: what is sent in its place, before all others if it was the `first`."""
        if error.errno in _GONE:
            self._gone(error.strerror or str(error))
            return
        packet = hand_back(error)
        if packet is None:
            return
        if first:
            self._letters.appendleft(Letter(packet, _never))
        else:
            self.send(packet, (), _never)

    @staticmethod
    def _fails(error: OSError) -> bool:
        return not isinstance(error, BlockingIOError) and error.errno not in _LATER

    def _wait(self, letter: Letter, error: OSError) -> None:
        if isinstance(error, BlockingIOError):
            try:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                self._writing = True
            except OSError:  # the user has all the epoll watches that he may have
                self._retry = self._loop.call_later(RETRY_S, self._flush)
            return
        if letter.give_up_at == 0:
            letter.give_up_at = self._loop.time() + REFS_S
        self._retry = self._loop.call_later(RETRY_S, self._flush)

    def _wait_until_paid(self) -> None:
        self._retry = self._loop.call_later(self._debt.wait_s(), self._flush)

    def _stop_waiting(self) -> None:
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
            self._writing = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


def _never(error: OSError) -> bytes | None:
    return None
