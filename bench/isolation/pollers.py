"""A process that polls a descriptor many times over: whoever makes it ready pays for each place, each time.

The kernel goes through all places, even if who waits there was woken before and has not come to run yet: which these threads do
not, since they wait until nobody else wants their CPU, and another one of the process always does.

    python bench/isolation/pollers.py DESCRIPTOR EVENTS PLACES THREADS      until its standard input ends

Where EVENTS is 0, what the descriptor is polled for never comes, and the places stay whatever wakes them.
"""

import ctypes
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PLACES: Final = 20_000
THREADS: Final = 16
READY: Final = b"polling\n"


def places() -> int:
    """Where it is polled, if nothing else is said: a thread polls as often as it may have descriptors."""
    return min(PLACES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]) * THREADS


@contextmanager
def polled_many_times(fd: int, places: int = PLACES, threads: int = THREADS, events: int = select.POLLIN) -> Iterator[None]:
    """An epoll descriptor is polled `places` times over by each of so many threads, of which none does anything else.

    `events` 0: any descriptor, and for nothing.
    """
    command = [sys.executable, __file__, str(fd), str(events), str(places), str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd])
    assert process.stdout is not None
    try:
        if process.stdout.readline() != READY:
            raise OSError("it cannot be polled")
        yield
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    fd, events, places, threads = (int(word) for word in sys.argv[1:])
    libc, one = ctypes.CDLL(None), struct.pack("<ihh", fd, events, 0)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    places = min(places, most)

    def poll() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        polled, pending = ctypes.create_string_buffer(one * places), ctypes.create_string_buffer(256)
        while True:
            if events:
                libc.epoll_wait(fd, pending, 16, 0)  # who finds something there does not get to wait
            libc.poll(polled, places, -1)

    for _ in range(threads):
        threading.Thread(target=poll, daemon=True).start()
    while _awake() > 1:  # this one
        time.sleep(0.001)
    os.write(1, READY)
    if not events:
        os.read(0, 1)
        return
    os.nice(5)
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
    while True:
        pass


def _awake() -> int:
    """How many threads do not wait; by the numbers of whatever namespace this is."""
    awake = 0
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/stat") as stat:
            awake += stat.read().rpartition(")")[2].split()[0] != "S"
    return awake


if __name__ == "__main__":
    main()
