"""The page's server: on loopback, for as long as the topology is there. Own of it are uvicorn, the hub and the controls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import uvicorn

from lab.command.clients import the_one
from lab.command.forward import listen
from lab.view.attach import Watch
from lab.web.app import make_app
from lab.web.controls import Controls
from lab.web.hub import Hub
from lab.web.security import new_token

GOODBYE_S = 2
"""How long viewers have to take the last event."""
MOST_CONNECTIONS = 128


class _Server(uvicorn.Server):
    """Signals are the command's, and not uvicorn's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


class Page:
    """A page that is served. `address`: with the token that changing things takes."""

    def __init__(self, port: int, token: str, looking: "asyncio.Task[str]") -> None:
        self.port, self.token = port, token
        self.address = f"http://127.0.0.1:{port}/#token={token}"
        self._looking = looking

    async def ended(self) -> str:
        """Wait until the topology has ended; a sentence that says so."""
        return await asyncio.shield(self._looking)


@contextlib.asynccontextmanager
async def page(topology: str | None, port: int) -> AsyncIterator[Page]:
    """Serve the page of a running topology (of the only one, if it is None) at a port of loopback (0: any).

    ClientError if there is none such, or the port is taken.
    """
    run = the_one(topology)
    async with Watch.of(run.name) as watch:
        sockets = listen(port)
        hub, controls, token = Hub(watch), Controls(run, watch), new_token()
        hub.settings = controls.settings
        number = sockets[0].getsockname()[1]
        config = uvicorn.Config(
            make_app(hub, controls, token, [number]), lifespan="off", http="h11", ws="none", log_config=None, access_log=False,
            server_header=False, limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=GOODBYE_S,
        )  # fmt: skip
        server = _Server(config)
        await controls.learn()
        looking = asyncio.create_task(hub.run())
        serving = asyncio.create_task(server.serve(sockets))
        try:
            yield Page(number, token, looking)
        finally:
            await controls.close()
            looking.cancel()
            await asyncio.wait({looking})
            server.should_exit = True
            await asyncio.wait({serving})
            for sock in sockets:
                sock.close()
