"""Names that the command line can complete: of what is running, asked for quickly or not at all.

Who presses a key waits: a keeper that does not answer within `ANSWER_S` has no guests to offer. Standard library and msgpack alone.
"""

import asyncio
from typing import Any

from hyp.control import ControlError
from lab import rundir
from lab.command.clients import ClientError, connect

ANSWER_S = 0.3


def topologies() -> list[str]:
    """Names of the topologies that run."""
    return [run.name for run in rundir.living()]


def guests() -> list[tuple[str, dict[str, Any]]]:
    """(topology, the guest's table) of all of them."""
    return asyncio.run(_guests())


async def _guests() -> list[tuple[str, dict[str, Any]]]:
    runs = rundir.living()
    answers = await asyncio.gather(*(_of(run) for run in runs), return_exceptions=True)
    return [(run.name, guest) for run, found in zip(runs, answers, strict=True) if isinstance(found, list) for guest in found]


async def _of(run: rundir.RunDir) -> list[dict[str, Any]]:
    try:
        keeper = await connect(run)
    except ClientError:
        return []
    try:
        async with asyncio.timeout(ANSWER_S):
            found: list[dict[str, Any]] = (await keeper.call("status")).value.get("guests", [])
            return found
    except (ControlError, TimeoutError):
        return []
    finally:
        keeper.close()
