"""UCX's ping-pong as a contender: it gives a figure, says what is wrong, and leaves nothing."""

import asyncio
import os
from pathlib import Path

import pytest

from bench.peers import PeerError
from bench.peers.ucx import PROGRAM, PingPong, median_of
from tests.support.patience import patient


@pytest.mark.needs("ucx", "two-cpus")
def test_round_trips_of_messages() -> None:
    async def main() -> None:
        peer, cpus = PingPong(), sorted(os.sched_getaffinity(0))[:2]
        for frame in (64, 1500):
            assert await asyncio.wait_for(peer.slice(frame, cpus, 0.02), patient(30)) > 0

    asyncio.run(main())
    assert children() == []


@pytest.mark.needs("ucx", "two-cpus")
def test_what_it_cannot_do_is_an_error_and_nothing_is_left() -> None:
    async def main() -> None:
        with pytest.raises(PeerError, match=PROGRAM):
            await asyncio.wait_for(PingPong().slice(64, [1 << 14, 1 << 14], 0.02), patient(60))  # no machine has such a CPU

    before = set(os.listdir("/dev/shm"))
    asyncio.run(main())
    assert children() == []
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "ucx" in name]


@pytest.mark.parametrize("said", ["", "Connection refused", "1000", "1000,abc,1"])
def test_no_figure_is_no_figure(said: str) -> None:
    with pytest.raises(PeerError, match="gave no figure"):
        median_of(said)


def test_a_figure() -> None:
    assert median_of("[thread 0]500,9.0,9.0\n1000,0.25,0.3,0.3,1,1,1,1\n") == 0.25


def test_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt install ucx-utils" in str(PingPong.missing())
    assert "one core" in str(PingPong.missing(cores=1))


def children() -> list[str]:
    """Processes of that program which are ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, rest = path.read_text().replace("(", ")").split(")", 2)
        except OSError:
            continue
        if name == PROGRAM[:15] and int(rest.split()[1]) == os.getpid():
            found.append(pid)
    return found
