"""xenstored is dead for good, or doesn't answer: what is connected goes on, and a vif that fails gives back what it holds."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from dom0.netback import fail_port
from dom0.state import ENGINE, PORT, STAGE, STAGED, engine_at, port_of
from hyp.abi.counters import COLUMNS, FAULTS_PROTOCOL, Count
from hyp.abi.sizes import DOM0_BUFFERS
from hyp.kernels import entry, i64, void
from lab.stopping import stop
from tests.lab.test_paths import check
from tests.support.driven_labs import INITIALISING, LAB, driven_lab, others
from tests.support.labs import run, until, workload

pytestmark = pytest.mark.usefixtures("warm")


@entry(void(i64, i64))
def do_fail(engine: int, number: int) -> None:
    e = engine_at(engine)
    fail_port(e, port_of(e, number), FAULTS_PROTOCOL)


def test_connected_vifs_outlive_xenstored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of round trips: these go on, later streams arrive, and one that fails then takes nobody with it."""

    async def main() -> None:
        text = "[supervisor]\nrestart = false\n" + LAB
        async with driven_lab(tmp_path, monkeypatch, "gone", carl='grants = "persistent"\n', text=text) as bert:
            await bert.connect()
            under_way = asyncio.create_task(bert.runner.run(workload("rr", "anna", "carl", 64, frames=20_000)))

            async def begun() -> bool:
                return (await bert.lab.counters()).read()["dom0/vif3:carl"]["tx_frames"] > 1000

            await until(begun, "round trips")
            os.kill(bert.runner.pids["xenstored"], signal.SIGKILL)
            record = await under_way
            check(record)
            assert (record["frames"], record["lost"]) == (20_000, 0)
            await bert.exchange()
            assert await bert.call("store", op="read", path="name") == "EIO"
            with pytest.raises(FileNotFoundError):
                await bert.lab._rundir.store_socket()
            await bert.call("overrun", ring="tx")
            await others(bert)

    run(main())


def test_a_vif_fails_while_xenstored_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings, event channels and descriptors are given back at once; the front end is told when there is a store again."""

    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "silent") as bert:
            await bert.connect()
            held = bert.held(), bert.descriptors()["dom0"]
            await bert.call("overrun", ring="tx")
            await stop(bert.runner.pids["xenstored"])
            try:

                async def given_back() -> bool:
                    return bert.held() < held[0] and bert.descriptors()["dom0"] < held[1]

                await until(given_back, "what the vif held")
                await others(bert)
            finally:
                os.kill(bert.runner.pids["xenstored"], signal.SIGCONT)
            await bert.state(INITIALISING)
            await bert.connect()
            await bert.exchange()

    run(main())


def test_a_vif_that_fails_gives_back_what_it_has_staged() -> None:
    """Dom0's buffers of all its queues, but for those that have been answered, or that the NIC has."""
    engine, ports, stages = np.zeros(1, ENGINE), np.zeros(2, PORT), np.zeros((2, STAGE), STAGED)
    free, members, counts = np.arange(DOM0_BUFFERS), np.arange(2), np.zeros((2, COLUMNS), np.int64)
    free_count = DOM0_BUFFERS - 2 * STAGE
    stages["buffer"] = DOM0_BUFFERS - 2 * STAGE + np.arange(2 * STAGE).reshape(2, STAGE)
    stages["length"] = 64
    stages["posted"][0, 12:20] = 1
    for number, (at, answered) in enumerate(((20, 10), (3, 0))):
        port = ports[number]
        port["number"], port["stage"], port["counts"] = number, stages[number].ctypes.data, counts[number].ctypes.data
        port["staged"], port["next"], port["answers"], port["active"] = STAGE, at, STAGE - answered, 1
    ports[0]["queues"], ports[0]["members"] = 2, members.ctypes.data
    engine["ports"], engine["free"], engine["free_count"] = ports.ctypes.data, free.ctypes.data, free_count
    do_fail(int(engine.ctypes.data), 1)
    back = [
        buffer for buffer in stages["buffer"].ravel().tolist() if not stages["buffer"][0, 0] <= buffer < stages["buffer"][0, 20]
    ]
    back += stages["buffer"][0, 10:12].tolist()
    assert sorted(free[free_count : int(engine["free_count"][0])].tolist()) == sorted(back)
    assert ports["active"].tolist() == [0, 0]
    assert ports["failed"].tolist() == [1, 1]
    assert counts[:, Count.DROP_DOWN].tolist() == [STAGE - 20, STAGE - 3]
