"""An upcall of a control plane: events that its event loop waits for, not an engine."""

import asyncio
import select


class ControlUpcall:
    """Where the events of control rings arrive: which of them it was nobody says, so all look."""

    def __init__(self, number: int, epoll: int) -> None:
        self.number, self._poll = number, select.epoll.fromfd(epoll)
        self._rings: set[asyncio.Event] = set()
        asyncio.get_running_loop().add_reader(epoll, self._arrived)

    def _arrived(self) -> None:
        self._poll.poll(0)  # edges: they are gone with this
        for event in self._rings:
            event.set()

    def join(self, event: asyncio.Event) -> None:
        """Set `event` whenever one arrives, until `leave`."""
        self._rings.add(event)

    def leave(self, event: asyncio.Event) -> None:
        """The inverse of `join`."""
        self._rings.discard(event)
