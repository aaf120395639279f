"""Running programs in the addressed guests of a lab, their output captured."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from subprocess import PIPE, STDOUT
from typing import Any, Self

from lab.owner import ROOT, Lab

Argv = str | Sequence[str | os.PathLike[str]]
"""A program and its arguments; a string is split as a shell would, and that is all that is done with it."""

LAST_WORDS_S = 1.0
PIECE = 1 << 18
MOST_OUTPUT = 64 << 20
"""Bytes of what a program prints that are kept: who isn't trusted may print without end."""

# `python -m` would look for the lab in the folder where the program is to be started, which is the caller's
_EXECUTE = "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
_EXECUTE += "from lab.execute.__main__ import main; sys.exit(main(sys.argv[1:]))"


class AsyncProgram:
    """A program that has been started in a guest. What it prints is read all the time, and kept, the last MOST_OUTPUT of it."""

    def __init__(self, guest: str, argv: list[str], process: asyncio.subprocess.Process, stdin: bytes) -> None:
        self.guest, self.argv = guest, argv
        self._process = process
        self._kept, self._cut = bytearray(), 0
        self._ended = asyncio.ensure_future(self._communicate(stdin))

    @classmethod
    async def start(cls, lab: Lab, guest: str, argv: Argv, stdin: str = "") -> Self:
        """Start a program in this process's folder and environment; `stdin` is what it reads. ValueError if `argv` is empty."""
        words = shlex.split(argv) if isinstance(argv, str) else [os.fspath(word) for word in argv]
        if not words:
            raise ValueError("argv is empty: which program?")
        command = [sys.executable, "-P", "-c", _EXECUTE, str(ROOT), lab.name, guest, *words]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=STDOUT)
        return cls(guest, words, process, stdin.encode())

    @property
    def running(self) -> bool:
        """Whether it has not ended yet, or has not been read to its end."""
        return not self._ended.done()

    async def wait(self) -> dict[str, Any]:
        """Wait for its end; returns ``{"guest", "argv", "status", "output"}``.

        `status` is as a shell has it: 128 + n if signal n ended the program, 127 if there is none such, 126 if it cannot be
        executed. `output` is what it wrote to standard output and standard error; what is not kept of it has a line in its place.
        Being cancelled leaves the program alone.
        """
        await asyncio.shield(self._ended)
        code = self._process.returncode
        status = 128 - code if code is not None and code < 0 else code
        output = self._kept.decode(errors="replace")
        if self._cut:
            output = f"[{self._cut} bytes before this are not kept]\n{output}"
        return {"guest": self.guest, "argv": self.argv, "status": status, "output": output}

    async def _communicate(self, stdin: bytes) -> None:
        """Let it read `stdin`, read what it prints, and wait for its end."""
        await asyncio.gather(self._feed(stdin), self._keep())
        await self._process.wait()

    async def _feed(self, stdin: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it does not read all of that
            self._process.stdin.write(stdin)
            await self._process.stdin.drain()
        self._process.stdin.close()

    async def _keep(self) -> None:
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(PIECE):
            self._kept += piece
            if len(self._kept) >= 2 * MOST_OUTPUT:
                self._forget()
        self._forget()

    def _forget(self) -> None:
        if (over := len(self._kept) - MOST_OUTPUT) > 0:
            del self._kept[:over]
            self._cut += over

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the program and all of its process group; nothing happens if it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)  # to `lab.execute`, which passes it on; its own death is the program's

    async def end(self) -> None:
        """Kill it, and wait for its end. What it has left behind, in process groups of their own, may go on, but is not read."""
        await self.kill()
        await self._process.wait()
        await asyncio.wait({self._ended}, timeout=LAST_WORDS_S)
        self._ended.cancel()


async def run_in_guest(lab: Lab, guest: str, argv: Argv, stdin: str = "") -> tuple[int, str]:
    """Run a program in a guest; returns its exit status and what it printed. Cancelling kills it."""
    program = await AsyncProgram.start(lab, guest, argv, stdin)
    try:
        record = await program.wait()
    finally:
        await program.end()
    return record["status"], record["output"]
