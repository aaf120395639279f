"""A guest that is any program of the user's: ``program = { argv = ["./netfront", "eth0"] }`` in the topology file.

The program is the guest: it is started with the domain's hypercall socket as descriptor 3 and its xenstore socket as descriptor 4
(docs/hypercalls.md). Its standard output and error are the topology's log, and nothing of the lab runs in its domain. This process
only stands between it and the keeper: it is ready once the program has been started, ends with it, and ends it when told to stop
(SIGTERM, then the keeper's SIGKILL, which the program does not survive: parent-death signal).

If xenstored dies the program sees the end of descriptor 4, and is brought no other one; what it has connected goes on.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
from typing import Any

from hyp.linux import die_with_parent
from hyp.process import Process

HYPERCALLS, XENSTORE = 3, 4
STOP_TIMEOUT_S = 2.0  # less than the keeper's


async def main(process: Process, config: dict[str, Any]) -> None:
    """Run the program until it ends or the keeper says stop. RuntimeError if it cannot be started, or fails."""
    own = config["program"]
    argv, cwd = list(own["argv"]), own["cwd"] or None
    sockets = [process.sockets["hypercalls"], (await process.store_socket()).detach()]
    spare = [
        os.open(os.devnull, os.O_RDONLY) for _ in range(XENSTORE)
    ]  # so that no pipe of the spawn's own gets one of their numbers

    def inherit() -> None:
        die_with_parent()
        for ignored in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_DFL)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, XENSTORE + 1) for fd in sockets]
        for fd, number in zip(moved, (HYPERCALLS, XENSTORE), strict=True):
            os.dup2(fd, number, inheritable=True)
        for name in os.listdir("/proc/self/fd"):  # the event loop's own copies of the standard streams, too
            if int(name) > XENSTORE:
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(name), False)

    try:
        program = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, cwd=cwd, preexec_fn=inherit, close_fds=False
        )
    except OSError as error:
        raise RuntimeError(f"{argv[0]}: {error.strerror}") from None
    for fd in spare + sockets:  # the domain's ends are the program's alone
        os.close(fd)
    process.ready()
    ended, stopped = asyncio.ensure_future(program.wait()), asyncio.ensure_future(process.stopped.wait())
    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        program.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(ended), STOP_TIMEOUT_S)
        except TimeoutError:
            program.kill()
        await ended
    elif not process.stopped.is_set() and (status := ended.result()):
        raise RuntimeError(f"{argv[0]} ended with status {status}" if status > 0 else f"{argv[0]} was killed by signal {-status}")
    stopped.cancel()
