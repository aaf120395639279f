"""The floor of TAP guests: one process that moves frames between two TAPs.

``python -m bench.programs.pump_worker FD ADDRESS ADDRESS``: what is set up goes out on FD (taps.py). Whatever carries frames
between TAP guests reads each from one TAP and writes it to another; this does nothing else: frames are read and written whole
with their virtio_net_hdr, and not looked at.

Source: epoll(7).
"""

import json
import os
import select
import sys

import numpy as np

from bench.programs.pump import ROOM, pump
from bench.programs.taps import hand_out, make_ends
from hyp import linux

NAME = "pump"


def main() -> None:
    """Make both ends, hand out their namespaces, pump until killed."""
    linux.die_with_parent()
    linux.set_name(NAME)
    ends = make_ends(sys.argv[2:4])  # while there is one thread
    epoll = select.epoll()
    for end in ends:
        epoll.register(end.tap, select.EPOLLIN)
    room = np.zeros(ROOM, np.uint8)
    pump.load()
    hand_out(int(sys.argv[1]), ends, json.dumps({NAME: os.getpid()}).encode())
    while True:
        pump(ends[0].tap, ends[1].tap, epoll.fileno(), int(room.ctypes.data))


if __name__ == "__main__":
    main()
