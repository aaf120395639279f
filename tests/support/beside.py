"""Something that goes on in a second thread while a test does something else."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside(step: Callable[[], object], every_s: float = 0.0) -> Iterator[None]:
    """`step` is called again and again, `every_s` after it has returned, until the block ends."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(every_s):
            step()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
