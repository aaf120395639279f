"""Talking to topologies that somebody else runs: through their keeper's socket. For `launch.py status` and `stop`."""

import asyncio
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Collection
from typing import Any

from domu.programs.table import program_of
from hyp.control import Channel, ControlError, Handler, close_all
from hyp.linux import pid_of
from lab import rundir
from lab.counters import CounterReader
from lab.ledger import Snapshot, drops
from lab.reach import consequences
from lab.rundir import RunDir, clean
from lab.schema.words import suggest

STOP_TIMEOUT_S = 20.0  # the keeper's own limits add up to less
KILL_TIMEOUT_S = 10.0
POLL_S = 0.02
RATES_S = 0.3  # between two readings of the counters: short for who waits, long beside a batch


class ClientError(Exception):
    """The topology or guest asked for is not there, or does not answer; the message says which and why."""


HOW_TO_START = "launch.py run FILE.toml starts one"


def not_running(name: str, running: Collection[str]) -> str:
    """That there is no topology of that name, and what there is."""
    others = suggest(name, running) or f"; there are {', '.join(running)}" if running else f", nor any other: {HOW_TO_START}"
    return f"no topology named {name!r} is running{others}"


def _connected(run: RunDir) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with run.socket_address() as address:
            sock.connect(address)
    except OSError as error:
        sock.close()
        raise silent(run.name, error) from error
    return sock


def silent(name: str, error: Exception) -> ClientError:
    """What a keeper is that does not answer, and what can be done about it."""
    reason = getattr(error, "strerror", None) or str(error) or "it takes too long"
    return ClientError(f"topology {name}: its keeper does not answer ({reason}); `launch.py stop {name}` ends it all the same")


async def connect(run: RunDir, handlers: dict[str, Handler] | None = None) -> Channel:
    """A channel to the keeper of a living topology; `handlers` serves what it tells."""
    return Channel(_connected(run), handlers, name=f"the keeper of {run.name}")


def the_one(name: str | None, said: str = "with --topology") -> RunDir:
    """The living topology of this name, or the only one there is. ClientError, saying which there are, if that is not one.

    `said`: how the command that asks is told which.
    """
    running = {run.name: run for run in rundir.living()}
    if name is not None and name not in running:
        raise ClientError(not_running(name, running))
    if not running:
        raise ClientError(f"no topology is running: {HOW_TO_START}")
    if name is None and len(running) > 1:
        raise ClientError(f"topologies {', '.join(running)} are running: say which {said}")
    return running[name] if name is not None else next(iter(running.values()))


class _Look:
    """What a living topology says of itself, and a reader of its counters."""

    def __init__(self, run: RunDir) -> None:
        self.status: dict[str, Any] = {
            "name": run.name, "state": "starting or going down", "dead": [], "notices": [], "processes": [], "guests": [],
            "cut_off": [], "log": str(run.log_path), "store": str(run.store_path),
        }  # fmt: skip
        self._counters: CounterReader | None = None
        self._before: tuple[float, Snapshot] = (0.0, {})

    async def ask(self, run: RunDir, with_counters: bool) -> None:
        """Ask the keeper. ClientError if it does not answer."""
        keeper = await connect(run)
        try:
            async with asyncio.timeout(5):
                self.status |= {"state": "starting", **(await keeper.call("status")).value}
                if with_counters:
                    pidfds = await keeper.call("pidfds")
                    self._take_pids(pidfds.value, pidfds.fds)
                    held = await keeper.call("held", suffix=".counters")
                    self._counters = CounterReader.adopt(held.value, held.fds)
        except (TimeoutError, ControlError) as error:
            raise silent(run.name, error) from error
        finally:
            keeper.close()
        for guest in self.status["guests"]:
            guest["log"] = str(run.guest_log(guest["name"]))
        self.status["cut_off"] = consequences(self.status["guests"], self.status["processes"])

    def _take_pids(self, names: list[str], pidfds: list[int]) -> None:
        pids = {name: pid_of(fd) for name, fd in zip(names, pidfds, strict=True)}
        close_all(pidfds)
        for process in self.status["processes"]:
            process["pid"] = pids.get(process["name"])

    def read(self) -> None:
        """Note the counters, and tell the rates since they were noted the last time."""
        if self._counters is None:
            return
        before, (now, counters) = self._before, (time.monotonic(), self._counters.read())
        self._before = now, counters
        for guest in self.status["guests"]:
            port = port_of(guest["name"], counters)
            if port is not None:
                guest["counters"] = counters_of(guest["name"], counters, port, is_addressed=program_of(guest["program"]).addressed)
            if port in before[1]:
                guest["rates"] = rates_of(before[1][port], counters[port], now - before[0])


def port_of(guest: str, counters: Snapshot) -> str | None:
    """The row of a guest's port at whoever serves its path: the NIC, Dom0 or the hypervisor. It is published once a batch."""
    return next((row for row in counters if re.fullmatch(rf"(nic/ctx|dom0/vif|hyp/vmm)\d+:{re.escape(guest)}", row)), None)


def counters_of(guest: str, counters: Snapshot, port: str, *, is_addressed: bool) -> dict[str, Any]:
    """What a guest sent and received, and the drops by name that were counted for it, at whichever hop.

    Of one that `is_addressed`, what its programs sent, so that what was dropped on the way out is in it; of others, its port's.
    """
    served = re.compile(rf"(nic|dom0|hyp)/\w+:{re.escape(guest)}(\.vmm)?")  # its ports, and its device model's
    ours = {row: counts for row, counts in counters.items() if row.startswith(f"{guest}/") or served.fullmatch(row)}
    moved = counters.get(f"{guest}/tap", counters[port]) if is_addressed else counters[port]
    return {name: moved[name] for name in ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes")} | {"drops": drops(ours)}


def rates_of(before: dict[str, int], after: dict[str, int], seconds: float) -> dict[str, float]:
    """Frames and Gbit a second, each way, between two readings of a port `seconds` apart."""
    rates = {"interval_s": seconds}
    for way in ("tx", "rx"):
        rates[f"{way}_fps"] = (after[f"{way}_frames"] - before[f"{way}_frames"]) / seconds
        rates[f"{way}_gbps"] = (after[f"{way}_bytes"] - before[f"{way}_bytes"]) * 8 / seconds / 1e9
    return rates


async def _read_twice(looks: list[_Look], interval_s: float) -> None:
    for look in looks:
        look.read()
    if any(look.status["guests"] for look in looks):
        await asyncio.sleep(interval_s)
        for look in looks:
            look.read()


async def living(interval_s: float | None = None) -> list[dict[str, Any]]:
    """What all living topologies of this user say of themselves; one that does not answer (yet) has no processes to show.

    Name, state, "up_s", log, what died and whom that cuts off, guests, processes. With `interval_s` processes have their pids,
    and guests their counters and rates, which are read that long apart.
    """
    runs = rundir.living()
    looks = [_Look(run) for run in runs]
    # All at once: one that is stopped costs its own time-out, and not one after the other's
    asked = (look.ask(run, with_counters=interval_s is not None) for look, run in zip(looks, runs, strict=True))
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, ClientError):
            raise answer
    if interval_s is not None:
        await _read_twice(looks, interval_s)
    return [look.status for look in looks]


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
