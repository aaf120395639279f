"""xenstored is killed in a running topology: the next one has its tree, all go on with it, and data paths notice nothing."""

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hyp.xenstore.client import Transaction, Watch, XenstoreClient, XenstoreError
from lab import owner
from lab.errors import LabError
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.stopping import stop
from lab.workloads import Runner
from tests.lab.test_launch import pids_of
from tests.lab.test_paths import PAIRS, check, running
from tests.support.driven_labs import DOMID, driven_lab
from tests.support.labs import GUESTS, launch, run, start, staying_up, topology_file, unique, until, workload
from tests.support.patience import patient

pytestmark = pytest.mark.usefixtures("warm")

LAB = "[nic]\npause_us = 1_000_000\n" + GUESTS
KILLS = 4
RESTARTS = 3
LIMIT = f"[supervisor]\nrestarts = {RESTARTS}\nwithin_s = 3600.0\n"
"""However slow the machine."""
DYING = "tests.support.dying_xenstored"


@asynccontextmanager
async def connected(runner: Runner) -> AsyncIterator[XenstoreClient]:
    """A client that comes to where xenstored listens."""
    async with await XenstoreClient.lasting(runner.lab._rundir.store_socket) as store:
        yield store


async def kill(runner: Runner, times: int) -> None:
    """Kill xenstored for the so manieth time, and wait until the next one is ready."""
    os.kill((await runner.lab.pids())["xenstored"], signal.SIGKILL)
    await runner.lab.restarted("xenstored", times)


@pytest.mark.long
def test_streams_lose_nothing_and_the_store_loses_nothing(tmp_path: Path) -> None:
    """On both paths, to guests and to the wire, while clients write, in transactions too, and watch."""

    async def main() -> None:
        async with running(tmp_path, "restart", LAB) as runner, connected(runner) as store, connected(runner) as other:
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
        async with running(tmp_path, "both", LAB) as runner, connected(runner) as store:
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


def test_each_domain_gets_its_own_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next xenstored, too, knows who asks by the stream, and what a guest may is what it might before."""

    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "own") as bert:
            own = f"/local/domain/{DOMID}"
            assert await bert.call("store", op="write", path="data/mine", value="1") is None
            before = await bert.dom0.get_perms(f"{own}/data/mine")
            await kill(bert.runner, 1)
            assert await bert.call("store", op="read", path="data/mine") == "1"
            assert await bert.call("store", op="read", path="name") == "bert"
            assert await bert.call("store", op="write", path="name", value="anna") == "EACCES"
            assert await bert.call("store", op="read", path="/local/domain/1/name") == "EACCES"
            assert await bert.dom0.get_perms(f"{own}/data/mine") == before == [f"n{DOMID}"]
            assert await bert.call("store", op="directory", path="data") == ["mine"]

    run(main())


def test_one_that_stops_holds_nobody_up_and_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "stops", LAB) as runner, connected(runner) as store:
            pid = runner.pids["xenstored"]
            await stop(pid)
            writing = asyncio.create_task(store.write("/tool/a", "1"))
            for one, two in PAIRS.values():
                record = await runner.run(workload("stream", one, two, 64))
                check(record)
                assert record["lost"] == 0
            assert not writing.done()
            os.kill(pid, signal.SIGCONT)
            await writing
            # killed while it is stopped, with a request in its socket
            await stop(pid)
            writing = asyncio.create_task(store.write("/tool/a", "2"))
            await asyncio.sleep(0)
            await kill(runner, 1)
            await writing
            assert await store.read("/tool/a") == "2"

    run(main())


@pytest.mark.long
def test_one_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    """Then requests fail at once, and what is connected goes on."""

    async def main() -> None:
        async with running(tmp_path, "enough", LAB + LIMIT) as runner, connected(runner) as store:
            watch = await store.watch("/tool", "t")
            assert await watch.get() == "/tool"
            for times in range(1, RESTARTS + 1):
                await kill(runner, times)
            os.kill((await runner.lab.pids())["xenstored"], signal.SIGKILL)
            with pytest.raises(LabError, match="xenstored died"):
                await runner.lab.restarted("xenstored", RESTARTS + 1)
            with pytest.raises(XenstoreError, match="EIO"):
                await store.read("/tool")
            with pytest.raises(XenstoreError, match="EIO"):
                await forever(watch)
            assert launch("store", "read", "/tool", "--topology", runner.lab.name).returncode == 1
            for one, two in PAIRS.values():
                check(await runner.run(workload("stream", one, two, 64)))

    run(main())


async def forever(watch: Watch) -> None:
    async for _ in watch:
        pass


def test_without_memory_for_the_journal_it_goes_on_and_its_death_is_one(tmp_path: Path) -> None:
    """The next one would have an old tree: it says why it does not start."""

    async def main() -> None:
        async with running(tmp_path, "full", LAB) as runner, connected(runner) as store:
            resource.prlimit(runner.pids["xenstored"], resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))  # of its files: the journal
            for k in range(100):
                await store.write("/tool/a", f"{k}{'x' * 500}")
            assert (await store.read("/tool/a")).startswith("99x")
            os.kill(runner.pids["xenstored"], signal.SIGKILL)
            with pytest.raises(LabError, match="xenstored died"):
                await runner.lab.restarted("xenstored", RESTARTS + 1)
            with pytest.raises(XenstoreError, match="EIO"):
                await store.read("/tool/a")
            log = runner.lab._rundir.log_path.read_text()
            assert "the journal: it is not kept (No space left" in log
            assert "the journal is not whole: there was no memory for it" in runner.lab.deaths["xenstored"]
            for one, two in PAIRS.values():
                check(await runner.run(workload("stream", one, two, 64)))

    run(main())


def test_one_that_dies_while_a_topology_starts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(topology)
        for process in processes:
            if process["role"] == "xenstored":
                process["module"] = DYING
        return processes

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, DYING])

    async def main() -> None:
        with pytest.raises(LabError, match="xenstored"):
            async with running(tmp_path, "dies", LAB):
                pass

    run(main())


@pytest.mark.long
def test_commands_and_xens_tools_wait_for_the_next_one(tmp_path: Path) -> None:
    """Who is connected, and who connects while there is none."""
    name = unique("tools")
    with staying_up(topology_file(tmp_path, "tools", LAB)):
        watching = start("store", "watch", "/tool/a", "--topology", name)
        assert watching.stdout is not None
        assert watching.stdout.readline() == "/tool/a\n"
        for times in range(1, 4):
            os.kill(pids_of(name)["xenstored"], signal.SIGKILL)
            done = launch("store", "write", "/tool/a", str(times), "--topology", name)
            assert done.returncode == 0, done.stderr
            assert watching.stdout.readline() == "/tool/a\n"
            assert launch("store", "read", "/tool/a", "--topology", name).stdout == f"{times}\n"
        watching.kill()
        watching.wait(patient(10))
        watching.stdout.close()
