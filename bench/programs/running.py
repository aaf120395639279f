"""Programs at an end: a server that stays up, a client that runs to its end, and the CPU time of both.

A program is a child of the bench: what it wrote, and what it used to its end (wait4(2)), are the bench's to know, and it is killed
with the bench. It runs in a session of its own, so that Ctrl-C is for the bench alone.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from bench.peers import PeerError
from bench.programs.ends import CLIENT, SERVER, Ends
from hyp import linux
from lab.accounting import Usage

READY_S, LIMIT_S = 10.0, 30.0
LOOK_S = 0.005
_TCP_LISTEN = "0A"  # include/net/tcp_states.h
_LAST = 300  # characters of what a program said


def start_program(ends: Ends, end: int, argv: Sequence[str], out: int | IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a program at an end. PeerError if there is none such."""

    def go() -> None:
        linux.die_with_parent()
        ends.enter(end)

    options: dict[str, Any] = {"stderr": subprocess.STDOUT, "start_new_session": True, "preexec_fn": go}
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, **options)
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerError(f"{argv[0]} does not start on {ends.name}: {error}") from None


def end_program(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Server:
    """A program at the server's end, from `start` to `stop`."""

    def __init__(self, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> None:
        self._process, self._said = process, said

    @property
    def pid(self) -> int:
        """Its process, which is its only one."""
        return self._process.pid

    @classmethod
    async def start(cls, ends: Ends, argv: Sequence[str], port: int) -> Self:
        """Start it and wait until it listens at `port`. PeerError, with its last words, if it ends before, or does not."""
        said = tempfile.TemporaryFile()  # noqa: SIM115 (the server has it until it is stopped)
        server = cls(start_program(ends, SERVER, argv, said), said)
        try:
            async with asyncio.timeout(READY_S):
                while not _listens(server.pid, port):
                    if server._process.poll() is not None:
                        raise PeerError(f"{argv[0]} on {ends.name} ended: {server.last_words()}")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            words = server.last_words()
            server.stop()
            raise PeerError(f"{argv[0]} on {ends.name} does not listen at {port}: {words}") from None
        except BaseException:
            server.stop()
            raise
        return server

    def last_words(self) -> str:
        """The end of what it has written."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-_LAST:] or "not a word"

    def stop(self) -> None:
        """Kill it, and wait for its end."""
        end_program(self._process)
        self._said.close()


def _listens(pid: int, port: int) -> bool:
    """Whether somebody in the network namespace of a process listens at a TCP port (proc(5), /proc/<pid>/net/tcp)."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _TCP_LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    return True
    return False


class Done(NamedTuple):
    """A client that has ended: what it wrote, and what it used, its start included."""

    output: str
    usage: Usage


async def run_client(ends: Ends, argv: Sequence[str], interrupt_s: float | None = None) -> Done:
    """Run a program at the client's end; with `interrupt_s` it gets SIGINT then. PeerError, with its last words, if it fails."""
    process = start_program(ends, CLIENT, argv, subprocess.PIPE)
    try:
        async with asyncio.timeout(LIMIT_S):
            reading = asyncio.ensure_future(asyncio.to_thread(_to_the_end, process))
            if interrupt_s is not None:
                await asyncio.wait({reading}, timeout=interrupt_s)
                process.send_signal(signal.SIGINT)
            output, status, used = await asyncio.shield(reading)
    except TimeoutError:
        raise PeerError(f"{argv[0]} on {ends.name} does not come to an end") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await reading
    if status != 0:
        raise PeerError(f"{argv[0]} on {ends.name} ended with status {status}: {output.strip()[-_LAST:] or 'not a word'}")
    return Done(output, used)


def _to_the_end(process: "subprocess.Popen[bytes]") -> tuple[str, int, Usage]:
    """Read what a program writes and wait for its end: output, exit status, what it used."""
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read().decode(errors="replace")
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen would wait for it, too
    return output, process.returncode, Usage(round((used.ru_utime + used.ru_stime) * 1e9), used.ru_nvcsw + used.ru_nivcsw)


def softirq_threads() -> dict[str, int]:
    """The kernel's threads that take over the receiving half of networking under load (ksoftirqd), where they are to be seen."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if (name := path.read_text().strip()).startswith("ksoftirqd/"):
                found[name] = int(path.parent.name)
    return found
