"""The xenstored process: the store server with the connections that the keeper brings, and the socket at which it listens.

A domain's connection waits until Dom0's toolstack has made its nodes and introduced it, so that no guest sees a store without them.

One that takes the place of a dead one finds the tree, and who is introduced, in the journal that the keeper hands to each
(journal.py). The keeper then tells it who has gone meanwhile, and brings new connections of all that live (lab/keeper/store.py).
"""

from typing import Any

from dom0.xenstore.journal import Journal, MemoryFile
from dom0.xenstore.server import Xenstored
from dom0.xenstore.tree import StoreError
from hyp.control.served import Served
from hyp.process import Process, adopt_socket


async def main(process: Process, config: dict[str, Any]) -> None:
    """Serve until the keeper says stop."""
    server = Xenstored(journal=Journal(MemoryFile(process.sockets["journal"])), served=Served.adopt(process.sockets.pop("served")))

    def connect(fds: list[int], domid: int) -> None:
        """A domain comes. fds: the server's end of its connection."""
        server.expect(domid, adopt_socket(fds[0]))

    def listen(fds: list[int]) -> None:
        """Who connects acts as Domain 0. fds: a listening socket in the run folder."""
        server.listen(adopt_socket(fds[0]))

    def release(domid: int) -> None:
        """A domain is gone, and what was its own goes with it."""
        try:
            server.release(domid)
        except StoreError:
            pass  # it had never been introduced

    process.serve("connect", connect, takes_fds=True)
    process.serve("listen", listen, takes_fds=True)
    process.serve("release", release)
    process.ready()
    await process.stopped.wait()
    server.close()
