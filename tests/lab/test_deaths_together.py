"""Several processes die at the same moment: each is started again, whatever the others have to do with it, and frames pass."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from hyp.control import ControlError
from lab import owner
from lab.owner import Lab
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.stopping import stop
from tests.support.labs import GUESTS, run, until
from tests.support.streams import Stream, all_of, lab_of, macs, received
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

LAB: Final = (
    GUESTS.replace('name = "bert"', 'name = "bert"\nrestart = true').replace('name = "dora"', 'name = "dora"\nrestart = true')
    + '[[guest]]\nname = "emil"\npath = "split"\n[[guest]]\nname = "fred"\npath = "bypass"\n'
)
PAIRS: Final = (("anna", "bert"), ("carl", "dora"), ("bert", "carl"), ("anna", "wire"))
FRAMES: Final = 3000
HANGING_UP: Final = "tests.support.hanging_up"


async def die(lab: Lab, names: tuple[str, ...]) -> None:
    """All of them, and all are ready again. Stopped before, so that none has heard of another one's death when its own comes."""
    pids, before = await lab.pids(), {name: lab.restarts(name) for name in names}
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for name in names:
            os.kill(pids[name], number)
    for name in names:
        await lab.restarted(name, before[name] + 1)


async def frames_pass(lab: Lab, stream: int) -> None:
    """On all paths between all that were there and those that are new, whole and once each."""
    for sender, receiver in PAIRS:
        stream += 1
        job = {"mac": macs(lab)[receiver], "frame": 200, "stream": stream, "frames": FRAMES}
        first = {**job, "stream": 0x1000 + stream, "frames": 1}

        async def arrives(first: dict[str, Any] = first, sender: str = sender, receiver: str = receiver) -> bool:
            """The first one: a new guest is ready before its peer's bridge and filters know that it is there again."""
            await lab.call(sender, "send_stream", **first)
            return bool((await received(lab, receiver, first["stream"]))["frames"])

        await until(arrives, f"{sender}'s first frame to {receiver}")
        sent = (await lab.call(sender, "send_stream", **job))["sent"]
        report = await all_of(lab, receiver, stream, sent)
        assert (report["frames"], report["lost"], report["corrupt"]) == (FRAMES, 0, 0), (sender, receiver, report)


@pytest.mark.parametrize(
    "together",
    tiered(
        [
            (("xenstored", "bert"), ("bert", "dom0"), ("dom0", "xenstored", "bert", "dora")),
            (("nic", "dora"), ("dom0", "nic"), ("nic", "dom0", "xenstored", "bert", "dora")),
        ],
        [(("xenstored", "bert", "dora"), ("nic", "dom0"))],
    ),
)
def test_all_are_started_again(tmp_path: Path, together: tuple[tuple[str, ...], ...]) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "together", LAB) as lab:
            stream = await Stream(lab, "emil", "fred", 1).start(64, 20_000)
            for round_, names in enumerate(together, 1):
                await die(lab, names)
                await frames_pass(lab, 0x100 * round_)
            sent, report = await stream.end()
            assert (report["lost"], report["corrupt"], report["frames"]) == (0, 0, sent), report

    run(main())


@pytest.mark.long
def test_who_waits_for_one_that_will_not_come_is_told_when_all_ends(tmp_path: Path) -> None:
    """The NIC's next one can't come: hyp, which gives it its domain, stands still. Then the topology is taken down."""

    async def main() -> None:
        async with lab_of(tmp_path, "vain", LAB) as lab:
            pids = await lab.pids()
            await stop(pids["hyp"])
            os.kill(pids["nic"], signal.SIGKILL)

            async def restarting() -> bool:
                states = {one["name"]: one["state"] for one in (await lab.keeper("status")).value["processes"]}
                return states["nic"] != "ready"

            await until(restarting, "the NIC's death")
            waiting = asyncio.ensure_future(lab.keeper("console", name="nic"))
            await lab.keeper("status")  # it is answered after it has begun to wait
            assert not waiting.done()
            down = asyncio.ensure_future(lab.keeper("down"))
            with pytest.raises(ControlError, match="no living process named 'nic'"):
                await waiting
            await asyncio.wait({down})

    run(main())


@pytest.mark.parametrize("daemon", tiered(["nic", "dom0"], ["dom0"]))
def test_a_daemon_that_hangs_up_is_as_good_as_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon: str) -> None:
    """It lives, and its data path would go on, but nobody could be set up any more."""

    def plan(topology: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**one, "module": HANGING_UP} if one["name"] == daemon else one for one in honest_plan(topology)]

    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, HANGING_UP])

    async def main() -> None:
        async with lab_of(tmp_path, "hangs-up", LAB) as lab:
            for times in (1, 2):
                with contextlib.suppress(ControlError):  # it may be dead before it answers
                    await lab.call(daemon, "hang_up")
                await lab.restarted(daemon, times)
                await frames_pass(lab, 0x100 * times)

    run(main())
