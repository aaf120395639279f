"""What happens to a topology, told to whoever watches it. The last of it is kept for who comes later.

A watcher is a client of the keeper that has called `watch`: it gets all that is kept, and from then on each piece of news as the
event ``news``, until it closes its socket. The keeper never waits for one: to a watcher that does not read nothing more is sent
once `hyp.control.channel.MAX_UNSENT` messages wait, and when it goes that is all that happens.
"""

import time
from collections import deque
from typing import Any

from hyp.control import Channel

KEPT = 64


class News:
    """Pieces of news: ``{"time": Unix time, "kind", "who", "what"}``."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._watchers: set[Channel] = set()

    def add(self, kind: str, who: str, what: str) -> None:
        """Something has happened."""
        self._kept.append({"time": time.time(), "kind": kind, "who": who, "what": what})
        self._watchers = {watcher for watcher in self._watchers if not watcher.closed.done()}
        for watcher in self._watchers:
            watcher.tell("news", **self._kept[-1])

    def watch(self, client: Channel) -> list[dict[str, Any]]:
        """Tell `client` too from now on; returns what is kept, the oldest first."""
        self._watchers.add(client)
        return list(self._kept)
