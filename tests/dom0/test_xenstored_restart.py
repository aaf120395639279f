"""xenstored is killed in a running topology: the next one has its tree, all go on with it, and data paths notice nothing."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from hyp.xenstore.client import Transaction, XenstoreClient
from lab.workloads import Runner
from tests.lab.test_paths import PAIRS, check, running
from tests.support.driven_labs import driven_lab
from tests.support.labs import GUESTS, run, until, workload

pytestmark = pytest.mark.usefixtures("warm")

LAB = "[nic]\npause_us = 1_000_000\n" + GUESTS
KILLS = 4
"""As many as the keeper restarts in a row (lab/keeper/restarts.py), less one."""


async def kill(runner: Runner, times: int) -> None:
    """Kill xenstored for the so manieth time, and wait until the next one is ready."""
    os.kill((await runner.lab.pids())["xenstored"], signal.SIGKILL)
    await runner.lab.restarted("xenstored", times)


def test_streams_lose_nothing_and_the_store_loses_nothing(tmp_path: Path) -> None:
    """On both paths, to guests and to the wire, while clients write, in transactions too, and watch."""

    async def main() -> None:
        async with running(tmp_path, "restart", LAB) as runner:
            store = await XenstoreClient.lasting(runner.lab._rundir.store_socket)
            other = await XenstoreClient.lasting(runner.lab._rundir.store_socket)
            watch = await other.watch("/tool/last", "t")
            written, ended = 0, asyncio.Event()

            async def both(transaction: Transaction) -> None:
                for name in ("one", "two"):
                    await transaction.write(f"/tool/{name}", str(written + 1))

            async def write() -> None:
                nonlocal written
                while not ended.is_set():
                    await store.retry(both)
                    await store.write("/tool/last", str(written + 1))
                    written += 1

            writer = asyncio.create_task(write())
            for times, path in enumerate(["split", "bypass"] * (KILLS // 2), 1):
                one, two = PAIRS[path]
                streams = asyncio.create_task(runner.run(workload("stream", one, two, 64, seconds=1.5)))
                await asyncio.sleep(0)
                before = written

                async def more(before: int = before) -> bool:
                    return written > before + 20

                await until(more, "writes")
                await kill(runner, times)
                record = await streams
                check(record)
                assert record["lost"] == 0, record
            ended.set()
            await writer
            assert [await store.read(f"/tool/{name}") for name in ("one", "two", "last")] == [str(written)] * 3
            seen = ""
            while seen != str(written):
                await watch.get()
                seen = await other.read("/tool/last")
            await store.close()
            await other.close()

    run(main())


def test_a_vif_reconnects_while_xenstored_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "again") as bert:
            await bert.connect()
            for times in range(1, KILLS + 1):
                reconnecting = asyncio.create_task(bert.again())
                await kill(bert.runner, times)
                await reconnecting
                await bert.exchange()
            # what is written while there is none waits for it
            assert await bert.read(f"{bert.front}/state") == "4"

    run(main())


def test_who_dies_meanwhile_is_released(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "both", LAB) as runner:
            async with await XenstoreClient.lasting(runner.lab._rundir.store_socket) as store:
                assert await store.is_introduced(1)
                for name in ("xenstored", "anna"):
                    os.kill(runner.pids[name], signal.SIGKILL)
                await runner.lab.restarted("xenstored", 1)

                async def gone() -> bool:
                    return not await store.is_introduced(1) and "1" not in await store.directory("/local/domain")

                await until(gone, "anna's nodes to go")
                assert await store.is_introduced(2)
            check(await runner.run(workload("stream", "carl", "dora", 64)))

    run(main())
