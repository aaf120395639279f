"""Running programs in the TAP guests of a lab, their output captured."""

import asyncio
import itertools
import os
import signal
from collections.abc import Sequence

from lab.owner import Lab, open_console

_tokens = itertools.count(1 << 32)  # beyond any pid, which `launch.py exec` uses


async def run_in_guest(lab: Lab, guest: str, argv: Sequence[str]) -> tuple[int, str]:
    """Run a program in a guest; returns its exit status and what it printed. Cancelling kills it."""
    reader, writer = os.pipe()
    theirs, lease = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    loop = asyncio.get_running_loop()
    token = next(_tokens)
    console = await open_console(lab.channel, guest)
    output = loop.run_in_executor(None, _read_all, reader)
    try:
        call = console.call(
            "execute", fds=[null, writer, writer, theirs], argv=list(argv), env=dict(os.environ), cwd="/", token=token
        )
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)  # the request is on its way with its descriptors
        os.close(writer)
        writer = -1
        try:
            status = int((await task).value["status"])
        except asyncio.CancelledError:
            console.tell("kill", token=token, number=int(signal.SIGKILL))
            raise
    finally:
        for fd in (writer, theirs, lease, null):
            if fd >= 0:
                os.close(fd)
        console.close()
        text = await output
    return status, text


def _read_all(fd: int) -> str:
    with open(fd, "rb") as pipe:
        return pipe.read().decode(errors="replace")
