"""One interactive ``dpdk-testpmd``: started, told on standard input what to do, and understood.

Its output goes to a pseudo-terminal: into a pipe its C library would hold lines back. It dies with the bench (and would end
at the end of its standard input), and is silent between ``stop`` and ``start``: its core then waits in the kernel.
"""

import asyncio
import os
import re
import signal
import time
import tty
from collections.abc import Sequence
from pathlib import Path

from bench.peers.base import PeerError
from hyp import linux

PROGRAM = "dpdk-testpmd"
PROMPT = b"testpmd> "
ANSWER_S = 20
MBUFS = 1025
"""The smallest pool that testpmd accepts (``total-num-mbufs should be > 1024``)."""
MBUF_BYTES = 2176
"""Its default: 128 B of headroom and 2048 B."""
MEMORY_MIB = 32


def drivers(*names: str) -> tuple[list[str], list[str]]:
    """Options that load just these drivers, and those that are not to be found. A DPDK that has them built in has no folder."""
    places = [Path(where) for where in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")]
    patterns = ("dpdk/pmds-*", "*/dpdk/pmds-*")  # the second for multi-arch distributions
    folders = sorted(folder for place in places for pattern in patterns for folder in place.glob(pattern))
    if not folders:
        return [], []
    found = {name: next(iter(sorted(folders[-1].glob(f"librte_{name}.so*"))), None) for name in names}
    options = [part for path in found.values() if path is not None for part in ("-d", str(path))]
    return options, [name for name, path in found.items() if path is None]


def driver_of(vdev: str) -> str:
    """The driver of a virtual device: "net_virtio_user0,path=…" is net_virtio's."""
    name = vdev.partition(",")[0].rstrip("0123456789")
    return name.removesuffix("_user")


def parse_stats(text: str) -> dict[str, int]:
    """The figures of ``show port stats``: ``{"RX-packets": …, "TX-packets": …, …}``. PeerError if the two named are not there."""
    found = {name: int(value) for name, value in re.findall(r"([RT]X-[a-z]+):\s*(\d+)", text)}
    if not {"RX-packets", "TX-packets"} <= found.keys():
        raise PeerError(f"testpmd's statistics were not understood: {text.strip()[-300:]!r}")
    return found


class Testpmd:
    """The process, its standard input and its terminal."""

    __test__ = False  # for pytest: a program, not a test

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: asyncio.subprocess.Process | None = None
        self._terminal = -1
        self._output = bytearray()
        self._news = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    async def start(self, cpu: int, memory: Sequence[str], folder: Path, vdev: str, options: Sequence[str], held: int) -> None:
        """Start it and wait for its prompt. It inherits `held`; what it makes in the file system is in `folder`."""
        pmds, absent = drivers("bus_vdev", "mempool_ring", driver_of(vdev))
        if absent:
            raise PeerError(f"DPDK's drivers {', '.join(absent)} are not here")
        eal = ["--lcores", f"(0,1)@{cpu}", "-m", str(MEMORY_MIB), *memory, "--no-pci", "--no-telemetry"]
        eal += [f"--file-prefix={self.name}{os.getpid()}", *pmds, f"--vdev={vdev}"]
        pool = [f"--total-num-mbufs={MBUFS}", f"--mbuf-size={MBUF_BYTES}", "--rxd=256", "--txd=256"]
        self._terminal, theirs = os.openpty()
        try:
            tty.setraw(theirs)
            os.set_blocking(self._terminal, False)
            self._process = await asyncio.create_subprocess_exec(
                PROGRAM, *eal, "--", "-i", "--no-mlockall", *pool, *options,
                stdin=asyncio.subprocess.PIPE, stdout=theirs, stderr=theirs, pass_fds=[held], start_new_session=True,
                preexec_fn=linux.die_with_parent, env={**os.environ, "RUNTIME_DIRECTORY": str(folder)},
            )  # fmt: skip
        finally:
            os.close(theirs)
        asyncio.get_running_loop().add_reader(self._terminal, self._readable)
        await self._until_prompt()

    async def ask(self, command: str) -> str:
        """What it says to a command. PeerError if it ends or does not answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._output.clear()
        self._process.stdin.write(f"{command}\n".encode())
        return await self._until_prompt()

    async def stats(self) -> tuple[float, dict[str, int]]:
        """Its port's counters and when they were read (s, monotonic): half way between question and answer."""
        before = time.monotonic()
        text = await self.ask("show port stats all")
        return (before + time.monotonic()) / 2, parse_stats(text)

    async def end(self) -> None:
        """Kill it and wait for its end; it has nothing to save."""
        if self._terminal >= 0:
            asyncio.get_running_loop().remove_reader(self._terminal)
            os.close(self._terminal)
            self._terminal = -1
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.send_signal(signal.SIGKILL)
            except ProcessLookupError:
                pass
            await self._process.wait()

    def _readable(self) -> None:
        try:
            data = os.read(self._terminal, 65536)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the other side any more
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._terminal)
            self._output += b"\0"
        self._output += data
        self._news.set()

    async def _until_prompt(self) -> str:
        try:
            async with asyncio.timeout(ANSWER_S):
                while not self._output.endswith(PROMPT):
                    if self._output.endswith(b"\0"):
                        raise PeerError(f"{PROGRAM} ended: {_reason(self._output)}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise PeerError(f"{PROGRAM} does not answer: {_reason(self._output)}") from None
        return self._output.decode(errors="replace")


def _reason(output: bytearray) -> str:
    """The line that says why it ended, as far as one does."""
    lines = output.rstrip(b"\0").decode(errors="replace").split("\n")
    causes = [line.strip() for line in lines if re.search(r"Cause:|Error|rror:|[Cc]annot|failed", line)]
    return "; ".join(causes[-3:]) or " ".join(lines[-3:]).strip() or "without a word"
