"""Looking at a running topology from outside: several viewers, restarts and moves while they look, its end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hyp.control import Channel, socketpair
from lab.command.clients import ClientError
from lab.keeper.news import KEPT, News
from lab.owner import Lab
from lab.view.attach import Ended, Watch
from lab.view.samples import Sample
from tests.support.labs import GUESTS, run, until
from tests.support.streams import kill, lab_of, macs

pytestmark = pytest.mark.usefixtures("warm")

TRAPPED = '[[guest]]\nname = "emil"\npath = "trapped"\n'
PATHS = {"anna": "anna>dom0", "carl": "carl>nic", "emil": "emil>hyp"}
"""Who sends, and by which hop of its own."""


@contextlib.asynccontextmanager
async def paced(lab: Lab, *senders: str) -> AsyncIterator[None]:
    """A slow stream from each of these to dora, who is on bypass."""
    to = macs(lab)["dora"]
    jobs = [
        asyncio.ensure_future(lab.call(one, "send_stream", mac=to, frame=200, stream=k, frames=1 << 40, pps=5000))
        for k, one in enumerate(senders)
    ]
    try:
        yield
    finally:
        for one in senders:
            await lab.call(one, "end_job")
        await asyncio.gather(*jobs)


async def seen(watch: Watch, condition: Callable[[Sample], bool], what: str) -> Sample:
    """Look until a sample is as it should be."""
    found: list[Sample] = []

    async def looks() -> bool:
        found.append(await watch.sample())
        return condition(found[-1])

    await until(looks, what)
    return found[-1]


def flows(*hops: str) -> Callable[[Sample], bool]:
    return lambda sample: all((sample["hops"][hop]["fps"] or 0) > 0 for hop in hops)


def kinds(watch: Watch, who: str) -> list[str]:
    return [one["kind"] for one in watch.log.since() if one["who"] == who]


def test_viewers_see_what_flows_what_dies_and_what_moves(tmp_path: Path) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as viewers:
            async with lab_of(tmp_path, "watched", GUESTS + TRAPPED) as lab:
                watch, other = [await viewers.enter_async_context(Watch.of(lab.name)) for _ in range(2)]
                async with paced(lab, *PATHS):
                    await while_it_flows(lab, watch, other)
                pids = await lab.pids()
                os.kill(pids["dom0"], signal.SIGSTOP)
                await seen(watch, lambda _: kinds(watch, "dom0") == ["stopped"], "Dom0 to stand still")
                os.kill(pids["dom0"], signal.SIGCONT)
                await seen(watch, lambda _: kinds(watch, "dom0")[-1] == "continued", "Dom0 to go on")
                late = await viewers.enter_async_context(Watch.of(lab.name))
                assert kinds(late, "nic") == ["restarting", "restarted"]
                looking = late.samples()
                await anext(looking)
            with pytest.raises(Ended, match=f"topology {lab.name} has ended"):
                async for _ in looking:
                    pass
            with pytest.raises(Ended):
                await watch.sample()
            with pytest.raises(ClientError, match="no topology named"):
                Watch.of(lab.name)

    run(main())


async def while_it_flows(lab: Lab, watch: Watch, other: Watch) -> None:
    """Frames go by every path; a viewer goes away, the NIC dies, anna moves."""
    sample = await seen(watch, flows(*PATHS.values(), "dom0>nic", "hyp>nic:emil", "nic>dora"), "every hop's frames")
    assert all(hop["in_flight"] is None or 0 <= hop["in_flight"] <= 256 for hop in sample["hops"].values())
    assert sample["processes"].keys() == {"hyp", "xenstored", "nic", "dom0", *macs(lab)} - {"wire"}
    assert kinds(watch, lab.name) == ["up"]
    other.close()
    frames = sample["hops"]["carl>nic"]["frames"]
    await kill(lab, "nic")
    sample = await seen(watch, flows(*PATHS.values()), "frames after the NIC's restart")
    assert sample["hops"]["carl>nic"]["frames"] > frames  # what it counted before is not forgotten
    assert kinds(watch, "nic") == ["restarting", "restarted"]
    await lab.move("anna", "bypass")
    sample = await seen(watch, lambda sample: "anna>nic" in sample["hops"], "anna's new way")
    assert sample["guests"]["anna"]["path"] == "bypass"
    await seen(watch, flows("anna>nic"), "anna's frames on it")
    assert "moved" in kinds(watch, "anna")


def test_a_watcher_that_does_not_read_is_told_no_more_than_it_can_be() -> None:
    async def main() -> None:
        news, (ours, theirs) = News(), socketpair()
        client = Channel(ours, name="a client", untrusted=True)
        assert news.watch(client) == []
        for number in range(20_000):
            news.add("notice", "anna", str(number))
        with theirs:
            assert [piece["what"] for piece in news.watch(client)] == [str(20_000 - KEPT + k) for k in range(KEPT)]
        await until(lambda: gone(client), "its end to be noticed")
        news.add("notice", "anna", "nobody is told")
        client.close()

    async def gone(client: Channel) -> bool:
        return bool(client.closed.done())

    run(main())
