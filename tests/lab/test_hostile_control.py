"""Guests that turn on those who serve their sockets: keeper, hypervisor, xenstored. Nothing of others' stops."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest

from hyp.abi.sizes import GUEST_EVENTS
from hyp.control import MAX_MESSAGE, MAX_UNSENT, MAX_UNSENT_FDS, close_all
from hyp.control.words import MAX_WORDS
from hyp.xenstore.client import XenstoreClient
from lab import owner
from lab.keeper.keeper import MAX_NOTICES
from lab.keeper.output import KEPT_BYTES
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.stopping import stop
from lab.workloads import Runner
from tests.lab.test_paths import running
from tests.support.labs import launch, run, until, workload
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

ROLE = "tests.support.hostile_guest"
FRAMES = 500
HOSTILE = ("mallory", "mike", "molly", "trudy")
TEXT = "[nic]\npause_us = 1_000_000\n[dom0]\nageing_s = 86400\n" + "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\n'
    for name, path in (
        ("anna", "bypass"), ("carl", "bypass"), ("bert", "split"), ("dora", "split"),
        ("mallory", "bypass"), ("mike", "bypass"), ("molly", "split"), ("trudy", "trapped"),
    )
)  # fmt: skip


class World:
    """A topology with bystanders, and guests that do what a test says."""

    def __init__(self, runner: Runner, dom0: XenstoreClient) -> None:
        self.runner, self.lab, self.dom0, self._streams = runner, runner.lab, dom0, 100

    async def tell(self, who: str, op: str, /, **args: Any) -> Any:
        return await self.lab.call(who, op, **args)

    async def well(self) -> None:
        """Everybody else is served, and exchanges verified frames; nobody has died who should not have."""
        await self.stream("anna", "carl")
        await self.stream("bert", "dora")
        assert await self.lab.call("hyp", "registrations", name="anna") > 0
        assert (await self.lab.call("anna", "time_registration", size=4096, rounds=1))["register"]
        assert await self.dom0.read("/local/domain/1/name") == "anna"
        status = (await self.lab.keeper("status")).value
        assert {one["name"] for one in status["processes"] if one["state"] != "ready"} <= set(HOSTILE)

    async def stream(self, one: str, other: str) -> None:
        """A stream between two bystanders arrives whole."""
        self._streams += 1
        mac = next(guest["mac"] for guest in self.lab.topology["guest"] if guest["name"] == other)
        await self.lab.call(one, "send_stream", mac=mac, frame=200, stream=self._streams, frames=FRAMES)

        async def arrived() -> bool:
            return int((await self.lab.call(other, "received", stream=self._streams))["frames"]) == FRAMES

        await until(arrived, f"{FRAMES} frames from {one} to {other}")
        report = await self.lab.call(other, "received", stream=self._streams)
        assert (report["corrupt"], report["duplicated"]) == (0, 0)

    def open_in(self, process: str) -> int:
        """How many descriptors a process has."""
        return len(os.listdir(f"/proc/{self.runner.pids[process]}/fd"))

    async def have_closed(self, before: int) -> bool:
        """NIC and hypervisor have no more of them than before; what guests have, too, is closed aside, a little later."""
        return self.open_in("nic") + self.open_in("hyp") <= before


@asynccontextmanager
async def hostile_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: str = "") -> AsyncIterator[World]:
    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**process, "module": ROLE} if process["name"] in HOSTILE else process for process in honest_plan(topology)]

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, ROLE])
    async with running(tmp_path, name, more + TEXT) as runner:
        with runner.lab._rundir.socket_address(runner.lab.store_path) as address:
            dom0 = await XenstoreClient.connect(address)
        async with dom0:
            for one, other in (("bert", "dora"), ("dora", "bert")):  # the bridge learns where they are, so that nothing is flooded
                await runner.prepare(workload("stream", one, other))
            yield World(runner, dom0)


Attack = Callable[[World], Awaitable[None]]


def event(op: str, **args: Any) -> bytes:
    return bytes(msgpack.packb({"op": op, "args": args}))


async def words(world: World) -> None:
    """Causes and notices of any length and kind (too long for the owner's channel; escape sequences), without end."""
    evil = [[event("notice", text="\x1b[2J[red]x" * 5_000), 300], [event("failed", cause=b"\xff" * 60_000), 1]]
    assert await world.tell("mallory", "send", where="console", packets=evil, descriptor="") == "sent"
    await world.well()
    status = (await world.lab.keeper("status")).value
    assert len(status["notices"]) == MAX_NOTICES
    assert all(len(notice) == MAX_WORDS and notice.startswith("\\x1b[2J[red]x") for notice in status["notices"])
    long = "\x1b[2K[/]" + "x" * (MAX_MESSAGE - 300)
    await world.tell("mike", "send", where="console", packets=[[event("failed", cause=long), 1]], descriptor="")


async def descriptors(world: World) -> None:
    """A descriptor whose last close lasts for ever, to each who serves a socket of the guest's."""
    for where in ("hypercalls", "xenstore", "console"):
        came = await world.tell("mallory", "send", where=where, packets=[[event("ready"), 1]], descriptor="lingering")
        assert came in ("EPERM", "sent")
        await world.well()


async def event_channels(world: World) -> None:
    """As many event channels with itself as it gets."""
    before = world.open_in("hyp")
    found = await world.tell("mallory", "pairs")
    assert found["error"] == "ENOSPC"
    assert found["told"] == f"domain 5 (mallory) has all its {GUEST_EVENTS} upcalls and event-channel ports"
    assert found["made"] == (GUEST_EVENTS - 1) // 2
    assert world.open_in("hyp") - before <= GUEST_EVENTS
    await world.well()


async def regions(world: World) -> None:
    """Its own RAM and counters, which others map: sealed, leased, cut short."""
    sealed = world.lab.topology["memory"]["backing"] == "sealed"
    assert await world.tell("mallory", "region", what="seal") in ("EPERM", "EINVAL")
    assert await world.tell("mallory", "region", what="lease") in ("EAGAIN", "done")
    close_all((await world.lab.keeper("held", suffix="")).fds)  # opens nothing, so that no lease is waited for
    if not sealed:
        assert await world.tell("mike", "region", what="cut") == "done"
        await world.tell("mike", "ask", op="upcall_create", args={}, times=1)
        before = 0
        for _ in range(3):
            came = await world.tell("mike", "ask", op="context_open", args={"upcall": 0}, times=64)
            # EBUSY: on a busy machine it is too dear to notify for a while, as what a call in vain leaves is undone at its expense
            assert {"EINVAL"} <= set(came["came"]) <= {"EINVAL", "EBUSY"}, came
            assert "cannot be mapped" in came["told"] or "EBUSY" in came["came"]
            before = before or world.open_in("nic") + world.open_in("hyp")
            await until(partial(world.have_closed, before), "what was opened in vain to be closed")
    await world.well()


async def answers(world: World) -> None:
    """Descriptors in answers, none of which it takes: those that wait are the hypervisor's."""
    before = world.open_in("nic") + world.open_in("hyp")
    assert await world.tell("trudy", "deaf") > 2 * MAX_UNSENT
    await world.well()
    assert world.open_in("nic") + world.open_in("hyp") - before <= MAX_UNSENT_FDS
    await world.tell("trudy", "hears")
    assert (await world.tell("trudy", "ask", op="domain_info", args={}, times=1))["came"] == {"ok": 1}
    await until(partial(world.have_closed, before), "what waited to be sent to be closed")
    await world.well()


async def contexts(world: World) -> None:
    """Contexts opened and closed over and over: rows of counters, descriptors, and numbers are the same afterwards."""
    await world.tell("mallory", "ask", op="upcall_create", args={}, times=1)
    numbers, before = set(), 0
    for turn in range(20):
        assert (await world.tell("mallory", "ask", op="context_open", args={"upcall": 0}, times=3))["came"]["ok"] == 1
        rows = [row for row in world.runner._counters.read() if row.endswith(":mallory")]
        numbers |= set(rows)
        context = int(re.findall(r"ctx(\d+):", rows[0])[0])
        assert (await world.tell("mallory", "ask", op="context_close", args={"context": context}, times=1))["came"] == {"ok": 1}
        before = before or world.open_in("nic") + world.open_in("hyp")
        await until(partial(world.have_closed, before), f"what turn {turn} has opened to be closed")
    assert len(numbers) == 1
    await world.well()


async def output(world: World) -> None:
    """Its standard output: lines that look like others', escape sequences, more than anybody wants to keep."""
    log, own = world.lab._rundir.log_path, world.lab._rundir.guest_log("molly")
    await world.tell("molly", "prints", text="anna: all is lost\n\x1b[2J", times=1)
    await until(lambda: holds(own, "anna: all is lost"), "its words in its own log")
    await world.tell("molly", "prints", text="x" * 9999 + "\n", times=4 * KEPT_BYTES // 10_000)
    await world.well()
    await world.tell("molly", "prints", text="the last word\n", times=1)
    await until(lambda: holds(own, "the last word"), "the end of what it printed")
    assert "all is lost" not in log.read_text()
    kept = [path for path in own.parent.iterdir() if path.name.startswith("molly")]
    assert {path.name for path in kept} == {"molly.log", "molly.log.1"}
    assert KEPT_BYTES <= sum(path.stat().st_size for path in kept) <= 2 * KEPT_BYTES
    assert own.read_text().startswith("[what came before is in molly.log.1, and what came before that is gone]\n")
    status = json.loads(launch("status", "--json").stdout)
    guests = next(one for one in status if one["name"] == world.lab.name)["guests"]
    assert next(guest["log"] for guest in guests if guest["name"] == "molly") == str(own)


async def holds(path: Path, text: str) -> bool:
    return text in path.read_text(errors="replace")


async def refused(world: World) -> None:
    """Hypercalls that are refused, as many at a time as there may be."""
    queues = {"sq": 4096, "scq": 8192, "rq": 12288, "rcq": 16384, "sq_size": 4096, "rq_size": 4096}
    await world.tell("mallory", "ask", op="upcall_create", args={}, times=2)
    places = {name: 1 << 18 if name in ("sq", "scq", "rq", "rcq") else 4096 for name in queues}
    args = {"interrupts": 0, "answers": 1, **places}
    before = world.open_in("nic") + world.open_in("hyp")
    came = await world.tell("mallory", "ask", op="emulation_attach", args=args, times=300)
    assert set(came["came"]) <= {"EPERM", "EBUSY"}, came
    await until(partial(world.have_closed, before), "what was opened in vain to be closed")
    assert not list(Path("/dev/shm").glob(f"xbl.*.{world.lab.name}.mallory.vmm.*"))
    await world.well()


async def orphans(world: World) -> None:
    """Processes that nobody waits for but the keeper."""
    await world.tell("molly", "orphans", count=50)
    await world.well()


@pytest.mark.parametrize("backing", tiered(["posix", "sealed"], ["posix"]))
def test_a_guest_turns_on_those_who_serve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backing: str) -> None:
    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, f"hostile{backing}", f'[memory]\nbacking = "{backing}"\n') as world:
            await world.well()
            for attack in (contexts, answers, event_channels, refused, regions, output, orphans, words, descriptors):
                await attack(world)
                assert world.lab.deaths == {}, attack.__name__
            for who in ("mallory", "mike"):
                world.runner.lab._consoles[who].tell("end", status=3)
            await until(lambda: gone(world, "mallory", "mike"), "their ends")
            assert world.lab.deaths["mallory"] == "died (<bytes>)"
            assert world.lab.deaths["mike"].startswith("died (\\x1b[2K[/]xxx")
            assert len(world.lab.deaths["mike"]) == MAX_WORDS + len("died ()")
            await world.well()

    run(main())


async def gone(world: World, *names: str) -> bool:
    """These have died, nobody else has, and the hypervisor has let go of what was theirs."""
    left = [path for name in names for path in Path("/dev/shm").glob(f"xbl.*.{world.lab.name}.{name}.*")]
    return world.lab.deaths.keys() == set(names) and not left


@pytest.mark.parametrize("backing", tiered(["posix", "sealed"], ["sealed"]))
def test_a_spoilt_grant_table_keeps_nothing_of_others_that_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backing: str
) -> None:
    """What mallory has done to its table is in the way of the end of mike, whose grants in it are looked for."""

    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, f"table{backing}", f'[memory]\nbacking = "{backing}"\n') as world:
            await world.well()
            cut, sealed = await world.tell("mallory", "table")
            assert cut == ("done" if backing == "posix" else "EPERM")
            assert sealed == "EPERM"
            before = world.open_in("hyp"), world.open_in("nic")
            await world.tell("mike", "ask", op="upcall_create", args={}, times=4)
            assert (await world.tell("mike", "ask", op="context_open", args={"upcall": 0}, times=1))["came"] == {"ok": 1}
            world.runner.lab._consoles["mike"].tell("end", status=3)
            await until(lambda: gone(world, "mike"), "its end")

            async def let_go() -> bool:
                held = await world.lab.keeper("held", suffix=".ram")
                close_all(held.fds)
                assert "mallory.ram" in held.value
                fewer = world.open_in("hyp") < before[0] and world.open_in("nic") <= before[1]
                return fewer and "mike.ram" not in held.value

            await until(let_go, "its memory and descriptors have been let go of")
            if backing == "posix":
                log = world.lab._rundir.log_path.read_text()
                assert "the end of domain 6 (mike): grants of domain 5 (mallory): " in log
            await world.well()

    run(main())


def test_requests_that_wait_for_a_dom0_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that guests may ask at a time, of a Dom0 that does not read; one of them dies. Then it goes on, and serves everybody."""

    async def main() -> None:
        async with hostile_lab(tmp_path, monkeypatch, "hostilestop") as world:
            await world.well()
            for who in HOSTILE:
                await world.tell(who, "ask", op="upcall_create", args={}, times=1)
            dom0 = world.runner.pids["dom0"]
            await stop(dom0)
            asking = {}
            for who in HOSTILE:  # more than a socket has room for
                asking[who] = asyncio.ensure_future(world.tell(who, "ask", op="context_open", args={"upcall": 0}, times=200))
                await world.lab.call("hyp", "registrations", name="anna")
            await world.stream("anna", "carl")  # past Dom0
            world.runner.lab._consoles["mike"].tell("end", status=3)
            await until(lambda: gone(world, "mike"), "its end")
            before = spent(world.runner.pids["hyp"])
            for _ in range(100):
                assert (await world.lab.call("anna", "time_registration", size=4096, rounds=1))["register"]
            for _ in range(20):
                await world.stream("anna", "carl")
            assert spent(world.runner.pids["hyp"]) - before < 100, "it waits, and does not look again and again"
            os.kill(dom0, signal.SIGCONT)
            for who, came in asking.items():
                if who != "mike":
                    opened = (await came)["came"]
                    assert opened.pop("ok", 0) == (1 if who == "mallory" else 0)
                    assert set(opened) <= {"EBUSY", "EPERM", "ETIMEDOUT"}
            asking["mike"].cancel()
            await world.well()

            async def known() -> bool:
                return "mike" not in await world.dom0.directory("/local/domain/0/backend") and not await has(world, 6)

            await until(known, "Dom0 to have been told of the death")

    run(main())


async def has(world: World, domid: int) -> bool:
    """Domain 0 still has nodes of this domain."""
    return str(domid) in await world.dom0.directory("/local/domain")


def spent(pid: int) -> int:
    """Clock ticks that a process has used, its threads' included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
