"""An upcall of a control plane: events that its event loop waits for, not an engine.

Who notifies may do so without end, and each time all who joined look. So who serves guests rests after an arrival, for `LEAST_S`,
and for longer while nothing is found: twice as long each time, up to `MOST_S`. What arrives in a rest is seen at its end.

A thread waits at the upcall, and not the loop, whose epoll it would be in: to enter an epoll into one, or anything into one that is
in another, takes a lock that all processes of the machine share, and who nests epolls of his own can hold it as long as he likes
(epnested_mutex, fs/eventpoll.c).
"""

import asyncio
import os
import select
import threading

LEAST_S, MOST_S = 0.001, 0.064


class ControlUpcall:
    """Where the events of control rings arrive: which of them it was nobody says, so all look."""

    def __init__(self, number: int, epoll: int, *, rests: bool = False) -> None:
        """`rests`: those who notify are not trusted. `found` is called then whenever one has looked and has found something."""
        self.number, self._poll = number, select.epoll.fromfd(epoll)
        self._rings: set[asyncio.Event] = set()
        self._rests, self._rest_s = rests, LEAST_S
        self._loop = asyncio.get_running_loop()
        self._closed, self._close_fd = threading.Event(), os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._close_fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._listen, name="upcall", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            self._poll.poll()  # edges: they are gone with this
            if self._closed.is_set():
                return
            try:
                self._loop.call_soon_threadsafe(self._arrived)
            except RuntimeError:  # the loop has ended
                return
            if self._rests:
                rest_s, self._rest_s = self._rest_s, min(2 * self._rest_s, MOST_S)
                if self._closed.wait(rest_s):
                    return

    def _arrived(self) -> None:
        for event in self._rings:
            event.set()

    def found(self) -> None:
        """It was not for nothing."""
        self._rest_s = LEAST_S

    def close(self) -> None:
        """Wait for nothing any more. The descriptor is not this one's."""
        self._closed.set()
        os.eventfd_write(self._close_fd, 1)
        self._thread.join()
        self._poll.unregister(self._close_fd)
        os.close(self._close_fd)

    def join(self, event: asyncio.Event) -> None:
        """Set `event` whenever one arrives, until `leave`."""
        self._rings.add(event)

    def leave(self, event: asyncio.Event) -> None:
        """The inverse of `join`."""
        self._rings.discard(event)
