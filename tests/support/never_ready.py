"""A role that waits for somebody who never comes; `ready` of its configuration: it says that it is ready first."""

import asyncio
from typing import Any

from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    """Wait for good, but for the end of what `stopped` asks if it is ready."""
    if config["ready"]:
        process.ready()
        await process.stopped.wait()
        raise RuntimeError("asked")
    await asyncio.Event().wait()
