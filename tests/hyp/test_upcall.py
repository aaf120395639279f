"""An upcall that serves those who are not trusted: however often they notify, who joined looks now and then."""

import asyncio
import contextlib
import os
import select
import time
from collections.abc import AsyncIterator

import pytest

from hyp.upcall import LEAST_S, MOST_S, ControlUpcall
from tests.support.beside import beside
from tests.support.control_ends import run

ROUNDS = 20


@contextlib.asynccontextmanager
async def upcall_of(*, rests: bool) -> AsyncIterator[tuple[ControlUpcall, int]]:
    """An upcall, and the eventfd by which it is notified."""
    epoll, fd = select.epoll(), os.eventfd(0, os.EFD_NONBLOCK)
    epoll.register(fd, select.EPOLLIN | select.EPOLLET)
    upcall = ControlUpcall(1, epoll.fileno(), rests=rests)
    try:
        yield upcall, fd
    finally:
        upcall.close()
        epoll.close()
        os.close(fd)


async def looks(upcall: ControlUpcall, fd: int, rounds: int, *, found: bool) -> float:
    """How long it takes until somebody has looked so often, beside a storm of notifications, in s."""
    woken = asyncio.Event()
    upcall.join(woken)
    with beside(lambda: os.eventfd_write(fd, 1)):
        begin = time.monotonic()
        for _ in range(rounds):
            await woken.wait()
            woken.clear()
            if found:
                upcall.found()
        took = time.monotonic() - begin
    upcall.leave(woken)
    return took


@pytest.mark.parametrize("found", [True, False])
def test_a_storm_has_who_joined_look_now_and_then(found: bool) -> None:
    async def main() -> None:
        async with upcall_of(rests=True) as (upcall, fd):
            took = await looks(upcall, fd, ROUNDS, found=found)
            rests = [LEAST_S if found else min(LEAST_S * 2**k, MOST_S) for k in range(ROUNDS - 1)]
            assert took >= sum(rests) * 0.9

    run(main())


def test_what_arrives_in_a_rest_is_seen_at_its_end() -> None:
    async def main() -> None:
        async with upcall_of(rests=True) as (upcall, fd):
            woken = asyncio.Event()
            upcall.join(woken)
            for _ in range(5):
                os.eventfd_write(fd, 1)
                await woken.wait()
                woken.clear()

    run(main())
