"""Running programs in the addressed guests of a lab, their output captured."""

import asyncio
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

# `python -m` would look for the lab in the folder where the program is to be started, which is the caller's
_EXECUTE = "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
_EXECUTE += "from lab.execute.__main__ import main; sys.exit(main(sys.argv[1:]))"


class AsyncProgram:
    """A program that has been started in a guest. What it prints is read all the time, and kept."""

    def __init__(self, guest: str, argv: list[str], process: asyncio.subprocess.Process, stdin: bytes) -> None:
        self.guest, self.argv = guest, argv
        self._process = process
        self._ended = asyncio.ensure_future(process.communicate(stdin))

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
        executed. `output` is what it wrote to standard output and standard error. Being cancelled leaves the program alone.
        """
        output, _ = await asyncio.shield(self._ended)
        code = self._process.returncode
        status = 128 - code if code is not None and code < 0 else code
        return {"guest": self.guest, "argv": self.argv, "status": status, "output": output.decode(errors="replace")}

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
