"""Talking to topologies that somebody else runs: through their keeper's socket. For `launch.py status` and `exec`."""

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench.lab import open_console
from hyp.control import Channel, ControlError, close_all
from hyp.linux import pid_of
from hyp.rundir import RunDir, all_topologies


class ClientError(Exception):
    """The topology or guest asked for is not there, or does not answer; the message says which and why."""


async def connect(run: RunDir) -> Channel:
    """A channel to the keeper of a living topology."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(str(run.socket_path))
    except OSError as error:
        sock.close()
        raise ClientError(f"topology {run.name}: its keeper does not answer ({error.strerror})") from error
    return Channel(sock, name=f"the keeper of {run.name}")


async def status_of(run: RunDir) -> dict[str, Any]:
    """Name, state, guests and processes (with pids) of a living topology."""
    keeper = await connect(run)
    try:
        async with asyncio.timeout(5):
            status: dict[str, Any] = (await keeper.call("status")).value
            pidfds = await keeper.call("pidfds")
    except (TimeoutError, ControlError) as error:
        raise ClientError(f"topology {run.name}: its keeper does not answer ({error})") from error
    finally:
        keeper.close()
    pids = {name: pid_of(fd) for name, fd in zip(pidfds.value, pidfds.fds, strict=True)}
    close_all(pidfds.fds)
    for process in status["processes"]:
        process["pid"] = pids.get(process["name"])
    return status


async def living() -> list[dict[str, Any]]:
    """`status_of` all living topologies of this user; one that does not answer (yet) has no processes to show."""
    found = []
    for run in all_topologies():
        if run.is_alive():
            try:
                found.append(await status_of(run))
            except ClientError:
                found.append({"name": run.name, "state": "starting or ending", "processes": [], "guests": []})
    return found


async def find_guest(guest: str, topology: str | None) -> RunDir:
    """The living topology that has `guest`. ClientError if there is none, or more than one and none was named."""
    statuses = [status for status in await living() if topology in (None, status["name"])]
    if not statuses:
        what = f"no topology named {topology!r}" if topology else "no topology"
        raise ClientError(f"{what} is running")
    found = [status["name"] for status in statuses if guest in {g["name"] for g in status.get("guests", [])}]
    if not found:
        known = sorted(g["name"] for status in statuses for g in status.get("guests", []))
        raise ClientError(f"no running topology has a guest named {guest!r}; there are {', '.join(known) or 'none'}")
    if len(found) > 1:
        raise ClientError(f"topologies {', '.join(found)} have a guest named {guest!r}: say which with --topology")
    return RunDir(found[0])


async def execute(guest: str, argv: Sequence[str], topology: str | None) -> int:
    """Run a program in a guest on our own standard streams; returns its exit status (128 + n for signal n).

    SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the program; should this process die, the program is killed.
    """
    keeper = await connect(await find_guest(guest, topology))
    console = await open_console(keeper, guest)
    token, loop = os.getpid(), asyncio.get_running_loop()
    theirs, lease = os.pipe()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        loop.add_signal_handler(number, partial(console.tell, "kill", token=token, number=int(number)))
    try:
        call = console.call("execute", fds=[0, 1, 2, theirs], argv=list(argv), env=dict(os.environ), cwd=os.getcwd(), token=token)
        status = int((await call).value["status"])
    except ControlError as error:
        raise ClientError(f"{guest}: {argv[0]}: {error}") from error
    finally:
        os.close(theirs)
        os.close(lease)
        console.close()
        keeper.close()
    return 128 - status if status < 0 else status
