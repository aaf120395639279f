"""``launch.py web``: the page of a running topology, until Ctrl-C or the topology's end."""

import asyncio
import importlib.util
import signal

from lab.command.doing import FAILED, fail

PACKAGES = ("plotly", "prometheus_client", "starlette", "uvicorn")
"""What the page needs beyond the lab itself: pyproject.toml's extra `web`."""
BRINGS = "the page needs packages that are not there ({}): `make web-packages` brings them"


def check_packages() -> None:
    """Exit, saying what helps, unless all is there that the page takes."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        fail(BRINGS.format(", ".join(missing)), FAILED)


async def serve_page(topology: str | None, port: int) -> str:
    """Serve it; what to say at the end. ClientError if there is no such topology."""
    from lab.web.serve import page

    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)
    async with page(topology, port) as shown:
        print(f"{shown.address} shows it; Ctrl-C ends the page, and not the topology", flush=True)
        ended = asyncio.ensure_future(shown.ended())
        waits = {ended, asyncio.ensure_future(asked.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else "the page has ended; the topology goes on"
