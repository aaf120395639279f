"""A download between programs in two guests while processes are killed, and whether what arrives is what was sent.

The server is Python's http.server, the client curl, which is held to a rate so that the deaths are spread over the download: the
next one comes when so much more of it has arrived. Its output is hashed as it comes.
"""

import asyncio
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.method.progress import Steps
from bench.peers import PeerError
from bench.programs.ends import CLIENT, GuestEnds
from bench.programs.running import Server, end_program, start_program

PORT = 8000
BETWEEN_S = 2.2
"""Between deaths: who dies more often than the supervisor allows (lab/keeper/restarts.py) is given up."""
STALLED_S = 30.0
CHUNK = 1 << 20


@dataclass(slots=True)
class Download:
    """What came of one. `expected`, `received`: SHA-256. `stall_s`: the longest time in which nothing arrived."""

    path: str
    octets: int
    expected: str
    received: str = ""
    arrived: int = 0
    seconds: float = 0.0
    stall_s: float = 0.0
    killed: list[str] = field(default_factory=list)


class Arriving:
    """Reads a program's output in a thread: how much has come, its hash, and how long nothing came."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self.octets, self.stall_s, self.hash, self.over = out, 0, 0.0, hashlib.sha256(), False
        self.more = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.done = asyncio.ensure_future(asyncio.to_thread(self._read))

    def _read(self) -> None:
        last = time.monotonic()
        while chunk := os.read(self._out.fileno(), CHUNK):
            now = time.monotonic()
            self.stall_s, last = max(self.stall_s, now - last), now
            self.octets += len(chunk)
            self.hash.update(chunk)
            self._loop.call_soon_threadsafe(self.more.set)
        self.over = True
        self._loop.call_soon_threadsafe(self.more.set)

    async def reaches(self, octets: int) -> bool:
        """Wait for so much; False if it ended before. TimeoutError if nothing comes for STALLED_S."""
        while self.octets < octets and not self.over:
            async with asyncio.timeout(STALLED_S):
                await self.more.wait()
            self.more.clear()
        return self.octets >= octets


async def download(path: str, octets: int, victims: Iterable[str], kills: int, progress: Steps) -> Download:
    """One between two guests on a path, over so many deaths. PeerError, LabError or TimeoutError if it comes to nothing."""
    with tempfile.TemporaryDirectory(prefix="xbl-download-") as folder:
        expected = _write(Path(folder) / "data", octets)
        found, ends = Download(path, octets, expected), GuestEnds(path)
        try:
            await ends.start()
            server = await Server.start(ends, [sys.executable, "-m", "http.server", "-d", folder, str(PORT)], PORT)
            try:
                await _fetch(ends, found, itertools.islice(itertools.cycle(victims), kills), kills, progress)
            finally:
                server.stop()
        finally:
            await ends.stop()
    return found


def _write(file: Path, octets: int) -> str:
    """Fill a file with what can't be guessed; its SHA-256."""
    digest, block = hashlib.sha256(), bytearray(os.urandom(CHUNK))
    with file.open("wb") as out:
        for number in range(octets // CHUNK):
            block[:8] = number.to_bytes(8, "little")  # no two are alike
            out.write(block)
            digest.update(block)
    return digest.hexdigest()


async def _fetch(ends: GuestEnds, found: Download, victims: Iterable[str], kills: int, progress: Steps) -> None:
    rate = int(found.octets / ((kills + 1) * BETWEEN_S))
    argv = ["curl", "-sS", "--fail", "--limit-rate", str(rate), f"http://{ends.address}:{PORT}/data"]
    began = time.monotonic()
    process = start_program(ends, CLIENT, argv, subprocess.PIPE)
    assert process.stdout is not None
    try:
        arriving = Arriving(process.stdout)
        for number, victim in enumerate(victims, 1):
            if not await arriving.reaches(number * found.octets // (kills + 1)):
                break
            progress.step(f"{found.path}: {victim} is killed", number / (kills + 1))
            times = ends.lab.restarts(victim)
            os.kill((await ends.lab.pids())[victim], signal.SIGKILL)
            await ends.lab.restarted(victim, times + 1)
            found.killed.append(victim)
        await arriving.reaches(found.octets)
        await arriving.done
        found.seconds, found.arrived, found.stall_s = time.monotonic() - began, arriving.octets, arriving.stall_s
        found.received = arriving.hash.hexdigest()
        if (status := process.wait()) != 0:
            raise PeerError(f"curl on {found.path} ended with status {status} after {found.arrived} bytes")
    finally:
        end_program(process)
        process.stdout.close()
