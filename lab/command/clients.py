"""Talking to topologies that somebody else runs: through their keeper's socket. For `launch.py status` and `stop`."""

import asyncio
import os
import signal
import socket
import struct
from typing import Any

from hyp.control import Channel, ControlError, close_all
from hyp.linux import pid_of
from lab import rundir
from lab.counters import CounterReader
from lab.ledger import Snapshot, drops
from lab.rundir import RunDir, clean

STOP_TIMEOUT_S = 20.0  # the keeper's own limits add up to less
KILL_TIMEOUT_S = 10.0
POLL_S = 0.02


class ClientError(Exception):
    """The topology or guest asked for is not there, or does not answer; the message says which and why."""


def _connected(run: RunDir) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with run.socket_address() as address:
            sock.connect(address)
    except OSError as error:
        sock.close()
        raise ClientError(f"topology {run.name}: its keeper does not answer ({error.strerror})") from error
    return sock


async def connect(run: RunDir) -> Channel:
    """A channel to the keeper of a living topology."""
    return Channel(_connected(run), name=f"the keeper of {run.name}")


async def status_of(run: RunDir) -> dict[str, Any]:
    """Name, state, what died, guests (those with a TAP have counters) and processes (with pids) of a living topology."""
    keeper = await connect(run)
    try:
        async with asyncio.timeout(5):
            status: dict[str, Any] = (await keeper.call("status")).value
            pidfds = await keeper.call("pidfds")
            held = await keeper.call("held", suffix=".counters")
    except (TimeoutError, ControlError) as error:
        raise ClientError(f"topology {run.name}: its keeper does not answer ({error})") from error
    finally:
        keeper.close()
    pids = {name: pid_of(fd) for name, fd in zip(pidfds.value, pidfds.fds, strict=True)}
    close_all(pidfds.fds)
    counters = CounterReader.adopt(held.value, held.fds).read()
    for process in status["processes"]:
        process["pid"] = pids.get(process["name"])
    status = {"state": "starting", "dead": [], "guests": [], **status}  # a keeper of another version may not say them all
    for guest in status["guests"]:
        if f"{guest['name']}/tap" in counters:
            guest["counters"] = counters_of(guest["name"], counters)
    return status


def counters_of(guest: str, counters: Snapshot) -> dict[str, Any]:
    """What a TAP guest's programs sent and received, and the drops by name that were counted for it, at whichever hop."""
    ends = (f":{guest}", f":{guest}.vmm")  # its ports, and its device model's
    ours = {row: counts for row, counts in counters.items() if row.startswith(f"{guest}/") or row.endswith(ends)}
    tap = counters[f"{guest}/tap"]
    return {name: tap[name] for name in ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes")} | {"drops": drops(ours)}


async def living() -> list[dict[str, Any]]:
    """`status_of` all living topologies of this user; one that does not answer (yet) has no processes to show."""
    found = []
    for run in rundir.living():
        try:
            found.append(await status_of(run))
        except ClientError:
            found.append({"name": run.name, "state": "starting or going down", "dead": [], "processes": [], "guests": []})
    return found


# --- stop ------------------------------------------------------------------------------------------------------------


async def stop(run: RunDir) -> None:
    """Take a living topology down; returns when nothing of it is left. ClientError if that takes too long.

    Its keeper is asked, and asks whoever started it; a keeper that does not answer is killed, and with it the topology.
    """
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await _ask_down(run)
            await _gone(run)
    except TimeoutError:
        await _kill(run)
    clean(run.name)


async def _ask_down(run: RunDir) -> None:
    """Tell the keeper as soon as it listens; returns when the topology is down, or going down by itself."""
    while run.is_alive():
        try:
            keeper = await connect(run)
        except ClientError:  # it does not listen yet, or not any more
            await asyncio.sleep(POLL_S)
            continue
        try:
            await keeper.call("down")
        except ControlError:
            pass
        finally:
            keeper.close()
        return


async def _gone(run: RunDir) -> None:
    while run.is_alive():
        await asyncio.sleep(POLL_S)


async def _kill(run: RunDir) -> None:
    """Kill the keeper, whose pid the kernel noted when it began to listen. ClientError if that does not help either."""
    with _connected(run) as sock:
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if pid > 0:
        os.kill(pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await _gone(run)
    except TimeoutError:
        raise ClientError(f"topology {run.name} does not end") from None
