"""The floor: frames arrive whole, damage is seen, ping-pongs go round, workers end with their parent."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.floor import Floor
from bench.floor.layout import REGION_BYTES
from bench.floor.ring import BUFFERS, FINISHED, PLATFORM, PROD, consume, produce
from hyp.abi.sizes import FRAME_BUFFER, LARGEST_FRAME_BUFFER
from hyp.control import ControlError
from hyp.counters import PRIVATE_ROW_BYTES
from hyp.events import WAIT, new_eventfd
from hyp.load.frames import TRACKER, TRACKERS, tracker_report
from hyp.monitor.event_channels import Upcall
from lab.accounting import usage
from nic.state import WIRE_BUFFERS
from tests.support.labs import ROOT, run, until, wait_until
from tests.support.patience import patient
from tests.support.tiers import tiered

CPUS = sorted(os.sched_getaffinity(0))
STREAM = 1
FRAMES = 200
NEVER_NS = 1 << 60


# --- the ring, in one process -----------------------------------------------------------------------------------------


class Ring:
    """Both ends of a floor ring in this process: `send` fills it, `receive` drains it."""

    def __init__(self) -> None:
        self._memory = np.zeros(REGION_BYTES + 4096, np.uint8)
        start = -int(self._memory.ctypes.data) % 4096
        self.region = self._memory[start : start + REGION_BYTES]
        self._address = int(self.region.ctypes.data)
        self._upcall, self._eventfd = Upcall(), new_eventfd()
        self._wait, self._counts = np.zeros(1, WAIT), np.zeros(PRIVATE_ROW_BYTES // 8, np.int64)
        self._wait[0]["epoll"], self._wait[0]["platform"] = self._upcall.epoll.fileno(), self._address + PLATFORM
        self._trackers = np.zeros(TRACKERS, TRACKER)
        self.wire = np.zeros(WIRE_BUFFERS * LARGEST_FRAME_BUFFER, np.uint8)

    def send(self, frame: int, frames: int = FRAMES) -> int:
        private = (self._wait.ctypes.data, self._eventfd, self._counts.ctypes.data)
        return int(produce(self._address, 256, frame, STREAM, frames, NEVER_NS, *private))

    def receive(self, frame: int) -> dict[str, int]:
        private = (self.wire.ctypes.data, self._trackers.ctypes.data, self._wait.ctypes.data)
        taken = consume(self._address, 256, frame, *private, self._eventfd, self._counts.ctypes.data)
        return {**tracker_report(self._trackers, STREAM), "taken": taken}

    def frame(self, sequence: int, length: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        at = BUFFERS + sequence * FRAME_BUFFER
        return self.region[at : at + length]

    def close(self) -> None:
        self._upcall.close()
        os.close(self._eventfd)


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring()
    yield made
    made.close()


@pytest.mark.parametrize("frame", [48, 64, 1500, 2112])
def test_every_frame_is_written_copied_and_verified(ring: Ring, frame: int) -> None:
    assert ring.send(frame) == FRAMES
    assert ring.region[PROD : PROD + 8].view("<i8")[0] == FRAMES | FINISHED
    report = ring.receive(frame)
    assert (report["taken"], report["frames"], report["bytes"]) == (FRAMES, FRAMES, FRAMES * frame)
    assert (report["lost"], report["corrupt"], report["duplicated"]) == (0, 0, 0)
    last = ring.wire[(FRAMES - 1) * LARGEST_FRAME_BUFFER :][:frame]
    assert (last == ring.frame(FRAMES - 1, frame)).all(), "the last frame is not in its wire buffer"


@pytest.mark.parametrize("byte", [16, 24, 40, 63, 1000, 1499])
def test_a_broken_byte_is_a_corrupt_frame(ring: Ring, byte: int) -> None:
    ring.send(1500)
    ring.frame(77, 1500)[byte] ^= 0x10
    report = ring.receive(1500)
    assert (report["frames"], report["corrupt"], report["lost"], report["duplicated"]) == (FRAMES - 1, 1, 1, 0)


def test_a_frame_that_came_twice_is_a_duplicate_and_the_other_one_is_lost(ring: Ring) -> None:
    ring.send(64)
    ring.frame(91, 64)[:] = ring.frame(90, 64)
    report = ring.receive(64)
    assert (report["frames"], report["corrupt"], report["lost"], report["duplicated"]) == (FRAMES - 1, 0, 1, 1)


# --- worker processes -------------------------------------------------------------------------------------------------


def test_streams_lose_nothing_whatever_the_placement() -> None:
    """Pinned apart and on one core, spinning and sleeping, over a ring that fills and runs empty."""

    async def main() -> None:
        async with Floor(2) as floor:
            for cpus, spin_ns in (([CPUS[0], CPUS[-1]], 50_000), (CPUS[:1], 0), (None, 0)):
                for frame, entries in ((64, 256), (1500, 128)):
                    found = await floor.stream(frame, 10.0, cpus=cpus, spin_ns=spin_ns, entries=entries, frames=20_011)
                    assert (found["lost"], found["corrupt"], found["duplicated"]) == (0, 0, 0)
                    assert found["frames"] == 20_011
                    assert found["mpps"] == pytest.approx(20_011 / found["seconds"] / 1e6)
                    assert found["gbps"] == pytest.approx(found["mpps"] * frame * 8 / 1e3)
                    assert found["cpu_ns"] > 0
            timed = await floor.stream(64, 0.05, cpus=CPUS[:1])
            assert timed["frames"] > 0
            assert timed["seconds"] >= 0.02
            headers = await floor.stream(1500, 10.0, full=False, cpus=CPUS[:1], frames=1000)
            assert (headers["frames"], headers["lost"], headers["corrupt"]) == (1000, 0, 0)

    run(main())


def test_ping_pongs_go_round_all_processes() -> None:
    async def main() -> None:
        async with Floor(4) as floor:
            for processes in (2, 3, 4):
                for events, cpus in ((True, CPUS[:1]), (True, CPUS), (False, CPUS)):
                    times = await floor.ping_pong(processes, events=events, cpus=cpus, rounds=20, seconds=20.0)
                    assert len(times.ns) == 20, (processes, events, cpus)
                    assert (times.ns > 0).all()
                    assert times.p50 <= times.p99 <= times.p999 <= times.ns.max()
            short = await floor.ping_pong(2, events=True, rounds=50_000, seconds=0.02)
            assert 0 < len(short.ns) < 50_000

    run(main())


def test_memcpy_is_measured_and_bad_requests_are_refused() -> None:
    async def main() -> None:
        async with Floor(2) as floor:
            curve = await floor.bandwidth((1 << 15, 1 << 22), cpu=CPUS[0])
            assert list(curve) == [1 << 15, 1 << 22]
            assert all(rate > 0 for rate in curve.values())
            for frame, entries in ((47, 256), (2113, 256), (64, 200), (64, 64), (64, 2048)):
                with pytest.raises(ValueError, match=r"frames are|entries are"):
                    await floor.stream(frame, 0.1, entries=entries)
            with pytest.raises(ValueError, match="2 to 2 processes"):
                await floor.ping_pong(3, events=True)
            with pytest.raises(ControlError):
                await floor.stream(64, 0.1, cpus=[4095])

    run(main())


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def cpu_seconds(pid: int) -> float:
    return usage(pid).cpu_ns / 1e9


def test_a_worker_that_dies_ends_the_measurement() -> None:
    """Its peer would wait for it; the caller is told, and no process is left."""

    async def main() -> None:
        async with Floor(2) as floor:
            pids = floor.workers.pids
            before = cpu_seconds(pids[1])
            stream = asyncio.create_task(floor.stream(64, 60.0, spin_ns=0))

            async def streams() -> bool:
                return cpu_seconds(pids[1]) > before + 0.05

            await until(streams, "the stream")
            os.kill(pids[0], signal.SIGKILL)
            with pytest.raises(ControlError, match="gone"):
                await stream
            assert not any(map(is_there, pids))

    run(main())


def test_workers_are_gone_after_the_floor_and_nothing_stays_in_shared_memory() -> None:
    async def main() -> list[int]:
        async with Floor(3) as floor:
            assert len((await floor.ping_pong(3, events=True, rounds=5)).ns) == 5
            assert all(map(is_there, floor.workers.pids))
            return floor.workers.pids

    assert not any(map(is_there, run(main())))
    assert not [name for name in os.listdir("/dev/shm") if "floor" in name]


PARENT = """
import asyncio, os, sys
from bench.floor import Floor

async def main():
    async with Floor(2) as floor:
        print(*floor.workers.pids, flush=True)
        if sys.argv[1] == "exit":
            os._exit(0)
        await floor.stream(64, 60.0)

asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.parametrize("end", tiered(["kill", "exit"], ["kill"]))
def test_workers_die_with_their_parent(end: str) -> None:
    """Killed with its workers' loops running, or leaving without a word."""
    command = [sys.executable, "-c", PARENT, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end == "kill":
            before = sum(map(cpu_seconds, pids))  # they are up: more comes of their loops
            wait_until(lambda: sum(map(cpu_seconds, pids)) > before + 0.3, "the workers' loops")
            parent.kill()
        parent.wait(patient(30))
        wait_until(lambda: not any(map(is_there, pids)), "the workers' end")
