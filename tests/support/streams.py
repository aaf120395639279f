"""Streams that go on while something is killed, and what of them arrives."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hyp.xenstore.client import XenstoreClient
from lab.owner import Lab
from tests.support.labs import left_behind, topology, until

ENDLESS = 1 << 40


@asynccontextmanager
async def lab_of(tmp_path: Path, name: str, text: str) -> AsyncIterator[Lab]:
    """A topology without workloads, of which nothing is left."""
    lab = Lab(topology(tmp_path, name, text))
    async with lab:
        try:
            yield lab
        except BaseException:
            for log in (lab._rundir.log_path, *(lab._rundir.guest_log(guest["name"]) for guest in lab.topology["guest"])):
                print(log.read_text(errors="replace")[-4000:] if log.exists() else f"no {log.name}")
            raise
    assert left_behind(lab.name) == []


@asynccontextmanager
async def store_of(lab: Lab) -> AsyncIterator[XenstoreClient]:
    """The topology's store, as Domain 0."""
    with lab._rundir.socket_address(lab.store_path) as address:
        store = await XenstoreClient.connect(address)
    async with store:
        yield store


def macs(lab: Lab) -> dict[str, str]:
    """Of all guests, and of the wire."""
    return {guest["name"]: guest["mac"] for guest in lab.topology["guest"]} | {"wire": lab.topology["nic"]["wire"]["mac"]}


async def kill(lab: Lab, process: str) -> None:
    """Kill a process, and wait until another one is ready in its place."""
    times = lab.restarts(process)
    os.kill((await lab.pids())[process], signal.SIGKILL)
    await lab.restarted(process, times + 1)


async def arrived(lab: Lab, receiver: str, stream: int, more_than: int = 0) -> int:
    """Wait until the receiver has more than so many frames of a stream; how many."""

    async def there() -> bool:
        return bool((await received(lab, receiver, stream))["frames"] > more_than)

    await until(there, f"frames of stream {stream} at {receiver}")
    return int((await received(lab, receiver, stream))["frames"])


async def received(lab: Lab, receiver: str, stream: int) -> dict[str, Any]:
    if receiver == "wire":
        return dict((await lab.call("nic", "wire_report", stream=stream))["received"])
    return dict(await lab.call(receiver, "received", stream=stream))


async def all_of(lab: Lab, receiver: str, stream: int, sent: int) -> dict[str, Any]:
    """The report once `sent` frames are there."""
    await arrived(lab, receiver, stream, sent - 1)
    return await received(lab, receiver, stream)


class Stream:
    """A stream without end from one guest, or the wire, to another."""

    def __init__(self, lab: Lab, sender: str, receiver: str, number: int) -> None:
        self.lab, self.sender, self.receiver, self.number = lab, sender, receiver, number
        self._job: asyncio.Future[Any] | None = None

    async def start(self, frame: int = 64, pps: int = 0) -> "Stream":
        """Begin; as fast as it goes, or so many frames per second."""
        mac = macs(self.lab)[self.receiver]
        if self.sender == "wire":
            await self.lab.call("nic", "wire_generate", mac=mac, frame=frame, stream=self.number, frames=ENDLESS, pps=pps)
        else:
            job = self.lab.call(self.sender, "send_stream", mac=mac, frame=frame, stream=self.number, frames=ENDLESS, pps=pps)
            self._job = asyncio.ensure_future(job)
        await self.goes_on()
        return self

    async def report(self) -> dict[str, Any]:
        """What has arrived."""
        if self.receiver == "wire":
            return dict((await self.lab.call("nic", "wire_report", stream=self.number))["received"])
        return dict(await self.lab.call(self.receiver, "received", stream=self.number))

    async def arrived(self, frames: int) -> dict[str, Any]:
        """Wait until so many frames have; the report."""

        async def there() -> bool:
            if (await self.report())["frames"] >= frames:
                return True
            assert self._job is None or not self._job.done(), self._job.result() if self._job else None
            return False

        await until(there, f"{frames} frames of stream {self.number} at {self.receiver}")
        return await self.report()

    def job(self) -> "asyncio.Future[Any]":
        """The sender's, if it is a guest."""
        assert self._job is not None
        return self._job

    async def goes_on(self, frames: int = 100) -> None:
        """Wait until that many more have arrived."""
        await self.arrived((await self.report())["frames"] + frames)

    async def end(self) -> tuple[int, dict[str, Any]]:
        """No more is sent; how many frames were, and the report once as many are there as will be."""
        assert self._job is not None
        await self.lab.call(self.sender, "end_job")
        sent = int((await self._job)["sent"])
        self._job = None
        return sent, await self.arrived(sent)
