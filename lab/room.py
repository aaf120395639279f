"""How much RAM a domain of each kind needs: what its front end, or Dom0, puts there (pure arithmetic, no numpy).

`lab.topology` refuses less before anything is started. The sizes are those of the files named; tests/lab/test_room.py holds them
together, and boots guests in exactly this much.
"""

from typing import Final

PAGE: Final = 4096
QUEUE_ENTRY: Final = 16  # a descriptor, a completion: hyp/abi/nic.py
BUFFER: Final = 2048 + 64  # a slot's buffer of the drivers of a NIC context: domu/frontends/bypass.py
SPLIT_SLOTS: Final = 256  # of each ring, with a page each: domu/frontends/split.py
SPLIT_RINGS: Final = 2
DOM0_BUFFERS: Final = 1024  # of Dom0's engine, with a page each: dom0/state.py


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _queues(queue: int) -> int:
    """Page 0, which nobody uses, and the four queues of a context (hyp/ram.py)."""
    return PAGE + 4 * _whole_pages(queue * QUEUE_ENTRY)


def guest_needs(path: str, queue: int) -> int:
    """Bytes of RAM of a guest on `path` whose context, if it has one, has queues of `queue` descriptors; 0 if nobody knows."""
    if path in ("native", "bypass", "trapped"):
        return _queues(queue) + 2 * _whole_pages(queue * BUFFER)
    if path == "split":
        return PAGE + (SPLIT_RINGS + 2 * SPLIT_SLOTS) * PAGE
    return 0


def dom0_needs(queue: int) -> int:
    """Bytes of RAM of Dom0: its context, a page per receive slot, and the buffers of its engine."""
    return _queues(queue) + (queue + DOM0_BUFFERS) * PAGE
