"""Clients that outlast xenstored, beside a real one that is killed at any moment: what was answered is there, nobody hangs."""

import asyncio
import os
import random
import signal
import socket
import time

import pytest

from hyp.abi import xs_wire
from hyp.abi.xs_wire import MessageType
from hyp.xenstore import link
from hyp.xenstore.client import Transaction, Watch, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import XenbusState, switch_state, wait_for_state
from tests.dom0.test_xenstored_fairness import hammer
from tests.support.patience import patient
from tests.support.xenstored_process import Kept, fails, forked, kept

ROUNDS = 25
GUESTS = (5, 6, 7)


async def limited(main: object) -> None:
    await asyncio.wait_for(main, patient(60))  # type: ignore[arg-type]


def test_what_was_answered_is_there_however_often_it_is_killed() -> None:
    """Writers, each in its own home; transactions of pairs; watchers; nodes made and removed; killed at random moments."""
    rng = random.Random(3)

    counts = dict.fromkeys(GUESTS, 0)

    async def writer(client: XenstoreClient, domid: int, ended: asyncio.Event) -> int:
        while not ended.is_set():
            count = counts[domid] = counts[domid] + 1

            async def pair(transaction: Transaction, value: str = f"{count}") -> None:
                assert await transaction.read("one") == await transaction.read("two")
                await transaction.write("one", value)
                await transaction.write("two", value)

            await client.write("n", f"{count}")
            await client.retry(pair)
            await client.mkdir(f"d{count % 7}/e")
            await client.rm(f"d{(count + 3) % 7}")
            assert await client.read("n") == f"{count}"
        return counts[domid]

    async def watcher(watch: Watch, dom0: XenstoreClient, path: str, seen: list[int]) -> None:
        async for _ in watch:
            value = int(await dom0.read(path))
            assert value >= seen[-1]
            seen.append(value)

    async def main(kept: Kept) -> None:
        dom0, ended, seen = await kept.client(0), asyncio.Event(), {domid: [0] for domid in GUESTS}
        writers, watchers = [], []
        for domid in GUESTS:
            client = await kept.client(domid)
            for name in ("n", "one", "two"):
                await client.write(name, "0")
            path = f"/local/domain/{domid}/n"
            watchers.append(asyncio.create_task(watcher(await dom0.watch(path, f"{domid}"), dom0, path, seen[domid])))
            writers.append(asyncio.create_task(writer(client, domid, ended)))
        for number in range(ROUNDS):
            until, before = time.monotonic() + rng.random() / 20, dict(counts)
            while time.monotonic() < until:
                await asyncio.sleep(0)
            while number % 5 == 0 and any(counts[domid] == before[domid] for domid in GUESTS):  # nobody gives it up
                await asyncio.sleep(0)
            kept.kill()
        ended.set()
        for domid, count in zip(GUESTS, await asyncio.gather(*writers), strict=True):
            home = f"/local/domain/{domid}"
            assert [await dom0.read(f"{home}/{name}") for name in ("n", "one", "two")] == [f"{count}"] * 3
            while seen[domid][-1] != count:
                await asyncio.sleep(0)
        nodes = {path: node.value for path, node in kept.saved().nodes.items()}
        assert {int(nodes[f"/local/domain/{domid}/n"]) for domid in GUESTS} == {seen[domid][-1] for domid in GUESTS}
        for task in watchers:
            task.cancel()

    with kept(GUESTS) as made:
        asyncio.run(limited(main(made)))


def test_requests_wait_and_open_transactions_begin_anew() -> None:
    async def main(kept: Kept) -> None:
        dom0, guest = await kept.client(0), await kept.client(5)
        await guest.write("a", "1")

        async def open_at_its_death() -> None:
            async with guest.transaction() as transaction:
                await transaction.write("a", "2")
                kept.kill()
                await guest.read("a")  # over the next stream
                async with guest.transaction() as other:  # which may have the same number
                    await other.write("b", "3")
                await fails("EAGAIN", transaction.write("a", "4"))
                await transaction.write("a", "5")

        await fails("EAGAIN", open_at_its_death())
        assert (await guest.read("a"), await guest.read("b")) == ("1", "3")
        rounds = 0

        async def body(transaction: Transaction) -> None:
            nonlocal rounds
            rounds += 1
            await transaction.write("a", f"{rounds}")
            if rounds < 3:
                kept.kill()

        await guest.retry(body)
        assert (rounds, await guest.read("a")) == (3, "3")
        kept.kill()
        await dom0.introduce(9)
        await fails("EEXIST", dom0.introduce(9))
        await dom0.release(9)
        await fails("ENOENT", dom0.release(9))

    with kept([5]) as made:
        asyncio.run(limited(main(made)))


def test_watches_fire_once_more_and_hear_all_that_comes() -> None:
    async def main(kept: Kept) -> None:
        dom0, guest = await kept.client(0), await kept.client(5)
        watch, special = await guest.watch("device", "t"), await dom0.watch("@introduceDomain", "i")
        gone = await guest.watch("gone", "g")
        assert [await watch.get(), await special.get(), await gone.get()] == ["device", "@introduceDomain", "gone"]
        kept.kill()
        guest.forget(gone)
        assert [await watch.get(), await special.get()] == ["device", "@introduceDomain"]
        await dom0.write("/local/domain/5/gone", "")
        await dom0.write("/local/domain/5/device/vif", "")
        assert await watch.get() == "device/vif"
        registering = [asyncio.create_task(guest.watch("device", f"{k}")) for k in range(20)]
        await asyncio.sleep(0)
        kept.kill()
        watches = await asyncio.gather(*registering)
        for one in watches:
            assert await one.get() == "device"
        await guest.unwatch("device", "0")
        await fails("ENOENT", guest.unwatch("device", "0"))

    with kept([5]) as made:
        asyncio.run(limited(main(made)))


def test_a_state_that_is_switched_meanwhile_is_seen() -> None:
    async def main(kept: Kept) -> None:
        dom0, guest = await kept.client(0), await kept.client(5)
        await guest.write("state", "1")
        for state in (XenbusState.INIT_WAIT, XenbusState.CONNECTED, XenbusState.CLOSING):
            waiting = asyncio.create_task(wait_for_state(dom0, "/local/domain/5", [state], patient(20)))
            await asyncio.sleep(0)
            switching = asyncio.create_task(switch_state(guest, "/local/domain/5", state))
            kept.kill()
            assert await waiting == state
            await switching

    with kept([5]) as made:
        asyncio.run(limited(main(made)))


def test_there_will_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits fails with EIO: when that is said, when nobody brings one in time, and when each ends at once."""

    async def main(kept: Kept, how: str) -> None:
        calls = 0
        guest = await kept.client(5)
        sock = await kept.stream(5)

        async def again() -> socket.socket:
            nonlocal calls
            calls += 1
            if calls == 1:
                return sock
            if how == "said":
                raise ConnectionError("none")
            if how == "silent":
                await asyncio.Event().wait()
            ours, theirs = socket.socketpair()
            theirs.close()
            return ours

        client = await XenstoreClient.lasting(again)
        watch = await client.watch("a", "t")
        assert await watch.get() == "a"
        kept.kill()
        error = await fails("EIO", client.read("a"))
        assert error.path == "a"
        with pytest.raises(XenstoreError, match="EIO"):
            await watch.get()
        assert client.lost
        assert calls == (2 if how != "ends" else link.FRUITLESS + 1)
        assert await guest.is_introduced(5)

    monkeypatch.setattr(link, "AGAIN_S", 0.2)
    for how in ("said", "silent", "ends"):
        with kept([5]) as made:
            asyncio.run(limited(main(made, how)))


def test_an_idle_client_outlasts_any_number() -> None:
    async def main(kept: Kept) -> None:
        guest = await kept.client(5)
        for _ in range(link.FRUITLESS + 5):
            kept.kill()
            await asyncio.sleep(0)
        assert await guest.is_introduced(5)

    with kept([5]) as made:
        asyncio.run(limited(main(made)))


@pytest.mark.long
def test_guests_that_write_without_end_make_the_journal_no_longer_than_their_quotas_allow() -> None:
    """Nor do they keep others from being served; killed in the midst of it, compactions included, each tree is whole."""
    value, names = "v" * 2000, [f"{k}{'x' * 300}" for k in range(900)]
    requests = b"".join(xs_wire.pack(MessageType.WRITE, 1, 0, f"{name}\0{value}".encode()) for name in names)
    requests += xs_wire.pack(MessageType.RM, 1, 0, names[0].encode() + b"\0")
    bound = 6 * len(GUESTS) * len(requests)

    async def main(kept: Kept) -> None:
        dom0, most = await kept.client(0), 0
        for _ in range(3):
            pids = []
            for domid in GUESTS:
                with await kept.stream(domid) as sock:
                    pids.append(forked(lambda sock=sock: hammer(sock, requests)))  # type: ignore[misc]
            begin, count = kept.length(), 0
            while kept.length() < begin + 2 * bound:
                await dom0.write("/tool/count", f"{count}")
                count += 1
                most = max(most, kept.memory())
            kept.kill()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            assert await dom0.read("/tool/count") == f"{count - 1}"
            for domid in GUESTS:
                home = f"/local/domain/{domid}"
                whole = {len(await dom0.read(f"{home}/{name}")) for name in await dom0.directory(home)}
                assert whole == {len(value)}
        assert most < bound

    with kept(GUESTS) as made:
        asyncio.run(limited(main(made)))
