"""The role of a traffic guest that does not boot before somebody has written to its configuration's `gate`, a FIFO."""

import asyncio
from pathlib import Path
from typing import Any

from domu.programs import traffic
from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    """Wait, then be the guest."""
    await asyncio.to_thread(Path(config["gate"]).read_bytes)
    await traffic.main(process, config)
