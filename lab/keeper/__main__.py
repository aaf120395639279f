"""``python -m lab.keeper``: the keeper's process, and the fork server beside it."""

import asyncio
import os
import signal
import socket
import sys
import traceback

from hyp import limits, linux
from hyp.control import socketpair
from hyp.shm import sweep
from lab import forkserver
from lab.keeper.keeper import TITLE, Keeper
from lab.rundir import RunDir


def start_forkserver(modules: list[str], topology: str) -> tuple[int, socket.socket]:
    """Fork the fork server (it begins to load at once); returns its pid and our end of its socket."""
    ours, theirs = socketpair()
    with limits.told_of_processes("the fork server"):
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            keep = theirs.fileno()
            os.closerange(3, keep)
            os.closerange(keep + 1, 1 << 20)
            linux.set_title(TITLE, topology, "forkserver")
            forkserver.serve(theirs, modules)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    theirs.close()
    return pid, ours


async def keep(owner: socket.socket, rundir: RunDir, listener: socket.socket, forked: tuple[int, socket.socket]) -> None:
    """Be the keeper of one topology until it is gone."""
    keeper = Keeper(owner, rundir, *forked)
    loop = asyncio.get_running_loop()
    loop.add_reader(listener.fileno(), keeper.accept, listener)
    await keeper.gone.wait()
    loop.remove_reader(listener.fileno())


def main(argv: list[str]) -> int:
    """``python -m lab.keeper NAME OWNER_FD MODULE...``: started by launch.py, which holds the other end of OWNER_FD.

    It also inherits the descriptor of the topology's lock, and holds it by being alive.
    """
    name, owner_fd, modules = argv[0], int(argv[1]), argv[2:]
    linux.set_name("keeper-stub")
    linux.set_title(TITLE, name, "keeper-stub")
    isolated = linux.new_pid_namespace()
    if isolated:
        with limits.told_of_processes("the keeper"):
            pid = os.fork()
        if pid != 0:
            os.close(owner_fd)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _, status = os.waitpid(pid, 0)
            return 0 if os.waitstatus_to_exitcode(status) == 0 else 1
        linux.die_with_parent()
    else:
        linux.adopt_orphans()
    linux.set_name("keeper")
    linux.set_title(TITLE, name, "keeper")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forked = start_forkserver(modules, name)
    rundir = RunDir.of(name)
    listener = rundir.listen()
    with asyncio.Runner() as runner:  # not uvloop, which keeps SIGCHLD to itself: PID 1 reaps whoever is adopted
        runner.run(keep(socket.socket(fileno=owner_fd), rundir, listener, forked))
    sweep(name)
    rundir.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except limits.TooFew as error:
        sys.exit(str(error))
