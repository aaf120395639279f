"""What an attack works with: a guest that has booted and connected as any other, and does nothing of its own.

Its methods are called in the attack's thread, and wait. Who tells it what to do: hostile.py.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.isolation.drivers import HostileDriver, driver_for
from bench.isolation.victim import CANARY
from domu.guest import Guest
from hyp.abi.nic import PAGE, mac_to_int
from hyp.control import PeerGone, Refused, Reply, close_all
from hyp.kernels import Entry
from hyp.process import Process
from hyp.xenstore.client import XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import frontend_path

CALL_S = 30.0
TEST_ETHERTYPE = b"\x88\xb5"


class Attacker:
    """The guest's hostile half."""

    def __init__(self, process: Process, guest: Guest, store: XenstoreClient | None) -> None:
        self.process, self.guest, self.store = process, guest, store
        self._loop = asyncio.get_running_loop()
        self.path = str(guest.config["path"])
        self.drivers = [driver_for(guest, device, self.call) for device in guest.devices]
        """One for each queue."""
        self.driver = self.drivers[0]
        self.mac = guest.device.mac
        self.macs: dict[str, str] = {}
        self.streams: list[int] = []
        self.attempts, self.got = 0, Counter[str]()
        self._posted = 0
        self.kept: list[Any] = []
        """What the attack holds on to, until the guest ends."""
        self._calm, self._begun = threading.Event(), threading.Event()
        self._running: asyncio.Future[str] | None = None

    # -- for attacks --

    def goes_on(self, times: int = 1) -> bool:
        """Whether to go on; the attack has been tried `times` more since it asked last."""
        self.attempts += times
        if self.attempts > times:
            self._begun.set()
        return not self._calm.is_set()

    def rest(self, seconds: float | None = None) -> bool:
        """Having attacked, do nothing for a while, or until told to be calm. Whether to go on."""
        self._begun.set()
        return not self._calm.wait(seconds)

    def loop(self, entry: Entry, driver: "HostileDriver | None" = None, **words: int) -> None:
        """Run a compiled loop, on the first queue or that of a driver, until told to be calm."""
        job = (driver or self.driver).job
        row = job[0]
        row["stop"] = row["until_ns"] = 0
        for name, value in words.items():
            row[name] = value
        watcher = threading.Thread(target=lambda: (self._calm.wait(), row.__setitem__("stop", 1)), daemon=True)
        watcher.start()
        self._begun.set()
        tried = int(entry(int(job.ctypes.data)))
        self.attempts += tried
        watcher.join()

    def call(self, op: str, /, *, keep: bool = False, **args: Any) -> dict[str, Any] | None:
        """A hypercall: its value ({} if it has none); None if it is refused, which is counted. `keep`: the descriptors, too."""
        reply = self._wait(self.guest.hyp.call(op, **args))
        if reply is None:
            return None
        if keep:
            self.kept += reply.fds
        else:
            close_all(reply.fds)
        return reply.value if isinstance(reply.value, dict) else {}

    def calls(self, requests: Sequence[tuple[str, dict[str, Any]]], wanted: str = "") -> list[Any]:
        """Hypercalls at a time. Of those that are granted, what the answer has under the name `wanted`."""
        found = []

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.guest.hyp.call(op, **args) for op, args in requests), return_exceptions=True)

        for result in asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result(CALL_S):
            if isinstance(result, Reply):
                close_all(result.fds)
                self.got["granted"] += 1
                if wanted:
                    found.append(result.value[wanted])
            else:
                self.got[result.name if isinstance(result, Refused) else type(result).__name__] += 1
        return found

    def ask(self, op: str, *args: Any) -> Any:
        """A request to the store: its answer; None if it is refused, which is counted."""
        if self.store is None:
            return None
        return self._wait(getattr(self.store, op)(*args))

    def asks(self, requests: Sequence[tuple[str, ...]]) -> None:
        """Requests to the store at a time."""
        if self.store is None:
            return
        store = self.store

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(getattr(store, op)(*args) for op, *args in requests), return_exceptions=True)

        for result in asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result(CALL_S):
            self.got[type(result).__name__ if isinstance(result, Exception) else "answered"] += 1

    def _wait(self, coroutine: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(CALL_S)
        except (Refused, XenstoreError) as error:
            self.got[error.name] += 1
        except PeerGone:
            self.got["gone"] += 1
            time.sleep(0.001)
        except TimeoutError:
            future.cancel()
            self.got["no answer"] += 1
        return None

    def home(self, node: str = "") -> str:
        """A path in the store below this guest's own directory."""
        return f"/local/domain/{self.guest.domid}{'/' + node if node else ''}"

    @property
    def front(self) -> str:
        """This guest's device in the store."""
        return frontend_path(self.guest.domid, "vif", 0)

    def header(self, to: str, source: str | None = None, kind: bytes = TEST_ETHERTYPE) -> bytes:
        """An Ethernet header. `to`, `source`: MAC addresses; the source is this guest's own unless it is given."""
        return b"".join(mac_to_int(mac).to_bytes(6, "little") for mac in (to, source or self.mac)) + kind

    def send_all(self, frames: Sequence[bytes], *, segment: int = 0, flags: int = 0) -> int:
        """Send frames, each in a page of its own, as far as there is room; how many."""
        room = min(self.driver.room(), len(frames), self.driver.pages)
        for number in range(room):
            self.driver.write(self.driver.page(number), frames[number])
            self.driver.send(self.driver.page(number), len(frames[number]), segment=segment, flags=flags)
        if room:
            self.driver.publish()
        else:
            time.sleep(0)
        return room

    def take_what_comes(self) -> None:
        """Be done with what was received, and post as many buffers, as an honest driver does."""
        for _ in range(self.driver.drain()):
            self.driver.post(self.driver.buffer(self._posted))
            self._posted += 1
        self.driver.publish()

    def be_notified(self) -> None:
        """Take what is sent, and ask for a notification each time."""
        while self.goes_on(0):
            self.take_what_comes()
            self.driver.ask()
            self.rest(0.0002)

    # -- for the role --

    async def begin(self, what: Callable[[], Any]) -> None:
        if self._running is not None:
            raise Refused("EBUSY", "an attack runs already")
        self.attempts, self.got = 0, Counter()
        self._calm.clear()
        self._begun.clear()
        self._running = self._loop.run_in_executor(None, self._guarded, what)
        await self._loop.run_in_executor(None, self._begun.wait, CALL_S)

    def _guarded(self, what: Callable[[], Any]) -> str:
        try:
            what()
            return ""
        except Exception as error:  # an attack that the kernel, or the model, has stopped, is told of as that
            return f"{type(error).__name__}: {error}"
        finally:
            self._begun.set()

    async def calm(self) -> dict[str, Any]:
        if self._running is None:
            return {"attempts": 0, "got": {}, "error": ""}
        self._calm.set()
        error, self._running = await self._running, None
        return {"attempts": self.attempts, "got": dict(self.got), "error": error}

    def canaries(self, headers: list[bytes]) -> dict[str, int]:
        memory = self.driver.memory
        words = memory[: len(memory) // 8 * 8].view(np.uint64)
        found = int(np.count_nonzero(words == np.uint64(CANARY)))
        sent = self.driver.page(0), self.driver.page(self.driver.pages - 1) + PAGE  # where its own forgeries are
        parts = [memory[: sent[0]].tobytes(), memory[sent[1] :].tobytes()]
        return {"canaries": found, "frames": sum(part.count(header) for part in parts for header in headers)}
