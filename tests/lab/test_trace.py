"""Frames are seen on their way: where each model says that they go, in the order of time, and nowhere else."""

import asyncio
import mmap
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pytest

from hyp.abi.trace import COMMITTED_AT, DATA_AT, DEFAULT_CAPACITY, RECORD, RECORD_BYTES, RECORDS_AT, RESERVED_AT, Moment
from hyp.control import Channel, Refused, socketpair
from hyp.paths import PATHS
from hyp.trace.points import MOST_RINGS
from lab.owner import Lab
from lab.stopping import stop
from lab.trace import recording
from lab.trace import viewer as looks
from lab.trace.ring import TraceRing
from lab.trace.story import MOST_STEPS, Way, Ways
from lab.trace.viewer import SETTLED_NS, Viewer, _Loop
from tests.support.labs import run, until
from tests.support.streams import all_of, kill, lab_of, macs

pytestmark = pytest.mark.usefixtures("warm")

LAB: Final = "[nic]\npause_us = 1_000_000\n" + "".join(
    f'[[guest]]\nname = "{path}{k}"\npath = "{path}"\n' for path in PATHS for k in range(2)
)
BY: Final = {"native": "nic", "bypass": "nic", "cdna": "nic", "split": "dom0", "trapped": "hyp → nic → hyp"}
UP: Final = {"native": "nic", "bypass": "nic", "cdna": "nic", "split": "dom0 → nic", "trapped": "hyp → nic"}
DOWN: Final = {"native": "nic", "bypass": "nic", "cdna": "nic", "split": "nic → dom0", "trapped": "nic → hyp"}
FRAMES: Final = 40
NAMES: Final = ("alice", "bob", "carol")


async def seen(viewer: Viewer, enough: Callable[[list[Way]], bool]) -> list[Way]:
    """The ways that end until there are enough."""
    ways, found = Ways(longest_ns=10**12), list[Way]()  # however busy the machine

    async def there() -> bool:
        found.extend(ways.add(viewer.read()))
        return enough(found)

    await until(there, "ways of frames")
    return found


@asynccontextmanager
async def looking(tmp_path: Path, name: str, text: str = LAB, every: int = 1, snap: int = 64) -> AsyncIterator[tuple[Lab, Viewer]]:
    async with lab_of(tmp_path, name, text) as lab, Viewer(lab.channel, every, snap) as viewer:
        yield lab, viewer


def test_frames_go_where_each_model_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with looking(tmp_path, "ways") as (lab, viewer):
            mac, stream = macs(lab), 0
            assert not viewer.left_out.keys() & {"dom0", "nic", "hyp", *(guest for guest in mac if guest != "wire")}
            for path in PATHS:
                one, other = f"{path}0", f"{path}1"
                expected = {}
                for ends, route in (
                    ((one, other), f"{one} → {BY[path]} → {other}"),
                    ((one, "wire"), f"{one} → {UP[path]} → wire"),
                    (("wire", one), f"wire → {DOWN[path]} → {one}"),
                ):
                    stream += 1
                    job = {"mac": mac[ends[1]], "frame": 100, "stream": stream, "frames": FRAMES}
                    if ends[0] == "wire":
                        await lab.call("nic", "wire_generate", **job)
                    else:
                        await lab.call(ends[0], "send_stream", **job)
                    await all_of(lab, ends[1], stream, FRAMES)
                    expected[route] = FRAMES
                found = await seen(viewer, lambda ways: sum(way.is_whole for way in ways) >= 3 * FRAMES)
                assert Counter(way.route for way in found if way.is_whole) == expected
                for way in found:
                    times = [step.sighting.time_ns for step in way.steps]
                    assert times == sorted(times)
                    assert sum(step.asleep_ns + step.work_ns for step in way.steps) == way.total_ns
            assert viewer.missed == {}

    run(main())


def test_a_frame_that_crosses_to_another_engine_is_seen_at_both(tmp_path: Path) -> None:
    async def main() -> None:
        guests = "".join(f'[[guest]]\nname = "{name}"\npath = "bypass"\n' for name in NAMES)
        text = "[nic]\nengines = 2\npause_us = 1_000_000\n" + guests
        async with looking(tmp_path, "crossing", text) as (lab, viewer):
            mac, stream, crossed = macs(lab), 0, set[bool]()
            rows = [row.removeprefix("nic/ctx").split(":") for row in (await lab.counters()).read() if row.startswith("nic/ctx")]
            engine = {guest: int(context) % 2 for context, guest in rows}
            for ends in ("alice bob", "bob alice", "alice carol", "bob carol", "wire alice", "wire bob"):
                (sender, receiver), stream = ends.split(), stream + 1
                job = {"mac": mac[receiver], "frame": 100, "stream": stream, "frames": FRAMES}
                if sender == "wire":
                    await lab.call("nic", "wire_generate", **job)
                else:
                    await lab.call(sender, "send_stream", **job)
                await all_of(lab, receiver, stream, FRAMES)
                found = await seen(viewer, lambda ways: sum(way.is_whole for way in ways) >= FRAMES)
                assert Counter(way.route for way in found) == {f"{sender} → nic → {receiver}": FRAMES}
                nic = [[step for step in way.steps if step.sighting.process == "nic"] for way in found]
                assert {len({step.sighting.loop for step in steps}) for steps in nic} == {len(nic[0])}
                seen_by = [step.what.partition(":")[0] + " " + step.sighting.moment.name for step in nic[0]]
                if sender == "wire":  # what it generates is generated by the receiver's engine
                    assert seen_by == ["wire PASSED"]
                else:
                    crosses = engine[sender] != engine[receiver]
                    crossed.add(crosses)
                    assert seen_by == ["NIC TAKEN"] * crosses + ["NIC PASSED"]
            assert crossed == {True, False}

    run(main())


def test_one_in_so_many_is_seen_at_every_hop_or_at_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with looking(tmp_path, "sampled", every=16) as (lab, viewer):
            job = {"mac": macs(lab)["split1"], "frame": 64, "stream": 1, "frames": 1600}
            await lab.call("split0", "send_stream", **job)
            await all_of(lab, "split1", 1, 1600)
            found = await seen(viewer, lambda ways: sum(way.is_whole for way in ways) >= 100)
            assert all(way.is_whole and len(way.steps) == 4 for way in found)
            assert len(found) == 100

    run(main())


def test_a_drop_is_seen_with_its_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with looking(tmp_path, "drops") as (lab, viewer):
            for guest, by in (("bypass0", "nic"), ("split0", "dom0")):
                await lab.call(guest, "send_stream", mac=macs(lab)[guest], frame=64, stream=3, frames=5)  # to itself
                found = await seen(viewer, lambda ways: len(ways) >= 5)
                assert {way.route for way in found} == {f"{guest} → {by} → dropped (same_port)"}
                assert {way.steps[-1].sighting.moment for way in found} == {Moment.DROPPED}

    run(main())


def test_a_drop_after_a_wire_with_a_delay_is_seen(tmp_path: Path) -> None:
    """The generator waits for a receiver that takes nothing, and then goes on."""
    late = '[nic]\npause_us = 1000\n[nic.wire]\ndelay_us = 20\n[[guest]]\nname = "anna"\npath = "bypass"\n'

    async def main() -> None:
        async with looking(tmp_path, "late", late) as (lab, viewer):
            anna = (await lab.pids())["anna"]
            try:
                await stop(anna)
                await lab.call("nic", "wire_generate", mac=macs(lab)["anna"], frame=64, stream=3, frames=2000)
                found = await seen(viewer, lambda ways: len(ways) >= FRAMES)
                assert {way.route for way in found} == {"wire → nic → dropped (no_buffer)"}
            finally:
                os.kill(anna, signal.SIGCONT)

    run(main())


def test_a_recording_that_costs_next_to_nothing_has_all_the_same(tmp_path: Path) -> None:
    """While traffic goes on nothing is taken apart, and if too much waits not even copied: what the rings hold comes at the end."""

    async def main() -> None:
        async with lab_of(tmp_path, "aside", LAB) as lab:
            for stream, most in enumerate((recording.MOST_BACKLOG, 0), 1):
                ways, said = list[Way](), list[recording.Seen]()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(recording, "MOST_BACKLOG", most)
                    async with recording.recording(lab.channel, [recording.way_sink(ways)], said, share=0.0):
                        job = {"mac": macs(lab)["split1"], "frame": 64, "stream": stream, "frames": 300}
                        await lab.call("split0", "send_stream", **job)
                        await all_of(lab, "split1", stream, 300)
                        assert not ways
                assert sum(way.is_whole for way in ways) == 300
                assert (said[0].missed, said[0].error) == ({}, None)

    run(main())


def test_one_that_tells_without_end_takes_nobody_elses_room(tmp_path: Path) -> None:
    """What it tells when its share is used up comes too late for the order of time: it is missed, and counted."""

    async def main() -> None:
        async with looking(tmp_path, "room") as (lab, viewer):

            async def send(path: str, stream: int) -> None:
                job = {"mac": macs(lab)[f"{path}1"], "frame": 64, "stream": stream, "frames": 50}
                await lab.call(f"{path}0", "send_stream", **job)
                await all_of(lab, f"{path}1", stream, 50)
                sent = time.monotonic_ns()
                while time.monotonic_ns() < sent + 2 * SETTLED_NS:
                    await asyncio.sleep(0)

            await send("split", 1)
            viewer.copy(1)  # nothing waits yet, so that all have room
            await send("split", 2)
            await send("bypass", 3)
            viewer.copy(1)
            told = [*viewer.take_apart(), *viewer.take_apart()]
            viewer.copy()
            told += [*viewer.take_apart(), *viewer.rest()]
            assert [one.time_ns for one in told] == sorted(one.time_ns for one in told)
            by = Counter(one.process for one in told)
            assert by["bypass0"] == by["split0"] > 0, by
            assert viewer.missed.keys() >= {"split0"}
            assert not viewer.missed.keys() & {"bypass0", "bypass1"}

    run(main())


@pytest.mark.long
def test_who_is_started_again_is_looked_at_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with looking(tmp_path, "again") as (lab, viewer):
            for daemon in ("nic", "dom0"):
                await kill(lab, daemon)
                await viewer.look_again()
            viewer.read(last=True)
            for path in ("bypass", "split"):
                job = {"mac": macs(lab)[f"{path}1"], "frame": 64, "stream": 1, "frames": 10}
                await lab.call(f"{path}0", "send_stream", **job)
                found = await seen(viewer, lambda ways: sum(way.is_whole for way in ways) >= 10)
                assert {way.route for way in found if way.is_whole} == {f"{path}0 → {BY[path]} → {path}1"}

    run(main())


def test_a_viewer_that_goes_leaves_nothing_and_another_may_come(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab_of(tmp_path, "viewers", LAB) as lab:
            job = {"mac": macs(lab)["bypass1"], "frame": 64, "stream": 1, "frames": 100}
            for _ in range(2):
                async with Viewer(lab.channel) as viewer:
                    await lab.call("bypass0", "send_stream", **job)
                    await seen(viewer, lambda ways: len(ways) >= 100)
            await lab.call("bypass0", "send_stream", **job)
            with TraceRing("wrong") as ring:
                for wrong in ({"every": 3}, {"every": 0}, {"snap": 1 << 20}, {"loop": "nobody"}, {"snap": 0}):
                    asked = {"loop": "nic0", "every": 1, "snap": 64, **wrong}
                    with pytest.raises(Refused, match=r"one in|bytes of|no loop"):
                        await lab.call("nic", "trace_begin", fds=[ring.fd], **asked)
            with pytest.raises(Refused):
                await lab.call("nic", "trace_begin", loop="nic0", every=1, snap=64)

    run(main())


@pytest.mark.long
def test_rings_of_viewers_that_have_gone_are_unmapped(tmp_path: Path) -> None:
    """However often it is looked, at loops that sleep throughout, at such as have work, and at one that never runs."""
    one_queue_of_two = "[dom0]\nmax_queues = 1\n" + LAB.replace('path = "split"\n', 'path = "split"\nqueues = 2\n', 1)

    def mapped(pid: int) -> int:
        return Path(f"/proc/{pid}/maps").read_text().count("xbl.trace")

    async def main() -> None:
        async with lab_of(tmp_path, "looks", one_queue_of_two) as lab:
            pids = await lab.pids()
            job = {"mac": macs(lab)["bypass1"], "frame": 64, "stream": 1, "frames": 100}
            for k in range(2 * MOST_RINGS):
                async with Viewer(lab.channel) as viewer:
                    assert viewer.left_out.keys() <= {"xenstored"}
                    if k % 16 == 0:
                        await lab.call("bypass0", "send_stream", **job)
                assert mapped(pids["split0"]) <= 4
                assert mapped(pids["nic"]) + mapped(pids["bypass0"]) < 10

    run(main())


def test_streams_lose_nothing_while_all_of_it_is_told(tmp_path: Path) -> None:
    """The rings are written over: traffic waits for no viewer, and the viewer knows that it has missed some."""

    async def main() -> None:
        async with lab_of(tmp_path, "flood", LAB) as lab, Viewer(lab.channel, 1, 1600, capacity=1 << 20) as viewer:
            for path in ("bypass", "split", "trapped"):
                job = {"mac": macs(lab)[f"{path}1"], "frame": 1514, "stream": 1, "frames": 20_000}
                sent = asyncio.ensure_future(lab.call(f"{path}0", "send_stream", **job))
                report = await all_of(lab, f"{path}1", 1, (await sent)["sent"])
                assert (report["lost"], report["corrupt"]) == (0, 0)
            viewer.read()
            assert viewer.missed

    run(main())


@pytest.mark.parametrize(
    ("process", "loop", "shown"),
    [
        ("evil", "bob", "evil.bob"),
        ("evil", "evil", "evil"),
        ("evil", "evil.1", "evil.1"),
        ("evil", "evil2", "evil.evil2"),
        ("evil", "nic", "evil.nic"),
        ("nic", "engine", "engine"),
    ],
)
def test_a_guest_calls_its_loops_after_itself(process: str, loop: str, shown: str) -> None:
    with TraceRing("evil") as ring:
        assert _Loop(process, loop, ring, cast(Channel, None)).shown == shown


def test_a_process_without_loops_leaves_no_console_and_nobody_is_trusted_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        ours, theirs = socketpair()
        console, guest = Channel(ours, name="evil", untrusted=True), Channel(theirs, {"trace_points": list[str]}, name="us")
        asked: list[tuple[object, ...]] = []

        async def given(*how: object, **more: object) -> Channel:
            asked.append((*how, more))
            return console

        monkeypatch.setattr(looks, "open_console", given)
        keeper = cast(Channel, None)
        await Viewer(keeper)._look_at("evil")
        assert asked == [(keeper, "evil", {})]  # as it was opened for a guest, it takes no descriptors
        assert console.closed.done()
        guest.close()

    run(main())


@pytest.mark.parametrize("loops", [1, 2, 5, 32])
def test_all_loops_of_a_guest_have_the_room_of_one(monkeypatch: pytest.MonkeyPatch, loops: int) -> None:
    """It says how many it has, and could fill them all: who looks copies that at once, and takes it apart."""

    async def main() -> None:
        ours, theirs = socketpair()
        console = Channel(ours, name="evil", untrusted=True)

        handlers: dict[str, Callable[..., Any]] = {
            "trace_points": lambda: [f"loop{k}" for k in range(loops)],
            "trace_begin": lambda **how: None,
        }
        guest = Channel(theirs, handlers, name="us")

        async def given(*how: object, **more: object) -> Channel:
            return console

        monkeypatch.setattr(looks, "open_console", given)
        viewer = Viewer(cast(Channel, None))
        await viewer._look_at("evil")
        rooms = [one.ring.capacity for one in viewer._loops]
        assert len(rooms) == loops
        assert DEFAULT_CAPACITY // 2 < sum(rooms) <= DEFAULT_CAPACITY
        guest.close()
        for one in viewer._loops:
            one.ring.close()
        console.close()

    run(main())


def test_a_guest_that_makes_records_up_spoils_its_own_alone() -> None:
    """Times that can't be are missed records, a frame that has been everywhere is cut short, and all of it is seen at the guest."""

    async def main() -> None:
        ours, theirs = socketpair()
        keeper = Channel(ours, name="the keeper")
        viewer = Viewer(keeper)
        with TraceRing("evil") as ring, mmap.mmap(ring.fd, DATA_AT + ring.capacity) as memory:
            viewer._loops = [_Loop("evil", "bob", ring, keeper)]
            now, written = time.monotonic_ns(), 0
            for times in ([-(1 << 63), 0, now, (1 << 63) - 1], [now + 1] * (3 * MOST_STEPS)):
                heads = np.zeros(len(times), RECORD)
                heads["size"], heads["moment"], heads["length"], heads["time_ns"] = RECORD_BYTES, int(Moment.TAKEN), 60, times
                told = heads.tobytes()
                memory[DATA_AT + written : DATA_AT + written + len(told)] = told
                written += len(told)
                for at, value in ((RESERVED_AT, written), (COMMITTED_AT, written), (RECORDS_AT, written // RECORD_BYTES)):
                    memory[at : at + 8] = value.to_bytes(8, "little")
            found = viewer.read(last=True)
            assert [one.time_ns for one in found] == [now, *[now + 1] * (3 * MOST_STEPS)]
            assert viewer.missed == {"evil.bob": 3}
            assert {one.loop for one in found} == {"evil.bob"}
            ways = Ways()
            cut = [*ways.add(found), *ways.rest()]
            assert max(len(way.steps) for way in cut) <= MOST_STEPS
        keeper.close()
        theirs.close()

    run(main())
