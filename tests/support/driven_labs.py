"""Topologies in which a guest does what a test says (tests/support/driven_netfront.py), and their store as Dom0 sees it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domu.frontends.split import RX_REF, TX_REF
from hyp.abi.grant import GTF_PERMIT_ACCESS
from hyp.abi.netif import RSP_OKAY
from hyp.xenstore.client import XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import XenbusState, backend_path, error_path, frontend_path, wait_for_state
from lab import owner
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support.labs import until, workload
from tests.support.patience import patient

ROLE = "tests.support.driven_netfront"
DRIVEN, DOMID = "bert", 2
LAB = "[nic]\npause_us = 1_000_000\n[dom0]\nageing_s = 86400\n" + "".join(
    f'[[guest]]\nname = "{name}"\npath = "split"\n{more}' for name, more in (("anna", ""), (DRIVEN, "{more}"), ("carl", "{carl}"))
)
INITIALISING, INIT_WAIT, CONNECTED, CLOSING, CLOSED = (
    int(state)
    for state in (
        XenbusState.INITIALISING,
        XenbusState.INIT_WAIT,
        XenbusState.CONNECTED,
        XenbusState.CLOSING,
        XenbusState.CLOSED,
    )
)


Nodes = dict[str, str | None]


class Bert:
    """The driven guest, domain 2, and everything around it."""

    front, back = frontend_path(DOMID, "vif", 0), backend_path(0, "vif", DOMID, 0)

    def __init__(self, runner: Runner, dom0: XenstoreClient, pools: dict[str, int]) -> None:
        self.runner, self.lab, self.dom0, self._pools = runner, runner.lab, dom0, pools
        self.macs = {str(guest["name"]): str(guest["mac"]) for guest in runner.lab.topology["guest"]}
        self.stream = 500
        name = f"/dev/shm/xbl.{os.getuid()}.{runner.lab.name}.{DRIVEN}.active"
        self.active = np.memmap(name, np.uint64, "r")

    async def call(self, op: str, /, **args: Any) -> Any:
        return await self.lab.call(DRIVEN, op, **args)

    async def state(self, value: int | str | None) -> None:
        """Write the front end's state."""
        await self.call("state", value=None if value is None else str(value))

    async def told(self, state: int) -> None:
        """Wait until the back end is in this state."""
        await wait_for_state(self.dom0, self.back, [XenbusState(state)], patient(20))

    async def read(self, path: str) -> str | None:
        """A node as Domain 0 reads it; None if it is not there."""
        try:
            return await self.dom0.read(path)
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            return None

    async def error(self) -> str | None:
        """What the back end has said last of what is wrong."""
        return await self.read(error_path(self.back))

    async def ready(self, start: int = 0, changed: Nodes | None = None, queues: int = 1, apart: bool = False) -> None:
        """Rings, and nodes that name them but for what is `changed`."""
        nodes: Nodes = dict(await self.call("setup", start=start, queues=queues, apart=apart))
        await self.call("nodes", values=nodes | (changed or {}))

    async def connect(self, start: int = 0, queues: int = 1, apart: bool = False) -> None:
        """From the back end's InitWait to Connected."""
        await self.told(INIT_WAIT)
        await self.ready(start, queues=queues, apart=apart)
        await self.state(CONNECTED)
        await self.told(CONNECTED)
        await self.call("notifier")

    async def again(self) -> None:
        """A front end that begins anew, whatever was before."""
        await self.state(INITIALISING)
        await self.connect()

    async def exchange(self, frames: int = 3, slots: int = 3) -> None:
        """Frames to the wire, each answered; frames from anna, each received whole, with so many receive slots at most."""
        await self.send(frames)
        anna = self.macs["anna"]
        self.stream += 1
        sent = 0
        while sent < frames:
            count = min(slots, frames - sent)
            entries = [[RX_REF + k, GTF_PERMIT_ACCESS, 0, self._pools["rx"] + k] for k in range(count)]
            await self.call("post", entries=entries, requests=[[k, RX_REF + k] for k in range(count)])
            job = {"mac": self.macs[DRIVEN], "frame": 200, "stream": self.stream, "frames": count}
            assert (await self.lab.call("anna", "send_stream", **job))["sent"] == count
            places = [[self._pools["rx"] + k, anna, 200, self.stream, k] for k in range(count)]
            found = await self.call("received", count=count, frames=places)
            assert [[number, status, whole] for number, _, status, whole in found] == [[k, 200, True] for k in range(count)]
            sent += count

    async def send(self, frames: int) -> None:
        """Frames to the wire, each answered, and all of them there."""
        self.stream += 1
        wire, page = str(self.lab.topology["nic"]["wire"]["mac"]), self._pools["tx"]
        entries = [[TX_REF + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(frames)]
        contents = [[(page + k) * 4096, 100, wire, self.stream, k] for k in range(frames)]
        requests = [[TX_REF + k, 0, 0, k, 100] for k in range(frames)]
        answers = await self.call("transmit", entries=entries, frames=contents, requests=requests)
        assert answers == [[k, RSP_OKAY] for k in range(frames)]

        async def arrived() -> bool:
            report = await self.lab.call("nic", "wire_report", stream=self.stream)
            return int(report["received"]["frames"]) == frames

        await until(arrived, "the frames on the wire")

    async def send_kept(self, frames: int) -> None:
        """`send`, of pages that are granted already and stay so, or (from the sixth on) are granted now."""
        self.stream += 1
        wire, page = str(self.lab.topology["nic"]["wire"]["mac"]), self._pools["tx"]
        fresh = [[TX_REF + k, GTF_PERMIT_ACCESS, 0, page + k] for k in range(5, frames)]
        contents = [[(page + k) * 4096, 100, wire, self.stream, k] for k in range(frames)]
        requests = [[TX_REF + k, 0, 0, k, 100] for k in range(frames)]
        answers = await self.call("transmit", entries=fresh, frames=contents, requests=requests)
        assert answers == [[k, RSP_OKAY] for k in range(frames)]

    async def receive_kept(self, frames: int) -> None:
        """Frames from anna into pages that are granted already and stay so."""
        self.stream += 1
        await self.call("post", entries=[], requests=[[k, RX_REF + k] for k in range(frames)])
        job = {"mac": self.macs[DRIVEN], "frame": 200, "stream": self.stream, "frames": frames}
        assert (await self.lab.call("anna", "send_stream", **job))["sent"] == frames
        places = [[self._pools["rx"] + k, self.macs["anna"], 200, self.stream, k] for k in range(frames)]
        found = await self.call("received", count=frames, frames=places)
        assert [[number, status, whole] for number, _, status, whole in found] == [[k, 200, True] for k in range(frames)]

    def held(self) -> int:
        """How many of its pages are pinned."""
        return int(np.count_nonzero(self.active))

    def descriptors(self) -> dict[str, int]:
        """How many Dom0, the hypervisor and xenstored have open: mappings, eventfds, connections."""
        return {name: len(os.listdir(f"/proc/{self.runner.pids[name]}/fd")) for name in ("dom0", "hyp", "xenstored")}

    async def have_closed(self, before: dict[str, int]) -> None:
        """Wait until they have no more open than before: what the guest has, too, is closed by threads, a little later."""

        async def closed() -> bool:
            return all(count <= before[name] for name, count in self.descriptors().items())

        await until(closed, f"no more to be open than before: {before}")

    async def logged(self, text: str) -> None:
        """Wait until the topology's log has this in it."""

        async def is_there() -> bool:
            return text in self.lab._rundir.log_path.read_text(errors="replace")

        await until(is_there, f"in the log: {text}")


@asynccontextmanager
async def driven_lab(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    more: str = "",
    carl: str = "",
    roles: dict[str, str] | None = None,
    text: str = LAB,
) -> AsyncIterator[Bert]:
    """carl is honest, anna too unless `roles` give her a module, bert does what he is told. The bridge knows where the wire is.

    `more`, `carl`: what bert's, and carl's, table in the topology has besides.
    """
    modules = {DRIVEN: ROLE, **(roles or {})}

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(topology)
        for process in processes:
            process["module"] = modules.get(process["name"], process["module"])
        return processes

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, *modules.values()])
    async with (
        running(tmp_path, name, text.replace("{more}", more).replace("{carl}", carl)) as runner,
        await XenstoreClient.lasting(runner.lab._rundir.store_socket) as dom0,
    ):
        # Else bert's frames to the wire are flooded, and a copy that a busy carl has no room for is a drop
        await runner.prepare(workload("stream", "carl", "wire"))
        yield Bert(runner, dom0, await runner.lab.call(DRIVEN, "pools"))


async def others(bert: Bert, frames: int = 2000) -> None:
    """A stream between the other guests arrives whole."""
    record = await bert.runner.run(workload("stream", "anna", "carl", 200, frames=frames))
    check(record)
    assert (record["frames"], record["lost"]) == (frames, 0)


@asynccontextmanager
async def others_streaming(bert: Bert) -> AsyncIterator[None]:
    """Meanwhile the other guests' streams arrive whole, one after the other."""
    done = asyncio.Event()

    async def streaming() -> int:
        streams = 0
        while not done.is_set():
            await others(bert, frames=20_000)
            streams += 1
        return streams

    streams = asyncio.create_task(streaming())
    yield
    done.set()
    assert await streams > 0
