"""A neighbour whose memory nobody may see or change: an honest traffic guest, but all of its RAM that it doesn't use is canaries.

Beside the traffic program's operations its console has

intact {}        how many of its canaries have been changed
calls {seconds}  hypercalls, then reads from the store, one after the other: {"calls", "reads", "seconds", "slowest_ms"}
"""

import asyncio
import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from domu.boot import run_program
from domu.guest import Guest
from domu.programs.traffic import Traffic
from hyp.process import Process
from hyp.xenstore.client import XenstoreClient

CANARY = 0xC0A1_7FEE_DEAD_B17D
"""A word that is nowhere by chance."""


class Victim(Traffic):
    """The traffic program in a guest full of canaries."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self._guest = guest
        first = guest.ram.allocate(0)
        size = (guest.ram.size - first) // 8 * 8
        memory: Any = (ctypes.c_char * size).from_address(guest.ram.address + first)
        self._canaries = np.frombuffer(memory, np.uint64)
        self._canaries[:] = CANARY
        self._store = next((one for one in guest.device.keep if isinstance(one, XenstoreClient)), None)
        for handler in (self.intact, self.calls):
            guest.process.serve(handler.__name__, handler)

    def intact(self) -> int:
        return int(np.count_nonzero(self._canaries != CANARY))

    async def calls(self, seconds: float) -> dict[str, float]:
        store, hyp = self._store, self._guest.hyp
        if store is None:
            store = self._store = await XenstoreClient.lasting(self._guest.process.store_socket)
        counts, slowest, node = {"calls": 0, "reads": 0}, 0.0, f"/local/domain/{self._guest.domid}/name"
        asks: dict[str, Callable[[], Any]] = {
            "calls": lambda: hyp.call("evtchn_status", port=1), "reads": lambda: store.read(node),
        }  # fmt: skip
        begin = time.monotonic()
        for name, ask in asks.items():
            end = time.monotonic() + seconds / 2
            while (now := time.monotonic()) < end:
                await asyncio.gather(ask(), return_exceptions=True)
                counts[name] += 1
                slowest = max(slowest, time.monotonic() - now)
        return {**counts, "seconds": time.monotonic() - begin, "slowest_ms": 1000 * slowest}


async def main(process: Process, config: dict[str, Any]) -> None:
    """The guest process's role."""
    await run_program(process, config, Victim)
