"""What every process of a topology has in common: born of the fork server, a console to the keeper, an event loop, an end.

A role is a module with ``async def main(process, config)``. It is forked with all code loaded, gets its sockets by number, serves
operations on its console and on whatever consoles the keeper attaches later, says `ready`, and ends when `stopped` is set. Asked to
stop before it is ready it ends at once: it may be waiting for one that will never be.
"""

import asyncio
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from hyp import linux
from hyp.control import Channel, Handler

log = logging.getLogger(__name__)


def adopt_socket(fd: int) -> socket.socket:
    """A socket object that owns `fd`."""
    return socket.socket(fileno=fd)


class Process:
    """The process this code runs in. `sockets` has the descriptors it was born with, by purpose."""

    def __init__(self, name: str, role: str, sockets: dict[str, int]) -> None:
        self.name, self.role, self.sockets = name, role, sockets
        self.stopped = asyncio.Event()
        self._is_ready = False
        self._handlers: dict[str, Handler] = {"stop": self._stop, "attach": self._attach, "xenstore": self._store}
        self._takes_fds: set[str] = {"attach", "xenstore"}
        self._store_came = asyncio.Event()
        self._store_is_gone = False
        self._clients: set[Channel] = set()
        self.console = self._channel(adopt_socket(sockets["console"]), "the keeper", self._keeper_gone)

    def serve(self, op: str, handler: Handler, *, takes_fds: bool = False) -> None:
        """Offer an operation on this process's consoles."""
        self._handlers[op] = handler
        if takes_fds:
            self._takes_fds.add(op)

    def ready(self) -> None:
        """Tell the keeper that this process does its work from now on."""
        self._is_ready = True
        self.console.tell("ready")

    def _stop(self) -> None:
        self.stopped.set()
        if not self._is_ready:
            sys.stderr.flush()
            os._exit(0)

    def failed(self, cause: str) -> None:
        """Tell the keeper why this process cannot do its work."""
        self.console.tell("failed", cause=cause)

    def hypercalls(
        self,
        handlers: dict[str, Handler] | None = None,
        takes_fds: frozenset[str] = frozenset(),
        on_close: Callable[[], None] | None = None,
    ) -> Channel:
        """The channel to the hypervisor on the socket this process was born with; `handlers` serves what it asks of us."""
        sock = adopt_socket(self.sockets["hypercalls"])
        return Channel(sock, handlers, name="the hypervisor", takes_fds=takes_fds, on_close=on_close)

    async def store_socket(self) -> socket.socket:
        """The stream to xenstored that this process was born with, or the keeper has brought last; waits for the next one.

        XenstoreClient.lasting(process.store_socket) is how it is used. ConnectionError if there will be none.
        """
        while "xenstore" not in self.sockets:
            if self._store_is_gone:
                raise ConnectionError("xenstored is dead, and is not started again")
            self._store_came.clear()
            await self._store_came.wait()
        return adopt_socket(self.sockets.pop("xenstore"))

    def _store(self, fds: list[int]) -> None:
        """xenstored has been started again, fds: the end of a new stream to it; or there will be none."""
        if "xenstore" in self.sockets:
            os.close(self.sockets.pop("xenstore"))
        if fds:
            self.sockets["xenstore"] = fds[0]
        else:
            self._store_is_gone = True
        self._store_came.set()

    def _channel(self, sock: socket.socket, name: str, on_close: Callable[[], None] | None = None) -> Channel:
        return Channel(sock, self._handlers, name=name, takes_fds=self._takes_fds, on_close=on_close)

    def _attach(self, fds: list[int]) -> None:
        self._clients.add(self._channel(adopt_socket(fds[0]), "a client"))
        self._clients = {client for client in self._clients if not client.closed.done()}

    def _keeper_gone(self) -> None:
        os._exit(1)  # the topology's end; nothing is to be saved


async def _run(name: str, role: str, module: str, config: dict[str, Any], sockets: dict[str, int]) -> int:
    process = Process(name, role, sockets)
    main: Callable[[Process, dict[str, Any]], Awaitable[None]] = importlib.import_module(module).main
    try:
        await main(process, config)
        return 0
    except Exception as error:
        traceback.print_exc()
        cause = str(error) or type(error).__name__
        process.failed(cause)
        return 1


def run_role(name: str, role: str, module: str, config: dict[str, Any], sockets: dict[str, int]) -> int:
    """Be the process `name`: run the role's main to its end; returns the exit status."""
    faulthandler.enable()
    linux.set_name(linux.shown_name(name, role))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for launch.py, which ends the topology in order
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"{name}: %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(name, role, module, config, sockets))
    sys.stdout.flush()
    sys.stderr.flush()
    return status
