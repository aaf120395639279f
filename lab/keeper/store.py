"""What the keeper holds for xenstored, so that another one can take its place: the journal, the listening socket, who is connected.

* The journal (dom0/xenstore/journal.py): a file in memory, made once, handed to each xenstored. The keeper never looks into it.
* The socket at which it listens (`launch.py store`, Xen's tools): the keeper's copy keeps it. Who connects while there is no
  xenstored waits for the next one.
* A stream socket of each domain: its end comes with the domain's birth, the other one goes to xenstored. Both are held, so that
  the death of either side can be told to the other.

When xenstored has died all streams are ended, for nobody knows how far they were read. `serve` brings the next one what it lacks:
the listening socket; who has gone for good meanwhile, so that no later domain of that number has any of its rights; a new stream
of each domain that lives, whose other end goes to the domain's process over its console (`xenstore`, hyp/process.py), and to no
other. What a guest does with it is its own affair: one that does not read its console is told no more than its channel holds.

`give_up`: there will be none. Everybody is told, and who waits at the listening socket sees its end.
"""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterable

from hyp.control.descriptors import hang_up, refuse_descriptors
from lab.keeper.child import Child
from lab.rundir import RunDir

XENSTORED = "xenstored"
Pair = tuple[socket.socket, socket.socket]
"""xenstored's end, and a domain's."""


class StoreKeeping:
    """Of one topology. `ask(op, **args)` asks the xenstored that lives, or the next one. Refused if there is none."""

    def __init__(self, rundir: RunDir, ask: Callable[..., Awaitable[Child]]) -> None:
        self._rundir, self._ask = rundir, ask
        self._listener: socket.socket | None = None
        self.journal = os.memfd_create(f"xbl.{rundir.name}.xenstored.journal", os.MFD_CLOEXEC)

    async def pair(self, domid: int) -> tuple[Pair, Child]:
        """A new domain's stream, and the xenstored that has its end."""
        pair = _pair()
        return pair, await self._ask("connect", fds=[pair[0].fileno()], domid=domid)

    async def serve(self, xenstored: Child, children: Iterable[Child]) -> None:
        """Bring a xenstored that was just forked what it lacks. ControlError if it dies over it."""
        everyone = list(children)
        for child in everyone:
            if child.domid is not None and child.ended.done() and not child.restarting:
                await xenstored.console.call("release", domid=child.domid)
        if self._listener is None:
            self._listener = self._rundir.listen_store()
        await xenstored.console.call("listen", fds=[self._listener.fileno()])
        for child in everyone:
            if child.plan["xenstore"] is not None and not child.ended.done():
                pair = _pair()
                await xenstored.console.call("connect", fds=[pair[0].fileno()], domid=child.plan["xenstore"])
                _replace(child, pair)

    async def renew(self, child: Child) -> None:
        """Its xenstored has died between `pair` and its own birth."""
        pair, _ = await self.pair(child.plan["xenstore"])
        _replace(child, pair)

    def give_up(self, children: Iterable[Child]) -> None:
        """There will be no other xenstored."""
        self.close()
        with contextlib.suppress(OSError):
            os.unlink(self._rundir.store_path)
        for child in children:
            if child.plan["xenstore"] is not None:
                child.console.tell("xenstore")

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()


def _pair() -> Pair:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    refuse_descriptors(pair[0])
    return pair


def _replace(child: Child, pair: Pair) -> None:
    """Hand a domain its end of a new stream, unless it has ended meanwhile."""
    old, child.sockets["xenstore"] = child.sockets.get("xenstore", ()), pair
    if child.ended.done():
        old = (*old, *child.sockets.pop("xenstore"))
    else:
        child.console.tell("xenstore", fds=[pair[1].fileno()])
    for end in old:
        hang_up(end, shared=True)
