"""An engine: one compiled loop in a thread of its own, and the mailbox by which set-up changes reach it.

One call of the kernel is one life of the engine, its sleeps included: a return to Python per wake-up would cost the
interpreter lock's switch interval. The control plane talks to a running engine only through its mailbox:

    control thread  writes a message, publishes `posted`, signals the engine's eventfd
    engine          between two batches takes messages up to `posted`, then publishes `taken`, signals the control thread

Both ends are threads of one process, which trusts itself. Ordering is release/acquire on the two indices.
"""

import asyncio
import os
import select
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from hyp import limits, linux
from hyp.atomics import load64, load64_acquire, memcpy, notify, store64_release
from hyp.events import new_eventfd
from hyp.kernels import compiled, entry, i64, void

MAIL_SLOTS = 64
MESSAGE_BYTES = 128  # opcode and at most 15 words, int64 each
POSTED, TAKEN, REPLY_FD, MESSAGES = 0, 64, 128, 192
MAILBOX_BYTES = MESSAGES + MAIL_SLOTS * MESSAGE_BYTES

STOP = 0
"""The one opcode that every engine knows; the others are the engine's own, from 1 on. (A program's: domu/exchange.py, too.)"""


def mail_record(*words: str) -> "np.dtype[np.void]":
    """Layout of an engine's messages: ``opcode``, then `words`. A message has those that its operation needs; the others are 0."""
    names = ["opcode", *words]
    return np.dtype({"names": names, "formats": ["i8"] * len(names), "itemsize": MESSAGE_BYTES})


NO_WORDS = mail_record()
"""Of an engine that knows nothing but `STOP`."""


@compiled
def mail_address(box: int, sequence: int) -> int:
    """Address of message `sequence`, which the engine views as its `mail_record`."""
    return box + MESSAGES + (sequence % MAIL_SLOTS) * MESSAGE_BYTES


@entry(void(i64, i64, i64))
def _post(box: int, message: int, sequence: int) -> None:
    """Copy the message at `message` into the slot of `sequence` and publish it."""
    memcpy(mail_address(box, sequence), message, MESSAGE_BYTES)
    store64_release(box + POSTED, sequence + 1)


@compiled
def mail_waiting(box: int, taken: int) -> int:
    """Number of messages posted and not yet taken by the engine, which has taken `taken` so far."""
    return load64_acquire(box + POSTED) - taken


@compiled
def mail_opcode(box: int, sequence: int) -> int:
    """What message `sequence` asks for; `mail_waiting` has said that it is there."""
    return load64(mail_address(box, sequence))


@compiled
def mail_taken(box: int, taken: int) -> None:
    """Tell the control thread that every message before `taken` has been carried out."""
    store64_release(box + TAKEN, taken)
    notify(load64_acquire(box + REPLY_FD))


class Engine:
    """Runs `kernel(*args)` in a thread; `post` carries one message to it and waits until it was taken."""

    def __init__(self, name: str, epoll: int) -> None:
        self.name, self.epoll = name, epoll
        self._words = np.zeros(MAILBOX_BYTES // 8, np.int64)
        self.mailbox = int(self._words.ctypes.data)
        self._kick, reply = new_eventfd(), new_eventfd()
        self._reply = reply
        self._words[REPLY_FD // 8] = reply
        poll = select.epoll.fromfd(epoll)
        poll.register(self._kick, select.EPOLLIN | select.EPOLLET)
        self._poll = poll  # owns the descriptor from here on
        self._posted = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._thread: threading.Thread | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self._ended: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()

    def wake_on(self, eventfd: int) -> None:
        """Wake the engine for another eventfd of this process."""
        self._poll.register(eventfd, select.EPOLLIN | select.EPOLLET)

    def start(self, kernel: Callable[..., Any], *args: Any, mail: "np.dtype[np.void]" = NO_WORDS) -> None:
        """Start the loop, whose messages are `mail` records. Must be called in a running event loop.

        `limits.TooFew` if there can be no more threads.
        """
        self._mail = mail
        loop = asyncio.get_running_loop()
        loop.add_reader(self._reply, self._take_reply)
        self._ended = loop.create_future()

        def run() -> None:
            linux.sleep_exactly()
            try:
                self.result = kernel(*args)
            except BaseException as error:
                self.error = error
            try:
                loop.call_soon_threadsafe(self._finish)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        with limits.told_of_threads(f"the thread of {self.name}"):
            self._thread.start()

    @property
    def thread_id(self) -> int:
        """Kernel thread id, for CPU accounting; 0 before the start."""
        return (self._thread.native_id or 0) if self._thread else 0

    def pin(self, cpus: list[int]) -> None:
        """Let the loop run on these CPUs only."""
        os.sched_setaffinity(self.thread_id, cpus)

    async def post(self, opcode: int, **words: int) -> None:
        """Send one message and wait until the engine has carried it out. RuntimeError if the engine has ended.

        ValueError if its messages have no such word.
        """
        self._must_run()
        message = np.zeros(1, self._mail)
        for name, value in {"opcode": opcode, **words}.items():
            message[0][name] = value
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with self._turn:  # so that nobody overtakes who waits for room
            while self._posted - int(self._words[TAKEN // 8]) >= MAIL_SLOTS:
                await asyncio.wait({self._waiters[0][1]})  # its own poster may be cancelled, which is not our affair
                self._must_run()
            _post(self.mailbox, int(message.ctypes.data), self._posted)
            self._posted += 1
            self._waiters.append((self._posted, future))
            os.eventfd_write(self._kick, 1)
        await future

    @property
    def running(self) -> bool:
        """It has been started, and has not ended."""
        return self._ended is not None and not self._ended.done()

    def _must_run(self) -> None:
        if not self.running:
            raise RuntimeError(f"engine {self.name} does not run")

    async def stop(self) -> Any:
        """Ask the loop to end and wait for it; returns what the kernel returned."""
        if self._ended is not None and not self._ended.done():
            await self.post(STOP)
        return await self.wait()

    async def wait(self) -> Any:
        """Wait until the kernel returns; returns its result or raises what it raised."""
        assert self._ended is not None, "not started"
        await asyncio.shield(self._ended)
        if self.error is not None:
            raise self.error
        return self.result

    def _take_reply(self) -> None:
        try:
            os.eventfd_read(self._reply)
        except BlockingIOError:
            return
        self._wake(int(self._words[TAKEN // 8]))

    def _wake(self, taken: int) -> None:
        while self._waiters and self._waiters[0][0] <= taken:
            future = self._waiters.pop(0)[1]
            if not future.done():
                future.set_result(None)

    def _finish(self) -> None:
        self._wake(int(self._words[TAKEN // 8]))
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(RuntimeError(f"engine {self.name} has ended"))
        self._waiters.clear()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
