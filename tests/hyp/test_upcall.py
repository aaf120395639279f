"""An upcall that serves those who are not trusted: however often they notify, who joined looks now and then."""

import asyncio
import contextlib
import ctypes
import os
import select
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyp.upcall import LEAST_S, MOST_S, ControlUpcall
from tests.lab.test_paths import check, running
from tests.support.beside import beside
from tests.support.labs import run, workload

ROUNDS = 20
SYS_KCMP, KCMP_EPOLL_TFD = {"x86_64": 312, "aarch64": 272}[os.uname().machine], 7
libc = ctypes.CDLL(None, use_errno=True)


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


def nested_epolls(pid: int) -> list[tuple[int, int]]:
    """(outer, inner): epoll descriptors of a process of which one is in the other; asserts that it has some.

    The numbers in proc_pid_fdinfo(5) are those of who entered them, perhaps another process: kcmp(2) compares what is behind them.
    """
    epolls, entered = [], []
    for fd in map(int, os.listdir(f"/proc/{pid}/fd")):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:[eventpoll]":
                lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
                epolls.append(fd)
                entered += [(fd, int(line.split()[1])) for line in lines if line.startswith("tfd:")]
    assert epolls
    return [(outer, inner) for outer, number in entered for inner in epolls if is_entered(pid, outer, number, inner)]


def is_entered(pid: int, epoll: int, number: int, fd: int) -> bool:
    """Whether what `epoll` has under `number` is what the process has as `fd`."""
    slot = struct.pack("III", epoll, number, 0)  # struct kcmp_epoll_slot: efd, tfd, toff
    return int(libc.syscall(SYS_KCMP, pid, pid, KCMP_EPOLL_TFD, ctypes.c_ulong(fd), slot)) == 0


def test_an_epoll_in_another_one_is_found() -> None:
    with select.epoll() as outer, select.epoll() as inner:
        assert (outer.fileno(), inner.fileno()) not in nested_epolls(os.getpid())
        outer.register(inner)
        assert (outer.fileno(), inner.fileno()) in nested_epolls(os.getpid())


@pytest.mark.usefixtures("warm")
def test_nobody_who_serves_guests_has_an_epoll_in_another_one(tmp_path: Path) -> None:
    """To change what is in such takes a lock of the whole machine, which a guest can hold as long as it likes."""
    text = "".join(
        f'[[guest]]\nname = "{name}"\npath = "{path}"\n{more}'
        for name, path, more in (
            ("anna", "split", 'grants = "persistent"\n'),
            ("bert", "bypass", 'grants = "dma_attach"\n' if False else ""),
            ("carl", "trapped", ""),
            ("dora", "cdna", ""),
        )
    )

    async def main() -> None:
        async with running(tmp_path, "epolls", text) as runner:
            check(await runner.run(workload("stream", "anna", "wire", frames=1000)))
            for name in ("hyp", "dom0", "nic", "xenstored"):
                assert nested_epolls(runner.pids[name]) == [], name

    run(main())
