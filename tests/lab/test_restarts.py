"""Who is started again, and when that ends; and how the keeper learns that somebody has ended."""

import asyncio
import os

from lab.keeper.keeper import Keeper
from lab.keeper.restarts import Limit, Restarts
from tests.support.xenstored_process import forked, succeeded


def test_so_often_within_so_many_seconds_and_no_more() -> None:
    restarts, limit = Restarts(), Limit(2, 10.0)
    assert [restarts.may("nic", at, limit) for at in (0.0, 4.0, 9.0)] == [True, True, False]
    assert restarts.may("dom0", 9.0, limit), "each for itself"
    assert restarts.may("nic", 10.5, limit), "the first was long ago"
    assert not restarts.may("nic", 11.0, limit)
    assert restarts.may("nic", 11.0, Limit(3, 10.0))


def _dies_while_nobody_knows_its_pid() -> None:
    """In a process of its own: the keeper reaps whatever has ended."""
    keeper = Keeper.__new__(Keeper)
    keeper._children, keeper._forkserver_pid, keeper._down = {}, os.getpid(), None
    keeper._loop, keeper._awaits_pid = asyncio.new_event_loop(), True
    child = os.fork()
    if child == 0:
        os._exit(3)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    keeper._reap()
    os.close(os.pidfd_open(child))  # ProcessLookupError, if it had been reaped
    keeper._awaits_pid = False
    keeper._reap()
    try:
        os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return
    raise AssertionError("it was not reaped")


def test_who_dies_at_once_is_known_before_it_is_reaped() -> None:
    assert succeeded(forked(_dies_while_nobody_knows_its_pid))
