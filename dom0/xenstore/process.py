"""The xenstored process: the store server with the connections that the keeper brings."""

from typing import Any

from dom0.xenstore.server import Xenstored
from dom0.xenstore.tree import StoreError
from hyp.abi.domids import DOM0
from hyp.process import Process, adopt_socket


async def main(process: Process, config: dict[str, Any]) -> None:
    """Serve until the keeper says stop."""
    server = Xenstored()

    def connect(fds: list[int], domid: int) -> None:
        """A domain comes: introduce it; fds: the server's end of its connection."""
        if domid != DOM0:
            server.introduce(domid)
        server.add_connection(domid, adopt_socket(fds[0]))

    def release(domid: int) -> None:
        """A domain is gone, and what was its own goes with it."""
        try:
            server.release(domid)
        except StoreError:
            pass  # it had never connected

    process.serve("connect", connect, takes_fds=True)
    process.serve("release", release)
    process.ready()
    await process.stopped.wait()
    server.close()
