"""What every process of a topology has in common: its end."""

import asyncio
import os
import socket

import pytest

from hyp.control import Channel
from hyp.process import run_role
from tests.support.labs import run


@pytest.mark.parametrize(("ready", "status"), [(True, 1), (False, 0)], ids=["ready", "not yet ready"])
def test_asked_to_stop_it_ends_in_order_or_at_once_where_it_is_not_ready(ready: bool, status: int) -> None:
    """What it waits for when it isn't may be one that will never be ready itself."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os._exit(run_role("late", "late", "tests.support.never_ready", {"ready": ready}, {"console": theirs.detach()}))
        finally:
            os._exit(70)
    theirs.close()

    async def main() -> None:
        came = asyncio.Event()
        keeper = Channel(ours, {"ready": came.set, "failed": lambda cause: None}, name="late")
        if ready:
            await came.wait()
        keeper.tell("stop")
        await keeper.closed

    run(main())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
