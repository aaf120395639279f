"""The floor of TAP guests that are processes of their own: two TAPs, and three processes between them (relay.py).

``python -m bench.programs.relay_worker FD ADDRESS ADDRESS``: what is set up goes out on FD (taps.py).
"""

import json
import mmap
import os
import select
import signal
import sys

import numpy as np

from bench.programs.relay import LANE_BYTES, relay_end, relay_middle
from bench.programs.taps import hand_out, make_ends
from hyp import linux
from hyp.events import new_eventfd

ONE, MIDDLE, OTHER = 0, 1, 2
NAMES = ("one end", "relay", "other end")


def _upcall(*fds: int) -> select.epoll:
    """An epoll of eventfds, which are never read, and TAPs."""
    epoll = select.epoll()
    for fd in fds:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
    return epoll


def main() -> None:
    """Make both ends, hand out their namespaces, carry frames until killed."""
    linux.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ends = make_ends(sys.argv[2:4])  # while there is one thread
    for loop in (relay_end, relay_middle):
        loop.load()
    lanes = np.frombuffer(mmap.mmap(-1, 4 * LANE_BYTES), np.uint8)  # the children's, too
    from_one, to_one, from_other, to_other = (int(lanes.ctypes.data) + k * LANE_BYTES for k in range(4))
    wakes = [new_eventfd() for _ in NAMES]
    carriers = {NAMES[MIDDLE]: os.getpid()}
    for k, tap, incoming, outgoing in ((ONE, ends[0].tap, to_one, from_one), (OTHER, ends[1].tap, to_other, from_other)):
        child = os.fork()
        if child == 0:
            linux.die_with_parent()
            if os.getppid() == carriers[NAMES[MIDDLE]]:
                linux.set_name(NAMES[k])
                upcall = _upcall(wakes[k], tap)
                relay_end(tap, incoming, outgoing, upcall.fileno(), wakes[MIDDLE])
            os._exit(1)
        carriers[NAMES[k]] = child
    linux.set_name(NAMES[MIDDLE])
    hand_out(int(sys.argv[1]), ends, json.dumps(carriers).encode())
    upcall = _upcall(wakes[MIDDLE])
    relay_middle(from_one, to_other, from_other, to_one, upcall.fileno(), wakes[ONE], wakes[OTHER])


if __name__ == "__main__":
    main()
