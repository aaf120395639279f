"""An upcall of a control plane: events that its event loop waits for, not an engine.

Who notifies may do so without end, and each time all who joined look. So who serves guests rests after an arrival, for `LEAST_S`,
and for longer while nothing is found: twice as long each time, up to `MOST_S`. What arrives in a rest is seen at its end.
"""

import asyncio
import select

LEAST_S, MOST_S = 0.001, 0.064


class ControlUpcall:
    """Where the events of control rings arrive: which of them it was nobody says, so all look."""

    def __init__(self, number: int, epoll: int, *, rests: bool = False) -> None:
        """`rests`: those who notify are not trusted. `found` is called then whenever one has looked and has found something."""
        self.number, self._epoll, self._poll = number, epoll, select.epoll.fromfd(epoll)
        self._rings: set[asyncio.Event] = set()
        self._rests, self._rest_s = rests, LEAST_S
        self._rest: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._epoll, self._arrived)

    def _arrived(self) -> None:
        self._poll.poll(0)  # edges: they are gone with this
        for event in self._rings:
            event.set()
        if self._rests:
            self._loop.remove_reader(self._epoll)
            self._rest = self._loop.call_later(self._rest_s, self._listen)
            self._rest_s = min(2 * self._rest_s, MOST_S)

    def found(self) -> None:
        """It was not for nothing."""
        self._rest_s = LEAST_S

    def close(self) -> None:
        """Wait for nothing any more. The descriptor is not this one's."""
        self._loop.remove_reader(self._epoll)
        if self._rest is not None:
            self._rest.cancel()

    def join(self, event: asyncio.Event) -> None:
        """Set `event` whenever one arrives, until `leave`."""
        self._rings.add(event)

    def leave(self, event: asyncio.Event) -> None:
        """The inverse of `join`."""
        self._rings.discard(event)
