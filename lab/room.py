"""How much RAM a domain of each kind needs: what its front end, or Dom0, puts there (pure arithmetic, no numpy).

`lab.topology` refuses less before anything is started. tests/lab/test_room.py counts what is
allocated, and boots guests in exactly this much.
"""

from hyp.abi.sizes import DOM0_BUFFERS, FRAME_BUFFER, PAGE, QUEUE_ENTRY, SPLIT_RINGS, SPLIT_SLOTS


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _queues(queue: int) -> int:
    """Page 0, which nobody uses, and the four queues of a context (hyp/ram.py)."""
    return PAGE + 4 * _whole_pages(queue * QUEUE_ENTRY)


def guest_needs(path: str, queue: int) -> int:
    """Bytes of RAM of a guest on `path` whose context, if it has one, has queues of `queue` descriptors; 0 if nobody knows."""
    if path in ("native", "bypass", "trapped"):
        return _queues(queue) + 2 * _whole_pages(queue * FRAME_BUFFER)
    if path == "split":
        return PAGE + (SPLIT_RINGS + 2 * SPLIT_SLOTS) * PAGE
    return 0


def dom0_needs(queue: int) -> int:
    """Bytes of RAM of Dom0: its context, a page per receive slot, and the buffers of its engine."""
    return _queues(queue) + (queue + DOM0_BUFFERS) * PAGE
