"""The Dom0 process."""

from typing import Any

from dom0.toolstack import Toolstack
from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    toolstack = Toolstack(config["guests"])
    hyp = process.hypercalls({"context_authorize": toolstack.context_authorize})
    await hyp.call("toolstack_ready")
    process.ready()
    await process.stopped.wait()
