"""Pairs of ``dpdk-testpmd``: vhost-user back end and virtio-user front end, in several ways, and memif.

What virtual machines on one host get, and containers: `vhost` is the default, `vhost-packed` its packed ring with descriptors in
order, `memif` DPDK's shared-memory interface between processes that trust each other less (both sides copy: two copies of a frame).

The front end ("guest") sends, the back end ("host") copies each frame out of guest memory and drops it. Ring of 256, 1025
buffers of 2176 bytes in each process (the fewest that testpmd accepts; each core's cache of 250 makes fewer of them hot). testpmd
writes and reads headers only: ``touched`` is "header", and the lab is compared with it in its header-only mode.

Frames lost between the two are none: what finds the ring full is not sent, and counted as ``refused`` by the sender.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from bench.peers import hugepages
from bench.peers.base import DEPTH, PeerError, PeerSlice, check_slice, cpu_ns
from bench.peers.sockets import ROOT
from bench.peers.testpmd import MBUF_BYTES, MBUFS, MEMORY_MIB, PROGRAM, Testpmd, drivers
from lab.rundir import RunDir, clean, short_place

PREFIX = "bench-vhost-"
SOCKET = "vhost.sock"
LONGEST_SOCKET = 107
"""Bytes of a path that a socket can have: unix(7)."""
INSTALL = "apt install dpdk dpdk-dev"
DRAIN_READS = 100
_number = count()


def sweep_dead() -> None:
    """Remove run folders of dead benches whose guard was killed too."""
    clean(prefix=PREFIX)


class Vhost:
    """Two testpmds, each with its polling core."""

    name = "vhost"
    memory: tuple[str, ...] = ("--no-huge", "--no-shconf")
    needs: tuple[str, ...] = ("net_vhost", "net_virtio")
    install = INSTALL
    copies = 1
    """Of a frame's bytes, between the two."""
    pages = 0
    """2 MiB pages that both need."""

    def __init__(self) -> None:
        self._host, self._guest = Testpmd("host"), Testpmd("guest")
        self._guard: subprocess.Popen[bytes] | None = None
        self._held = -1
        self._frame = 0

    @classmethod
    def missing(cls, cores: int = 2) -> str | None:
        """See `Peer`."""
        if cores < 2:
            return "cannot run sensibly on one core: both ends poll, and each would wait for the other's time slice to end"
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not here: {cls.install}"
        absent = drivers("bus_vdev", "mempool_ring", *cls.needs)[1]
        return f"DPDK's drivers {', '.join(absent)} are not here: {cls.install}" if absent else None

    def _devices(self, path: Path) -> tuple[str, str]:
        """The virtual devices of host and guest, which meet at a socket. The host's is there first."""
        return f"net_vhost0,iface={path},queues=1", f"net_virtio_user0,path={path},queues=1,queue_size={DEPTH}"

    async def start(self, frame: int, cpus: Sequence[int]) -> None:
        """See `Peer`."""
        if cpus[0] == cpus[-1]:
            raise PeerError(f"{self.name} {self.missing(cores=1)}")
        try:
            run = self._start_guard()
            path = run.path / SOCKET
            host, guest = self._devices(path)
            await self._host.start(cpus[-1], self.memory, run.path, host, ["--forward-mode=rxonly"], self._held)
            await self._guest.start(cpus[0], self.memory, run.path, guest, ["--forward-mode=txonly"], self._held)
            await self.set_frame(frame)
        except BaseException:
            await self.stop()
            raise

    def _start_guard(self) -> RunDir:
        """The run folder and, if need be, the huge pages, with the guard that takes both away again."""
        sweep_dead()
        run = RunDir(f"{PREFIX}{os.getpid()}-{next(_number)}")
        if len(os.fsencode(run.path / SOCKET)) > LONGEST_SOCKET:  # testpmd knows no way around that
            run = RunDir(run.name, short_place() / run.name)
        reading, self._held = os.pipe2(os.O_CLOEXEC)
        passed: list[int] = []
        try:
            passed.append(run.acquire())
            if self.pages:
                passed.append(hugepages.reserve(self.pages))
            command = [sys.executable, "-m", "bench.peers.guard", run.name, *map(str, passed)]
            self._guard = subprocess.Popen(command, stdin=reading, pass_fds=passed, cwd=ROOT, start_new_session=True)
        except BaseException:
            if len(passed) > 1:
                hugepages.give_back(passed.pop())
            if passed:  # else it is somebody else's
                run.remove()
            raise
        finally:
            for fd in (reading, *passed):
                os.close(fd)
        return run

    async def set_frame(self, frame: int) -> None:
        """See `Peer`. PeerError for a size that testpmd refuses."""
        answer = await self._guest.ask(f"set txpkts {frame}")
        shown = await self._guest.ask("show config txpkts")
        if re.search(rf"Segment sizes: {frame}\s", shown) is None:
            raise PeerError(f"testpmd does not send frames of {frame} bytes: {answer.strip()}")
        self._frame = frame

    async def slice(self, seconds: float) -> PeerSlice:
        """See `Peer`."""
        check_slice(seconds)
        pids = [self._host.pid, self._guest.pid]
        for one in (self._host, self._guest):
            await one.ask("clear port stats all")
        await self._host.ask("start")
        await self._guest.ask("start")
        (began, first), from_cpu = await self._host.stats(), cpu_ns(pids)
        await asyncio.sleep(seconds)
        (ended, last), to_cpu = await self._host.stats(), cpu_ns(pids)
        stopped = await self._guest.ask("stop")
        sent = (await self._guest.stats())[1]
        received = await self._drained(sent["TX-packets"])
        await self._host.ask("stop")
        frames = last["RX-packets"] - first["RX-packets"]
        lost = sent["TX-packets"] - received["RX-packets"]
        errors = [f"{lost} frames lost without a name"] if lost else []
        # at rest: while it runs, testpmd's counts of packets and of bytes are read a burst apart
        if received["RX-bytes"] != received["RX-packets"] * self._frame:
            errors.append("the frames received are not of the size asked for")
        return PeerSlice(frames, ended - began, to_cpu - from_cpu, sent["TX-packets"], lost, self._detail(stopped), errors)

    async def _drained(self, sent: int) -> dict[str, int]:
        """The host's counters once it has received all, or as they are if that does not happen."""
        received: dict[str, int] = {}
        for _ in range(DRAIN_READS):
            received = (await self._host.stats())[1]
            if received["RX-packets"] >= sent:
                break
        return received

    def _detail(self, stopped: str) -> dict[str, object]:
        _, _, text = stopped.partition("TX-dropped:")
        refused = int(text.split()[0]) if text.split() else 0
        pool = {"mbufs": MBUFS, "mbuf_bytes": MBUF_BYTES, "pool_bytes": MBUFS * MBUF_BYTES}
        return {"touched": "header", "copies": self.copies, "frame_bytes": self._frame, "depth": DEPTH, "refused": refused, **pool}

    async def stop(self) -> None:
        """See `Peer`."""
        await self._guest.end()
        await self._host.end()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        if self._guard is not None:
            self._guard.wait()
            self._guard = None


class VhostHugepages(Vhost):
    """The same with 2 MiB pages, anonymous ones: no hugetlbfs is mounted, and no file can be left."""

    name = "vhost-hugepages"
    memory = ("--in-memory", "--single-file-segments")
    pages = 2 * (MEMORY_MIB * 2**20 // hugepages.PAGE_BYTES) + 8

    @classmethod
    def missing(cls, cores: int = 2) -> str | None:
        """See `Peer`."""
        return super().missing(cores) or hugepages.missing(cls.pages)


class VhostPacked(Vhost):
    """The ring layout of virtio 1.1, whose descriptors the device takes and gives back in order: vhost at its fastest."""

    name = "vhost-packed"

    def _devices(self, path: Path) -> tuple[str, str]:
        host, guest = super()._devices(path)
        return host, f"{guest},packed_vq=1,in_order=1,mrg_rxbuf=0"


class Memif(Vhost):
    """Sender and receiver each have a memory of their own, and copy to and from the rings that both have mapped."""

    name = "memif"
    needs = ("net_memif",)
    install = f"{INSTALL} librte-net-memif23"
    copies = 2

    def _devices(self, path: Path) -> tuple[str, str]:
        ring = f"id=0,rsize={DEPTH.bit_length() - 1},bsize=2048,socket={path},socket-abstract=no"
        return f"net_memif0,role=server,{ring}", f"net_memif0,role=client,{ring}"
