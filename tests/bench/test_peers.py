"""The systems that the lab is measured against: each really runs, is silent between slices, and leaves nothing."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.benchmarks.throughput import DPDK
from bench.peers import PEERS, Peer, PeerError, PeerSlice, hugepages, peer_class
from bench.peers.__main__ import summary
from bench.peers.base import DEPTH, cpu_ns
from bench.peers.sockets import SocketPeer
from bench.peers.testpmd import parse_stats
from bench.peers.vhost import PREFIX, Vhost, VhostHugepages, sweep_dead
from lab import rundir
from tests.support.labs import ROOT, run, wait_until
from tests.support.needs import lacking
from tests.support.tiers import tiered

CPUS = sorted(os.sched_getaffinity(0))
PAIR = [CPUS[0], CPUS[-1]]
needs_dpdk = pytest.mark.needs("dpdk", "two-cpus")  # both ends of a vhost pair poll
NEEDS: dict[str, Any] = {
    **dict.fromkeys(("vhost", "vhost-hugepages", "vhost-packed"), needs_dpdk),
    "memif": pytest.mark.needs("dpdk", "memif", "two-cpus"),
    "veth": pytest.mark.needs("ip"),
}
MEMBERS = tiered(PEERS, ["veth", "unix"], **NEEDS)
OWNER = """
import asyncio, sys, uvloop
from bench.peers import peer_class
async def main():
    peer = peer_class(sys.argv[1])()
    await peer.start(64, [int(cpu) for cpu in sys.argv[2:]])
    await peer.slice(0.05)
    print("live", flush=True)
    await asyncio.sleep(60)
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


def descendants(pid: int) -> set[int]:
    """Living processes below `pid`."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX":
                parents[int(folder.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_running(pid: int) -> bool:
    """It lives; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def traces(owner: int) -> list[str]:
    """What a peer of process `owner` could leave outside of processes."""
    found = [str(path) for path in rundir.place().glob(f"{PREFIX}{owner}-*")]
    found += [str(path) for path in Path("/var/run/dpdk").glob(f"*{owner}")]
    found += [str(path) for where in ("/tmp", "/dev/shm") for path in Path(where).glob(f"*{PREFIX}{owner}*")]
    record = hugepages.record_path()
    return found + ([str(record)] if record.exists() else [])


def must_run(name: str) -> type[Peer]:
    """The peer's class; a test whose peer can't run here is left out."""
    kind = peer_class(name)
    if (reason := kind.missing()) is not None:
        lacking(reason)
    if issubclass(kind, VhostHugepages):
        try:
            hugepages.give_back(hugepages.reserve(kind.pages))
        except hugepages.TooFewPages as error:
            pytest.skip(str(error))  # in CI as well: how fragmented memory is just now is nobody's to arrange
    return kind


@pytest.fixture
def pages() -> Iterator[None]:
    """The pool of huge pages is afterwards as it was before; pages that a dying process still holds go when it has let go."""
    before = hugepages.total() if hugepages.POOL.exists() else 0
    yield
    wait_until(lambda: (hugepages.total() if hugepages.POOL.exists() else 0) == before, "the pool as it was")


# --- each peer -------------------------------------------------------------------------------------------------------


async def two_slices_each(peer: Peer, frames: tuple[int, ...]) -> tuple[dict[int, list[PeerSlice]], int, set[int]]:
    """Slices by frame size, CPU time burnt in 0.2 s between slices, and the peer's processes."""
    found: dict[int, list[PeerSlice]] = {}
    try:
        await peer.start(frames[0], PAIR)
        for frame in frames:
            await peer.set_frame(frame)
            found[frame] = [await peer.slice(0.1) for _ in range(2)]
        pids = descendants(os.getpid())
        idle = cpu_ns(pids)
        await asyncio.sleep(0.2)
        return found, cpu_ns(pids) - idle, pids
    finally:
        await peer.stop()


@pytest.mark.parametrize("name", MEMBERS)
def test_a_peer_moves_frames_is_idle_between_slices_and_leaves_nothing(name: str, warm: None, pages: None) -> None:
    before = descendants(os.getpid())
    found, idle_ns, pids = run(two_slices_each(must_run(name)(), (64, 1500)))
    for frame, slices in found.items():
        for one in slices:
            assert one.errors == []
            assert 0 < one.frames <= one.sent
            assert 0.099 <= one.seconds < 2  # by a clock of its own, which may be a little slower
            assert one.cpu_ns > 0
            assert 0 <= one.lost < one.sent
            assert one.lost == 0 or one.detail["drops"]["receive_buffer"] == one.lost
            assert one.detail["depth"] == DEPTH
            assert one.detail["touched"] == ("header" if name in DPDK else "payload")
            assert one.detail["frame_bytes"] == (90 if (name, frame) == ("veth", 64) else frame)
            assert one.mpps == one.frames / one.seconds / 1e6
            json.dumps(one.plain())
    assert idle_ns < 50_000_000  # a core that polls would burn 200 ms
    assert not [pid for pid in pids - before if is_running(pid)]
    assert traces(os.getpid()) == []


@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_is_left_of_a_peer_whose_owner_is_killed(name: str, warm: None, pages: None) -> None:
    must_run(name)
    command = [sys.executable, "-c", OWNER, name, *map(str, PAIR)]
    pids: set[int] = set()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "live\n"
            pids = descendants(owner.pid)
            assert len(pids) >= 2
            if name in DPDK:
                assert traces(owner.pid)
        finally:
            owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)), "the end of the peer's processes")
    assert traces(owner.pid) == []


@pytest.mark.long
@needs_dpdk
def test_what_a_kill_of_everything_left_is_swept(warm: None, pages: None) -> None:
    """The guard is killed too: run folder and pages are left, and the next start (or `clean`) takes them away."""
    must_run("vhost-hugepages")
    command = [sys.executable, "-c", OWNER, "vhost-hugepages", *map(str, PAIR)]
    pids: set[int] = set()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "live\n"
            pids = descendants(owner.pid)
        finally:
            owner.send_signal(signal.SIGSTOP)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)), "the end of the peer's processes")
    assert traces(owner.pid)
    sweep_dead()
    hugepages.sweep()
    assert traces(owner.pid) == []


@pytest.mark.parametrize("name", ["unix", pytest.param("veth", marks=NEEDS["veth"])])
def test_socket_peers_run_on_one_core(name: str, warm: None) -> None:
    async def body() -> PeerSlice:
        peer = kind()
        try:
            await peer.start(256, CPUS[:1])
            return await peer.slice(0.1)
        finally:
            await peer.stop()

    kind = must_run(name)
    one = run(body())
    assert one.errors == []
    assert one.frames > 0


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), [("vhost", "apt install dpdk"), ("vhost-hugepages", "apt install dpdk"),
                                            ("vhost-packed", "apt install dpdk"), ("memif", "librte-net-memif23"),
                                            ("veth", "apt install iproute2")])  # fmt: skip
def test_a_missing_program_is_named_with_how_to_install_it(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert what in (peer_class(name).missing() or "")


def test_polling_peers_refuse_one_core() -> None:
    assert "one core" in (Vhost.missing(cores=1) or "")
    with pytest.raises(PeerError, match="one core"):
        run(Vhost().start(64, [0, 0]))
    assert traces(os.getpid()) == []


def test_an_unknown_peer_is_refused_by_name() -> None:
    with pytest.raises(PeerError, match="no peer 'avian'; there are vhost"):
        peer_class("avian")


@needs_dpdk
def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, pages: None) -> None:
    kind = must_run("vhost")
    before = descendants(os.getpid())
    monkeypatch.setattr("bench.peers.testpmd.MBUFS", 1024)  # one fewer than testpmd accepts
    with pytest.raises(PeerError, match="should be > 1024"):
        run(kind().start(64, PAIR))
    assert descendants(os.getpid()) == before
    assert traces(os.getpid()) == []


def test_a_worker_that_dies_is_an_error_and_not_a_figure(warm: None) -> None:
    async def body() -> None:
        peer = peer_class("unix")()
        assert isinstance(peer, SocketPeer)
        try:
            await peer.start(64, PAIR)
            peer._workers[1].process.kill()
            await peer.slice(0.1)
        finally:
            await peer.stop()

    with pytest.raises(PeerError, match="worker"):
        run(body())


def test_a_slice_longer_than_half_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        run(Vhost().slice(0.6))


def test_a_slice_with_errors_gives_no_figure() -> None:
    good = PeerSlice(1000, 0.1, 5000, 1000, 0, {"frame_bytes": 64})
    bad = PeerSlice(9999, 0.1, 5000, 10000, 1, {"frame_bytes": 64}, ["1 frames lost without a name"])
    found = summary("x", 64, [good, bad, bad])
    assert (found["n"], found["mpps"]) == (1, pytest.approx(0.01))
    assert found["errors"] == ["1 frames lost without a name"]
    assert summary("x", 64, [bad])["mpps"] is None


def test_statistics_are_understood_or_refused() -> None:
    text = "RX-packets: 12  RX-missed: 0  RX-bytes:  768\n RX-nombuf:  0\n TX-packets: 3   TX-errors: 0  TX-bytes:  1\n"
    assert parse_stats(text)["RX-bytes"] == 768
    with pytest.raises(PeerError, match="not understood"):
        parse_stats("Bad arguments\n")


# --- the pool of huge pages, a pretended one -------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """5 pages, all in use, and a record folder of the test's own. Nothing grows but nr_hugepages, so it says what was written."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for name, value in (("nr", 5), ("free", 100), ("resv", 0)):
        (folder / f"{name}_hugepages").write_text(str(value))
    monkeypatch.setattr(hugepages, "POOL", folder)
    monkeypatch.setattr(hugepages, "record_path", lambda: tmp_path / "hugepages")
    return folder


def record(text: str) -> None:
    """A dead bench's record: a file of mode 0600 that nobody has locked."""
    hugepages.record_path().touch(0o600)
    hugepages.record_path().write_text(text)


@pytest.mark.parametrize(("now", "after"), [(5, 5), (45, 5), (47, 7), (3, 3)])
def test_pages_of_a_dead_bench_are_given_back_and_nobody_elses(pool: Path, now: int, after: int) -> None:
    """Died before it reserved; after; after, and somebody reserved 2 more; somebody took away what was there."""
    record(json.dumps({"before": 5, "added": 40}))
    (pool / "nr_hugepages").write_text(str(now))
    hugepages.sweep()
    assert hugepages.total() == after
    assert not hugepages.record_path().exists()


def test_a_living_reservation_is_left_alone(pool: Path) -> None:
    fd = hugepages.reserve(40)
    assert hugepages.sweep() == []
    with pytest.raises(PeerError, match="another bench"):
        hugepages.reserve(1)
    hugepages.give_back(fd)
    assert hugepages.sweep() == []


def test_a_kernel_that_stops_part_of_the_way_is_asked_again(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a signal, or when it has to move pages first. What it never finds is an error with the number, and all is given back."""
    real, most = Path.write_text, 45

    def grow_by_20(path: Path, text: str) -> int:
        if path.name == "nr_hugepages":
            text = str(min(int(text), hugepages.total() + 20, most))
            real(pool / "free_hugepages", str(int(text) - 5))
        return real(path, text)

    (pool / "free_hugepages").write_text("0")
    monkeypatch.setattr(hugepages, "COMPACT", pool / "compact_memory")
    monkeypatch.setattr(Path, "write_text", grow_by_20)
    hugepages.give_back(hugepages.reserve(40))
    assert hugepages.total() == 5
    with pytest.raises(hugepages.TooFewPages, match="only 40 of 41 huge pages"):
        hugepages.reserve(41)
    assert hugepages.total() == 5


def test_a_record_cut_short_changes_nothing(pool: Path) -> None:
    record('{"before": 0, "ad')
    assert hugepages.sweep() == []
    assert hugepages.total() == 5


# --- the loops -------------------------------------------------------------------------------------------------------


def test_a_corrupt_frame_makes_no_figure(warm: None) -> None:
    """What comes over the sender's socket and is no good frame is told by the receiver, by name."""

    async def body() -> PeerSlice:
        peer = peer_class("unix")()
        assert isinstance(peer, SocketPeer)
        try:
            await peer.start(64, PAIR)
            junk = np.zeros(64, np.uint8)
            junk[12:14] = (0x88, 0xB5)
            junk[40] = 1
            peer._sockets[0].send(junk.tobytes())
            return await peer.slice(0.1)
        finally:
            await peer.stop()

    assert "1 frames corrupt" in run(body()).errors
