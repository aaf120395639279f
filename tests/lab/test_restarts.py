"""Who is started again, and when that ends; and how the keeper learns that somebody has ended."""

import asyncio
import os

from hyp.control import Channel, socketpair
from lab.keeper.births import Births
from lab.keeper.restarts import LIFE_CREDIT_S, LIFE_DEARNESS, Limit, Restarts
from tests.support.xenstored_process import forked, succeeded


def test_so_often_within_so_many_seconds_and_no_more() -> None:
    restarts, limit = Restarts(), Limit(2, 10.0)
    assert [restarts.may("nic", at, limit) for at in (0.0, 4.0, 9.0)] == [True, True, False]
    assert restarts.may("dom0", 9.0, limit), "each for itself"
    assert restarts.may("nic", 10.5, limit), "the first was long ago"
    assert not restarts.may("nic", 11.0, limit)
    assert restarts.may("nic", 11.0, Limit(3, 10.0))


class Relatives:
    """Whom a death is told."""

    def __init__(self) -> None:
        self.dead: list[tuple[int, int]] = []
        self.known: list[int] = []

    def living(self) -> list[int]:
        return self.known

    def died(self, pid: int, code: int) -> None:
        self.dead.append((pid, code))

    def childless(self, cause: str) -> None:
        raise AssertionError(cause)


def _dies_before_its_pid_is_known() -> None:
    """In a process of its own, as whatever has ended there is reaped. The fork server is played."""

    async def main() -> None:
        ours, theirs = socketpair()
        children = [os.fork() for _ in range(2)]  # one that is known, one that is being born
        if 0 in children:
            os._exit(3)
        for child in children:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        relatives = Relatives()
        births = Births(relatives, os.getpid(), ours, {})
        relatives.known = children[:1]

        def fork(purposes: list[str]) -> dict[str, int]:
            births.reap()
            return {"pid": children[1]}

        Channel(theirs, {"fork": fork}, name="the keeper")
        pid, pidfd = await births.fork([], [], {})  # ProcessLookupError, if it had been reaped
        assert (pid, relatives.dead) == (children[1], [(children[0], 3)])
        os.close(pidfd)
        await asyncio.sleep(0)
        assert relatives.dead == [(child, 3) for child in children]
        births.reap()
        assert len(relatives.dead) == 2, "nobody dies twice"

    asyncio.run(main())


def test_who_dies_before_its_pid_is_known_has_a_pidfd_and_then_a_death() -> None:
    assert succeeded(forked(_dies_before_its_pid_is_known))


def test_a_guest_owes_for_each_life_and_waits_once_that_is_too_much() -> None:
    """One of little memory is there again at once, as often as it may be; one of much has others work for little of the time."""
    restarts = Restarts()
    for k in range(5):
        assert restarts.wait_s("small", now=0.1 * k) == 0
        restarts.owe("small", now=0.1 * k, seconds=0.04)
    now = worked = 0.0
    while now < 1000:
        now += restarts.wait_s("large", now)
        now, worked = now + 0.5, worked + 0.5
        restarts.owe("large", now, 0.5)
    assert worked <= (1000 + LIFE_CREDIT_S) / LIFE_DEARNESS + 2 * 0.5
    assert restarts.wait_s("large", now) > 0
    assert restarts.wait_s("small", now) == 0
