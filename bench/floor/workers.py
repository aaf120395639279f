"""The floor's worker processes: started together, wired to each other, ended together.

Every worker gets the shared region, an upcall, and an eventfd to each other worker; per R6 only the notifier holds an eventfd, and
the waiter the epoll descriptor that it was entered into.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.floor.layout import MAX_WORKERS, REGION_BYTES
from bench.floor.loops import load_loops
from hyp.control import Channel, PeerGone, socketpair
from hyp.events import new_eventfd
from hyp.memory import Mapping, create_region
from hyp.monitor.event_channels import Upcall

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0


class Workers:
    """`number` worker processes, alive as long as this object is open: ``async with Workers(2) as workers``.

    `region` is the memory that they share, mapped here too; `pids` are their process ids.
    """

    def __init__(self, number: int) -> None:
        if not 1 <= number <= MAX_WORKERS:
            raise ValueError(f"there can be 1 to {MAX_WORKERS} workers, not {number}")
        self.number = number
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        self.region: Mapping

    async def __aenter__(self) -> "Workers":
        await asyncio.to_thread(load_loops)  # the first time: one process compiles, the others find it in the cache
        try:
            for _ in range(self.number):
                self._start_one()
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._wire_up()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def call(self, worker: int, op: str, **arguments: Any) -> Any:
        """An operation of one worker; its result. `ControlError` if it refuses or has died."""
        return (await self._channels[worker].call(op, **arguments)).value

    async def together(self, *calls: tuple[int, str, dict[str, Any]]) -> list[Any]:
        """Several operations at a time, started in this order. If one fails, the others cannot end: all workers are stopped."""
        tasks = [asyncio.ensure_future(self.call(worker, op, **arguments)) for worker, op, arguments in calls]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            await self.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def pin(self, cpus: Sequence[int] | None) -> None:
        """Pin worker k's loop to ``cpus[k]`` (repeated if too short); None lets all of them run anywhere that we may."""
        everywhere = sorted(os.sched_getaffinity(0))
        for worker in range(self.number):
            await self.call(worker, "pin", cpus=[cpus[worker % len(cpus)]] if cpus else everywhere)

    async def stop(self) -> None:
        """End all workers, whatever they do; nothing is left of them. A second call does nothing."""
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)

    def _start_one(self) -> None:
        ours, theirs = socketpair()
        with theirs:
            command = [sys.executable, "-m", "bench.floor.worker", str(theirs.fileno())]
            self._processes.append(subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL))
        self._channels.append(Channel(ours, name=f"floor worker {len(self._channels)}"))

    async def _wire_up(self) -> None:
        shared = create_region("sealed", "floor", "bench", "ring", REGION_BYTES)
        upcalls = [Upcall() for _ in range(self.number)]
        notifiers: list[list[int]] = []  # [from][to]
        try:
            self.region = shared.map()
            for _ in upcalls:
                notifiers.append([new_eventfd() for _ in upcalls])
            for row in notifiers:
                for to, eventfd in enumerate(row):
                    upcalls[to].deliver(eventfd, to)
            attached = (
                channel.call("attach", fds=[shared.fd, upcall.epoll.fileno(), *row], size=REGION_BYTES)
                for channel, upcall, row in zip(self._channels, upcalls, notifiers, strict=True)
            )
            await asyncio.gather(*attached)
        except PeerGone as error:
            raise RuntimeError("a worker of the floor did not start; what it printed says why") from error
        finally:
            for upcall in upcalls:
                upcall.close()
            for eventfd in (eventfd for row in notifiers for eventfd in row):
                os.close(eventfd)
            shared.close()
