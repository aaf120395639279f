"""A worker process of the floor: ``python -m bench.floor.worker FD`` serves operations on the SEQPACKET socket FD.

Compiled loops run in one thread of their own, which is what `pin` places; so the socket stays responsive while they do. A worker
ends with its socket, at once, whatever its loop does; and with its parent.

Operations: ``attach`` (the shared region, this worker's upcall, its notifiers by peer), ``pin``, ``produce``, ``consume``,
``lead``, ``follow``, ``bandwidth``.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.floor.bandwidth import copy_bandwidth
from bench.floor.layout import SAMPLES, WORDS
from bench.floor.loops import load_loops
from bench.floor.pingpong import WORD_STRIDE, follow, lead
from bench.floor.ring import PLATFORM, consume, produce
from hyp.abi.sizes import LARGEST_FRAME_BUFFER
from hyp.control import Channel
from hyp.counters import PRIVATE_ROW_BYTES
from hyp.events import WAIT
from hyp.linux import die_with_parent, set_name
from hyp.load.frames import TRACKER, TRACKERS, tracker_report
from hyp.memory import Mapping, private_pages
from hyp.process import adopt_socket
from nic.state import WIRE_BUFFERS

HOP_STALL_NS = 10_000_000_000
SPIN_START_NS = 1 << 40  # as long as the limit allows: a floor has no time to learn


class Worker:
    """One worker: its private state, and the handlers of its operations."""

    def __init__(self) -> None:
        self._loops = ThreadPoolExecutor(1, "loop")
        self._thread_id = self._loops.submit(threading.get_native_id).result()
        self._wait = np.zeros(1, WAIT)
        self._counts = np.zeros(PRIVATE_ROW_BYTES // 8, np.int64)
        self._trackers = np.zeros(TRACKERS, TRACKER)
        self._wire = private_pages(WIRE_BUFFERS * LARGEST_FRAME_BUFFER)
        self._region: Mapping | None = None
        self._notifiers: list[int] = []
        self._epoll = -1

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The operations by name."""
        return {
            "attach": self.attach, "pin": self.pin, "produce": self.produce, "consume": self.consume,
            "lead": self.lead, "follow": self.follow, "bandwidth": self.bandwidth,
        }  # fmt: skip

    def attach(self, fds: list[int], size: int) -> int:
        """Descriptors: the region of `size` bytes, our upcall, then the notifier to each worker in order (ours is nobody's)."""
        region, self._epoll, *self._notifiers = fds
        self._region = Mapping.adopt(region, size)
        self._wait[0]["epoll"], self._wait[0]["platform"] = self._epoll, self._address(PLATFORM)
        return os.getpid()

    def pin(self, cpus: list[int]) -> None:
        """Let the loops' thread run on these CPUs only. OSError if there is none of them."""
        os.sched_setaffinity(self._thread_id, cpus)

    async def produce(self, to: int, entries: int, frame: int, stream: int, frames: int, nanoseconds: int) -> dict[str, int]:
        """Be the producer of the ring; `to` is the consumer's number."""
        self._reset()
        arguments = (self._address(0), entries, frame, stream, frames, nanoseconds)
        sent = await self._run(produce, *arguments, self._wait.ctypes.data, self._notifiers[to], self._counts.ctypes.data)
        return {"sent": sent}

    async def consume(self, to: int, entries: int, frame: int, stream: int) -> dict[str, int]:
        """Be the consumer; returns the stream's tracker and how many frames were taken."""
        self._reset()
        private = (self._wire.ctypes.data, self._trackers.ctypes.data, self._wait.ctypes.data)
        arguments = (self._address(0), entries, frame, *private, self._notifiers[to], self._counts.ctypes.data)
        taken = await self._run(consume, *arguments)
        return {**tracker_report(self._trackers, stream), "taken": taken}

    async def lead(self, number: int, to: int, rounds: int, nanoseconds: int, events: bool) -> int:
        """Lead a ping-pong; the times are in the region's samples. Returns the number of round trips."""
        return await self._run(lead, *self._hop(number, to, events), rounds, nanoseconds, self._address(SAMPLES), HOP_STALL_NS)

    async def follow(self, number: int, to: int, events: bool) -> int:
        """Pass on in a ping-pong; worker 0 leads."""
        return await self._run(follow, *self._hop(number, to, events), int(to == 0), HOP_STALL_NS)

    async def bandwidth(self, working_set: int) -> float:
        """GB/s of memcpy; see `copy_bandwidth`."""
        return await asyncio.get_running_loop().run_in_executor(self._loops, copy_bandwidth, working_set)

    def _hop(self, number: int, to: int, events: bool) -> tuple[int, int, int, int]:
        words = self._address(WORDS)
        wakes = (self._notifiers[to], self._epoll) if events else (-1, -1)
        return words + number * WORD_STRIDE, words + to * WORD_STRIDE, *wakes

    def _address(self, offset: int) -> int:
        if self._region is None:
            raise ValueError("nothing is attached yet")
        return self._region.address + offset

    def _reset(self) -> None:
        self._trackers[:] = 0
        self._counts[:] = 0
        self._wait[0]["spin_ns"] = SPIN_START_NS

    async def _run(self, kernel: Callable[..., int], *arguments: int) -> int:
        result = await asyncio.get_running_loop().run_in_executor(self._loops, kernel, *arguments)
        if result < 0:
            raise TimeoutError("the other side came to a stop")
        return result


async def serve(fd: int) -> None:
    """Load the kernels, then serve; the end of the socket is the end of the process."""
    load_loops()
    worker = Worker()
    Channel(adopt_socket(fd), worker.handlers(), name="the floor", takes_fds={"attach"}, on_close=lambda: os._exit(0))
    await asyncio.Event().wait()


if __name__ == "__main__":
    die_with_parent()
    set_name("floor")
    asyncio.run(serve(int(sys.argv[1])))
