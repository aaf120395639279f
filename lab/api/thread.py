"""An event loop in a thread of its own, on which coroutines are run for a caller that blocks.

So the caller may have a running loop itself, as a notebook has. An interrupt (Ctrl-C) of the caller cancels the coroutine, waits
until that has taken effect, and is raised then.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hyp import limits

T = TypeVar("T")


class LoopThread:
    """The thread, and its loop, until `close`."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._started = threading.Event()
        # a daemon: a script may end without closing its lab, which the keeper notices
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        with limits.told_of_threads(f"the thread of {name}"):
            self._thread.start()
        self._started.wait()

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._over.wait()

    def run(self, coroutine: Coroutine[Any, Any, T], *, to_the_end: bool = False) -> T:
        """Run a coroutine; returns what it returns, or raises what it raises.

        Interrupted, it cancels the coroutine, or, `to_the_end`, lets it go on; either way it waits for its end, then raises the
        interrupt.
        """
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            if not tasks and not done.done():
                tasks.append(self._loop.create_task(coroutine))
                tasks[0].add_done_callback(lambda task: _transfer(task, done))

        def cancel() -> None:
            if not tasks:  # interrupted before it could begin
                coroutine.close()
                done.cancel()
            elif not tasks[0].cancelling():  # a second time would cut its cleaning up short
                tasks[0].cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
            return done.result()
        except BaseException:
            if not done.done():  # an interrupt, not its own error
                self._see_through(begin if to_the_end else cancel, done)
            raise

    def _see_through(self, action: Callable[[], None], done: "concurrent.futures.Future[Any]") -> None:
        """Do `action` on the loop and wait for the end, whatever else interrupts. An action that is done twice is done once."""
        while not done.done():
            try:
                self._loop.call_soon_threadsafe(action)
                concurrent.futures.wait({done})
            except BaseException:  # one more interrupt, while the first is being obeyed
                continue

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    @property
    def is_current(self) -> bool:
        """Whether the caller is the loop itself."""
        return threading.current_thread() is self._thread


def _transfer(task: "asyncio.Task[T]", done: "concurrent.futures.Future[T]") -> None:
    if task.cancelled():
        done.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())
