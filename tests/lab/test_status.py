"""`status`: since when, where the log is, how much guests move now, and whom a death cuts off."""

import asyncio
import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from hyp.control import ControlError
from hyp.paths import CUT_OFF, PATHS
from lab.command.tables import duration
from lab.owner import Lab
from lab.reach import consequences, lost
from tests.support.labs import launch, left_behind, run, staying_up, topology, topology_file, unique, until, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")

GENERATED = '[[guest]]\nname = "carl"\npath = "bypass"\n[[guest]]\nname = "anna"\npath = "split"\n'
GENERATED += '[nic.wire]\nmode = "generate"\nto = "{}"\nframe = 1000\npps = 20000\n'


def status_of(name: str) -> dict[str, Any]:
    statuses: list[dict[str, Any]] = json.loads(launch("status", "--json").stdout)
    return next(status for status in statuses if status["name"] == name)


@pytest.mark.parametrize("receiver", tiered(["carl", "anna"], ["anna"]))
def test_rates_uptime_and_log(tmp_path: Path, receiver: str) -> None:
    """20,000 frames of 1000 B a second from the wire, for a guest with the traffic program, on either path."""
    name = unique("rates")
    with staying_up(topology_file(tmp_path, "rates", GENERATED.format(receiver))) as (process, _):
        seen: list[dict[str, Any]] = []

        def frames_come() -> bool:
            seen.append(status_of(name))
            return rates(seen[-1], receiver)["rx_fps"] > 0

        wait_until(frames_come, "frames")
        status = seen[-1]
        found, other = rates(status, receiver), rates(status, "anna" if receiver == "carl" else "carl")
        assert found["interval_s"] >= 0.3
        assert found["rx_gbps"] == pytest.approx(found["rx_fps"] * 8000 / 1e9, rel=0.2)  # read one after the other, while they grow
        assert found["rx_fps"] * found["interval_s"] == pytest.approx(round(found["rx_fps"] * found["interval_s"]))  # whole frames
        assert found["rx_fps"] < 2 * 20000  # what is late is caught up with, within what a NIC's queue holds
        assert found["tx_fps"] == other["rx_fps"] == other["tx_fps"] == 0
        counts = next(guest["counters"] for guest in status["guests"] if guest["name"] == receiver)
        assert counts["rx_bytes"] == pytest.approx(1000 * counts["rx_frames"], rel=0.2)
        assert counts["rx_frames"] > 0
        assert status["up_s"] > 0
        assert Path(status["log"]).is_file()
        assert status["cut_off"] == []
        lines = launch("status").stdout.splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith(f"{name}: "))
        assert re.fullmatch(rf"{name}: up (\d+ min )?\d+ s", lines[first])
        assert lines[first + 1] == f"  log: {status['log']}"
        shown = next(line.split() for line in lines[first:] if re.match(rf"  {receiver} +0 +0.000 ", line))
        assert int(shown[3].replace(",", "")) > 0
        assert any(re.match(r"  over 0\.\d\d s +sent/s +Gbit/s +received/s +Gbit/s", line) for line in lines[first:])
        process.send_signal(signal.SIGTERM)
        process.wait(patient(30))
    assert left_behind(name) == []


def rates(status: dict[str, Any], guest: str) -> dict[str, float]:
    found: dict[str, float] = next(one["rates"] for one in status["guests"] if one["name"] == guest)
    return found


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (0.4, 12.9, 60, 192, 3599, 3600, 7500, 86400 + 3 * 3600 + 59)]
    assert shown == ["0 s", "12 s", "1 min 0 s", "3 min 12 s", "59 min 59 s", "1 h 0 min", "2 h 5 min", "1 d 3 h"]


# --- who is cut off --------------------------------------------------------------------------------------------------


def processes(*dead: str) -> list[dict[str, str]]:
    roles = {**dict.fromkeys(("hyp", "xenstored", "nic", "dom0")), "anna": "domu", "bert": "domu", "carl": "domu"}
    return [
        {"name": name, "role": role or name, "state": "died (signal 9)" if name in dead else "ready"}
        for name, role in roles.items()
    ]


GUESTS = [{"name": "anna", "path": "split"}, {"name": "bert", "path": "split"}, {"name": "carl", "path": "bypass"}]


def test_the_sentences() -> None:
    for dead, said in (
        ((), []),
        (("carl",), []),  # whose death is said, and cuts nobody else off
        (("dom0",), ["dom0 died: split guests anna, bert are cut off; bypass guests go on"]),
        (("dom0", "bert"), ["dom0 died: split guest anna is cut off; bypass guests go on"]),
        (("xenstored",), ["xenstored died: split, bypass guests go on"]),
        (("hyp", "dom0", "anna", "bert"), ["hyp died: bypass guests go on", "dom0 died: bypass guests go on"]),
        (
            ("nic",),
            ["nic died: split guests anna, bert are cut off from the wire and from guests on other paths; "
             "bypass guest carl is cut off"],
        ),
        (("nic", "anna", "bert", "carl"), []),
    ):  # fmt: skip
        assert consequences(GUESTS, processes(*dead)) == said


def test_every_path_says_what_it_needs() -> None:
    for path in PATHS:
        assert lost(path, "nic") is not None
        assert lost(path, "domu") is None


PAIR_OF = '[supervisor]\nrestart = false\n[[guest]]\nname = "one"\npath = "{0}"\n[[guest]]\nname = "two"\npath = "{0}"\n'


FRAMES = 50  # fewer than any queue has room for


@pytest.mark.parametrize("role", tiered(["hyp", "dom0", "nic", "xenstored"], ["dom0"]))
@pytest.mark.parametrize("path", tiered(sorted(PATHS), ["bypass", "split"]))
def test_what_is_said_is_what_happens(tmp_path: Path, path: str, role: str) -> None:
    """After the death frames go from guest to guest, or do not, as `lost` has it; "apart" is about the wire and other paths."""

    async def body() -> int:
        async with Lab(topology(tmp_path, f"cut-{path[0]}{role[0]}", PAIR_OF.format(path))) as lab:
            mac = lab.topology["guest"][1]["mac"]
            await lab.call("one", "send_stream", mac=mac, frame=64, stream=1, frames=FRAMES)
            os.kill((await lab.pids())[role], signal.SIGKILL)
            assert await lab.any_death()
            sending = asyncio.ensure_future(lab.call("one", "send_stream", mac=mac, frame=64, stream=2, frames=FRAMES))
            if lost(path, role) == CUT_OFF:
                await asyncio.wait([sending], timeout=patient(1))  # it never ends where nobody takes the frames, or is refused
            else:
                await until(lambda: all_there(lab), f"{FRAMES} frames")
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ControlError):
                await sending
            return await received(lab)

    assert run(body()) == (0 if lost(path, role) == CUT_OFF else FRAMES)


async def received(lab: Lab) -> int:
    return int((await lab.call("two", "received", stream=2))["frames"])


async def all_there(lab: Lab) -> bool:
    return await received(lab) == FRAMES
