"""The loop of the floor of TAP guests: frames from one TAP to another and back (pump_worker.py)."""

from hyp.abi.sizes import MAX_FRAME
from hyp.abi.vnet import VNET_BYTES
from hyp.atomics import epoll_sleep, sys_read, sys_write
from hyp.kernels import entry, i64

BATCH = 64  # frames from one TAP before the other's turn
ROOM = VNET_BYTES + MAX_FRAME


@entry(i64(i64, i64, i64, i64))
def pump(one: int, other: int, epoll: int, room: int) -> int:
    """Move frames between two TAPs until a signal arrives, asleep in `epoll` while there are none. `room`: of ROOM bytes.

    What the kernel doesn't take is lost, as on a TAP. Returns how many were moved.
    """
    moved = 0
    while epoll_sleep(epoll, -1, 0) >= 0:
        source, sink = one, other
        for _ in range(2):
            for _ in range(BATCH):
                length = sys_read(source, room, ROOM)
                if length <= 0:
                    break
                sys_write(sink, room, length)
                moved += 1
            source, sink = other, one
    return moved
