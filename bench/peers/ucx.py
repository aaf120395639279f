"""UCX's ping-pong, ``ucx_perftest``: two processes that poll a shared-memory transport, as high-performance computing does.

It sends an active message of the frame's size to and fro (``ucp_am_lat``, transport ``posix``), which is copied into a ring that
both have mapped and handed to a function there. It works less than a frame does: one hop between two who trust each other; no
descriptor, translation or switch, and nobody writes or sums the payload. Both processes live for a slice only; they meet through
TCP on loopback. UCX's documentation: https://openucx.readthedocs.io
"""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence

from bench.peers.base import PeerError
from hyp import linux

PROGRAM = "ucx_perftest"
INSTALL = "apt install ucx-utils"
ONE_WAY_US = 0.7
"""What the first slice reckons with for a message's way, to fill its time; later ones with what the last one took."""
WARM_UP = 1000
LIMIT_S = 20.0
SHARED_MEMORY = "/dev/shm"
SETTINGS = {"UCX_TLS": "posix,self", "UCX_WARN_UNUSED_ENV_VARS": "n"}


class PingPong:
    """Round trips of one message. Nothing runs between slices."""

    name = "ucx"

    def __init__(self) -> None:
        self._one_way_us = ONE_WAY_US

    @staticmethod
    def missing(cores: int = 2) -> str | None:
        """None if it can run here on that many cores; else why not, and how to install what is missing."""
        if cores < 2:
            return "cannot run sensibly on one core: both ends poll"
        return None if shutil.which(PROGRAM) else f"{PROGRAM} is not here: {INSTALL}"

    async def slice(self, frame: int, cpus: Sequence[int], seconds: float) -> float:
        """Exchange messages of `frame` bytes for about `seconds`. The median round trip in µs; PeerError if there is none."""
        count = max(int(seconds * 1e6 / (2 * self._one_way_us)), 10 * WARM_UP)
        test = ["-t", "ucp_am_lat", "-s", str(frame), "-n", str(count), "-w", str(WARM_UP), "-R", "50", "-f", "-v"]
        with tempfile.TemporaryDirectory(prefix="xen-bypass-lab-ucx-", dir=SHARED_MEMORY) as folder:
            self._one_way_us = median_of(await _exchange(cpus, folder, test))
        return 2 * self._one_way_us


def median_of(output: str) -> float:
    """The median of a message's way in µs, from the program's last line: ``iterations,median,average,…``."""
    words = output.strip().splitlines()[-1].split(",") if output.strip() else []
    try:
        return float(words[1])
    except (IndexError, ValueError):
        raise PeerError(f"{PROGRAM} gave no figure: {output.strip()[-200:] or 'not a word'}") from None


async def _exchange(cpus: Sequence[int], folder: str, test: Sequence[str]) -> str:
    """What the client says. Neither is there afterwards; what one that was killed had just made of memory is in `folder`."""
    port = str(_free_port())
    server = await _start(cpus[0], folder, "-p", port)
    try:
        async with asyncio.timeout(LIMIT_S):
            return await _ask(cpus[-1], folder, server, port, test)
    except TimeoutError:
        raise PeerError(f"{PROGRAM} does not come to an end") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


async def _ask(cpu: int, folder: str, server: asyncio.subprocess.Process, port: str, test: Sequence[str]) -> str:
    """What the client says in the end; it is started again until the server listens."""
    while True:
        client = await _start(cpu, folder, "127.0.0.1", "-p", port, *test)
        try:
            output, _ = await client.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                client.kill()
            await client.wait()
            raise
        if client.returncode == 0:
            return output.decode(errors="replace")
        if server.returncode is not None or b"connect" not in output.lower():
            raise PeerError(f"{PROGRAM} ended: {output.decode(errors='replace').strip()[-200:]}")


async def _start(cpu: int, folder: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        PROGRAM, "-c", str(cpu), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True, preexec_fn=linux.die_with_parent,
        env={**os.environ, **SETTINGS, "UCX_POSIX_DIR": folder},
    )  # fmt: skip


def _free_port() -> int:
    """A port of loopback that nobody listens at. Somebody may take it before we do, which is an error of that slice then."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
